"""Names and options of samplers, and the adaptive one."""

from oracles import PATHS, double, mixture
import pytest
import torch

from genflow.errors import UserError
from genflow.models import Exact, Karras, VariancePreserving, grid
from genflow.solvers import (
    PRESETS,
    Adaptive,
    Sampler,
    SolverSchedule,
    Statistics,
    Step,
    Tableau,
    build,
    register,
    schedule_for,
)

PATH = VariancePreserving()
SEARCHED = ("usf", "autodiffusion")
"""Those that run a file."""


def truth(path=PATH):
    return Exact(path, mixture())


def needs(name):
    """What a preset must be handed beside the denoiser."""

    if name != "dpm-v3":
        return {}
    lam = torch.linspace(-12, 12, 200, dtype=torch.float64)
    one = torch.ones(200, 1, dtype=torch.float64)
    return {"statistics": Statistics(lam, one, 0 * one, 0 * one)}


@pytest.mark.parametrize("name", [n for n in PRESETS if n not in SEARCHED])
def test_every_preset_builds_with_its_defaults(name):
    adaptive = PRESETS[name].make is None
    options = {} if adaptive else {"steps": 6, **needs(name)}
    sampler = build(name, truth(), gradient="none", **options)
    x = sampler.init((3, 2), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    out = sampler(x)
    assert out.shape == (3, 2) and bool(out.isfinite().all())
    assert sampler.nfe >= 6
    entry = PRESETS[name]
    assert entry.order and entry.nfe and entry.title and entry.url.startswith("https://")


@pytest.mark.parametrize(("N", "final"), [(1, "min"), (4, "zero"), (16, "min")])
@pytest.mark.parametrize("name", [n for n in PRESETS if PRESETS[n].spaced])
@pytest.mark.parametrize("kind", PATHS)
def test_every_preset_is_finite_on_every_path(kind, name, N, final):
    """From the path's own start to either end, clean data included."""

    sampler = build(name, truth(PATHS[kind]), N, gradient="none", final=final, **needs(name))
    x = sampler.init((3, 2), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert bool(sampler(x).isfinite().all())


@pytest.mark.parametrize("name", ["heun", "rk4"])
def test_a_step_into_an_irregular_end_is_eulers(name):
    """σ̇ is infinite at clean data on a discrete path, so nothing is evaluated there."""

    path = PATHS["discrete"]
    table, euler = (schedule_for(n, path, 5) for n in (name, "euler"))
    assert table.nfe == {"heun": 9, "rk4": 17}[name]
    assert float(table.time.min()) > 0
    torch.testing.assert_close(table.weight[-1, :2], euler.weight[-1, :2])


def test_karras_heun_from_pure_noise():
    """Where α = 0 the first step is DDIM's, and the last one into clean data as well."""

    path = PATHS["rectified"]
    table, first = (schedule_for(n, path, 5) for n in ("karras-heun", "ddim"))
    assert table.nfe == 8
    row = Sampler(truth(path), first).tableau.weight[0]
    torch.testing.assert_close(table.weight[0, :2], row[:2])
    error = build("karras-heun", truth(path), 40), build("rk4", truth(path), 80)
    x = torch.randn(8, 2, dtype=torch.float64)
    assert (error[0](x) - error[1](x)).abs().max() < 0.1


@pytest.mark.parametrize("name", ["heun", "karras-heun", "ipndm", "deis"])
def test_times_are_checked_whatever_writes_the_table(name):
    for times, message in (
        ((0.9, 0.5, 0.5), "step 1 goes from time 0.5 to 0.5"),
        ((0.5, 0.9), "step 0 goes from time 0.5 to 0.9"),
        ((0.5,), "times holds 1 values"),
    ):
        with pytest.raises(UserError, match=message):
            build(name, truth(), times=times)


@pytest.mark.parametrize(
    ("name", "N", "nfe"),
    [
        ("euler", 5, 5),
        ("heun", 5, 10),
        ("midpoint", 5, 10),
        ("rk4", 5, 20),
        ("ddim", 5, 5),
        ("unipc", 5, 5),
        ("dpmpp-3s", 7, 7),
        ("ipndm", 5, 5),
        ("karras-heun", 5, 10),
    ],
)
def test_number_of_calls(name, N, nfe):
    assert build(name, truth(), N).nfe == nfe


def test_karras_heun_saves_the_last_call_at_clean_data():
    assert build("karras-heun", truth(Karras()), 5).nfe == 9


@pytest.mark.parametrize(
    ("spoken", "meant"),
    [("DPM++_2M", "dpmpp-2m"), ("karras_heun", "karras-heun"), ("DDIM", "ddim")],
)
def test_names_are_understood(spoken, meant):
    one, two = schedule_for(spoken, PATH, 5), schedule_for(meant, PATH, 5)
    for made in (one, two):
        assert isinstance(made, SolverSchedule | Tableau)
    weights = [Sampler(truth(), made).tableau.weight for made in (one, two)]
    assert torch.equal(*weights)


REFUSED = {
    "name": (("unipcc",), {}, "sampler is 'unipcc': did you mean 'unipc'"),
    "option": (
        ("ddim",),
        {"etta": 1.0},
        "sampler 'ddim' has the option 'etta': did you mean 'eta'",
    ),
    "grid option": (("ddim",), {"shfit": 1.0}, "did you mean 'shift'"),
    "grid": (("ddim",), {"grid": "logsrn"}, "grid is 'logsrn': did you mean 'logsnr'"),
    "steps": (("ddim", 0), {}, "steps is 0"),
    "order": (("dpmpp",), {"order": 4}, "order is 4: 1 … 3"),
    "unipc order": (("unipc",), {"order": 5}, "order is 5: 1 … 4"),
    "variant": (("unipc",), {"variant": "bh3"}, "variant is 'bh3'"),
    "method": (("dpm",), {"method": "single"}, "method is 'single'"),
    "variable": (("deis",), {"variable": "sigma"}, "variable is 'sigma'"),
    "ipndm order": (("ipndm",), {"order": 9}, "order is 9"),
    "eta": (("ddim",), {"eta": 2.0}, "step 0 has eta 2.0"),
    "churn": (("karras-heun",), {"churn": -1.0}, "churn is -1.0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_names_and_options_are_refused(name):
    arguments, options, message = REFUSED[name]
    steps = arguments[1] if len(arguments) > 1 else 5
    with pytest.raises(UserError, match=message):
        build(arguments[0], truth(), steps, **options)


def test_adaptive_samplers_have_no_schedule():
    with pytest.raises(UserError, match="'dopri5' chooses its own steps"):
        schedule_for("dopri5", PATH, 5)
    with pytest.raises(UserError, match="option 'eta'"):
        build("dopri5", truth(), eta=1.0)


def test_own_times():
    times = (1.0, 0.4, 0.1, 0.02)
    assert schedule_for("unipc", PATH, times=times).times == times
    sampler = build("heun", truth(), times=times)
    torch.testing.assert_close(sampler.tableau.time[::2], double(times[:-1]))


def test_a_new_name():
    """A function of a path and its times is all that a sampler needs."""

    @register("twice-ddim", order="1", title="Here", url="https://example.org")
    def twice(path, times, *, eta=0.0):
        halves = [(a + b) / 2 for a, b in zip(times, times[1:], strict=False)]
        both = [t for pair in zip(times, halves, strict=False) for t in pair] + [times[-1]]
        return SolverSchedule(both, [Step(eta=eta)] * (len(both) - 1))

    try:
        assert build("twice-ddim", truth(), 5).nfe == 10
        assert PRESETS["twice-ddim"].options == {"eta": 0.0}
    finally:
        del PRESETS["twice-ddim"]


def test_init_has_the_deviation_of_its_start():
    streams = [torch.Generator().manual_seed(i) for i in range(4000)]
    for path, start in ((Karras(), 1.0), (PATH, 0.5)):
        sampler = build("ddim", truth(path), times=grid(path, 5, start=start))
        x = sampler.init((4000, 2), generator=streams)
        assert float(x.std()) == pytest.approx(float(path(double(start))[1]), rel=0.05)
        assert x.dtype == torch.float32


# ------------------------------------------------------------------------------- adaptive


@pytest.mark.parametrize("kind", ["vp", "cosine", "rectified", "karras"])
@pytest.mark.parametrize("tol", [1e-2, 1e-6])
def test_adaptive_calls_stay_on_the_path(kind, tol):
    """No call lies beyond the ends, on the way there and back, and all calls are counted."""

    path = PATHS[kind]
    seen = []

    class Watched(Exact):
        def velocity(self, x_t, t):
            seen.append(float(t))
            return super().velocity(x_t, t)

    sampler = Adaptive(Watched(path, mixture()), rtol=tol, atol=tol)
    x = sampler.init((4, 2), dtype=torch.float64)

    for solve in (sampler, sampler.encode):
        seen.clear()
        x = solve(x)
        assert bool(x.isfinite().all())
        assert sampler.nfe == len(seen)
        assert path.t_min <= min(seen) and max(seen) <= path.t_max


def test_adaptive_tolerance():
    x = torch.randn(8, 2, dtype=torch.float64)
    best = Adaptive(truth(), rtol=1e-10, atol=1e-10)(x)
    errors, calls = [], []
    for tol in (1e-3, 1e-5, 1e-7):
        sampler = Adaptive(truth(), rtol=tol, atol=tol)
        errors.append(float((sampler(x) - best).abs().max()))
        calls.append(sampler.nfe)
    assert errors[0] > 5 * errors[1] > 25 * errors[2]
    assert calls[0] < calls[1] < calls[2]


def test_adaptive_gradients():
    x = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    assert not Adaptive(truth())(x).requires_grad
    sampler = Adaptive(truth(), rtol=1e-8, atol=1e-8, gradient="direct", start=0.5)
    assert torch.autograd.gradcheck(sampler, (x,), eps=1e-5, atol=1e-4, rtol=1e-4)


def test_adaptive_refusals():
    with pytest.raises(UserError, match="rtol is 0"):
        Adaptive(truth(), rtol=0.0)
    with pytest.raises(UserError, match="atol is -1"):
        Adaptive(truth(), atol=-1.0)
