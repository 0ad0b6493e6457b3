"""The closed forms of the bridge: golden numbers, textbook loops, quadrature, Sinkhorn."""

import math

from lightsb import (
    CASES,
    FAMILIES,
    bridge,
    case,
    log_mixture,
    log_normal,
    moments,
    sinkhorn,
    textbook_kernel,
)
from oracles import double
import pytest
import torch

from genflow.errors import UserError
from genflow.models import Diagonal, Full, LightBridge, LowRank, operators
from genflow.models.covariances import entropic_map

EVERY_FAMILY = pytest.mark.parametrize("kind", FAMILIES)


def close(a, b, tolerance=1e-10):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def states(b, n=7, seed=1):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, b.dimension, generator=g, dtype=torch.float64)


# -------------------------------------------------------------------------- golden numbers


@pytest.mark.parametrize("name", [n for n in CASES if n.startswith("gt/")])
def test_golden_plans(name):
    found, b = case(name)
    x, y = found["x0"], found["x1_sample"]
    plan = b.plan(x)
    close(plan.weights, found["cond_weights"])
    close(plan.mean, found["cond_mean"])
    close(plan.covariance[:2], found["cond_cov_first2"])
    close(b.log_normaliser(x), found["log_c"])
    close(b.log_potential(y), found["log_v"])
    close(b.log_density(x, y), found["log_cond_density"])
    close(plan.log_prob(y), found["log_cond_density"])
    close(b.drift(found["x_t"], found["t"]), found["drift"])
    close(b.log_phi(found["x_t"], found["t"]), found["log_phi_t"])
    close(b.plan(found["x_t"], 0.7, 0.2).mean, found["trans_0.3_0.8_mean"])


@pytest.mark.parametrize("name", [n for n in CASES if n.startswith("off/")])
def test_golden_official(name):
    found, b = case(name)
    close(b.log_normaliser(found["x"]), found["log_C"])
    close(b.log_potential(found["x"]), found["log_potential"])
    # the official drift cancels close to the target
    close(b.drift(found["x"], found["t"]), found["drift"], 1e-7)


@pytest.mark.parametrize("name", [n for n in CASES if n.startswith("off/")])
def test_float32_is_right_up_to_both_ends(name):
    found, b = case(name)
    x = found["x"].float().double()
    narrow = case(name)[1].float()

    for t in (0.0, 1e-6, 1e-3, 0.01, 0.5, 0.99, 0.999, 1 - 1e-6, 1.0):
        truth = b.drift(x, t)
        for ours in (narrow.drift(x.float(), t), b.drift(x.float(), t)):
            assert ours.dtype == torch.float32
            assert float((ours - truth).abs().max() / truth.abs().max()) < 1e-5


@pytest.mark.parametrize(("kind", "K", "d"), [("diagonal", 60, 64), ("full", 8, 32)])
@pytest.mark.parametrize("epsilon", [0.01, 0.1, 10.0])
def test_float32_is_right_where_components_compete(kind, K, d, epsilon):
    b = bridge(kind, K, d, epsilon, scale=(0.02, 1.8))
    x = 0.5 * states(b, 32)
    even = b.log_weight - b.logits(x, 1.0).mean(0)
    b = LightBridge(even, b.centre, b.covariance, epsilon).requires_grad_(False)
    along = {t: b.plan(x, 1.0, t).sample().float().double() for t in (0.0, 0.001, 0.5, 0.999)}
    along[1.0] = x.float().double()
    truth = {t: b.drift(x_t, t) for t, x_t in along.items()}
    b = b.float()
    for t, x_t in along.items():
        gap = (b.drift(x_t.float(), t) - truth[t]).norm(dim=1) / truth[t].norm(dim=1)
        assert float(gap.max()) < 1e-4


# ------------------------------------------------------------------------ textbook truths


@EVERY_FAMILY
@pytest.mark.parametrize(("t", "s"), [(1.0, 0.0), (1.0, 0.4), (0.7, 0.2), (0.3, 0.0)])
def test_the_kernel_is_the_textbook_one(kind, t, s):
    b = bridge(kind, K=4, d=3)
    x, y = states(b), states(b, seed=2)
    weights, means, covariances = textbook_kernel(b, x, t, s)
    plan = b.plan(x, t, s)
    mean, covariance = moments(weights, means, covariances)
    close(plan.weights, weights)
    close(plan.means, means)
    close(plan.mean, mean)
    close(plan.covariance, covariance)
    close(plan.log_prob(y), log_mixture(weights, means, covariances, y), 1e-9)


@EVERY_FAMILY
def test_times_may_differ_between_samples(kind):
    b = bridge(kind, K=4, d=3)
    x, y = states(b), states(b, seed=2)
    t = torch.linspace(1.0, 0.3, len(x), dtype=torch.float64)
    s = t * 0.4
    many = b.plan(x, t, s)

    for i in range(len(x)):
        one = b.plan(x[i : i + 1], float(t[i]), float(s[i]))
        close(many.mean[i], one.mean[0])
        close(many.means[i], one.means[0])
        close(many.covariance[i], one.covariance[0])
        close(many.log_prob(y)[i], one.log_prob(y[i : i + 1])[0])
        close(b.drift(x, t)[i], b.drift(x[i : i + 1], float(t[i]))[0])
        close(b.log_phi(x, t)[i], b.log_phi(x[i : i + 1], float(t[i]))[0])


@EVERY_FAMILY
@pytest.mark.parametrize("t", [0.0, 0.01, 0.5, 1.0])
def test_the_drift_is_the_gradient_of_the_potential(kind, t):
    b = bridge(kind, K=4, d=3)
    x = states(b).requires_grad_()
    (gradient,) = torch.autograd.grad(b.log_phi(x, t).sum(), x)
    x = x.detach()
    close(b.drift(x, t), b.epsilon * gradient)
    close(b(x, double(t)), x + t * b.drift(x, t))
    close(b(x, double(t)), b.plan(x, t).mean)
    if t > 0:
        close(b.drift(x, t), (b.plan(x, t).mean - x) / t)


def test_the_normaliser_and_the_heat_equation_by_quadrature():
    b = bridge("diagonal", K=3, d=1, epsilon=0.3)
    y = torch.linspace(-25, 25, 20001, dtype=torch.float64)[:, None]
    x = double([[-1.0], [0.2], [1.5]])
    v = b.log_potential(y)
    truth = torch.trapezoid((x * y[:, 0] / b.epsilon + v).exp(), y[:, 0])
    close(b.log_normaliser(x), truth.log())

    for t, s in ((1.0, 0.3), (0.6, 0.0)):
        free = log_normal(y - x[:, None], b.epsilon * (t - s))
        truth = torch.trapezoid((b.log_phi(y, s) + free).exp(), y[:, 0])
        close(b.log_phi(x, t), truth.log())


def test_the_plan_is_the_entropic_plan_of_its_marginals():
    """Sinkhorn on a grid finds the joint law again: cost ½|x − y|², entropy weight ε."""

    b = bridge("diagonal", K=2, d=1, epsilon=0.4)
    x = torch.linspace(-3, 3, 61, dtype=torch.float64)[:, None]
    y = torch.linspace(-7, 7, 141, dtype=torch.float64)[:, None]
    p = torch.softmax(log_normal(x, 0.5), 0)
    given = torch.stack([b.log_density(row.expand(len(y), 1), y) for row in x])
    joint = p[:, None] * given.softmax(1)
    found = sinkhorn(p, joint.sum(0), 0.5 * (x - y.T).square(), b.epsilon)
    close(found, joint, 1e-9)


def test_a_common_factor_of_the_weights_changes_nothing():
    b = bridge("full")
    x, y = states(b), states(b, seed=2)
    other = LightBridge(b.log_weight + 3.7, b.centre, b.covariance, b.epsilon)
    close(other.drift(x, 0.4), b.drift(x, 0.4))
    close(other.log_density(x, y), b.log_density(x, y))
    close(other.log_potential(y), b.log_potential(y) + 3.7)
    close(other.log_normaliser(x), b.log_normaliser(x) + 3.7)


# --------------------------------------------------------------------------------- Gaussians


def gaussians(d, seed=3):
    g = torch.Generator().manual_seed(seed)
    roots = torch.randn(2, d, d, generator=g, dtype=torch.float64)
    means = torch.randn(2, d, generator=g, dtype=torch.float64)
    return means, roots @ roots.mT + 0.2 * torch.eye(d, dtype=torch.float64)


def root(matrix):
    values, basis = torch.linalg.eigh(matrix)
    return (basis * values.sqrt()) @ basis.mT


@pytest.mark.parametrize("d", [1, 2, 16])
@pytest.mark.parametrize("epsilon", [0.1, 1.0, 10.0])
def test_gaussian_to_gaussian(d, epsilon):
    """The cross-covariance of the known solution, the laws at all times, the moments' ODE."""

    (m0, m1), (V0, V1) = gaussians(d)
    b = LightBridge.gaussian((m0, V0), (m1, V1), epsilon).requires_grad_(False)
    S, r, eye = b.covariance.dense()[0], b.centre[0], torch.eye(d, dtype=torch.float64)
    half = root(V0)
    known = root(4 * half @ V1 @ half + epsilon**2 * eye)
    cross = 0.5 * (half @ known @ torch.linalg.inv(half) - epsilon * eye)
    close(V0 @ S, cross, 1e-8)
    close(S @ V0 @ S + epsilon * S, V1, 1e-9)
    close(S @ m0 + r, m1, 1e-9)

    # d/ds of mean and covariance at s = 1 − t under dX = g ds + √ε dW, g = A x + c
    for t in (1.0, 0.6, 0.2, 0.0):
        B = (1 - t) * S + t * eye
        mean, V = B @ m0 + (1 - t) * r, B @ V0 @ B + epsilon * (1 - t) * B
        A = torch.func.jacrev(lambda x, t=t: b.drift(x[None], t)[0])(mean)
        close(b.drift(mean[None], t)[0], S @ m0 + r - m0, 1e-8)
        rate = (S - eye) @ V0 @ B + B @ V0 @ (S - eye)
        rate = rate + epsilon * (B + (1 - t) * (S - eye))
        close(A @ V + V @ A.mT + epsilon * eye, rate, 1e-7)

    close(V, V1, 1e-8)


def test_the_map_of_diagonals_is_that_of_diagonal_matrices():
    V = torch.rand(2, 3, 4, dtype=torch.float64) + 0.1
    full = entropic_map(torch.diag_embed(V[0]), torch.diag_embed(V[1]), 0.7)
    close(torch.diag_embed(entropic_map(V[0], V[1], 0.7)), full)
    # a source without spread in a direction is no obstacle
    flat = torch.diag_embed(double([[1.0, 0.0]]))
    S = entropic_map(flat, torch.diag_embed(double([[1.0, 2.0]])), 0.7)
    close(S[0, 1, 1], double(2.0 / 0.7))


# ------------------------------------------------------------- sizes, gradients, parameters


@pytest.mark.parametrize("epsilon", [0.01, 10.0])
def test_many_components_in_many_dimensions(epsilon):
    b = bridge("diagonal", K=1000, d=1024, epsilon=epsilon, scale=(1e-3, 2.0)).float()
    x = torch.randn(6, 1024)
    wide = b.plan(x.double())
    assert torch.isfinite(b.log_normaliser(x)).all() and torch.isfinite(b.log_potential(x)).all()

    for t in (0.0, 0.3, 1.0):
        assert torch.isfinite(b.drift(x, t)).all()
    y = b.sample(x, generator=torch.Generator().manual_seed(0))
    assert y.dtype == torch.float32 and torch.isfinite(wide.log_prob(y)).all()


@EVERY_FAMILY
def test_parts_give_what_the_whole_gives(kind, monkeypatch):
    b = bridge(kind, K=4, d=3)
    x, t = states(b, n=11), torch.linspace(0.2, 1, 11, dtype=torch.float64)

    def answers():
        plan = b.plan(x, t, 0.1)
        drawn = plan.sample(generator=torch.Generator().manual_seed(0))
        sides = (b.log_normaliser(x), b.log_potential(x), b.drift(x, t), b.log_phi(x, 0.3))
        return (plan.mean, plan.covariance, drawn, *sides)

    whole = answers()
    monkeypatch.setattr(operators, "LIMIT", 40)
    for part, expected in zip(answers(), whole, strict=True):
        close(part, expected)


@pytest.mark.parametrize("kind", [*FAMILIES, "turning"])
def test_gradients_of_the_objective(kind):
    b = bridge("full" if kind == "turning" else kind, K=2, d=3)
    if kind == "turning":
        b.covariance = b.covariance.turning()
    x, y = states(b, 3), states(b, 3, seed=2)
    names = [name for name, _ in b.named_parameters()]

    def loss(*values):
        named = dict(zip(names, values, strict=True))
        call = torch.func.functional_call
        c = call(_Method(b, "log_normaliser"), {f"b.{k}": v for k, v in named.items()}, (x,))
        v = call(_Method(b, "log_potential"), {f"b.{k}": v for k, v in named.items()}, (y,))
        return c.mean() - v.mean()

    values = [p.detach().clone().requires_grad_() for p in b.parameters()]
    assert torch.autograd.gradcheck(loss, values, eps=1e-6, atol=1e-6)
    assert all(g.abs().max() > 0 for g in torch.autograd.grad(loss(*values), values))


class _Method(torch.nn.Module):
    """A method of a module as the forward of another."""

    def __init__(self, b, name):
        super().__init__()
        self.b, self.name = b, name

    def forward(self, x):
        return getattr(self.b, self.name)(x)


def test_axes_turn_and_settle():
    b = bridge("full", K=2, d=3)
    free = b.covariance.turning()
    close(free.dense(), b.covariance.dense())
    free.turn.data.normal_()
    axes = free.rotation
    close(axes.mT @ axes, torch.eye(3, dtype=torch.float64).expand(2, 3, 3))
    assert float((axes - b.covariance.basis).detach().abs().max()) > 0.1
    settled = free.settled()
    assert settled.turn is None
    close(settled.dense(), free.dense())
    close(Full.of(settled.dense()).dense(), settled.dense())


# ------------------------------------------------------------------------------- bad values


def _make(log_weight=(0.0, 0.0), centre=((0.0, 0.0), (1.0, 1.0)), scale=None, epsilon=1.0):
    scale = torch.zeros(2, 2, dtype=torch.float64) if scale is None else scale
    return LightBridge(double(log_weight), double(centre), Diagonal(scale), epsilon)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: _make(epsilon=0.0), "epsilon is 0.0: a finite number above 0"),
        (lambda: _make(epsilon=-1), "epsilon is -1.0"),
        (lambda: _make(epsilon=math.nan), "epsilon is nan"),
        (lambda: _make(log_weight=(0.0,)), "1 weights for 2 centres"),
        (lambda: _make(log_weight=0.0), r"log_weight has shape \(\)"),
        (lambda: _make(log_weight=(math.nan, 0.0)), "log_weight holds NaN"),
        (lambda: _make(log_weight=(-math.inf, -math.inf)), "or only −inf"),
        (lambda: _make(centre=((0.0, math.nan), (1.0, 1.0))), "centre holds values that are not"),
        (lambda: _make(centre=((0.0,), (1.0,))), r"and the covariance \(K, d\) = \(2, 2\)"),
        (lambda: Diagonal(torch.zeros(3)), r"log_scale has shape \(3,\)"),
        (lambda: Diagonal(torch.full((1, 1), math.inf)), "log_scale holds values that are not"),
        (lambda: LowRank(torch.zeros(2, 3), torch.zeros(2, 2, 1)), r"factor has shape \(2, 2, 1"),
        (lambda: LowRank(torch.zeros(1, 1), torch.full((1, 1, 1), math.nan)), "factor holds"),
        (lambda: Full(torch.zeros(1, 2), torch.ones(1, 2, 2)), "away from orthonormal columns"),
        (lambda: Full(torch.zeros(1, 2), torch.eye(2)), r"basis has shape \(2, 2\)"),
        (lambda: Full.of(-torch.eye(2)[None]), "eigenvalue -1: all must be above 0"),
        (lambda: Full.of(torch.eye(2)), r"matrices have shape \(2, 2\)"),
        (
            lambda: LightBridge.gaussian(
                (torch.zeros(2), torch.eye(3)), (torch.zeros(2), torch.eye(2)), 1.0
            ),
            "means and covariances have shapes",
        ),
        (lambda: _make().drift(torch.zeros(4, 3), 0.5), r"x has shape \(4, 3\) and the bridge 2"),
        (lambda: _make().log_density(torch.zeros(4, 2), torch.zeros(4, 1)), "y has shape"),
        (lambda: _make().drift(torch.zeros(4, 2), 1.5), "t is 1.5: a time from 0"),
        (lambda: _make().drift(torch.zeros(4, 2), torch.zeros(3)), "for 4 states"),
        (lambda: _make().plan(torch.zeros(4, 2), 0.3, 0.5), "s is 0.5 and t is 0.3"),
        (lambda: _make().velocity(torch.zeros(4, 2), 0.5), "no probability-flow ODE"),
        (lambda: _make().drift(torch.zeros(1, 2), 0.5, label=torch.zeros(1)), "label is given"),
    ],
)
def test_bad_values(call, says):
    with pytest.raises(UserError, match=says):
        call()
