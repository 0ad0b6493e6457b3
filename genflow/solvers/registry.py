r"""The samplers by name.

`build` makes a sampler from a name, the same names that the command line speaks; `schedule_for`
stops one step earlier and hands out the schedule or the table. To add a sampler, write a function
of a path and its times that returns a `SolverSchedule` or a `Tableau`, and decorate it with
`register`.
"""

__all__ = ["PRESETS", "Preset", "build", "preset", "register", "schedule_for"]

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
import inspect
from typing import Any

from torch import Tensor

from genflow.errors import UserError, nearest
from genflow.models.denoisers import Denoiser, inside
from genflow.models.grids import grid
from genflow.models.paths import Path
from genflow.solvers import flows, presets, tables
from genflow.solvers.adaptive import Adaptive
from genflow.solvers.adjoint import Gradient
from genflow.solvers.empirical import Statistics
from genflow.solvers.files import read_solver
from genflow.solvers.samplers import Sampler
from genflow.solvers.schedules import SolverSchedule
from genflow.solvers.tableau import Tableau


@dataclass(frozen=True)
class Preset:
    """An entry of the registry.

    Attributes:
        name: The name.
        make: A function (path, times, **options) → schedule or table; None for adaptive solvers.
        order: The order of convergence, in words.
        nfe: The number of calls for N steps, in words.
        title: The title of the source.
        url: Its address.
        gradient: The gradient policy that it is built with unless another is given.
    """

    name: str
    make: Callable[..., SolverSchedule | Tableau] | None
    order: str
    nfe: str
    title: str
    url: str
    gradient: str = "none"

    @property
    def options(self) -> dict[str, Any]:
        """The options of the preset and their defaults."""

        source = self.make or Adaptive
        return {
            k: p.default
            for k, p in inspect.signature(source).parameters.items()
            if p.default is not inspect.Parameter.empty and k != "gradient"
        }

    @property
    def spaced(self) -> bool:
        """Whether it is put on a grid of times, and does not bring its own."""

        return self.make is not None and "file" not in self.options


PRESETS: dict[str, Preset] = {}
"""All samplers by name."""


def register(
    name: str,
    *,
    order: str,
    nfe: str = "N",
    title: str = "",
    url: str = "",
    gradient: str = "none",
) -> Callable[[Callable], Callable]:
    """Adds a function (path, times, **options) → schedule or table to the registry."""

    def add(make: Callable) -> Callable:
        PRESETS[name] = Preset(name, make, order, nfe, title, url, gradient)
        return make

    return add


def preset(name: str) -> Preset:
    """The entry with a name; underscores and ``++`` are understood.

    Raises:
        UserError: If there is none; the message names the nearest.
    """

    key = name.lower().replace("_", "-").replace("++", "pp")

    if key not in PRESETS:
        raise UserError(f"sampler is '{name}'{nearest(key, PRESETS)}")

    return PRESETS[key]


GRID_OPTIONS = tuple(inspect.signature(grid).parameters)[2:]


def _split(entry: Preset, options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of the grid ("grid" for its kind) and of the method; unknown ones are refused."""

    known = entry.options
    names = {"grid" if k == "kind" else k for k in GRID_OPTIONS} if entry.spaced else set()

    for key in options:
        if key not in known and key not in names:
            allowed = [*known, *names]
            raise UserError(
                f"sampler '{entry.name}' has the option '{key}'{nearest(key, allowed)}"
            )

    method = {k: v for k, v in options.items() if k in known}
    spacing = {"kind" if k == "grid" else k: v for k, v in options.items() if k not in known}
    return spacing, method


def schedule_for(
    name: str,
    path: Path,
    steps: int = 20,
    *,
    times: Sequence[float] | None = None,
    **options: Any,
) -> SolverSchedule | Tableau:
    """The schedule, or the table, of a named sampler.

    Args:
        name: The name.
        path: The path.
        steps: The number of steps N; the number of calls for singlestep methods. A searched
            schedule has its own.
        times: N + 1 decreasing times, instead of a grid.
        options: Options of the grid (``grid``, ``start``, ``stop``, ``final``, ``rho``, ``shift``)
            and of the method.

    Raises:
        UserError: If the name or an option is unknown, or the sampler is adaptive.
    """

    entry = preset(name)

    if entry.make is None:
        raise UserError(f"sampler '{entry.name}' chooses its own steps: it has no schedule.")

    spacing, method = _split(entry, options)
    if times is None:
        times = grid(path, steps, **spacing) if entry.spaced else ()
    return entry.make(path, tuple(times), **method)


def build(
    name: str,
    denoiser: Denoiser,
    steps: int = 20,
    *,
    gradient: str | Gradient | None = None,
    statistics: Statistics | None = None,
    mean: Tensor | None = None,
    **options: Any,
) -> Sampler | Adaptive:
    """A sampler by name.

    Args:
        name: A name of the registry; ``genflow samplers`` lists them.
        denoiser: The denoiser.
        steps: The number of steps.
        gradient: The gradient policy, as in `Sampler`; the sampler's own if None, which is
            ``"none"`` but for adjoint-dpm.
        statistics: The statistics of DPM-Solver-v3, as in `Sampler`.
        mean: The mean of the data, as in `Sampler`.
        options: Options of the grid and of the method, as in
            [`schedule_for`][genflow.solvers.registry.schedule_for].

    Returns:
        The sampler. It begins 1e-3 inside of the path where the denoiser has no velocity at its
        noisy end, as where noise is predicted and there is no signal; and no stage reads the
        velocity at a clean end where there is none.

    Raises:
        UserError: If a name or a value is not allowed.
    """

    entry = preset(name)
    gradient = entry.gradient if gradient is None else gradient

    if entry.make is None:
        _, method = _split(entry, options)
        return Adaptive(denoiser, gradient=gradient, **method)

    if entry.spaced and "times" not in options and "start" not in options:
        start = inside(denoiser, denoiser.path.t_max, -1)
        options |= {"start": start} if start != denoiser.path.t_max else {}

    schedule = schedule_for(name, denoiser.path, steps, **options)

    if "avoid" in entry.options and "avoid" not in options:
        avoid = [t for t in schedule.time.tolist() if not denoiser.regular(t)]
        if avoid:
            schedule = schedule_for(name, denoiser.path, steps, **options, avoid=avoid)

    return Sampler(denoiser, schedule, gradient, statistics=statistics, mean=mean)


_EDM = "Elucidating the Design Space of Diffusion-Based Generative Models"
_DPM = "DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling"
_DPMPP = "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models"
_DDIM = "Denoising Diffusion Implicit Models"
_FLOW = "Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow"

for _name, _order, _nfe in (
    ("euler", "1", "N"),
    ("midpoint", "2", "2N"),
    ("heun", "2", "2N or less"),
    ("rk4", "4", "4N or less"),
):
    register(_name, order=_order, nfe=_nfe, title=_FLOW, url="https://arxiv.org/abs/2209.03003")(
        partial(tables.runge_kutta, method=_name)
    )

register("ddim", order="1", title=_DDIM, url="https://arxiv.org/abs/2010.02502")(presets.ddim)
register(
    "ddpm",
    order="1/2 (SDE)",
    title="Denoising Diffusion Probabilistic Models",
    url="https://arxiv.org/abs/2006.11239",
)(partial(presets.ddim, eta=1.0))
register(
    "karras-heun", order="2", nfe="2N − 1", title=_EDM, url="https://arxiv.org/abs/2206.00364"
)(tables.karras_heun)

for _stem, _predict, _title, _number in (
    ("dpm", "noise", _DPM, "2206.00927"),
    ("dpmpp", "data", _DPMPP, "2211.01095"),
):
    _make = partial(presets.dpm, predict=_predict)
    _url = f"https://arxiv.org/abs/{_number}"
    register(_stem, order="order", title=_title, url=_url)(_make)
    for _q in (2, 3):
        register(f"{_stem}-{_q}m", order=str(_q), title=_title, url=_url)(partial(_make, order=_q))
        register(f"{_stem}-{_q}s", order=str(_q), title=_title, url=_url)(
            partial(_make, order=_q, method="singlestep")
        )

register(
    "unipc",
    order="order + 1",
    title="UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models",
    url="https://arxiv.org/abs/2302.04867",
)(presets.unipc)
register(
    "dpm-v3",
    order="order, pseudo 2",
    title="DPM-Solver-v3: Improved Diffusion ODE Solver with Empirical Model Statistics",
    url="https://arxiv.org/abs/2310.13268",
)(presets.dpm_v3)
register(
    "ipndm",
    order="order, even grid",
    title="Pseudo Numerical Methods for Diffusion Models on Manifolds",
    url="https://arxiv.org/abs/2202.09778",
)(partial(tables.adams, variable="index"))
register(
    "euler-maruyama",
    order="1 (SDE)",
    title="SiT: Exploring Flow and Diffusion-based Generative Models with Scalable Interpolant "
    "Transformers",
    url="https://arxiv.org/abs/2401.08740",
)(flows.euler_maruyama)
register(
    "reinterpolate",
    order="straight flows",
    title="Improving the Training of Rectified Flows",
    url="https://arxiv.org/abs/2405.20320",
)(flows.reinterpolate)


@register(
    "deis",
    order="order",
    title="Fast Sampling of Diffusion Models with Exponential Integrator",
    url="https://arxiv.org/abs/2204.13902",
)
def _deis(
    path: Path,
    times: Sequence[float],
    *,
    order: int = 3,
    variable: str = "lambda",
    lower_final: bool | None = None,
) -> SolverSchedule | Tableau:
    """DEIS with polynomials in λ (a Taylor method on the noise estimate), in ρ, or in t."""

    if variable == "lambda":
        return presets.dpm(
            path,
            times,
            order=order,
            predict="noise",
            variant="taylor",
            lower_final=lower_final,
        )
    return tables.adams(path, times, order=order, variable=variable)


@register(
    "adjoint-dpm",
    order="1",
    title="AdjointDPM: Adjoint Sensitivity Method for Gradient Backpropagation of Diffusion "
    "Probabilistic Models",
    url="https://arxiv.org/abs/2307.10711",
    gradient="continuous",
)
def _adjoint_dpm(path: Path, times: Sequence[float]) -> SolverSchedule:
    """Euler's method in ρ, which is DDIM; its gradients solve the adjoint equation."""

    return presets.ddim(path, times)


def _searched(
    path: Path, times: Sequence[float], *, name: str, file: str = ""
) -> SolverSchedule | Tableau:
    """What a search found, with its own times."""

    if not file:
        raise UserError(
            f"sampler '{name}' runs what a search found: give its file, as in --options.file "
            "schedule.json, or search one with 'genflow search'."
        )
    return read_solver(file, path)


for _name, _title, _url in (
    (
        "usf",
        "Unified Sampling Framework for Diffusion Probabilistic Models (USF)",
        "https://openreview.net/forum?id=W2d3LZbhhI",
    ),
    (
        "autodiffusion",
        "AutoDiffusion: Training-Free Optimization of Time Steps and Architectures",
        "https://arxiv.org/abs/2309.10438",
    ),
):
    _make = partial(_searched, name=_name)
    register(_name, order="as found", nfe="as found", title=_title, url=_url)(_make)

PRESETS["dopri5"] = Preset(
    "dopri5",
    None,
    "5",
    "adaptive",
    "A family of embedded Runge-Kutta formulae",
    "https://doi.org/10.1016/0771-050X(80)90013-3",
)
