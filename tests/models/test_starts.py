"""Where a fit begins: clusters, frames, and the three starts."""

import lightsb
import pytest
import torch

from genflow.data import anisotropic, isotropic
from genflow.models import Full
from genflow.models.clusters import k_means
from genflow.models.frames import Frame
from genflow.models.objectives import dual_loss, usage
from genflow.models.starts import FAMILIES, begin

F64 = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# ----------------------------------------------------------------------------- clusters


def test_k_means_finds_what_is_apart():
    g = seeded()
    centre = 10 * torch.randn(6, 3, generator=g, dtype=F64)
    label = torch.arange(6).repeat_interleave(50)
    x = centre[label] + 0.1 * torch.randn(300, 3, generator=g, dtype=F64)
    order = torch.randperm(300, generator=g)
    found = k_means(x[order], 6, generator=seeded())
    assert sorted(found.count.tolist()) == [50] * 6
    for k in range(6):
        mine = x[order][found.cell == k]
        assert len(label[order][found.cell == k].unique()) == 1
        assert torch.allclose(found.centre[k], mine.mean(0), atol=1e-12)
    again = k_means(x[order], 6, generator=seeded())
    assert torch.equal(again.centre, found.centre)


def test_k_means_ends_in_a_fixed_point_and_bears_copies():
    x = torch.randn(200, 2, generator=seeded(1), dtype=F64)
    found = k_means(x, 8, iterations=100, generator=seeded())
    nearest = torch.cdist(x, found.centre).argmin(1)
    assert torch.equal(nearest, found.cell)
    copies = torch.tensor([[0.0], [1.0]], dtype=F64).repeat(10, 1)
    many = k_means(copies, 5, generator=seeded())
    assert int(many.count.sum()) == 20 and bool(many.centre.isfinite().all())
    assert k_means(x, 200, generator=seeded()).count.max() <= 200


# ------------------------------------------------------------------------------- frames


@pytest.mark.parametrize("kind", lightsb.FAMILIES)
def test_a_frame_changes_the_units_and_not_the_plan(kind):
    inner = lightsb.bridge(kind, K=4, d=3, epsilon=0.2)
    frame = Frame(
        torch.tensor([5.0, -3.0, 1.0], dtype=F64),
        torch.tensor([-20.0, 4.0, 9.0], dtype=F64),
        torch.tensor(7.0, dtype=F64),
    )
    outer = frame.leave(inner, 0.2 * 49)
    assert frame.epsilon(outer.epsilon) == pytest.approx(0.2)
    z = torch.randn(30, 3, generator=seeded(), dtype=F64)
    plan, seen = outer.plan(7 * z + frame.source), inner.plan(z)
    assert torch.allclose(plan.weights, seen.weights, atol=1e-10)
    assert torch.allclose(plan.mean, 7 * seen.mean + frame.target, atol=1e-9)
    assert torch.allclose(plan.covariance, 49 * seen.covariance, atol=1e-8)
    # differences of the objective are KL divergences, whatever the frame
    other = lightsb.bridge(kind, K=4, d=3, epsilon=0.2, seed=9)
    y = torch.randn(40, 3, generator=seeded(2), dtype=F64)
    inside = dual_loss(other, z, y) - dual_loss(inner, z, y)
    x_out, y_out = 7 * z + frame.source, 7 * y + frame.target
    outside = dual_loss(frame.leave(other, 9.8), x_out, y_out) - dual_loss(outer, x_out, y_out)
    assert float(outside) == pytest.approx(float(inside), rel=1e-9)


def test_a_frame_centres_and_scales():
    x, y = isotropic(4, 1.0).pairs(2000, generator=seeded())
    frame = Frame.of(100 + x, 3 * y - 7)
    assert torch.allclose(frame.source, 100 + x.double().mean(0), atol=1e-4)
    seen = (3 * y - 7 - frame.target) / frame.scale
    assert float(seen.square().mean()) == pytest.approx(1, rel=1e-5)


# ------------------------------------------------------------------------------- starts


@pytest.mark.parametrize("family", ["diagonal", "full"])
def test_one_component_is_the_minimum_at_once(family):
    """All derivatives of the objective vanish on the very points."""

    x, y = anisotropic(3, 1.0).pairs(400, generator=seeded())
    bridge = begin(x, y, 1.0, components=1, family=family, generator=seeded())
    dual_loss(bridge, x.double(), y.double()).backward()
    for p in bridge.parameters():
        assert float(p.grad.abs().max()) < 1e-12


@pytest.mark.parametrize("family", list(FAMILIES))
def test_the_sinkhorn_start_is_ahead_of_the_others_and_spreads_the_mass(family):
    problem = isotropic(6, 0.3)
    x, y = problem.pairs(6000, generator=seeded())
    options = {"components": 12, "family": family, "rank": 2}
    loss = {}
    for method in ("sinkhorn", "k-means", "samples"):
        bridge = begin(x, y, 0.3, method=method, generator=seeded(), **options)
        loss[method] = float(dual_loss(bridge, x.double(), y.double()).detach())
        if method == "sinkhorn":
            mass = usage(bridge, x.double())
            cells = k_means(y.double(), 12, generator=seeded()).count / len(y)
            assert float((mass - cells).abs().sum()) < 0.1
    assert loss["sinkhorn"] < loss["k-means"] < loss["samples"]


def test_the_low_rank_start_keeps_the_longest_axes():
    S = torch.diag_embed(torch.tensor([[0.1, 0.1, 0.1, 4.0]], dtype=F64))
    turn = Full.of(S).rotation
    turn, _ = torch.linalg.qr(torch.randn(1, 4, 4, generator=seeded(), dtype=F64))
    S = turn @ S @ turn.mT
    made = FAMILIES["lowrank"](S, 1)
    assert torch.allclose(made.dense(), S, atol=1e-10)
