r"""Losses: how far the answer of a network is from its target.

A loss reads a `Regression`: the data, the perturbed data, the answer F, its error and the data
estimate that follows from it. The mean over a batch of

.. math:: \ell(F(x_t, t), x, z, t)

is what training minimises. Only the squared error has the conditional expectation as minimiser,
and only that makes the marginals of the flow exact whatever the coupling. The others pay on pairs
that already belong together, as in reflow and distillation, where there is nothing to average.

A loss may hold a network (perceptual, features). It is frozen, moved to the device of the data,
and neither trained nor saved.
"""

__all__ = ["FeatureWeighted", "Loss", "Perceptual", "PseudoHuber", "SquaredError"]

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from genflow.errors import UserError
from genflow.models import Regression


@runtime_checkable
class Loss(Protocol):
    """What training minimises the mean of."""

    def __call__(self, made: Regression) -> Tensor:
        """Judges an answer.

        Args:
            made: The answer beside the target, of B samples.

        Returns:
            The loss of each sample, with shape (B).
        """
        ...


class SquaredError:
    r""":math:`\frac1d \|e\|^2`, with e the error of F in the network's own units."""

    def __call__(self, made: Regression) -> Tensor:
        """See [`Loss.__call__`][genflow.training.losses.Loss]."""

        return made.error.square().flatten(1).mean(1)


@dataclass(frozen=True)
class PseudoHuber:
    r"""Quadratic for small errors of a sample, linear for large ones.

    .. math:: \ell = \frac1d \left( \sqrt{\|e\|^2 + c^2} - c \right), \qquad c = k d

    The norm is that of the whole sample, so one bad pixel does not decide.

    Args:
        scale: k, above 0; d is the number of elements of a sample.

    Raises:
        UserError: If ``scale`` is not above 0.

    References:
        Improving the Training of Rectified Flows
        https://arxiv.org/abs/2405.20320
    """

    scale: float = 0.00054

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise UserError(f"loss.scale is {self.scale}: it must be above 0 (0.00054 is usual).")

    def __call__(self, made: Regression) -> Tensor:
        """See [`Loss.__call__`][genflow.training.losses.Loss]."""

        e = made.error.flatten(1)
        d, square = e.shape[1], e.square().sum(1)
        c = self.scale * d
        # √(s + c²) − c without cancellation
        return square / (torch.sqrt(square + c**2) + c) / d


class _Frozen:
    """A network that a loss asks, out of reach of optimisers and checkpoints."""

    def __init__(self, net: Callable[..., Tensor]) -> None:
        self.net = net
        if isinstance(net, nn.Module):
            net.eval().requires_grad_(False)

    def on(self, device: torch.device) -> Callable[..., Tensor]:
        if isinstance(self.net, nn.Module):
            self.net.to(device)
        return self.net


@dataclass(frozen=True)
class Perceptual:
    r"""A perceptual distance between the data estimate and the data, beside a plain loss.

    .. math:: \ell = (1 - t) \, \ell_{plain} + \rho(\hat x, x) \qquad \text{or} \qquad
              \ell = (1 - t) \, \ell_{plain} + \rho(\hat x, x) / t

    At t = 1, the time of one-step distillation, it is the perceptual distance alone.

    Args:
        distance: A callable (a, b) → (B) or (B, 1, 1, 1) on images in [−1, 1], such as LPIPS.
        plain: The plain loss; pseudo-Huber if None.
        over_t: Whether the distance is divided by t.
        size: The side in pixels to which images are enlarged, bilinearly, before they are
            compared; their own if None.

    Raises:
        UserError: If ``size`` is below 1.

    References:
        Improving the Training of Rectified Flows
        https://arxiv.org/abs/2405.20320
    """

    distance: Callable[[Tensor, Tensor], Tensor]
    plain: Loss | None = None
    over_t: bool = False
    size: int | None = None
    _net: _Frozen = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise UserError(f"loss.size is {self.size}: it must be 1 or more (224 is usual).")

        object.__setattr__(self, "plain", self.plain or PseudoHuber())
        object.__setattr__(self, "_net", _Frozen(self.distance))

    def __call__(self, made: Regression) -> Tensor:
        """See [`Loss.__call__`][genflow.training.losses.Loss]."""

        pair = [made.estimate, made.x]

        if self.size is not None:
            size = (self.size, self.size)
            pair = [interpolate(v, size, mode="bilinear", align_corners=False) for v in pair]

        rho = self._net.on(made.x.device)(*pair).reshape(len(made.x), -1).mean(1)
        rho = rho / made.t if self.over_t else rho
        return (1 - made.t) * self.plain(made) + rho


@dataclass(frozen=True)
class FeatureWeighted:
    r"""The error as a feature net feels it, for the translation of images.

    .. math:: \ell = \frac1m \| \nabla h(x_t)^\top e \|^2 + \frac{\kappa}{d} \|e\|^2

    with h the feature net and m the number of its features. Off the directions that h sees, the
    first term says nothing; the second settles what is left.

    Args:
        features: h, a callable (B, \*) → (B, m).
        floor: κ, 0 or more.
        onto: What the gradient is taken at; ``"state"`` is :math:`x_t`, ``"data"`` is x.

    Raises:
        UserError: If ``floor`` is below 0.

    References:
        Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow
        https://arxiv.org/abs/2209.03003
    """

    features: Callable[[Tensor], Tensor]
    floor: float = 0.1
    onto: Literal["state", "data"] = "state"
    _net: _Frozen = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.floor >= 0:
            raise UserError(f"loss.floor is {self.floor}: it must be 0 or more (0.1 is usual).")

        object.__setattr__(self, "_net", _Frozen(self.features))

    def __call__(self, made: Regression) -> Tensor:
        """See [`Loss.__call__`][genflow.training.losses.Loss]."""

        where = (made.x_t if self.onto == "state" else made.x).detach()
        net = self._net.on(made.x.device)
        felt = torch.func.jvp(net, (where,), (made.error,))[1]
        plain = made.error.square().flatten(1).mean(1)
        return felt.square().flatten(1).mean(1) + self.floor * plain
