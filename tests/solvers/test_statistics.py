"""Statistics of DPM-Solver-v3: closed forms, golden ones, and what they buy."""

import math
import re

from oracles import (
    golden,
    mixture,
    usf_exact,
    usf_schedule,
    usf_start,
    usf_statistics,
    usf_times,
)
import pytest
from test_loop import SYNCHRONISING, counted
from test_orders import ends, error, problem
import torch

from genflow.models import Denoiser, Exact, Karras, Mixture, Preconditioned, VariancePreserving
from genflow.nn import UNet
from genflow.solvers import (
    Sampler,
    SolverSchedule,
    Statistics,
    Step,
    build,
    estimate,
    rollout,
)

PATH = VariancePreserving()
FEW = {"points": 12, "samples": 64, "batch_size": 24}


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def gaussian(variance, mean):
    return Mixture(torch.ones(1).double(), double([mean]), double([variance]))


# --------------------------------------------------------------------------- closed forms


@pytest.mark.parametrize("products", ["forward", "reverse"])
@pytest.mark.parametrize("path", [PATH, Karras()], ids=["vp", "karras"])
def test_a_gaussian_has_a_closed_form(products, path):
    """There D is affine in y: k = v/(v + e^(−2λ)), f is constant, and b = f' = k'm."""

    variance, mean = double([0.3, 0.02]), double([0.5, -1.0])
    law = gaussian([0.3, 0.02], [0.5, -1.0])
    made = estimate(Exact(path, law), law.sample(64), points=200, samples=64, products=products)
    noise = torch.exp(-2 * made.lam)[:, None]
    k = variance / (variance + noise)
    k_dot = 2 * variance * noise / (variance + noise) ** 2
    torch.testing.assert_close(made.l, 1 - k, rtol=0, atol=1e-9)
    assert made.s.abs().max() == 0
    torch.testing.assert_close(made.b, k_dot * mean, rtol=0, atol=2e-3)


class Rotating(Denoiser):
    """D = (1 + λ)/4 A y: the diagonal of its Jacobian is not all of it."""

    def __init__(self):
        super().__init__()
        self.path = PATH
        self.A = torch.nn.Parameter(double([[0.5, 0.9], [-0.7, 0.2]]))

    def forward(self, x_t, t):
        scale = (1 + self.path.lam(t)) / 4 / self.path(t)[0]
        return scale * x_t @ self.A.T


@pytest.mark.parametrize("products", ["forward", "reverse"])
def test_only_the_diagonal_counts(products):
    made = estimate(Rotating(), torch.randn(99, 2).double(), products=products, **FEW)
    k = (1 + made.lam)[:, None] / 4 * double([0.5, 0.2])
    torch.testing.assert_close(made.l, 1 - k, rtol=0, atol=1e-9)
    signs = estimate(Rotating(), torch.randn(99, 2).double(), probes=16, **FEW)
    assert (signs.l - made.l).abs().max() < 0.1
    assert (signs.l - made.l).abs().max() > 0


def test_s_and_b_are_a_regression():
    """Two elements, one slope each: s and b against a fit of f' on f made by hand."""

    law, point = mixture(), 4
    data = law.sample(300)
    made = estimate(Exact(PATH, law), data, points=80, samples=300, batch_size=300)
    i = 40 + point
    draws = {}

    class Seen(Exact):
        def forward(self, x_t, t):
            draws["y"] = (x_t / self.path(t)[0]).detach().clone()
            return super().forward(x_t, t)

    # The states of every row are alike: those of the last row, at the level of row i.
    estimate(Seen(PATH, law), data, points=3, samples=300, batch_size=300, products="reverse")
    seen = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    stop = PATH.lam(double(PATH.t_min))
    z = (draws["y"] - data[seen]) * torch.exp(stop)
    lam = made.lam[i]
    y = data[seen] + torch.exp(-lam) * z
    assert z.std() == pytest.approx(1, abs=0.1)

    def f(y, lam):
        alpha, sigma = PATH(PATH.inverse(lam))
        x = alpha * y
        eps = (x - alpha * Exact(PATH, law)(x, PATH.inverse(lam))) / sigma
        u = (lam - made.lam[i - 1]) / (made.lam[i + 1] - made.lam[i - 1])
        return (sigma * eps - torch.lerp(made.l[i - 1], made.l[i + 1], u) * x) / alpha

    D = Exact(PATH, law)(PATH(PATH.inverse(lam))[0] * y, PATH.inverse(lam))
    value, slope = torch.func.jvp(f, (y, lam), (D - y, torch.ones_like(lam)))
    for d in range(2):
        matrix = torch.stack([value[:, d], torch.ones(300).double()], 1)
        s, b = torch.linalg.lstsq(matrix, slope[:, d]).solution
        assert float(made.s[i, d]) == pytest.approx(float(s), abs=2e-2)
        assert float(made.b[i, d]) == pytest.approx(float(b), abs=2e-2)


def test_agrees_with_the_golden_statistics():
    """Fitted statistics of the golden file, made by an independent program from other draws."""

    _, arrays = golden("usf")
    fit = {k: arrays[f"ems/gm2d/vp/fit/{k}"][::30] for k in ("lambda", "l", "s", "b")}
    start, stop = (float(PATH.inverse(fit["lambda"][j])) for j in (0, -1))
    options = {"points": 201, "samples": 1500, "batch_size": 1500, "start": start, "stop": stop}
    law = mixture()
    made = estimate(Exact(PATH, law), law.sample(1500), **options)
    assert (made.lam[::10] - fit["lambda"]).abs().max() < 1e-9
    assert (made.l[::10] - fit["l"]).abs().max() < 0.05
    assert (made.s[::10] - fit["s"]).abs().max() < 0.3
    assert (made.b[::10] - fit["b"]).abs().max() < 0.1


def test_a_network_with_attention():
    """Forward and reverse products agree on a U-Net, with labels."""

    net = UNet(4, 1, widths=(8, 16), layers=1, attention=(2,), classes=3, groups=4).eval()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.1)
    denoiser = Preconditioned(net.double(), PATH, "v").requires_grad_(False)
    data, label = torch.randn(20, 1, 4, 4).double(), torch.randint(0, 3, (20,))
    options = {"points": 3, "samples": 5, "batch_size": 3, "start": 0.3, "stop": 0.05}
    one, two = (
        estimate(denoiser, data, products=p, label=label, **options)
        for p in ("forward", "reverse")
    )
    assert one.event == (1, 4, 4)
    for k in "lsb":
        torch.testing.assert_close(getattr(one, k), getattr(two, k), rtol=2e-2, atol=2e-2)


# --------------------------------------------------------------------------- what they buy

V3 = [c for c in golden("usf")[0]["cases"] if re.search(r"v3-(\w+-)?o\d-", c["id"])]
OUT = {c["id"]: x for c, x in zip(golden("usf")[0]["cases"], golden("usf")[1]["out"], strict=True)}


@pytest.mark.parametrize("case", V3, ids=lambda c: c["id"].replace("/gm2d", ""))
def test_the_preset_is_the_published_one(case):
    found = re.search(r"-o(\d)-pp(\d)-c(\d)-cp(\d)$", case["id"])
    order, *switches = map(int, found.groups()) if found else (3, 0, 1, 1)
    names = ("p_pseudo", "corrector", "c_pseudo")
    options = dict(zip(names, map(bool, switches), strict=True))
    lower = usf_schedule(case).steps[-1].order == 1
    sampler = build(
        "dpm-v3",
        usf_exact(case),
        times=usf_times(case),
        order=order,
        lower_final=lower,
        statistics=usf_statistics(case),
        **options,
    )
    assert len(V3) == 45
    torch.testing.assert_close(sampler(usf_start(case)), OUT[case["id"]], rtol=0, atol=1e-10)
    assert sampler.nfe == case["calls"]


def smooth_statistics(points):
    """Those of the Gaussian with the mixture's moments, and an s that is not 0."""

    mean, covariance = mixture().moments()
    variance = covariance.diag()
    lam = torch.linspace(-5.1, 6.6, points, dtype=torch.float64)
    noise = torch.exp(-2 * lam)[:, None]
    k_dot = 2 * variance * noise / (variance + noise) ** 2
    s = -0.5 * torch.sigmoid(lam)[:, None].expand(-1, 2)
    return Statistics(lam, noise / (variance + noise), s, k_dot * mean)


PLAIN = {"corrector": False, "p_pseudo": False}


@pytest.mark.parametrize("kind", ["vp", "rectified", "karras"])
@pytest.mark.parametrize(
    ("options", "low", "high"),
    [
        ({"order": 1, **PLAIN}, 0.9, 1.4),
        ({"order": 2, **PLAIN}, 1.7, 2.3),
        ({"order": 3, **PLAIN}, 2.7, 3.6),
        ({"order": 3, "corrector": False, "p_pseudo": True}, 1.7, 2.3),
        ({"order": 2, "c_pseudo": False}, 2.8, 4.0),
        ({"order": 3, "c_pseudo": False}, 2.7, 4.2),
        ({"order": 3, "c_pseudo": True}, 1.4, 2.6),
    ],
)
def test_measured_order(kind, options, low, high):
    """Full estimates have the order that they name; the pseudo ones have order 2."""

    truth, x, solution = problem(kind)
    start, stop = ends(kind)
    spacing = {"grid": "logsnr", "start": start, "stop": stop, "final": "min"}
    spacing |= {"statistics": smooth_statistics(9001), "lower_final": False}
    few, many = (
        error(build("dpm-v3", truth, n, **spacing, **options), x, solution) for n in (40, 160)
    )
    assert low < math.log(few / many) / math.log(4) < high


def test_fitted_statistics_beat_dpmpp_2m():
    """In 16 dimensions, at 5 to 8 calls, on the same grid."""

    g = torch.Generator().manual_seed(18)
    means = torch.randn(5, 16, generator=g, dtype=torch.float64)
    scales = 0.05 + 0.25 * torch.rand(5, 16, generator=g, dtype=torch.float64)
    law = Mixture(double([0.3, 0.2, 0.25, 0.15, 0.1]), means, scales**2)
    truth, x = Exact(PATH, law), torch.randn(64, 16, generator=g, dtype=torch.float64)
    data = law.sample(256, generator=g)
    made = estimate(truth, data, points=64, samples=256, batch_size=256, probes=2)
    solution = build("dpmpp-3m", truth, 300)(x)

    for calls in (5, 6, 7, 8):
        options = {"lower_final": True}
        plain = error(build("dpmpp-2m", truth, calls, **options), x, solution)
        fitted = error(build("dpm-v3", truth, calls, statistics=made, **options), x, solution)
        assert fitted < 0.85 * plain, (calls, fitted, plain)


def test_statistics_are_interpolated_and_not_snapped():
    """The result moves smoothly with a time; snapped, it stands still and then jumps."""

    _, arrays = golden("usf")
    columns = [arrays[f"ems/gm2d/vp/fit/{k}"][::20] for k in ("lambda", "l", "s", "b")]
    truth, x = Exact(PATH, mixture()), golden("usf")[1]["xT"]
    roughness = {}

    for snap in (False, True):
        ends_ = []
        for shift in torch.linspace(0, 0.6, 61, dtype=torch.float64):
            lam = torch.linspace(-4, 3, 6, dtype=torch.float64)
            lam[2] += shift
            steps = [Step(min(i + 1, 2), "empirical") for i in range(5)]
            schedule = SolverSchedule(PATH.inverse(lam).tolist(), steps)
            ends_.append(Sampler(truth, schedule, statistics=Statistics(*columns, snap=snap))(x))
        moves = torch.stack(ends_).diff(dim=0)
        roughness[snap] = float(moves.diff(dim=0).abs().max() / moves.abs().max())

    assert roughness[False] < 0.25
    assert roughness[True] > 0.75


def test_statistics_serve_every_path():
    """They depend on λ alone: those of one path are those of another."""

    law = mixture()
    data = law.sample(50)
    one = estimate(Exact(PATH, law), data, **FEW)
    karras = Karras()
    start, stop = karras.inverse(one.lam[[0, -1]]).tolist()
    two = estimate(Exact(karras, law), data, start=start, stop=stop, **FEW)
    for k in ("lam", "l", "s", "b"):
        torch.testing.assert_close(getattr(one, k), getattr(two, k), rtol=1e-6, atol=1e-6)


def test_three_kernels_a_stage():
    """Weights per element, and their constant, cost a stack, a product and a sum."""

    truth = Exact(PATH, mixture())
    counts = []
    for N in (20, 30):
        table = build("dpm-v3", truth, N, statistics=smooth_statistics(50)).tableau
        x = torch.randn(3, 2).double()
        stages = [lambda x, t: x] * N
        rollout(stages, x, table)
        counts.append(counted(lambda: rollout(stages, x, table)))  # noqa: B023
    added = counts[1] - counts[0]
    assert sum(added.values()) <= 30 and not SYNCHRONISING & set(counts[1]), added
