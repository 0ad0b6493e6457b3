"""The exact gradient is autograd's, bit for bit, whatever the sampler."""

from hypothesis import given, settings
from hypothesis import strategies as st
from nets import KINDS, Net, gradients, leaves, same, wrapped
from oracles import PATHS, double, mixture
import pytest
from strategies import schedules
import torch
from torch import nn

from genflow.models import Exact, Preconditioned, VariancePreserving
from genflow.nn import UNet
from genflow.solvers import (
    Alteration,
    Sampler,
    SolverSchedule,
    Statistics,
    Step,
    Tableau,
    adjoint,
    build,
    schedule_for,
    stack,
    tabulate,
)

PATH = VariancePreserving()
QUICK = settings(max_examples=15, deadline=None, derandomize=True)


def both(make, policy="exact", **options):
    """Gradients under autograd, and under a policy."""

    return [gradients(make(p), **options) for p in ("direct", policy)]


@pytest.mark.parametrize("kind", PATHS)
@given(data=st.data())
@QUICK
def test_random_schedules(kind, data):
    """Correctors, singlestep methods, fresh noise, analytic first steps; guidance and clipping."""

    path = PATHS[kind]
    schedule = data.draw(schedules(path, ends=True, noisy=True, source=True))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    form = data.draw(st.sampled_from(KINDS))
    keep = data.draw(st.sampled_from([0, 0, 1, 2, 99]))
    torch.manual_seed(1)
    denoiser = wrapped(form, path, dtype, "data" if kind == "brownian" else "v")
    ours, theirs = (
        gradients(Sampler(denoiser, schedule, p), dtype=dtype)
        for p in ("direct", adjoint.Exact(keep))
    )
    assert all(g is not None for g in theirs[:2]) and theirs[1].isfinite().all()
    assert same(ours, theirs)


TABLES = {
    "euler": {},
    "heun": {},
    "rk4": {},
    "ipndm": {},
    "deis": {"variable": "rho"},
    "ddpm": {},
    "unipc": {"order": 3},
    "dpm-3s": {},
}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("form", ["plain", "guided"])
def test_registered_samplers(name, form):
    denoiser = wrapped(form, PATH)
    assert same(*both(lambda p: build(name, denoiser, 6, gradient=p, **TABLES[name])))


@pytest.mark.parametrize("generators", [False, True])
def test_churn(generators):
    """Noise before the first stage, and within; from the global generator or one a sample."""

    denoiser = wrapped("plain", PATHS["karras"])
    streams = lambda: [torch.Generator().manual_seed(i) for i in range(3)]  # noqa: E731

    def draw(sampler, x, shift):
        return sampler(x, shift=shift, generator=streams() if generators else None)

    def make(policy):
        return build("karras-heun", denoiser, 5, churn=8.0, final="min", gradient=policy)

    assert same(*both(make, taps=False, draw=draw))
    assert same(*both(make))


@pytest.mark.parametrize("wanted", ["state", "condition", "weights", "adapter", "guidance"])
def test_any_part_alone(wanted):
    """Frozen weights, and small trainable parts of them, as an adapter of low rank has."""

    class Adapted(Net):
        def __init__(self):
            super().__init__()
            self.requires_grad_(False)
            self.low = nn.Parameter(torch.randn(2, 1, dtype=torch.float64))
            self.rank = nn.Parameter(torch.randn(1, 2, dtype=torch.float64))

        def forward(self, x, time, shift=None):
            return super().forward(x, time, shift) + x @ self.low @ self.rank

    torch.manual_seed(0)
    net = {"weights": Net, "adapter": Adapted}.get(wanted, lambda: Net().requires_grad_(False))()
    denoiser = wrapped("guided", PATH)
    denoiser.denoiser.net = net
    denoiser.weight.requires_grad_(wanted == "guidance")
    denoiser.null["shift"].requires_grad_(False)
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=wanted == "state")
    shift = torch.randn(3, 2, dtype=torch.float64, requires_grad=wanted == "condition")
    targets = [v for v in (x, shift, *leaves(denoiser)) if v.requires_grad]
    assert len(targets) == {"weights": 6, "adapter": 2}.get(wanted, 1)
    found = []

    for policy in ("direct", "exact"):
        y = build("unipc", denoiser, 6, gradient=policy)(x, shift=shift)
        found.append(torch.autograd.grad(y.square().sum(), targets))

    assert same(*found) and all(g.any() for g in found[0])


# -------------------------------------------------------------- times, weights, statistics


@pytest.mark.parametrize("name", ["unipc", "ddpm", "dpmpp-3s"])
def test_times_and_weights(name):
    """Through the compiler: the times handed to the network, the weights, the noise's levels."""

    schedule = schedule_for(name, PATH, 6)
    times = double(schedule.times).requires_grad_()
    denoiser = wrapped("guided", PATH)
    make = lambda p: Sampler(denoiser, tabulate(schedule, PATH, times=times), p)  # noqa: E731
    ours, theirs = both(make, more=(times,))
    assert same(ours, theirs) and theirs[-1].any()


@pytest.mark.parametrize("churned", [False, True])
def test_learned_tables(churned):
    """All three columns of a table as leaves, with noise before the first stage if churned."""

    path = PATHS["karras"]
    known = schedule_for("karras-heun", path, 4, churn=8.0 * churned, final="min")
    columns = [c.clone().requires_grad_() for c in (known.time, known.weight, known.noise)]
    table = Tableau(*columns, start=known.start)
    denoiser = wrapped("plain", path)
    ours, theirs = both(lambda p: Sampler(denoiser, table, p), more=columns)
    assert same(ours, theirs)
    assert theirs[-2].any() and (theirs[-1] is not None) == churned


def test_statistics():
    """A row of weights per element, with gradients that reach the statistics themselves."""

    lam = torch.linspace(-6, 6, 40, dtype=torch.float64)
    columns = [(0.3 * torch.randn(40, 2, dtype=torch.float64)).requires_grad_() for _ in "lsb"]
    steps = [Step(min(i + 1, 3), "empirical") for i in range(5)]
    times = PATH.inverse(torch.linspace(-4, 3, 6, dtype=torch.float64)).tolist()
    denoiser = wrapped("plain", PATH)

    def make(policy):
        statistics = Statistics(lam, *columns)
        return Sampler(denoiser, SolverSchedule(times, steps), policy, statistics=statistics)

    ours, theirs = both(make, more=columns)
    assert same(ours, theirs) and all(g.any() for g in theirs[-3:])


def test_populations():
    tables = [
        tabulate(schedule_for(n, PATH, 5, grid=g), PATH)
        for n, g in (("ddim", "logsnr"), ("dpmpp-3m", "uniform"), ("unipc", "logsnr"))
    ]
    denoiser = wrapped("guided", PATH)
    assert same(*both(lambda p: Sampler(denoiser, stack(tables, 1), p)))


def test_a_mean_that_wants_a_gradient():
    mean = torch.randn(2, dtype=torch.float64, requires_grad=True)
    times = schedule_for("ddim", PATH, 4).times
    schedule = SolverSchedule(times, (Step(source="mean"), Step(), Step(order=2), Step()))
    denoiser = wrapped("plain", PATH)
    ours, theirs = both(lambda p: Sampler(denoiser, schedule, p, mean=mean), more=(mean,))
    assert same(ours, theirs) and theirs[-1].any()


@pytest.mark.parametrize("target", ["condition", "guidance", "times", "weights"])
def test_against_finite_differences(target):
    torch.manual_seed(0)
    denoiser = wrapped("guided", PATH)
    denoiser.requires_grad_(False)
    x, shift = torch.randn(2, 3, 2, dtype=torch.float64)
    schedule = schedule_for("unipc", PATH, 4, start=0.9)
    table = tabulate(schedule, PATH)

    def run(v):
        given = {"shift": v if target == "condition" else shift}
        denoiser.weight = v if target == "guidance" else torch.ones(3, dtype=torch.float64)
        made = {
            "times": lambda: tabulate(schedule, PATH, times=v),
            "weights": lambda: Tableau(table.time, v, table.noise),
        }.get(target, lambda: table)()
        return Sampler(denoiser, made, "exact")(x, **given)

    start = {
        "condition": shift,
        "guidance": double([1.5, 2.0, 0.5]),
        "times": double(schedule.times),
        "weights": table.weight,
    }[target]
    variable = start.clone().requires_grad_()
    run_used = run

    if target == "weights":
        # Slots that are 0 are not used, and have no gradient.
        used = table.weight != 0
        variable = start[used].clone().requires_grad_()
        run_used = lambda v: run(torch.zeros_like(start).masked_scatter(used, v))  # noqa: E731

    assert torch.autograd.gradcheck(run_used, variable, eps=1e-7, atol=1e-5, rtol=1e-4)


# ------------------------------------------------------------------------ real networks


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_unet_with_labels_and_altered_skips(dtype):
    torch.manual_seed(0)
    net = UNet(8, 3, widths=(8, 16), layers=1, attention=(4,), groups=4, classes=3).to(dtype)
    nn.init.normal_(net.model.conv_out.weight, std=0.1)
    denoiser = Preconditioned(net, PATH, "v")
    times = schedule_for("ddim", PATH, 3, final="min").times
    fade = Alteration((0.5, 0.9))
    schedule = SolverSchedule(times, (Step(change=fade), Step(order=2), Step(order=2)))
    x = torch.randn(2, 3, 8, 8, dtype=dtype, requires_grad=True)
    found = []

    for policy in ("direct", "exact", adjoint.Exact(keep=1)):
        y = Sampler(denoiser, schedule, policy)(x, label=torch.tensor([0, 2]))
        found.append([y.detach(), *torch.autograd.grad(y.square().sum(), [x, *net.parameters()])])

    assert same(found[0], found[1]) and same(found[0], found[2])
    assert sum(bool(g.any()) for g in found[0]) > 60


# ----------------------------------------------------------------------- what it is for


def test_lbfgs_finds_the_noise_of_a_sample():
    """Losses of a line search are those of the samples, so it converges to rounding."""

    truth = Exact(PATH, mixture())
    sampler = build("dpmpp-2m", truth, 8, gradient="exact")
    torch.manual_seed(0)
    hidden = torch.randn(4, 2, dtype=torch.float64)
    target = build("dpmpp-2m", truth, 8)(hidden)
    x = (hidden + 0.3 * torch.randn_like(hidden)).requires_grad_()
    optimiser = torch.optim.LBFGS(
        [x],
        max_iter=200,
        tolerance_grad=1e-12,
        tolerance_change=1e-18,
        line_search_fn="strong_wolfe",
    )

    def closure():
        optimiser.zero_grad()
        loss = (sampler(x) - target).square().sum()
        loss.backward()
        return loss

    first = float(closure().detach())
    optimiser.step(closure)
    assert float(closure().detach()) < 1e-10 * first


def test_several_losses_and_a_graph_that_is_kept():
    denoiser = wrapped("guided", PATH)
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    shift = torch.randn(3, 2, dtype=torch.float64)
    found = []

    for policy in ("direct", adjoint.Exact(keep=2)):
        y = build("unipc", denoiser, 5, gradient=policy)(x, shift=shift)
        one = torch.autograd.grad(y.square().sum(), x, retain_graph=True)
        two = torch.autograd.grad(y.sin().sum(), [x, *denoiser.parameters()])
        found.append([*one, *two])

    assert same(*found)


def test_a_loss_on_the_way_alone():
    """Calls after the last state of interest are not repeated."""

    denoiser = wrapped("plain", PATH)
    calls, found = [], []
    denoiser.net.register_forward_hook(lambda *_: calls.append(0))

    for policy in ("direct", "exact"):
        x = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        seen = []
        build("ddim", denoiser, 6, gradient=policy)(
            x.requires_grad_(),
            observe=lambda i, x, D: seen.append(x),  # noqa: B023
        )
        calls.clear()
        found.append(torch.autograd.grad(seen[2].sum(), [x, *denoiser.parameters()]))

    assert len(calls) == 2 and same(*found)


def test_without_recording_nothing_is_recorded():
    denoiser = wrapped("plain", PATH)
    x = torch.randn(3, 2, dtype=torch.float64)
    with torch.no_grad():
        y = build("unipc", denoiser, 5, gradient="exact")(x)
    assert y.grad_fn is None and torch.equal(y, build("unipc", denoiser, 5)(x))
