"""The one loop: populations, kernels, synchronisation, shapes, dtypes, and who looks on."""

from collections import Counter

from oracles import PATHS, golden, mixture
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from genflow.errors import UserError
from genflow.models import Exact, Mixture, Preconditioned, VariancePreserving
from genflow.solvers import (
    Sampler,
    SolverSchedule,
    Statistics,
    Step,
    Tableau,
    build,
    rollout,
    schedule_for,
    stack,
    tabulate,
)

PATH = VariancePreserving()

SAMPLERS = {
    "ddim": ("ddim", {}),
    "dpmpp-2m": ("dpmpp-2m", {}),
    "dpmpp-3m": ("dpmpp-3m", {}),
    "dpmpp-3s": ("dpmpp-3s", {}),
    "unipc-3": ("unipc", {"order": 3}),
    "heun": ("heun", {}),
    "rk4": ("rk4", {}),
    "karras-heun": ("karras-heun", {}),
    "ipndm": ("ipndm", {}),
}


def table_of(name, N, **options):
    preset, known = SAMPLERS.get(name, (name, {}))
    made = schedule_for(preset, PATH, N, **known, **options)
    return made if isinstance(made, Tableau) else tabulate(made, PATH)


# ---------------------------------------------------------------------------- populations


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_population_is_one_by_one(dtype):
    """Samples that follow tables of their own end where each table alone takes them."""

    names = ["ddim", "dpmpp-2m", "dpmpp-3m", "unipc-3", "dpmpp-3s", "ipndm"]
    tables = [table_of(n, 6, grid=g) for n in names for g in ("logsnr", "uniform")]
    counts = [1 + i % 3 for i in range(len(tables))]
    truth = Exact(PATH, mixture().to(dtype))
    x = torch.randn(sum(counts), 2, dtype=dtype)

    together = Sampler(truth, stack(tables, counts))(x)
    alone = torch.cat([Sampler(truth, t)(y) for t, y in zip(tables, x.split(counts), strict=True)])
    atol = 1e-12 if dtype == torch.float64 else 2e-5
    torch.testing.assert_close(together, alone, rtol=0, atol=atol)


def test_population_with_fresh_noise():
    """Deviations of noise may differ between samples, too; a start may, as well."""

    tables = [table_of("ddim", 5, eta=eta) for eta in (0.0, 0.5, 1.0)]
    truth, x = Exact(PATH, mixture()), torch.randn(6, 2, dtype=torch.float64)
    streams = [torch.Generator().manual_seed(i) for i in range(6)]
    together = Sampler(truth, stack(tables, 2))(x, generator=streams)
    streams = [torch.Generator().manual_seed(i) for i in range(6)]
    alone = [
        Sampler(truth, t)(x[2 * k : 2 * k + 2], generator=streams[2 * k : 2 * k + 2])
        for k, t in enumerate(tables)
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-12)
    karras = PATHS["karras"]
    churned = [schedule_for("karras-heun", karras, 5, churn=c) for c in (0.0, 8.0)]
    start = Sampler(Exact(karras, mixture()), stack(churned, 3)).init((6, 2), dtype=torch.float64)
    assert 20 < start.std() < 300


def test_populations_must_be_alike():
    for tables, counts in (
        ([table_of("ddim", 5), table_of("ddim", 6)], 1),
        ([table_of("ddim", 4), table_of("heun", 2)], 1),
        ([table_of("ddim", 5), table_of("ddim", 5)], [1]),
    ):
        with pytest.raises(UserError, match="a population needs"):
            stack(tables, counts)


def test_images_and_statistics():
    """A row per element: statistics with the shape of an image, against a flat problem."""

    _, arrays = golden("usf")
    lam = arrays["ems/gm2d/vp/fit/lambda"]
    flat = Statistics(lam, *(arrays[f"ems/gm2d/vp/fit/{k}"] for k in "lsb"))
    shaped = Statistics(lam, *(getattr(flat, k).reshape(-1, 1, 2, 1) for k in "lsb"))
    times = PATH.inverse(torch.linspace(-4, 3, 6, dtype=torch.float64)).tolist()
    schedule = SolverSchedule(times, [Step(min(i + 1, 3), "empirical") for i in range(5)])
    truth, x = Exact(PATH, mixture()), torch.randn(4, 2, dtype=torch.float64)
    plain = Sampler(truth, schedule, statistics=flat)(x)
    image = Sampler(truth, schedule, statistics=shaped)(x.reshape(4, 1, 2, 1))
    torch.testing.assert_close(image.reshape(4, 2), plain, rtol=0, atol=1e-12)


# -------------------------------------------------------------------------------- kernels


VIEWS = {
    "view",
    "_unsafe_view",
    "reshape",
    "select",
    "slice",
    "expand",
    "unsqueeze",
    "squeeze",
    "squeeze_",
    "unbind",
    "split",
    "split_with_sizes",
    "t",
    "transpose",
    "alias",
    "detach",
    "as_strided",
}
SYNCHRONISING = {"_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "unique"}


class Kernels(TorchDispatchMode):
    """Counts the aten operations that compute."""

    def __init__(self):
        super().__init__()
        self.count = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.split("::")[1]
        if name not in VIEWS:
            self.count[name] += 1
        return function(*args, **(kwargs or {}))


def counted(run):
    with Kernels() as kernels:
        run()
    return kernels.count


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("population", [False, True])
@pytest.mark.parametrize("name", SAMPLERS)
def test_three_kernels_a_stage_and_no_synchronisation(name, population, dtype):
    """What 10 more steps add, with stages that compute nothing, is 3 kernels a stage at most."""

    x = torch.randn(4, 3, 5, 5, dtype=dtype)
    counts = []

    for N in (20, 30):
        table = table_of(name, N)
        table = stack([table, table], 2) if population else table
        stages = [lambda x, t: x] * len(table.time)
        rollout(stages, x, table)
        counts.append((len(stages), counted(lambda: rollout(stages, x, table))))

    (few, short), (many, long) = counts
    added = long - short
    assert sum(added.values()) <= 3 * (many - few), added
    assert not SYNCHRONISING & set(long), long


def test_the_count_sees_kernels_and_synchronisation():
    """The counter can fail: a stage that computes or asks for a number is noticed."""

    table = table_of("ddim", 5)
    x = torch.randn(4, 3)
    rollout([lambda x, t: x] * 5, x, table)
    plain = sum(counted(lambda: rollout([lambda x, t: x] * 5, x, table)).values())
    busy = sum(counted(lambda: rollout([lambda x, t: x + x.sin()] * 5, x, table)).values())
    asking = counted(lambda: rollout([lambda x, t: x * float(t)] * 5, x, table))
    assert busy == plain + 10
    assert asking["_local_scalar_dense"] == 5


def test_fresh_noise_costs_its_draw_and_one_addition():
    table = table_of("ddim", 20, eta=1.0)
    x = torch.randn(4, 3)
    count = counted(lambda: rollout([lambda x, t: x] * 20, x, table))
    assert count["randn_like"] in (19, 20)
    assert count["addcmul"] == count["randn_like"]
    assert not SYNCHRONISING & set(count)


@pytest.mark.parametrize("name", ["ddim", "unipc-3", "heun"])
def test_a_sampler_does_not_synchronise_either(name):
    """The same for a whole `Sampler` with a network, planning included once it has run."""

    preset, options = SAMPLERS[name]
    sampler = build(preset, Preconditioned(Net(), PATH, "noise"), 10, **options)
    x = torch.randn(4, 2)
    sampler(x)
    assert not SYNCHRONISING & set(counted(lambda: sampler(x)))


# ----------------------------------------------------------------------- shapes and dtypes


class Net(nn.Module):
    """A small network that works on any shape."""

    def __init__(self, channels=2, image=False, dtype=torch.float32):
        super().__init__()
        layer = nn.Conv2d(channels, channels, 3, padding=1) if image else nn.Linear(channels, 2)
        self.layer = layer.to(dtype)

    def forward(self, x, time):
        time = time.to(x) / 1000
        time = time.reshape(-1, *(1,) * (x.ndim - 1)) if time.ndim else time
        return torch.tanh(self.layer(x) + time)


@pytest.mark.parametrize("name", ["ddim", "dpmpp-3m", "heun", "karras-heun", "ddpm"])
@pytest.mark.parametrize("net", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("state", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(5, 2), (3, 2, 4, 4)])
def test_shapes_and_dtypes(name, net, state, shape):
    """The state keeps its dtype and shape, whatever the network computes in."""

    preset, options = SAMPLERS.get(name, (name, {}))
    image = len(shape) == 4
    denoiser = Preconditioned(Net(2, image, net), PATH, "v")
    x = build(preset, denoiser, 4, **options).init(shape, dtype=state)
    streams = [[torch.Generator().manual_seed(i) for i in range(shape[0])] for _ in range(2)]
    out = build(preset, denoiser, 4, **options)(x, generator=streams[0])
    assert out.shape == shape and out.dtype == state and bool(out.isfinite().all())
    exact = Preconditioned(Net(2, image, torch.float64), PATH, "v")
    exact.net.load_state_dict(denoiser.net.state_dict())
    truth = build(preset, exact, 4, **options)(x.double(), generator=streams[1])
    if name != "ddpm" or state == torch.float64:
        bound = 0.1 if net == torch.bfloat16 else 1e-4 if net == torch.float32 else 1e-5
        assert (out.double() - truth).abs().max() < bound


def test_half_precision_states():
    """A bfloat16 state keeps its dtype, and stays near the float64 one."""

    law = Mixture(torch.ones(1), torch.tensor([[0.3, -0.2]]), torch.tensor([[0.5, 0.5]]))
    sampler = build("ddim", Exact(PATH, law.bfloat16()), 5)
    x = torch.randn(16, 2)
    out = sampler(x.bfloat16())
    truth = build("ddim", Exact(PATH, law.double()), 5)(x.double())
    assert out.dtype == torch.bfloat16
    assert (out.double() - truth).abs().max() < 0.15


# -------------------------------------------------------------------------------- observe


def test_observe_sees_every_stage():
    truth, x = Exact(PATH, mixture()), torch.randn(3, 2, dtype=torch.float64)
    sampler = build("unipc", truth, 6, order=3)
    seen = []
    end = sampler(x, observe=lambda i, x, D: seen.append((i, x, D)))
    assert [i for i, _, _ in seen] == list(range(6)) and len(seen) == sampler.nfe
    assert torch.equal(seen[0][1], x)
    for (_, state, data), t in zip(seen, sampler.tableau.time, strict=True):
        torch.testing.assert_close(data, truth(state, t), rtol=1e-12, atol=1e-12)
    assert torch.equal(end, sampler(x))


def test_analytic_first_step():
    """From noise, or from the mean, the first call is not made; its value is the stated one."""

    class Counted(Exact):
        calls = 0

        def forward(self, x_t, t):
            self.calls += 1
            return super().forward(x_t, t)

    x, mean = torch.randn(3, 2, dtype=torch.float64), torch.tensor([0.3, -0.1])
    times = schedule_for("ddim", PATH, 4).times
    alpha, sigma = PATH(torch.tensor(times[0], dtype=torch.float64))

    for source, first in (
        ("noise", (x - sigma * x / torch.hypot(alpha, sigma)) / alpha),
        ("mean", mean.double().expand_as(x)),
    ):
        denoiser = Counted(PATH, mixture())
        steps = (Step(source=source), Step(), Step(order=2), Step())
        sampler = Sampler(denoiser, SolverSchedule(times, steps), mean=mean)
        seen = []
        sampler(x, observe=lambda i, x, D: seen.append(D))  # noqa: B023
        assert denoiser.calls == sampler.nfe == 3
        torch.testing.assert_close(seen[0], first, rtol=1e-9, atol=1e-9)

    with pytest.raises(UserError, match="step 0 has source 'mean'"):
        Sampler(denoiser, SolverSchedule(times, steps))
