r"""Schedules to begin with: what is known already should not have to be found again.

`presets` gives every sampler of the registry on every grid with a number of calls, the baseline
that a searched schedule has to beat. Further grids of times, each under a few samplers:

* ``beta``: quantiles of the Beta(0.6, 0.6) law, dense at both ends;
* ``ays``: the noise levels of Align Your Steps, published for Stable Diffusion 1.5 and XL at ten
  steps; carried over by λ, and interpolated in it for other numbers of steps;
* ``gits``: the cheapest chain of Euler steps through a teacher's trajectories, found exactly by
  dynamic programming on the table of one-step errors.

References:
    Beta Sampling is All You Need: Efficient Image Generation Strategy for Diffusion Models
    https://arxiv.org/abs/2407.12173

    Align Your Steps: Optimizing Sampling Schedules in Diffusion Models
    https://arxiv.org/abs/2404.14507

    On the Trajectory Regularity of ODE-based Diffusion Sampling (GITS)
    https://arxiv.org/abs/2405.11326
"""

__all__ = ["ays", "beta", "chain", "distinct", "gits", "presets", "seeds_for", "step_errors"]

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
import math
from typing import Any

import numpy as np
from scipy.stats import beta as beta_law
import torch
from torch import Tensor

from genflow.errors import UserError
from genflow.models.denoisers import Denoiser
from genflow.models.grids import grid
from genflow.models.paths import Discrete, Path
from genflow.search.population import Solver
from genflow.search.spaces import Score
from genflow.search.teachers import trajectory
from genflow.solvers.registry import schedule_for
from genflow.solvers.schedules import SolverSchedule

METHODS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("ddim", {}),
    ("dpmpp-2m", {}),
    ("dpmpp-3m", {}),
    ("dpmpp-2s", {}),
    ("dpmpp-3s", {}),
    ("dpm-2m", {}),
    ("dpm-2s", {}),
    ("dpm-3s", {}),
    ("unipc", {}),
    ("unipc", {"order": 3}),
    ("unipc", {"order": 2, "variant": "bh1"}),
    ("unipc", {"order": 2, "predict": "noise"}),
    ("deis", {}),
    ("deis", {"order": 2}),
    ("deis", {"variable": "rho"}),
    ("ipndm", {"order": 2}),
    ("ipndm", {"order": 3}),
    ("ipndm", {"order": 4}),
    ("euler", {}),
    ("midpoint", {}),
    ("heun", {}),
    ("karras-heun", {}),
)
"""Samplers and options that count as presets."""

GRIDS: tuple[Mapping[str, Any], ...] = (
    *(
        {"grid": g, "final": f}
        for g in ("logsnr", "uniform", "quadratic")
        for f in ("min", "zero")
    ),
    *({"grid": "karras", "rho": r, "final": f} for r in (3.0, 7.0) for f in ("min", "zero")),
    {"grid": "trailing"},
    {"grid": "uniform", "final": "min", "shift": 2.0},
    {"grid": "uniform", "final": "min", "shift": 0.5},
)
"""The grids that a preset is tried on."""

AYS = {
    "ays-sd": (999, 850, 736, 645, 545, 455, 343, 233, 124, 24),
    "ays-sdxl": (999, 845, 730, 587, 443, 310, 193, 116, 53, 13),
}
"""Published timesteps of Align Your Steps, on the 1,000 levels of Stable Diffusion."""


def presets(path: Path, nfe: int) -> Iterator[tuple[str, Solver]]:
    """Every preset on every grid that has a number of calls.

    Args:
        path: The path.
        nfe: The number of calls of the network.

    Yields:
        A name, and the schedule, or the table of a method that has no schedule.
    """

    for options in GRIDS:
        spacing = {k: v for k, v in options.items() if k != "grid"}
        name = " ".join(str(v) for v in options.values())
        yield from _with_methods(path, nfe, name, {"grid": options["grid"], **spacing})


def distinct(known: Iterable[tuple[str, Solver]], score: Score) -> list[tuple[str, Solver]]:
    """Only the first of those that are one solver under several names, as many are at few calls.

    Args:
        known: Names and schedules, or tables.
        score: Tells solvers apart: an error to a teacher on a sample or two does, to five digits.

    Returns:
        Those that are left, in their order; without those whose score is not finite.
    """

    known = list(known)
    first: dict[str, tuple[str, Solver]] = {}

    for pair, value in zip(known, score([s for _, s in known]), strict=True):
        if math.isfinite(value):
            first.setdefault(f"{value:.5g}", pair)

    return list(first.values())


def _with_methods(
    path: Path, nfe: int, name: str, spacing: Mapping[str, Any]
) -> Iterator[tuple[str, Solver]]:
    for method, options in METHODS:
        told = " ".join([method, *(f"{k} {v}" for k, v in options.items())])
        for steps in range(max(1, nfe // CALLS.get(method, 1)), nfe + 2):
            try:
                solver = schedule_for(method, path, steps, **spacing, **options)
            except UserError:
                break
            if solver.nfe == nfe:
                yield f"{told}, {name}", solver
                break


CALLS = {"midpoint": 2, "heun": 2, "karras-heun": 2}
"""The calls a step of methods with more than one."""


def _on_times(
    path: Path, nfe: int, name: str, times: Sequence[float]
) -> Iterator[tuple[str, Solver]]:
    """Methods on given times; schedules of one step too many save their first call."""

    for method, options in METHODS:
        if method in CALLS:
            continue
        solver = schedule_for(method, path, times=times, **options)
        told = " ".join([method, *(f"{k} {v}" for k, v in options.items())])
        if solver.nfe == nfe:
            yield f"{told}, {name}", solver
        elif solver.nfe == nfe + 1 and isinstance(solver, SolverSchedule):
            first, *others = solver.steps
            steps = (replace(first, source="noise"), *others)
            yield f"{told} analytic, {name}", SolverSchedule(solver.times, steps)


def seeds_for(
    denoiser: Denoiser,
    nfe: int,
    z: Tensor | None = None,
    cond: Mapping[str, Any] | None = None,
) -> Iterator[tuple[str, Solver]]:
    r"""Everything to begin with: the presets, and methods on Beta, AYS and GITS times.

    The last three are given with a step more as well, whose call an analytic first step saves.

    Args:
        denoiser: The denoiser.
        nfe: The number of calls.
        z: Noise for the trajectories of GITS, with shape (n, \*); a few dozen samples do. None
            leaves GITS out.
        cond: Named conditions, each with n rows.

    Yields:
        A name and a schedule or a table.
    """

    path = denoiser.path
    yield from presets(path, nfe)

    for steps in (nfe, nfe + 1):
        spaced = {"beta": beta(path, steps), **{name: ays(path, steps, name) for name in AYS}}
        if z is not None:
            spaced["gits"] = gits(denoiser, z, steps, cond)
        for name, times in spaced.items():
            yield from _on_times(path, nfe, name, times)


# ------------------------------------------------------------------------------ grids of times


def _ends(path: Path, inner: Sequence[float]) -> tuple[float, ...]:
    """Inner times between the path's ends, those that cannot stand there left out."""

    low = path.t_min + 1e-6
    kept = [t for t in inner if low < t < path.t_max - 1e-6]
    return (path.t_max, *kept, path.t_min)


def beta(path: Path, steps: int, a: float = 0.6, b: float = 0.6) -> tuple[float, ...]:
    """Times at quantiles of the Beta(a, b) law between the path's ends.

    Args:
        path: The path.
        steps: The number of steps, 1 or more.
        a: The first parameter, above 0; below 1 is dense at data.
        b: The second parameter, above 0; below 1 is dense at noise.
    """

    u = beta_law.ppf(np.linspace(1, 0, steps + 1), a, b)
    times = path.t_min + (path.t_max - path.t_min) * u
    return _ends(path, times[1:-1].tolist())


def ays(path: Path, steps: int, name: str = "ays-sd") -> tuple[float, ...]:
    """The times at which a path has the noise levels of Align Your Steps.

    Args:
        path: The path.
        steps: The number of steps, 1 or more.
        name: ``"ays-sd"`` or ``"ays-sdxl"``.
    """

    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    diffusion = Discrete(tuple((1 - betas).cumprod(0).tolist()))
    levels = (torch.tensor([*AYS[name], 0], dtype=torch.float64) + 1) / 1000
    known = diffusion.lam(levels).numpy()
    place = np.linspace(0, 1, steps + 1)[1:-1]
    lam = np.interp(place, np.linspace(0, 1, len(known)), known)
    inner = path.inverse(torch.from_numpy(lam)).tolist()
    times = _ends(path, inner)
    return times if len(times) == steps + 1 else grid(path, steps, final="min")


def gits(
    denoiser: Denoiser,
    z: Tensor,
    steps: int,
    cond: Mapping[str, Any] | None = None,
    *,
    fine: int = 60,
) -> tuple[float, ...]:
    r"""Times that the cheapest chain of Euler steps visits, on a teacher's trajectories.

    Args:
        denoiser: The denoiser.
        z: Noise of unit scale, with shape (n, \*).
        steps: The number of steps, 1 … ``fine``.
        cond: Named conditions, each with n rows.
        fine: The number of steps of the teacher, whose times are the candidates.
    """

    if not 1 <= steps <= fine:
        raise UserError(f"steps is {steps}: between 1 and the {fine} fine steps are possible.")

    path = denoiser.path
    kinds = ("uniform", "logsnr")
    times = sorted({t for k in kinds for t in grid(path, fine // 2, k, final="min")}, reverse=True)
    times = [t for i, t in enumerate(times) if i == 0 or times[i - 1] - t > 1e-6]
    states, data = trajectory(denoiser, z, times, cond)
    return tuple(times[i] for i in chain(step_errors(path, times, states, data), steps))


def step_errors(path: Path, times: Sequence[float], states: Tensor, data: Tensor) -> np.ndarray:
    r"""The error of one Euler (DDIM) step between any two times of a trajectory.

    Args:
        path: The path.
        times: M + 1 decreasing times.
        states: The states at all of them, with shape (M + 1, n, \*).
        data: The data estimates at all but the last, with shape (M, n, \*).

    Returns:
        The root-mean-square errors from time i to time j, with shape (M + 1, M + 1); infinite for
        j ≤ i.
    """

    alpha, sigma = path(torch.tensor(times, dtype=torch.float64))
    M = len(times) - 1
    errors = np.full((M + 1, M + 1), np.inf)

    for i in range(M):
        for j in range(i + 1, M + 1):
            p = float(sigma[j] / sigma[i])
            landed = p * states[i] + float(alpha[j] - alpha[i] * p) * data[i]
            errors[i, j] = float((landed - states[j]).double().square().mean().sqrt())

    return errors


def chain(costs: np.ndarray, steps: int) -> list[int]:
    """The cheapest chain of steps from the first place to the last, by dynamic programming.

    Args:
        costs: The cost of a step from place i to place j, with shape (M + 1, M + 1).
        steps: The number of steps, 1 … M.

    Returns:
        The ``steps + 1`` places.
    """

    M = len(costs) - 1
    best = np.full((steps + 1, M + 1), np.inf)
    came = np.zeros((steps + 1, M + 1), dtype=int)
    best[0, 0] = 0.0

    for k in range(1, steps + 1):
        total = best[k - 1][:, None] + costs
        came[k], best[k] = total.argmin(axis=0), total.min(axis=0)

    places = [M]

    for k in range(steps, 0, -1):
        places.append(int(came[k, places[-1]]))

    return places[::-1]
