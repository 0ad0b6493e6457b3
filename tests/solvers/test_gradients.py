"""Gradients through a rollout, down to the times; and tracing by torch.compile."""

from oracles import PATHS, double, mixture
import pytest
import torch
from torch import nn

from genflow.errors import UserError
from genflow.models import (
    Clipped,
    Exact,
    Guided,
    Mixture,
    Preconditioned,
    VariancePreserving,
    grid,
)
from genflow.solvers import (
    Corrector,
    Sampler,
    SolverSchedule,
    Step,
    Tableau,
    build,
    schedule_for,
    stack,
    tabulate,
)

PATH = VariancePreserving()


class Net(nn.Module):
    """A small network with an optional shift as its condition."""

    def __init__(self, image=False, dtype=torch.float64):
        super().__init__()
        layers = (nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 2, 3, padding=1))
        flat = (nn.Linear(2, 8), nn.Linear(8, 2))
        self.first, self.second = (layer.to(dtype) for layer in (layers if image else flat))

    def forward(self, x, time, shift=None):
        time = time.to(x) / 1000
        time = time.reshape(-1, *(1,) * (x.ndim - 1)) if time.ndim else time
        hidden = self.first(x) + time
        return self.second(torch.tanh(hidden)) + (0 if shift is None else shift)


RICH = SolverSchedule(
    grid(PATH, 5),
    (
        Step(correct=Corrector()),
        Step(order=2, predict="noise", relax=0.2),
        Step(order=3, correct=Corrector(relax=-0.1)),
        Step(order=2, start=1, points=(0,)),
        Step(order=2, predict="noise"),
    ),
)


# ------------------------------------------------------------------------------ gradients


@pytest.mark.parametrize("name", ["ddim", "unipc", "heun", "karras-heun", "ipndm"])
def test_direct_gradients_are_true(name):
    """Autograd through the loop against finite differences, for state, weights, condition."""

    denoiser = Preconditioned(Net(), PATH, "noise")
    sampler = build(name, denoiser, 4, gradient="direct", start=0.9)
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    shift = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    weight = denoiser.net.second.weight

    def run(x, shift, weight):
        kept = {"second.weight": weight}
        return torch.func.functional_call(
            sampler, {f"denoiser.net.{k}": v for k, v in kept.items()}, (x,), {"shift": shift}
        )

    assert torch.autograd.gradcheck(run, (x, shift, weight), eps=1e-6, atol=1e-5, rtol=1e-5)


def test_none_builds_no_graph():
    denoiser = Preconditioned(Net(), PATH, "noise")
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    out = build("unipc", denoiser, 4)(x)
    assert out.grad_fn is None and not out.requires_grad
    direct = build("unipc", denoiser, 4, gradient="direct")
    assert direct(x).requires_grad
    torch.testing.assert_close(direct(x), out, rtol=0, atol=0)
    with torch.no_grad():
        assert not direct(x).requires_grad


def test_unknown_policies_are_refused():
    with pytest.raises(UserError, match="gradient is 'dirct': did you mean 'direct'"):
        build("ddim", Exact(PATH, mixture()), 4, gradient="dirct")
    with pytest.raises(UserError, match="gradient is 'exact'"):
        build("dopri5", Exact(PATH, mixture()), gradient="exact")


@pytest.mark.parametrize("kind", ["vp", "cosine", "rectified", "karras", "brownian"])
def test_gradients_reach_the_times(kind):
    """Through the compiler, correctors and all, down to every single time."""

    path = PATHS[kind]
    law = Mixture(double([1.0]), double([[0.4, -0.2]]), double([[0.3, 0.8]]))
    truth = Exact(path, law)
    lam = torch.linspace(-2.0, 2.0, 6, dtype=torch.float64)
    times = path.inverse(lam).requires_grad_()
    schedule = SolverSchedule(times.tolist(), RICH.steps)
    x = torch.randn(4, 2, dtype=torch.float64)

    def end(times):
        table = tabulate(schedule, path, times=times)
        return Sampler(truth, table, gradient="direct")(x)

    assert end(times).requires_grad
    assert torch.autograd.gradcheck(end, (times,), eps=1e-7, atol=1e-4, rtol=1e-4)


def test_descent_in_the_times_helps():
    """Ten steps of Adam on the inner times bring five DDIM steps closer to the ODE."""

    truth, x = Exact(PATH, mixture()), torch.randn(32, 2, dtype=torch.float64)
    solution = build("dpmpp-3m", truth, 100)(x)
    schedule = schedule_for("ddim", PATH, 5)
    lam = PATH.lam(double(schedule.times))
    gaps = lam.diff().log().requires_grad_()
    optimiser = torch.optim.Adam([gaps], lr=0.1)
    losses = []

    for _ in range(10):
        share = gaps.softmax(0).cumsum(0)
        moved = torch.cat([lam[:1], lam[0] + (lam[-1] - lam[0]) * share])
        table = tabulate(schedule, PATH, times=PATH.inverse(moved))
        loss = (Sampler(truth, table, gradient="direct")(x) - solution).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))

    assert losses[-1] < 0.9 * losses[0]


def test_learned_tables():
    """A table with weights of its own: used again and again, and after use without gradients."""

    truth, x = Exact(PATH, mixture()), torch.randn(4, 2, dtype=torch.float64)
    known = tabulate(schedule_for("dpmpp-3m", PATH, 5), PATH)
    weight = known.weight.clone().requires_grad_()
    table = Tableau(known.time, weight, known.noise)
    sampler = Sampler(truth, table, gradient="direct")

    with torch.no_grad():
        first = sampler(x)

    for _ in range(2):
        loss = sampler(x).square().sum()
        (gradient,) = torch.autograd.grad(loss, weight)
        assert float(gradient.abs().max()) > 0

    used = known.weight != 0
    with torch.no_grad():
        weight.add_(0.01 * used)
    assert not torch.allclose(sampler(x), first)


# -------------------------------------------------------------------------------- tracing


def denoisers(image):
    net = Net(image, torch.float32)
    weak = Preconditioned(Net(image, torch.float32), PATH, "v")
    strong = Preconditioned(net, PATH, "noise")
    return {
        "noise": strong,
        "v": weak,
        "flow": Preconditioned(net, PATH, "flow"),
        "karras": Preconditioned(net, PATH, "karras"),
        "clipped": Clipped(strong, quantile=0.95),
        "guided": Guided(strong, 2.0, guide=weak, interval=(0.2, 0.8)),
    }


def traced(sampler):
    torch.compiler.reset()
    return torch.compile(sampler, fullgraph=True, backend="eager")


@pytest.mark.parametrize(
    ("name", "warm"), [("ddim", False), ("unipc", False), ("unipc", True), ("heun", False)]
)
def test_exact_traces_whole(name, warm):
    truth, x = Exact(PATH, mixture()), torch.randn(4, 2, dtype=torch.float64)
    expected = build(name, truth, 4)(x)
    sampler = build(name, truth, 4)
    if warm:
        sampler(x)
    torch.testing.assert_close(traced(sampler)(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "image"),
    [
        ("noise", False),
        ("noise", True),
        ("flow", True),
        ("karras", False),
        ("clipped", True),
        ("guided", False),
    ],
)
def test_networks_trace_whole(kind, image):
    denoiser = denoisers(image)[kind]
    x = torch.randn(3, 2, 4, 4) if image else torch.randn(3, 2)
    sampler = build("unipc", denoiser, 4)
    expected = sampler(x)
    torch.testing.assert_close(traced(sampler)(x), expected, rtol=1e-5, atol=1e-5)


def test_populations_trace_whole():
    grids = ("logsnr", "uniform")
    tables = [tabulate(schedule_for("dpmpp-3m", PATH, 4, grid=g), PATH) for g in grids]
    sampler = Sampler(Exact(PATH, mixture()), stack(tables, 2))
    x = torch.randn(4, 2, dtype=torch.float64)
    torch.testing.assert_close(traced(sampler)(x), sampler(x), rtol=1e-12, atol=1e-12)


def test_conditions_and_gradients_trace():
    """With a condition, and with the backward pass traced by AOT autograd."""

    denoiser = Preconditioned(Net(dtype=torch.float32), PATH, "noise")
    sampler = build("dpmpp-2m", denoiser, 4, gradient="direct")
    x, shift = torch.randn(3, 2), torch.randn(3, 2)
    torch.compiler.reset()
    compiled = torch.compile(sampler, fullgraph=True, backend="aot_eager")
    gradients = []
    for run in (sampler, compiled):
        denoiser.net.zero_grad()
        run(x, shift=shift).square().sum().backward()
        gradients.append(denoiser.net.first.weight.grad.clone())
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)
