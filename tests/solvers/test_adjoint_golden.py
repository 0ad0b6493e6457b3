"""Gradients against numbers made elsewhere: discrete samplers, the ODE itself, AdjointDPM."""

from functools import cache
import math

from oracles import golden
import pytest
import torch
from torch import nn

from genflow.models import Exact, Guided, Mixture, Preconditioned, VariancePreserving, grid
from genflow.solvers import Adaptive, adjoint, build

PATH = VariancePreserving()
GRIDS = ("t10", "t20", "lam10", "lam20")
PARTS = ("W1", "b1", "W2", "b2", "W3", "b3")


class Network(nn.Module):
    """The network of the golden file, whose output has the opposite sign in EDM's convention."""

    def __init__(self, arrays):
        super().__init__()
        for name in PARTS:
            self.register_parameter(name, nn.Parameter(arrays[f"mlp_vp/{name}"].clone()))

    def forward(self, x, time, c):
        """Called with the time itself."""

        angles = torch.stack([k * math.pi * time for k in (1, 2, 4)])
        waves = torch.stack([angles.sin(), angles.cos()], 1).flatten().expand(len(x), 6)
        hidden = torch.tanh(torch.cat([x, c, waves], 1) @ self.W1 + self.b1)
        return -(torch.tanh(hidden @ self.W2 + self.b2) @ self.W3 + self.b3)


@cache
def mixture():
    arrays = golden("adjoint")[1]
    variances = arrays["gm_std"].square()[:, None].expand(3, 4)
    return Exact(PATH, Mixture(arrays["gm_w"], arrays["gm_mu"], variances))


def network():
    return Preconditioned(Network(golden("adjoint")[1]), PATH, "karras", "unit")


def loss(x):
    q = golden("adjoint")[1]["loss_q"]
    return ((x - q) ** 2 / 2 + torch.cos(1.5 * x)).sum()


def start(key="x_T_common"):
    return golden("adjoint")[1][key].clone().requires_grad_()


def gradient(sampler, key="x_T_common"):
    """The samples of the mixture and the gradient at their initial states."""

    x = start(key)
    y = sampler(x)
    return y.detach(), torch.autograd.grad(loss(y), x)[0]


def close(found, wanted, atol=1e-12):
    torch.testing.assert_close(found, wanted, rtol=0, atol=atol)


def off(found, wanted):
    """The relative error."""

    return float((found - wanted).norm() / wanted.norm())


# ---------------------------------------------------------------- gradients of the samples


@pytest.mark.parametrize("where", GRIDS)
@pytest.mark.parametrize("name", ["euler", "dpmpp2m"])
def test_discrete_gradients(where, name):
    _, arrays = golden("adjoint")
    case = f"disc/{where}/{name}"
    preset, options = {"euler": ("ddim", {}), "dpmpp2m": ("dpmpp-2m", {"lower_final": False})}[
        name
    ]
    times = arrays[f"disc/{where}/t"].tolist()
    y, g = gradient(build(preset, mixture(), times=times, gradient="exact", **options))
    close(y, arrays[f"{case}/x_0"])
    close(g, arrays[f"{case}/grad_x_T"])


def through_network(sampler, c):
    """The gradients at the initial states, a condition and all weights."""

    x, net = start(), sampler.denoiser
    net = net.denoiser.net if isinstance(net, Guided) else net.net
    y = sampler(x, c=c.expand(3, 3))
    return y.detach(), torch.autograd.grad(loss(y), [x, c, *map(net.get_parameter, PARTS)])


def test_discrete_gradients_of_conditions_and_weights():
    _, arrays = golden("adjoint")
    c = arrays["mlp_vp/c"].clone().requires_grad_()
    times = arrays["disc/t10/t"].tolist()
    y, found = through_network(build("ddim", network(), times=times, gradient="exact"), c)
    close(y, arrays["disc/mlp_t10/x_0"])
    for name, g in zip(("x_T", "c", *PARTS), found, strict=True):
        close(g, arrays[f"disc/mlp_t10/grad_{name}"])


# ------------------------------------------------------------------ gradients of the ODE


def errors(make, sizes):
    """Errors against the truth of the mixture on grids that are uniform in λ."""

    truth = golden("adjoint")[1]["gm_vp/grad_x_T"]
    grids = [grid(PATH, N, "logsnr", final="min") for N in sizes]
    return [off(gradient(make(t), "gm_vp/x_T")[1], truth) for t in grids]


def order(make, sizes=(60, 180)):
    a, b = errors(make, sizes)
    return math.log(a / b) / math.log(sizes[1] / sizes[0]), b


@pytest.mark.parametrize(("name", "least"), [("ddim", 0.9), ("dpmpp-2m", 1.9), ("dpmpp-3m", 2.8)])
def test_exact_gradients_converge_with_their_sampler(name, least):
    def make(times):
        return build(name, mixture(), times=times, gradient="exact")

    assert order(make)[0] > least


@pytest.mark.parametrize("guided", [False, True])
def test_truth_of_conditions_and_weights(guided):
    """A fine grid of a third-order method finds every gradient of the network's ODE."""

    _, arrays = golden("adjoint")
    case = "mlp_vp_cfg" if guided else "mlp_vp"
    c, null = (arrays[f"mlp_vp/{k}"].clone().requires_grad_() for k in ("c", "c_null"))
    denoiser = Guided(network(), 3.0, {"c": null}) if guided else network()
    sampler = build("dpmpp-3m", denoiser, 120, final="min", gradient="exact")
    y, found = through_network(sampler, c)
    assert off(y, arrays[f"{case}/x_0"]) < 1e-3
    for name, g in zip(("x_T", "c", *PARTS), found, strict=True):
        assert off(g, arrays[f"{case}/grad_{name}"]) < 1e-3

    if guided:
        y = sampler(start(), c=c.expand(3, 3))
        assert off(torch.autograd.grad(loss(y), null)[0], arrays[f"{case}/grad_c_null"]) < 1e-3


# ------------------------------------------------------------------------- AdjointDPM


@pytest.mark.filterwarnings("ignore:gradient is 'continuous'")
@pytest.mark.parametrize("where", GRIDS)
@pytest.mark.parametrize("states", ["stored", "resolved"])
def test_the_published_adjoint(where, states):
    _, arrays = golden("adjoint")
    times = arrays[f"disc/{where}/t"].tolist()
    policy = adjoint.Continuous(states=states)
    y, g = gradient(build("adjoint-dpm", mixture(), times=times, gradient=policy))
    known = {"stored": "stored", "resolved": "backsolve"}[states]
    wanted = arrays[f"disc/{where}/euler_cont_{known}/grad_x_T"]
    close(y, arrays[f"disc/{where}/euler/x_0"])
    close(g, wanted, 1e-12 * float(wanted.abs().max().clamp_min(1)))


CHARTS = ("rho", "kappa", "phi", "log-rho")
SOLVERS = [
    pytest.param(method, chart, "stored", marks=[pytest.mark.slow] * (chart in CHARTS[1::2]))
    for method in ("euler", "heun", "multistep")
    for chart in CHARTS
]
SOLVERS += [("euler", "rho", "resolved"), ("multistep", "phi", "resolved")]
SOLVERS += [pytest.param("heun", c, "resolved", marks=pytest.mark.slow) for c in CHARTS]


@pytest.mark.filterwarnings("ignore:gradient is 'continuous'")
@pytest.mark.parametrize(("method", "chart", "states"), SOLVERS)
def test_orders_of_the_adjoint(method, chart, states):
    """In every chart, after a sampler that is more accurate than the adjoint."""

    def make(times):
        policy = adjoint.Continuous(method, chart, states)
        return build("dpmpp-3m", mixture(), times=times, gradient=policy)

    found, error = order(make, (80, 200))
    assert found > (0.75 if method == "euler" else 1.7)
    assert error < (0.3 if method == "euler" else 0.05)


def test_the_adjoint_of_a_network():
    """Every gradient of the network's ODE; the bounded chart is the better one by far."""

    _, arrays = golden("adjoint")
    c = arrays["mlp_vp/c"].clone().requires_grad_()
    off_by = {}

    for chart in ("rho", "phi"):
        policy = adjoint.Continuous(chart=chart)
        sampler = build("dpmpp-3m", network(), 120, final="min", gradient=policy)
        _, found = through_network(sampler, c)
        off_by[chart] = [
            off(g, arrays[f"mlp_vp/grad_{name}"])
            for name, g in zip(("x_T", "c", *PARTS), found, strict=True)
        ]

    assert max(off_by["rho"]) < 0.5 and max(off_by["phi"]) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("chart", ["phi", "log-rho"])
def test_adaptive_adjoints_converge_with_their_tolerance(chart):
    _, arrays = golden("adjoint")
    c = arrays["mlp_vp/c"].clone().requires_grad_()
    worst = []

    for tolerance in (1e-4, 1e-7):
        policy = adjoint.Continuous("dopri5", chart, rtol=tolerance, atol=tolerance)
        sampler = Adaptive(network(), 1e-7, 1e-7, gradient=policy)
        _, found = through_network(sampler, c)
        worst.append(
            max(
                off(g, arrays[f"mlp_vp/grad_{name}"])
                for name, g in zip(("x_T", "c", *PARTS), found, strict=True)
            )
        )

    assert worst[0] < 5e-2 and worst[1] < 1e-4
