"""Couplings permute; the best permutation is found; classes keep their noise."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.special import logsumexp
import torch

from genflow.errors import UserError
from genflow.nn import MLP
from genflow.training import Coupling, Independent, OptimalTransport, RectifiedFlow, couplings


def pairs(n, d=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(2, n, d, generator=g)


def rows(z):
    return sorted(map(tuple, z.flatten(1).tolist()))


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_the_assignment_is_the_best_of_all(power):
    x, z = pairs(6)
    ours = (x - OptimalTransport(power=power)(x, z)[1]).norm(dim=1).pow(power).sum()
    best = min(
        (x - z[list(order)]).norm(dim=1).pow(power).sum()
        for order in itertools.permutations(range(6))
    )
    torch.testing.assert_close(ours, best)


@pytest.mark.parametrize("coupling", [Independent(), OptimalTransport()])
def test_couplings_permute_and_keep_the_data(coupling):
    x, z = torch.randn(2, 16, 1, 4, 4)
    label = torch.arange(16) % 3
    a, b = coupling(x, z, label=label)
    assert isinstance(coupling, Coupling)
    assert torch.equal(a, x) and rows(b) == rows(z) and b.shape == z.shape


def test_classes_keep_their_noise():
    """With weight inf nothing moves between classes, with 0 classes do not count."""

    x, z = pairs(64)
    label = torch.arange(64) % 4
    kept = OptimalTransport()(x, z, label=label)[1]
    for c in range(4):
        assert rows(kept[label == c]) == rows(z[label == c])

    free = OptimalTransport(label_weight=0.0)(x, z, label=label)[1]
    assert torch.equal(free, OptimalTransport()(x, z)[1])
    assert not torch.equal(free, kept)

    def cost(v):
        return (x - v).square().sum()

    some = OptimalTransport(label_weight=0.3)(x, z, label=label)[1]
    assert cost(free) < cost(some) < cost(kept) < cost(z)


def test_optimal_transport_straightens():
    """In one dimension the plan of a batch is the monotone one: sorted goes with sorted."""

    x, z = pairs(32, 1)
    y = OptimalTransport()(x, z)[1]
    order = x[:, 0].argsort()
    assert (y[order, 0].diff() >= 0).all()


def fake_pot(plans):
    def sinkhorn(a, b, cost, epsilon, method):
        assert method == "sinkhorn_log"
        f = g = np.zeros(len(a))
        for _ in range(400):
            f = epsilon * (np.log(a) - logsumexp((g[None] - cost) / epsilon, axis=1))
            g = epsilon * (np.log(b) - logsumexp((f[:, None] - cost) / epsilon, axis=0))
        plans.append(np.exp((f[:, None] + g[None] - cost) / epsilon))
        return plans[-1]

    return SimpleNamespace(sinkhorn=sinkhorn)


def test_entropic_permutations(monkeypatch):
    """They permute, differ from draw to draw, repeat with the seed, and harden as ε falls."""

    plans = []
    monkeypatch.setattr(couplings, "find_spec", lambda name: True)
    monkeypatch.setitem(__import__("sys").modules, "ot", fake_pot(plans))
    x, z = pairs(24)

    def drawn(epsilon, seed):
        g = torch.Generator().manual_seed(seed)
        return OptimalTransport("sinkhorn", epsilon=epsilon)(x, z, generator=g)[1]

    soft = drawn(0.1, 1)
    assert rows(soft) == rows(z)
    assert torch.equal(soft, drawn(0.1, 1)) and not torch.equal(soft, drawn(0.1, 2))
    np.testing.assert_allclose(plans[-1].sum(0), 1 / 24, rtol=1e-6)

    def cost(v):
        return float((x - v).square().sum(1).mean())

    mean = [np.mean([cost(drawn(e, s)) for s in range(8)]) for e in (0.02, 0.1, 10.0)]
    assert cost(OptimalTransport()(x, z)[1]) <= mean[0] < mean[1] < mean[2]
    assert mean[2] == pytest.approx(cost(z), rel=0.25)


def test_a_batch_may_bring_its_other_end():
    """Pairs and second data sets take the place of drawn noise."""

    net = MLP(2, width=8, depth=1)
    x, z = torch.randn(2, 5, 2)
    module = RectifiedFlow(net)
    a, b, *_ = module.draw({"x": x, "z": z}, module._source("train", 0, 0, 0))
    assert torch.equal(a, x) and torch.equal(b, z)

    with pytest.raises(UserError, match=r"shape \(3,\) and the target of shape \(2,\)"):
        module.loss({"x": x, "z": torch.randn(5, 3)}, step=0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "emd"}, "method is 'emd'"),
        ({"power": 0.0}, "power is 0.0"),
        ({"epsilon": -1.0}, "epsilon is -1.0"),
        ({"label_weight": math.nan}, "label_weight is nan"),
    ],
)
def test_couplings_that_cannot_be(options, words):
    with pytest.raises(UserError, match=words):
        OptimalTransport(**options)


def test_sinkhorn_asks_for_its_package(monkeypatch):
    monkeypatch.setattr(couplings, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install pot"):
        OptimalTransport("sinkhorn")
