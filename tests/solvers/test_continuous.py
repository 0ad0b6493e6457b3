"""The adjoint equation on every path, also where a chart is singular, and what it refuses."""

import math
import warnings

from nets import Net, leaves, wrapped
from oracles import PATHS, mixture
import pytest
import torch

from genflow.errors import UserError
from genflow.models import Exact, Karras, Preconditioned, Rectified, StudentT, VariancePreserving
from genflow.nn import UNet
from genflow.solvers import (
    Adaptive,
    Alteration,
    Sampler,
    SolverSchedule,
    Step,
    adjoint,
    build,
    schedule_for,
    stack,
    tabulate,
)

PATH = VariancePreserving()
QUIET = pytest.mark.filterwarnings("ignore:gradient is 'continuous'")
X = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def scaled(path):
    return float(path(torch.tensor(path.t_max, dtype=torch.float64))[1]) * X


def grads(sampler, taps=(), cond=True):
    """The gradients of a loss on samples, and on some states on the way."""

    x = scaled(sampler.denoiser.path).clone().requires_grad_()
    shift = (0.3 * X.flip(0)).requires_grad_()
    seen = {}
    options = {"observe": lambda i, x, D: seen.update({i: x})} if taps else {}
    y = sampler(x, **({"shift": shift} if cond else {}), **options)
    loss = y.square().sum() + sum(seen[i].sin().sum() for i in taps)
    return torch.autograd.grad(loss, [x, *([shift] if cond else []), *leaves(sampler.denoiser)])


def worst(ours, theirs):
    return max(float((a - b).norm() / b.norm()) for a, b in zip(ours, theirs, strict=True))


def converging(kind, chart):
    """The errors at 30 and 120 steps, down to clean data."""

    truth = Exact(PATHS[kind], mixture())
    errors = []

    for N in (30, 120):
        exact, found = (
            grads(build("ddim", truth, N, final="zero", gradient=p), cond=False)
            for p in ("exact", adjoint.Continuous(chart=chart))
        )
        assert all(g.isfinite().all() for g in found)
        errors.append(worst(found, exact))

    return errors


@QUIET
@pytest.mark.parametrize(
    ("kind", "chart"),
    [
        ("rectified", "phi"),
        ("rectified", "log-rho"),
        ("karras", "rho"),
        ("karras", "kappa"),
        ("karras", "phi"),
        ("karras", "log-rho"),
    ],
)
def test_ends_at_infinity(kind, chart):
    """From pure noise (α = 0) or a large σ down to clean data (σ = 0), converging."""

    errors = converging(kind, chart)
    assert math.log(errors[0] / errors[1]) / math.log(4) > 0.4
    assert errors[1] < 0.5


@QUIET
@pytest.mark.parametrize("chart", ["rho", "kappa"])
def test_charts_that_do_not_fit(chart):
    """On the straight path at equal times, neighbours at one end always differ twofold."""

    errors = converging("rectified", chart)
    assert errors[1] > 0.8 * errors[0] > 0.3


@QUIET
@pytest.mark.parametrize("method", ["euler", "heun", "multistep"])
@pytest.mark.parametrize(
    "path", [Rectified(), Karras(noise=StudentT(64.0)), VariancePreserving()], ids=str
)
def test_all_gradients_on_every_path(path, method):
    """State, condition, weights, guidance and its null: all tend to those of the samples."""

    torch.manual_seed(0)
    denoiser = wrapped("guided", path)
    policy = adjoint.Continuous(method, "phi")
    exact, found = (
        grads(build("dpmpp-2m", denoiser, 120, final="min", gradient=p)) for p in ("exact", policy)
    )
    assert len(found) > 9 and worst(found, exact) < (0.15 if method == "euler" else 0.02)


@QUIET
def test_losses_on_the_way_are_jumps():
    torch.manual_seed(0)
    denoiser = wrapped("plain", PATH)
    for states in ("stored", "resolved"):
        policies = ("exact", adjoint.Continuous("multistep", "phi", states))
        exact, found = (
            grads(build("dpmpp-2m", denoiser, 100, gradient=p), taps=(0, 30, 60, 99))
            for p in policies
        )
        assert worst(found, exact) < 0.02


@QUIET
def test_a_grid_of_its_own():
    """Fewer, or more, or other nodes on the way back than the sampler took."""

    torch.manual_seed(0)
    denoiser = wrapped("plain", PATH)
    times = schedule_for("ddim", PATH, 30, final="min").times
    fine = schedule_for("ddim", PATH, 300, final="min").times
    exact = grads(build("dpmpp-2m", denoiser, 300, final="min", gradient="exact"))
    errors = []

    for own in (times, fine):
        policy = adjoint.Continuous("heun", "phi", times=own)
        made = build("dpmpp-2m", denoiser, 300, final="min", gradient=policy)
        errors.append(worst(grads(made), exact))

    assert errors[1] < 0.001 and errors[0] < 0.1 and errors[0] > 10 * errors[1]
    with pytest.raises(UserError, match="the loss has a part on the state at time"):
        policy = adjoint.Continuous(chart="phi", times=times)
        grads(build("ddim", denoiser, 7, final="min", gradient=policy), taps=(3,))


@pytest.mark.parametrize("kind", ["plain", "guided"])
def test_adaptive_solves(kind):
    """Forward and backward by torchdiffeq, from pure noise on a flow, with a jump on the way."""

    torch.manual_seed(0)
    path = Rectified()
    denoiser = wrapped(kind, path)
    exact = grads(build("rk4", denoiser, 60, stop=0.01, gradient="exact"))
    policy = adjoint.Continuous("dopri5", rtol=1e-7, atol=1e-7)
    found = grads(Adaptive(denoiser, 1e-8, 1e-8, stop=0.01, gradient=policy))
    assert worst(found, exact) < 1e-3

    exact, found = (
        grads(build("rk4", denoiser, 60, stop=0.01, gradient=p), taps=(0, 120))
        for p in ("exact", policy)
    )
    assert worst(found, exact) < 1e-3


def test_adaptive_solves_in_single_precision():
    torch.manual_seed(0)
    denoiser = Preconditioned(Net(torch.float32), Rectified(), "v")
    x = X.float().requires_grad_()
    found = []

    for policy in ("direct", adjoint.Continuous("dopri5", rtol=1e-4, atol=1e-4)):
        y = Adaptive(denoiser, 1e-4, 1e-4, stop=0.05, gradient=policy)(x)
        found.append(torch.autograd.grad(y.square().sum(), [x, *denoiser.parameters()]))

    assert worst(*found[::-1]) < 0.02 and found[1][0].dtype == torch.float32


def test_encoding_is_differentiated_the_other_way():
    torch.manual_seed(0)
    denoiser = Preconditioned(Net(), PATH, "v")
    found = []

    for policy in ("direct", adjoint.Continuous("dopri8", rtol=1e-8, atol=1e-8)):
        x = X.clone().requires_grad_()
        y = Adaptive(denoiser, 1e-8, 1e-8, gradient=policy).encode(x)
        found.append(torch.autograd.grad(y.square().sum(), [x, *denoiser.parameters()]))

    assert worst(*found[::-1]) < 1e-3


# ------------------------------------------------------------------------------ warnings


def test_steep_grids_warn():
    truth = Exact(PATH, mixture())
    with pytest.warns(UserWarning, match=r"neighbouring ρ differ by a factor of up to 2\.58"):
        build("ddim", truth, 10, grid="uniform", gradient="continuous")
    with pytest.warns(UserWarning, match="factor of up to"):
        build("adjoint-dpm", Exact(PATHS["karras"], mixture()), 9)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build("ddim", truth, 10, grid="uniform", gradient=adjoint.Continuous(chart="phi"))
        build("adjoint-dpm", truth, 60, grid="uniform")
        build("adjoint-dpm", truth, 10, gradient="none")


def test_the_sampler_of_the_paper_has_its_gradient():
    sampler = build("adjoint-dpm", Exact(PATH, mixture()), 60, grid="uniform")
    assert sampler.gradient == adjoint.Continuous()
    plain = build("ddim", Exact(PATH, mixture()), 60, grid="uniform")
    assert torch.equal(sampler(X.clone().requires_grad_()).detach(), plain(X))


# ------------------------------------------------------------------------------ refusals


@QUIET
def test_what_is_no_ode_is_refused():
    denoiser = wrapped("plain", PATH, dropout=0.5).train()
    sampler = build("ddim", denoiser, 5, gradient="continuous")
    with pytest.raises(UserError, match="dropout in training mode"):
        grads(sampler)
    denoiser.eval()
    grads(sampler)

    seen = []
    x = X.clone().requires_grad_()
    sampler(x, shift=X, observe=lambda i, x, D: seen.append(D))
    with pytest.raises(UserError, match="no losses on outputs of the denoiser"):
        seen[2].sum().backward()

    net = UNet(8, 3, widths=(8, 16), layers=1, attention=(), groups=4)
    times = schedule_for("ddim", PATH, 2).times
    faded = SolverSchedule(times, (Step(change=Alteration((0.5, 0.9))), Step()))
    with pytest.raises(UserError, match="steps alter the network"):
        Sampler(Preconditioned(net, PATH, "v"), faded, "continuous")

    tables = [tabulate(schedule_for("ddim", PATH, 4), PATH)] * 2
    with pytest.raises(UserError, match="times of its own for each sample"):
        Sampler(denoiser, stack(tables, 1), "continuous")

    with pytest.raises(UserError, match="one step leads from α = 0 to σ = 0"):
        build("ddim", Exact(Rectified(), mixture()), 1, final="zero", gradient="continuous")


def test_adaptive_samplers_take_what_they_can():
    truth = Exact(Rectified(), mixture())
    for policy in ("exact", "truncated", "continuous", adjoint.Exact(2)):
        with pytest.raises(UserError, match="a solver that chooses its steps allows"):
            Adaptive(truth, gradient=policy)
    with pytest.raises(UserError, match="'log-rho', which is infinite where the sampler starts"):
        Adaptive(truth, stop=0.01, gradient=adjoint.Continuous("dopri5", "log-rho"))
    with pytest.raises(UserError, match="the sampler ends at time 0"):
        Adaptive(truth, gradient=adjoint.Continuous("dopri5"))
