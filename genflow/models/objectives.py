r"""What a light Schrödinger bridge minimises: no simulation, no pairs, no inner loop.

With the adjusted potential v and the normaliser c of the plan, the divergence of the plan from
the true one is, up to a number that does not depend on the parameters,

.. math:: L = \mathbb E_{p_0} \log c(X_0) - \mathbb E_{p_1} \log v(X_1),

two averages over the two clouds apart. Both are means of a log-sum-exp over components of
functions that are linear in the features :math:`(x x', x)`: so for diagonal and for full matrices
a batch costs one matrix product there and one back, and no tensor of B × K × d values arises.
This form adds large terms that cancel where :math:`\epsilon S_k` is tiny; in single precision it
wants clouds that are centred and of order one, as `genflow.models.frames` makes them.

The other loss, that of bridge matching, regresses the drift along Brownian bridges between pairs
of *any* coupling,

.. math:: M = \mathbb E \, \Big\| g(X_t, t) - \frac{X_1 - X_t}{t} \Big\|^2, \qquad
          X_t = t X_0 + (1 - t) X_1 + \sqrt{\epsilon t (1 - t)} \, Z,

with t = 1 at the source. It equals :math:`2 \epsilon L` up to a number that does not depend on the
parameters, has more noise and costs more; it is there for couplings and for comparison.

References:
    Light Schrödinger Bridge
    https://arxiv.org/abs/2310.01174

    Light and Optimal Schrödinger Bridge Matching
    https://arxiv.org/abs/2402.03207
"""

__all__ = ["dual_loss", "matching_loss", "usage"]

import math
from typing import Any

import torch
from torch import Generator, Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from genflow.models.bridges import LightBridge
from genflow.models.covariances import Diagonal, Full

EARLIEST = 0.01  # matching divides by t


def dual_loss(bridge: LightBridge, source: Tensor, target: Tensor) -> Tensor:
    r"""The objective L of two batches, differentiable in the parameters of the bridge.

    Args:
        bridge: The bridge, without classes.
        source: Points of the source, with shape (B, d).
        target: Points of the target, with shape (B', d).

    Returns:
        L, with shape (). Its absolute value means little; differences on the same points are
        differences of KL divergence in nats.
    """

    covariance = bridge.covariance
    source, target = (x.to(bridge.centre.dtype) for x in (source, target))

    if isinstance(covariance, Diagonal):
        parameters = (bridge.log_weight, bridge.centre, covariance.log_scale)
        return _DiagonalDual.apply(*parameters, source, target, bridge.epsilon)
    if isinstance(covariance, Full):
        return _full_dual(bridge, source, target)

    return bridge.log_normaliser(source).mean() - bridge.log_potential(target).mean()


class _DiagonalDual(Function):
    r"""The objective for diagonal matrices, and its gradient in closed form.

    With w and u the weights of the components in the source and in the target, and with the
    features :math:`(x^2, x)` as F, all that the gradient needs are the sums :math:`w'F_0` and
    :math:`u'F_1`: one matrix product a side.
    """

    @staticmethod
    def forward(
        ctx: Any, log_a: Tensor, r: Tensor, log_s: Tensor, x: Tensor, y: Tensor, eps: float
    ) -> Tensor:
        d = r.shape[1]
        s, p = log_s.exp() / eps, (-log_s).exp() / eps  # S/ε, and the inverse of εS
        pull = p * r
        level = log_a - 0.5 * ((log_s + math.log(2 * math.pi * eps) + r * pull).sum(1))
        F_0, F_1 = (torch.cat((v.square(), v), dim=1) for v in (x, y))
        log_c, w = _mean_lse(torch.addmm(log_a, F_0, torch.cat((0.5 * s, r / eps), dim=1).mT))
        log_v, u = _mean_lse(torch.addmm(level, F_1, torch.cat((-0.5 * p, pull), dim=1).mT))

        (second_0, first_0), (second_1, first_1) = (
            (w.mT @ F_0).split(d, 1),
            (u.mT @ F_1).split(d, 1),
        )
        mass = u.sum(0)[:, None]
        away = second_1 - 2 * r * first_1 + mass * r.square()  # of the target from the centres
        ctx.save_for_backward(
            w.sum(0) - mass[:, 0],
            first_0 / eps - p * (first_1 - mass * r),
            0.5 * (s * second_0 - p * away + mass),
        )
        return log_c - log_v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return *(gradient * g for g in ctx.saved_tensors), None, None, None


def _mean_lse(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of the log-sum-exp of rows (B, K), and its gradient; one exponential an entry."""

    top = scores.amax(dim=1, keepdim=True)
    share = scores.sub_(top).exp_()
    total = share.sum(dim=1, keepdim=True)
    return (top + total.log()).mean(), share.div_(total * len(share))


class _MeanLSE(Function):
    """The mean of the log-sum-exp of a linear map of features, kept with its gradient."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, slope: Tensor, level: Tensor) -> Tensor:
        mean, share = _mean_lse(torch.addmm(level, features, slope.mT))
        ctx.save_for_backward(features, share)
        return mean

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, Tensor]:
        features, share = ctx.saved_tensors
        return None, gradient * (share.mT @ features), gradient * share.sum(0)


def _full_dual(bridge: LightBridge, x: Tensor, y: Tensor) -> Tensor:
    """The objective for full matrices: the features are x x', the upper triangle, and x."""

    r, twice = bridge.centre, 2 * bridge.epsilon
    i, j = torch.triu_indices(*bridge.covariance.basis.shape[1:], device=r.device)
    pairs = 2 - (i == j).to(r.dtype)  # off the diagonal each counts twice
    zero = r.new_zeros(())
    at = bridge.covariance.at(zero)
    precision, scale = at.ratio(zero + 1), bridge.covariance.at(zero + 1).ratio(zero)
    pull = precision.of(r)
    logdet = at.logdet + bridge.dimension * math.log(math.pi * twice)  # of 2π ε S
    level = bridge.log_weight - (r * pull).sum(1) / twice - 0.5 * logdet

    def mean(x: Tensor, matrix: Tensor, vector: Tensor, level: Tensor) -> Tensor:
        features = torch.cat((x[:, i] * x[:, j], x), dim=1)
        slope = torch.cat((pairs * matrix[:, i, j], 2 * vector), dim=1) / twice
        return _MeanLSE.apply(features, slope, level)

    log_c = mean(x, scale.dense(), r, bridge.log_weight)
    return log_c - mean(y, -precision.dense(), pull, level)


def matching_loss(
    bridge: LightBridge, source: Tensor, target: Tensor, *, generator: Generator | None = None
) -> Tensor:
    r"""The loss M of bridge matching on pairs, differentiable in the parameters of the bridge.

    Args:
        bridge: The bridge, without classes.
        source: Starts, with shape (B, d).
        target: Their partners, with shape (B, d).
        generator: The source of times, uniform in [0.01, 1], and of noise.

    Returns:
        The mean over the batch of the squared norm, with shape ().
    """

    place = source.device if generator is None else generator.device
    draws = {"generator": generator, "device": place, "dtype": source.dtype}
    u, z = torch.rand(len(source), **draws), torch.randn(source.shape, **draws)
    t, z = (EARLIEST + (1 - EARLIEST) * u).to(source.device), z.to(source.device)
    s = t[:, None]
    x = s * source + (1 - s) * target + (bridge.epsilon * s * (1 - s)).sqrt() * z
    return (bridge.drift(x, t) - (target - x) / s).square().sum(1).mean()


@torch.no_grad()
def usage(bridge: LightBridge, source: Tensor) -> Tensor:
    """The share of the source's mass that each component carries, with shape (K)."""

    return bridge.logits(source, 1.0).softmax(-1).mean(0)
