"""The laws that a bridge passes through, its probability-flow ODE, and chains of bridges."""

from lightsb import FAMILIES, bridge, energy_distance, log_mixture, textbook_kernel
from oracles import double
import pytest
import torch

from genflow.errors import UserError
from genflow.models import BridgeChain, BridgeMarginals, LightBridge, operators
from genflow.solvers import Sampler, build, schedule_for

EVERY_FAMILY = pytest.mark.parametrize("kind", FAMILIES)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def points(n, d=2, seed=5):
    return 0.8 * torch.randn(n, d, generator=generator(seed), dtype=torch.float64)


# -------------------------------------------------------------------------------- marginals


@EVERY_FAMILY
@pytest.mark.parametrize("t", [0.0, 0.4, 0.95])
def test_the_law_is_the_mixture_of_all_kernels(kind, t):
    b, source, x = bridge(kind, K=3), points(6), points(9, seed=6)
    laws = BridgeMarginals(b, source)
    each = []

    for start in source:
        kernel = textbook_kernel(b, start.expand(9, -1), 1.0, t)
        each.append(log_mixture(*kernel, x))

    each = torch.stack(each, -1)
    torch.testing.assert_close(laws.log_prob(x, t), each.logsumexp(1) - double(6.0).log())
    # Bayes: the weights of the source points
    torch.testing.assert_close(laws.logits(x, t).softmax(1), each.softmax(1))
    torch.testing.assert_close(laws.source_mean(x, t), each.softmax(1) @ source)


@pytest.mark.parametrize("t", [0.0, 0.4, 0.9])
def test_the_score_is_the_gradient(t):
    laws = BridgeMarginals(bridge("full"), points(6))
    x = points(9, seed=6).requires_grad_()
    (score,) = torch.autograd.grad(laws.log_prob(x, t).sum(), x)
    torch.testing.assert_close(laws.score(x.detach(), t), score)


@EVERY_FAMILY
def test_the_velocity_carries_the_law(kind):
    """The continuity equation, ∂ log p + v · ∇ log p + div v = 0, by automatic derivatives."""

    laws = BridgeMarginals(bridge(kind, K=3), points(6))

    for x, t in zip(points(5, seed=6), double([0.1, 0.3, 0.5, 0.8, 0.9]), strict=True):

        def log_prob(x, t):
            return laws.log_prob(x[None], t)[0]

        def velocity(x, t=t):
            return laws.velocity(x[None], t)[0]

        rate, slope = torch.func.grad(log_prob, 1)(x, t), torch.func.grad(log_prob, 0)(x, t)
        divergence = torch.func.jacrev(velocity)(x).trace()
        change = rate + velocity(x) @ slope + divergence
        torch.testing.assert_close(change, torch.zeros_like(change), atol=1e-8, rtol=0)


def test_the_flow_arrives_at_the_target():
    b, source = bridge("full", K=3, seed=4), points(200)
    laws = BridgeMarginals(b, source)
    x = laws.sample(1500, 0.9, generator=generator())
    truth = laws.sample(1500, generator=generator(1))
    assert energy_distance(x, truth) > 0.05
    for name in ("heun", "dpmpp-2m"):
        y = build(name, laws, 24, start=0.9)(x)
        assert abs(energy_distance(y, truth)) < 0.01
    general = super(BridgeMarginals, laws).velocity(x, double(0.4))
    torch.testing.assert_close(general, laws.velocity(x, double(0.4)))


def test_states_are_traced_back_to_the_source():
    """A joint draw, run backwards, has the same joint law."""

    b, source = bridge("full", K=3), points(5)
    laws = BridgeMarginals(b, source)
    x = double([[0.3, -0.2]])
    back = laws.source_of(x.expand(20000, -1), 0.3, generator=generator())
    share = (torch.cdist(back, source) < 1e-9).double().mean(0)
    torch.testing.assert_close(share, laws.logits(x, 0.3).softmax(1)[0], atol=0.012, rtol=0)


def test_parts_give_what_the_whole_gives(monkeypatch):
    laws, x = BridgeMarginals(bridge(), points(6)), points(9, seed=6)
    whole = (laws.log_prob(x, 0.3), laws.source_of(x, generator=generator()))
    monkeypatch.setattr(operators, "LIMIT", 20)
    parts = (laws.log_prob(x, 0.3), laws.source_of(x, generator=generator()))
    torch.testing.assert_close(parts, whole)


def test_the_source_may_be_of_a_class():
    parts = [bridge("diagonal", K=2, seed=1), bridge("diagonal", K=3, seed=2)]
    source, x = points(6), points(9, seed=6)
    whole = BridgeMarginals(LightBridge.joined(parts), source, label=1)
    alone = BridgeMarginals(parts[1], source)
    torch.testing.assert_close(whole.log_prob(x, 0.3), alone.log_prob(x, 0.3))
    torch.testing.assert_close(whole.velocity(x, double(0.3)), alone.velocity(x, double(0.3)))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda b: BridgeMarginals(b, torch.zeros(4, 3)), "source has shape"),
        (lambda b: BridgeMarginals(b, torch.full((4, 2), torch.nan)), "4 of them not finite"),
        (lambda b: BridgeMarginals(b, torch.zeros(0, 2)), "source has 0 points"),
        (lambda b: BridgeMarginals(b, points(4)).log_prob(points(3), 1.0), "t is 1.0: the source"),
        (lambda b: build("heun", BridgeMarginals(b, points(4)), 4), "t is 1.0: the source"),
        (
            lambda b: Sampler(
                BridgeMarginals(b, points(4)), schedule_for("ddpm", b.path, 4, start=0.9)
            ),
            "eta 1.0, and a BridgeMarginals needs 0",
        ),
    ],
)
def test_bad_values_of_marginals(call, says):
    with pytest.raises(UserError, match=says):
        call(bridge())


# ----------------------------------------------------------------------------------- chains


def chain():
    return BridgeChain([bridge("full", seed=i) for i in (1, 2, 3)], (0.0, 2.0, 3.0, 7.0))


def test_a_chain_runs_its_bridges_one_after_the_other():
    c, x = chain(), points(20)
    path = c.trajectory(x, generator=generator())
    g, now = generator(), x
    for i, b in enumerate(c.bridges):
        now = b.sample(now, generator=g)
        torch.testing.assert_close(path[i + 1], now)
    torch.testing.assert_close(c.sample(x, generator=generator()), path[-1])


def test_a_chain_stops_where_it_is_asked_to():
    c, x = chain(), points(20)
    path = c.trajectory(x, (1.0, 2.5, 4.0), generator=generator())
    g = generator()
    first = c.bridges[0].trajectory(x, (0.5, 0.0), generator=g)[-1]
    second = c.bridges[1].trajectory(first, (1.0, 0.5, 0.0), generator=g)
    third = c.bridges[2].trajectory(second[-1], (1.0, 0.75), generator=g)[-1]
    torch.testing.assert_close(path, torch.stack([x, second[1], third]))


def test_the_probability_of_a_path_along_a_chain():
    c = chain()
    times = (0.0, 1.0, 2.0, 3.0, 4.0)
    path = c.trajectory(points(20), times, generator=generator())
    total = c.bridges[0].log_path(path[:3], (1.0, 0.5, 0.0))
    total = total + c.bridges[1].log_path(path[2:4], (1.0, 0.0))
    total = total + c.bridges[2].log_path(path[3:], (1.0, 0.75))
    torch.testing.assert_close(c.log_path(path, times), total)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: BridgeChain([]), r"bridges have the dimensions \[\]"),
        (lambda: BridgeChain([bridge(d=2), bridge(d=3)]), r"dimensions \[2, 3\]"),
        (lambda: BridgeChain([bridge()], (0.0, 1.0, 2.0)), "for 1 bridges"),
        (lambda: BridgeChain([bridge()], (1.0, 0.0)), "one more than bridges, and increasing"),
        (lambda: chain().trajectory(points(3), (0.0, 8.0)), r"increase inside \[0.0, 7.0\]"),
        (lambda: chain().trajectory(points(3), (2.0, 1.0)), "two or more that increase"),
        (lambda: chain().trajectory(points(3), ()), r"times are \[\]"),
        (lambda: chain().log_path(torch.zeros(2, 3, 2), (0.0, 3.0)), r"snapshots at \[2.0\]"),
        (lambda: chain().log_path(torch.zeros(3, 3, 2), (0.0, 1.0)), "3 states for 2 times"),
    ],
)
def test_bad_values_of_chains(call, says):
    with pytest.raises(UserError, match=says):
        call()
