"""Draws of the bridge: kernels, trajectories, samplers, classes."""

import math

from lightsb import FAMILIES, bridge, energy_distance, log_mixture, textbook_kernel
from oracles import double
import pytest
import torch

from genflow.errors import UserError
from genflow.models import Brownian, Denoiser, LightBridge
from genflow.models.plans import pinned
from genflow.solvers import Sampler, SolverSchedule, Step, build, schedule_for

GRID = (1.0, 0.75, 0.5, 0.25, 0.0)
EVERY_FAMILY = pytest.mark.parametrize("kind", FAMILIES)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def source(b, n, seed=5):
    return 0.8 * torch.randn(n, b.dimension, generator=generator(seed), dtype=torch.float64)


def law(b, x, t):
    """The exact mean and covariance of the state at t, over the source points x."""

    plan = b.plan(x, 1.0, t)
    mean, covariance = plan.mean, plan.covariance
    u = mean - mean.mean(0)
    return mean.mean(0), covariance.mean(0) + u.mT @ u / len(x)


def assert_moments(x, mean, covariance, width=5.0):
    """Sample moments inside ``width`` standard errors (of a normal law, near enough)."""

    n = len(x)
    u = x - x.mean(0)
    spread = covariance.diagonal().sqrt()
    assert ((x.mean(0) - mean).abs() < width * spread / math.sqrt(n)).all()
    error = (u.mT @ u / n - covariance).abs()
    assert (error < 2 * width * spread[:, None] * spread / math.sqrt(n)).all()


# --------------------------------------------------------------------------------- kernels


@EVERY_FAMILY
@pytest.mark.parametrize(("t", "s"), [(1.0, 0.0), (0.8, 0.3)])
def test_draws_of_the_plan_have_its_moments(kind, t, s):
    b = bridge(kind, K=3, d=3)
    x = double([[0.3, -0.5, 1.0]])
    plan = b.plan(x, t, s)
    drawn = b.plan(x.expand(40000, -1), t, s).sample(generator=generator())
    assert_moments(drawn, plan.mean[0], plan.covariance[0])


def test_draws_choose_components_by_their_weights():
    b = bridge("diagonal", K=5, d=1, spread=50.0, scale=(0.1, 0.2))
    x = double([[0.0]])
    asked = torch.arange(1.0, 6.0, dtype=torch.float64)
    log_weight = b.log_weight - b.logits(x, 1.0)[0] + asked.log()
    even = LightBridge(log_weight, b.centre, b.covariance, b.epsilon)
    drawn = even.sample(x.expand(30000, -1), generator=generator())
    nearest = torch.cdist(drawn, even.plan(x).means[0]).argmin(1)
    share = nearest.bincount(minlength=5).double() / 30000
    torch.testing.assert_close(share, asked / 15, atol=0.01, rtol=0)


def test_two_kernels_make_one():
    """Chapman–Kolmogorov by quadrature: ∫ p(x_s | x_u) p(x_u | x_t) dx_u = p(x_s | x_t)."""

    b = bridge("diagonal", K=3, d=1, epsilon=0.4)
    middle = torch.linspace(-12, 12, 6001, dtype=torch.float64)[:, None]
    for t, u, s in ((1.0, 0.6, 0.1), (0.7, 0.5, 0.0)):
        x, y = double([[0.4]]), double([[0.9]])
        first = b.plan(x.expand_as(middle), t, u).log_prob(middle)
        second = b.plan(middle, u, s).log_prob(y.expand_as(middle))
        joined = torch.trapezoid((first + second).exp(), middle[:, 0])
        torch.testing.assert_close(joined.log(), b.plan(x, t, s).log_prob(y)[0])


@EVERY_FAMILY
def test_two_kernels_make_one_in_moments(kind):
    b = bridge(kind, K=3, d=3)
    x = double([[0.3, -0.5, 1.0]])
    plan = b.plan(x, 0.9, 0.2)
    path = b.trajectory(x.expand(40000, -1), (0.9, 0.5, 0.2), generator=generator())
    assert_moments(path[-1], plan.mean[0], plan.covariance[0])


def test_a_draw_depends_on_its_own_generator_alone():
    b = bridge("lowrank", K=3, d=3)
    x = source(b, 6)
    for method in ("kernel", "bridge", "euler"):
        many = b.trajectory(x, GRID, method=method, generator=[generator(i) for i in range(6)])
        few = b.trajectory(x[2:4], GRID, method=method, generator=[generator(2), generator(3)])
        torch.testing.assert_close(many[:, 2:4], few)
        again = b.trajectory(x, GRID, method=method, generator=[generator(i) for i in range(6)])
        assert torch.equal(many, again)


# ---------------------------------------------------------------------------- trajectories


@pytest.mark.parametrize("method", ["kernel", "bridge", "euler"])
def test_trajectories_have_the_laws_of_the_plan(method):
    b = bridge("full", K=3, d=2, seed=4)
    x = source(b, 10000)
    fine = torch.linspace(1, 0, 65).tolist() if method == "euler" else GRID
    path = b.trajectory(x, fine, method=method, generator=generator())
    states = path[:: (len(fine) - 1) // 4]
    assert torch.equal(states[0], x)

    for t, state in zip(GRID[1:], states[1:], strict=True):
        assert_moments(state, *law(b, x, t), width=8.0 if method == "euler" else 5.0)
        drawn = b.plan(x[:1500], 1.0, t).sample(generator=generator(9))
        assert abs(energy_distance(state[:1500], drawn)) < 0.01


def test_neighbouring_times_have_the_joint_law():
    """Paths, not only marginals: the cross-covariance of the states at two times."""

    b = bridge("full", K=1, d=2)
    S, x = b.covariance.dense()[0], source(b, 1).expand(60000, -1)
    t, s, eye = 0.6, 0.25, torch.eye(2, dtype=torch.float64)
    B_t, B_s = (1 - t) * S + t * eye, (1 - s) * S + s * eye
    for method in ("kernel", "bridge"):
        _, a, c = b.trajectory(x, (1.0, t, s), method=method, generator=generator())
        cross = (a - a.mean(0)).mT @ (c - c.mean(0)) / len(x)
        torch.testing.assert_close(cross, b.epsilon * (1 - t) * B_s, atol=0.01, rtol=0.02)
    assert float((B_t - B_s).abs().max()) > 0.1


@EVERY_FAMILY
def test_the_probability_of_a_path(kind):
    b = bridge(kind, K=3, d=2)
    path = b.trajectory(source(b, 5), GRID, generator=generator())
    total = sum(
        log_mixture(*textbook_kernel(b, path[i], GRID[i], GRID[i + 1]), path[i + 1])
        for i in range(4)
    )
    torch.testing.assert_close(b.log_path(path, GRID), total)
    # one step is the plan
    ends = b.log_path(path[[0, 4]], (1.0, 0.0))
    torch.testing.assert_close(ends, b.log_density(path[0], path[4]))


def test_states_keep_their_shape_and_dtype():
    b = bridge("full", K=3, d=6)
    x = torch.randn(5, 1, 2, 3)
    assert b.sample(x).shape == x.shape and b.sample(x).dtype == torch.float32
    path = b.trajectory(x, GRID)
    assert path.shape == (5, 5, 1, 2, 3) and path.dtype == torch.float32
    plan = b.plan(x)
    assert plan.mean.shape == x.shape and plan.means.shape == (5, 3, 1, 2, 3)
    assert b.drift(x, 0.5).shape == x.shape and b.log_path(path, GRID).shape == (5,)


# -------------------------------------------------------------------------------- samplers


class Drawn(Denoiser):
    """Answers with a draw of the target instead of its mean."""

    def __init__(self, b):
        super().__init__()
        self.path, self.inner = b.path, b

    def forward(self, x_t, t):
        return self.inner.plan(x_t, t).sample()


def test_a_sampler_with_eta_1_takes_the_steps_of_the_pinned_bridge():
    b = bridge("full", K=3, d=2)
    assert b.path == Brownian(b.epsilon)
    times = (1.0, 0.8, 0.35, 0.1, 0.0)
    sampler = Sampler(b, SolverSchedule(times, (Step(eta=1.0),) * 4))
    x = source(b, 50)
    ours = sampler(x, generator=generator(7))
    noise = generator(7)

    for t, s in zip(times, times[1:], strict=False):
        z = torch.zeros_like(x) if s == 0 else torch.randn(x.shape, generator=noise, dtype=x.dtype)
        x = pinned(x, b(x, double(t)), double(t), double(s), b.epsilon, z)

    torch.testing.assert_close(ours, x)


def test_with_drawn_targets_the_same_sampler_is_exact():
    b = bridge("full", K=3, d=2, seed=4)
    x = source(b, 20000)
    y = build("ddpm", Drawn(b), 3)(x)
    assert_moments(y, *law(b, x, 0.0))


def test_the_sampler_converges_to_the_bridge():
    b = bridge("full", K=3, d=2, seed=4)
    x = source(b, 8000)
    _, covariance = law(b, x, 0.0)
    gaps = []
    for steps in (2, 8, 32):
        y = build("ddpm", b, steps)(x, generator=generator(3))
        gaps.append(float((torch.cov(y.mT) - covariance).norm() / covariance.norm()))
    assert gaps[2] < 0.5 * gaps[1] < 0.25 * gaps[0] < 0.1


@pytest.mark.parametrize("name", ["ddim", "dpmpp-2m", "unipc"])
def test_deterministic_samplers_are_refused(name):
    with pytest.raises(UserError, match="has eta 0.0, and a LightBridge needs 1"):
        Sampler(bridge(), schedule_for(name, bridge().path, 4))


# --------------------------------------------------------------------------------- classes


@EVERY_FAMILY
def test_a_joined_bridge_answers_for_each_class(kind):
    parts = [bridge(kind, K=2, d=2, seed=1), bridge(kind, K=3, d=2, seed=2)]
    whole = LightBridge.joined(parts).requires_grad_(False)
    assert whole.classes == 2 and whole.components == 5
    x, y = source(whole, 8), source(whole, 8, seed=6)
    label = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1])
    rows = [(label == c).nonzero()[:, 0] for c in (0, 1)]

    for c, part in enumerate(parts):
        own = rows[c]
        for ours, alone in (
            (whole.drift(x, 0.4, label), part.drift(x[own], 0.4)),
            (whole(x, double(0.4), label=label), part(x[own], double(0.4))),
            (whole.log_density(x, y, label), part.log_density(x[own], y[own])),
            (whole.plan(x, label=label).covariance, part.plan(x[own]).covariance),
            (
                whole.plan(x, 0.7, 0.3, label).log_prob(y),
                part.plan(x[own], 0.7, 0.3).log_prob(y[own]),
            ),
        ):
            torch.testing.assert_close(ours[own], alone)

    path = whole.trajectory(x, GRID, label, generator=generator())
    torch.testing.assert_close(
        whole.log_path(path, GRID, label)[rows[1]], parts[1].log_path(path[:, rows[1]], GRID)
    )
    sampled = build("ddpm", whole, 4)(x, label=label)
    assert torch.isfinite(sampled).all()


def test_shared_centres_with_weights_by_class_have_gradients():
    b = bridge("diagonal", K=3, d=2)
    table = torch.stack([b.log_weight, double([0.0, -math.inf, 1.0])])
    shared = LightBridge(table, b.centre, b.covariance, b.epsilon)
    x, label = source(b, 6), torch.tensor([0, 1, 0, 1, 1, 1])
    loss = shared.log_normaliser(x, label).mean() - shared.log_potential(x, label).mean()
    loss.backward()
    assert torch.isfinite(shared.log_weight.grad).all()
    assert float(shared.log_weight.grad[1, 1]) == 0 and float(shared.log_weight.grad[1, 0]) != 0
    torch.testing.assert_close(
        shared.log_normaliser(x, label)[label == 0], b.log_normaliser(x[label == 0])
    )


def test_the_one_line_fit_is_the_fit():
    from genflow.models.fitting import fit_bridge

    x, y = torch.randn(60, 2), torch.randn(50, 2) + 1
    options = {"epsilon": 0.5, "components": 3, "steps": 4}
    ours, theirs = LightBridge.fit(x, y, **options), fit_bridge(x, y, **options).bridge
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    assert ours.sample(x).requires_grad is False


@pytest.mark.gpu
def test_on_a_gpu_the_answers_are_the_same():
    b = bridge("lowrank", K=5, d=4)
    x = source(b, 64)
    many = [generator(i) for i in range(64)]
    path, drift = b.trajectory(x, GRID, generator=many), b.drift(x, 0.3)
    b = b.cuda()
    many = [generator(i) for i in range(64)]
    torch.testing.assert_close(b.trajectory(x.cuda(), GRID, generator=many).cpu(), path)
    torch.testing.assert_close(b.drift(x.cuda(), 0.3).cpu(), drift)


# ------------------------------------------------------------------------------ bad values


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda b, x: b.trajectory(x, (0.0, 1.0)), "two or more that decrease, inside"),
        (lambda b, x: b.trajectory(x, (1.0,)), r"times are \[1.0\]"),
        (lambda b, x: b.trajectory(x, (1.5, 0.0)), r"times are \[1.5, 0.0\]"),
        (lambda b, x: b.trajectory(x, GRID, method="heun"), "method is 'heun'"),
        (lambda b, x: b.log_path(x[None], (1.0, 0.0)), "path has 1 states and there are 2 times"),
        (lambda b, x: LightBridge.joined([b, bridge(d=3)]), "that are joined must agree"),
        (lambda b, x: LightBridge.joined([]), "that are joined must agree"),
        (
            lambda b, x: LightBridge.joined([bridge("lowrank", d=d, seed=d) for d in (2, 4)]),
            "that are joined must agree",
        ),
        (lambda b, x: b.sample(x, torch.zeros(4)), "label is given and the bridge has no classes"),
        (
            lambda b, x: LightBridge.joined([b, b]).sample(x),
            "label is missing and the bridge has 2",
        ),
        (lambda b, x: b.sample(x, generator=[generator()]), "holds 1 generators for a batch of 4"),
    ],
)
def test_bad_values(call, says):
    b = bridge()
    with pytest.raises(UserError, match=says):
        call(b, source(b, 4))
