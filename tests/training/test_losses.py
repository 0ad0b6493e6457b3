"""Losses: golden values, the errors that they feel, and networks that they only borrow."""

from oracles import double, golden
import pytest
import torch
from torch import nn

from genflow.errors import UserError
from genflow.models import Preconditioned, Rectified, Regression, VariancePreserving
from genflow.nn import MLP
from genflow.training import (
    FeatureWeighted,
    Grid,
    Perceptual,
    PseudoHuber,
    RectifiedFlow,
    SquaredError,
)

RECORD, _ = golden("rectified_flow")


def made(error, t=0.5, x=None):
    """A regression whose answer is off by a given error, on the straight path."""

    x = torch.zeros_like(error) if x is None else x
    t = torch.full((len(error),), t, dtype=error.dtype)
    T = t.reshape(-1, *(1,) * (error.ndim - 1))
    z = torch.ones_like(error)
    return Regression(x, (1 - T) * x + T * z, t, z - x + error, error, (1.0, -t))


def test_pseudo_huber_is_golden():
    record = RECORD["pseudo_huber"]
    e = torch.zeros(len(record["square"]), record["d"], dtype=torch.float64)
    e[:, 7] = double(record["square"]).sqrt()
    torch.testing.assert_close(PseudoHuber()(made(e)), double(record["loss"]), rtol=1e-10, atol=0)


def test_pseudo_huber_does_not_cancel():
    """For a small error it is the square over 2 c d, in float32 too."""

    e = torch.full((1, 3072), 1e-6)
    expected = double([3072e-12]) / (2 * 0.00054 * 3072) / 3072
    torch.testing.assert_close(PseudoHuber()(made(e)).double(), expected, rtol=1e-4, atol=0)


def test_the_estimate_is_the_data_when_the_answer_is_right():
    for path, prediction in ((Rectified(), "flow"), (VariancePreserving(), "v")):
        net = nn.Identity()
        denoiser = Preconditioned(net, path, prediction)
        x, z = torch.randn(2, 5, 3, dtype=torch.float64)
        t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
        c = denoiser.coefficients(t)
        target = c.target[0] * x.T + c.target[1] * z.T if torch.is_tensor(c.target[0]) else None
        target = (z - x) if target is None or path == Rectified() else target.T
        r = Regression(x, path.perturb(x, z, t), t, target, torch.zeros_like(x), c.data)
        torch.testing.assert_close(r.estimate, x)


def distance(a, b):
    return (a - b).abs().flatten(1).mean(1)


@pytest.mark.parametrize("over_t", [False, True])
def test_perceptual_on_the_straight_path(over_t):
    """The data estimate is x − t e, so the distance is t |e|, and the plain loss fades out."""

    e = torch.randn(4, 1, 3, 3, dtype=torch.float64)
    loss = Perceptual(distance, plain=SquaredError(), over_t=over_t)

    for t in (0.25, 1.0):
        plain = (1 - t) * e.square().flatten(1).mean(1)
        rho = t * e.abs().flatten(1).mean(1) / (t if over_t else 1)
        torch.testing.assert_close(loss(made(e, t)), plain + rho)


def test_perceptual_enlarges():
    sizes = []

    def spy(a, b):
        sizes.append(a.shape)
        return distance(a, b)[:, None, None, None]

    e = torch.randn(2, 1, 4, 4)
    assert Perceptual(spy, size=16)(made(e)).shape == (2,)
    assert sizes == [(2, 1, 16, 16)]


def test_features_weigh_directions():
    """With h(x) = A x² / 2 the gradient at x_t is A diag(x_t)."""

    A = torch.randn(2, 6, dtype=torch.float64)
    e, x = torch.randn(2, 3, 6, dtype=torch.float64)
    r = made(e, 0.25, x)

    for onto, where in (("state", r.x_t), ("data", x)):
        loss = FeatureWeighted(lambda v: v.square() @ A.T / 2, floor=0.5, onto=onto)
        felt = ((where * e) @ A.T).square().mean(1)
        torch.testing.assert_close(loss(r), felt + 0.5 * e.square().mean(1))


def test_a_borrowed_network_is_frozen_and_not_saved():
    """Its weights are neither trained, nor in the checkpoint, and gradients pass through it."""

    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh())
    module = RectifiedFlow(MLP(2, width=8, depth=1), loss=FeatureWeighted(net))
    assert not any("features" in k or "measure" in k for k in module.state_dict())
    assert all(not p.requires_grad for p in net.parameters())

    module.loss({"x": torch.randn(4, 2)}, step=0).backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in module.net.parameters())
    assert all(p.grad is None for p in net.parameters())


def test_one_step_distillation_reads_the_end_alone():
    """At t = 1 the state is the noise, so the loss compares z − v(z, 1) with the data."""

    net = MLP(2, width=8, depth=1)
    module = RectifiedFlow(net, times=Grid(1), loss=Perceptual(distance))
    x, z = torch.randn(2, 6, 2)
    loss = module.loss({"x": x, "z": z}, step=3)
    by_hand = (z - net(z, torch.full((6,), 1000.0)) - x).abs().mean()
    torch.testing.assert_close(loss, by_hand)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (lambda: PseudoHuber(0.0), "scale is 0.0"),
        (lambda: Perceptual(distance, size=0), "size is 0"),
        (lambda: FeatureWeighted(distance, floor=-1.0), "floor is -1.0"),
    ],
)
def test_losses_that_cannot_be(bad, words):
    with pytest.raises(UserError, match=words):
        bad()
