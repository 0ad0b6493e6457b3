"""Measured orders of convergence on the 2-D mixture, for every preset on every path.

The slope is taken between N and 4 N steps against a solution to 1e-10. The last orders are not
lowered, since a first-order step into a finite end costs O(h²).
"""

from functools import cache
import math

from oracles import PATHS, double, mixture, third_order_multistep
import pytest
import torch

from genflow.models import Exact, VariancePreserving, grid
from genflow.solvers import PRESETS, Adaptive, build, schedule_for

Z = torch.randn(8, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LAST = {"lower_final": False}

# name → (preset, options, least slope)
METHODS = {
    "euler": ("euler", {}, 0.85),
    "midpoint": ("midpoint", {}, 1.75),
    "heun": ("heun", {}, 1.75),
    "rk4": ("rk4", {}, 3.75),
    "ddim": ("ddim", {}, 0.9),
    "karras-heun": ("karras-heun", {}, 1.75),
    "dpm-2m": ("dpm-2m", LAST, 1.75),
    "dpm-2m taylor": ("dpm-2m", {"variant": "taylor", **LAST}, 1.75),
    "dpm-2s": ("dpm-2s", {}, 1.75),
    "dpm-3m": ("dpm-3m", LAST, 2.5),
    "dpm-3s": ("dpm-3s", {}, 2.75),
    "dpmpp-2m": ("dpmpp-2m", LAST, 1.75),
    "dpmpp-2s": ("dpmpp-2s", {}, 1.75),
    "dpmpp-3m": ("dpmpp-3m", LAST, 2.75),
    "dpmpp-3s": ("dpmpp-3s", {}, 2.3),
    "dpmpp-3s taylor": ("dpmpp-3s", {"variant": "taylor"}, 2.3),
    "unip-3": ("unipc", {"order": 3, "corrector": False, **LAST}, 2.75),
    "unipc-1": ("unipc", {"order": 1, **LAST}, 1.75),
    "unipc-2": ("unipc", {"order": 2, **LAST}, 2.7),
    "unipc-2 bh1": ("unipc", {"order": 2, "variant": "bh1", **LAST}, 2.75),
    "unipc-2 noise": ("unipc", {"order": 2, "predict": "noise", **LAST}, 2.75),
    "unipc-3": ("unipc", {"order": 3, **LAST}, 3.25),
    "unipc-3 plain": ("unipc", {"order": 3, "variant": "none", **LAST}, 3.25),
    "unipc-4": ("unipc", {"order": 4, **LAST}, 3.5),
    "deis": ("deis", LAST, 2.5),
    "deis rho": ("deis", {"variable": "rho"}, 2.4),
    "deis t": ("deis", {"variable": "t"}, 2.4),
    "ipndm": ("ipndm", {"order": 4}, 1.75),
}

IN_TIME = ("euler", "midpoint", "heun", "rk4", "deis t")
"""Methods whose variable is t: the kinks of a discrete path cost them their order."""

ENDS = {"rectified": (0.999, 0.001)}


def ends(kind):
    path = PATHS[kind]
    return ENDS.get(kind, (path.t_max, path.t_min))


@cache
def problem(kind):
    """The true denoiser of a path, initial states, and the solution of the ODE."""

    path = PATHS[kind]
    start, stop = ends(kind)
    x = Z * path(double(start))[1]
    truth = Exact(path, mixture())

    if kind == "discrete":
        # The flow depends on λ alone, for all paths with α² + σ² = 1: solve it on a smooth one.
        smooth = VariancePreserving()
        start, stop = smooth.inverse(path.lam(double([start, stop]))).tolist()
        solved = Exact(smooth, mixture())
    else:
        solved = truth

    return truth, x, Adaptive(solved, 1e-10, 1e-10, start=start, stop=stop)(x)


def error(sampler, x, solution):
    return float((sampler(x) - solution).square().mean().sqrt())


def slope(kind, preset, options, N=40):
    truth, x, solution = problem(kind)
    start, stop = ends(kind)
    spacing = "uniform" if preset in IN_TIME else "logsnr"
    errors = [
        error(
            build(preset, truth, n, grid=spacing, start=start, stop=stop, final="min", **options),
            x,
            solution,
        )
        for n in (N, 4 * N)
    ]
    return math.log(errors[0] / errors[1]) / math.log(4)


CASES = [
    (name, kind)
    for name, (_, _, least) in METHODS.items()
    for kind in ("vp", "rectified", "karras", "cosine", "discrete")
    if not (kind == "discrete" and name in IN_TIME)
    and not (kind in ("cosine", "discrete") and least > 2 and name != "dpmpp-3m")
    and not (kind != "vp" and name.split()[-1] in ("taylor", "bh1", "noise", "plain"))
]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_order(name, kind):
    preset, options, least = METHODS[name]
    assert slope(kind, preset, options) > least


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in METHODS if METHODS[n][2] > 2 and n not in IN_TIME])
@pytest.mark.parametrize("kind", ["cosine", "discrete"])
def test_high_order_elsewhere(name, kind):
    preset, options, least = METHODS[name]
    assert slope(kind, preset, options) > least


def test_every_preset_is_measured():
    measured = {preset for preset, _, _ in METHODS.values()}
    same = {"dpm": "dpm-2m", "dpmpp": "dpmpp-2m", "adjoint-dpm": "ddim"}
    elsewhere = {"ddpm", "dopri5", "dpm-v3", "euler-maruyama", "reinterpolate"}
    elsewhere |= {"usf", "autodiffusion"}
    assert set(PRESETS) - measured - elsewhere == set(same)


@pytest.mark.parametrize("predict", ["data", "noise"])
def test_half_the_second_derivative_costs_an_order(predict):
    """The published third-order multistep method converges at order 2; the whole one at 3."""

    truth, x, solution = problem("vp")
    times = {N: grid(truth.path, N, "logsnr", final="min") for N in (80, 320)}

    def measured(whole):
        errors = [
            third_order_multistep(truth, x, t, predict=predict, whole=whole) - solution
            for t in times.values()
        ]
        a, b = (float(e.square().mean().sqrt()) for e in errors)
        return math.log(a / b) / math.log(4)

    assert 1.7 < measured(whole=False) < 2.3
    assert measured(whole=True) > 2.7


@pytest.mark.parametrize("order", [2, 3, 4])
def test_ipndm_on_equal_steps(order):
    """On steps that are equal in σ, iPNDM is the Adams-Bashforth method that DEIS finds there."""

    path = PATHS["karras"]
    sigma = torch.linspace(1.5, 0.5, 21, dtype=torch.float64)
    times = path.inverse(-sigma.log()).tolist()
    fixed = schedule_for("ipndm", path, times=times, order=order)
    found = schedule_for("deis", path, times=times, order=order, variable="rho")
    torch.testing.assert_close(fixed.weight, found.weight, rtol=1e-9, atol=1e-9)

    uneven = path.inverse(-(sigma**2).log()).tolist()
    fixed = schedule_for("ipndm", path, times=uneven, order=order)
    found = schedule_for("deis", path, times=uneven, order=order, variable="rho")
    assert (fixed.weight - found.weight).abs().max() > 1e-3


def test_lowered_last_steps_cost_little_where_they_should():
    """With 10 steps, lowering the order of the last ones helps on a grid that ends coarsely."""

    truth, x, _ = problem("rectified")
    solution = Adaptive(truth, 1e-9, 1e-9, start=0.999, stop=0.001)(x)
    spacing = {"grid": "uniform", "start": 0.999, "stop": 0.001}
    lowered, kept = (
        error(build("dpmpp-3m", truth, 10, lower_final=low, **spacing), x, solution)
        for low in (True, False)
    )
    assert lowered < kept
