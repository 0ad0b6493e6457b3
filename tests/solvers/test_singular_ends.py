"""Where a velocity cannot be read at the clean end, no sampler reads it there."""

import math

import pytest
import torch
from torch import nn

from genflow.models import (
    Clipped,
    Denoiser,
    Exact,
    Guided,
    Karras,
    Mixture,
    Preconditioned,
    Rectified,
    VariancePreserving,
)
from genflow.nn import MLP
from genflow.solvers import build

PATHS = {"rectified": Rectified(), "karras": Karras(), "vp": VariancePreserving()}


class Plain(Denoiser):
    """A denoiser that says nothing of its velocity, as a user's own may not."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.path = inner, inner.path

    def forward(self, x_t, t, **cond):
        return self.inner(x_t, t, **cond)


class Never(nn.Module):
    """A network that does not bear a time that is not finite."""

    def forward(self, x, time, **cond):
        assert torch.isfinite(time).all() and torch.isfinite(x).all()
        return 0.1 * x + torch.sin(time)


def truth(path):
    centres = torch.tensor([[0.5, -0.5], [-0.5, 0.25]], dtype=torch.float64)
    cov = 0.04 * torch.eye(2, dtype=torch.float64).expand(2, 2, 2)
    return Exact(path, Mixture(torch.full((2,), 0.5, dtype=torch.float64), centres, cov))


@pytest.mark.parametrize("sampler", ["euler", "midpoint", "heun", "rk4", "dopri5"])
@pytest.mark.parametrize(
    ("path", "prediction"),
    [("rectified", "data"), ("rectified", "v"), ("rectified", "flow")]
    + [(p, q) for p in ("karras", "vp") for q in ("data", "noise", "v", "flow", "karras")],
)
def test_no_sampler_asks_where_there_is_no_answer(path, prediction, sampler):
    denoiser = Preconditioned(Never(), PATHS[path], prediction)
    solve = build(sampler, denoiser) if sampler == "dopri5" else build(sampler, denoiser, 6)
    start = solve.init((4, 2), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert solve(start).isfinite().all()


@pytest.mark.parametrize("sampler", ["euler", "heun", "ddim", "dpmpp-2m", "unipc", "dopri5"])
@pytest.mark.parametrize("prediction", ["noise", "karras"])
def test_samplers_begin_where_there_is_a_signal(prediction, sampler):
    denoiser = Preconditioned(Never(), PATHS["rectified"], prediction)
    for d in (denoiser, Clipped(denoiser)):
        solve = build(sampler, d) if sampler == "dopri5" else build(sampler, d, 6)
        x = solve(solve.init((4, 2), generator=torch.Generator().manual_seed(0)))
        assert x.isfinite().all()
    own = build("ddim", denoiser, 4, start=0.9).schedule
    assert float(own.times[0]) == 0.9


@pytest.mark.parametrize("sampler", ["heun", "rk4", "dopri5"])
def test_clipping_and_guidance_are_no_different(sampler):
    torch.manual_seed(0)
    flow = Preconditioned(MLP(2, 16, 1, classes=3), Rectified())
    guided = Guided(flow, 2.0, null={"label": 3})
    for denoiser in (Clipped(flow), Clipped(guided), guided, Plain(flow)):
        solve = build(sampler, denoiser) if sampler == "dopri5" else build(sampler, denoiser, 5)
        x = solve(solve.init((4, 2)), label=torch.tensor([0, 1, 2, 0]))
        assert x.isfinite().all()
        assert not isinstance(denoiser, Clipped) or x.abs().max() < 1.5


def test_only_what_is_singular_costs_accuracy():
    """A flow's own prediction is read at the end: Heun's method spends all of its calls."""

    torch.manual_seed(0)
    net = MLP(2, 16, 1)
    calls = {
        prediction: build("heun", Preconditioned(net, Rectified(), prediction), 5).nfe
        for prediction in ("flow", "v", "data")
    }
    assert calls == {"flow": 10, "v": 10, "data": 9}
    assert build("rk4", Preconditioned(net, Karras(), "karras"), 5).nfe == 17
    assert build("heun", Preconditioned(net, Karras(), "karras"), 5, final="min").nfe == 10
    assert build("heun", truth(Rectified()), 5).nfe == 10


@pytest.mark.parametrize("path", ["rectified", "karras"])
def test_the_last_step_is_that_of_edm_and_keeps_the_order(path):
    """An Euler step into σ = 0 lands on the data estimate; halving steps quarters the error."""

    exact = truth(PATHS[path])
    denoiser = Plain(exact)
    x = exact.path.noise.sample((256, 2), generator=torch.Generator().manual_seed(1))
    x = x.double() * float(exact.path(torch.tensor(1.0, dtype=torch.float64))[1])
    goal = build("rk4", exact, 2000)(x)
    errors = [
        float((build("heun", denoiser, n)(x) - goal).square().mean().sqrt()) for n in (20, 40, 80)
    ]
    rates = [math.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)]
    assert errors[-1] < 2e-2 and min(rates) > 1.5, (errors, rates)


def test_regular():
    flow = Preconditioned(MLP(2, 8, 1), Rectified())
    data = Preconditioned(MLP(2, 8, 1), Rectified(), "data")
    assert flow.regular(0.0) and flow.regular(1.0)
    assert not data.regular(0.0) and data.regular(1e-3)
    assert not Clipped(flow).regular(0.0) and Clipped(flow).regular(0.5)
    assert Guided(flow, 2.0, guide=flow).regular(0.0)
    assert not Guided(flow, 2.0, guide=data).regular(0.0)
    noise = Preconditioned(MLP(2, 8, 1), Rectified(), "noise")
    assert not noise.regular(1.0) and not Clipped(noise).regular(1.0) and noise.regular(0.999)
