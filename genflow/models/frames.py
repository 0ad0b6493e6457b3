r"""The frame in which a bridge is fitted: both clouds centred, and of order one.

Entropic transport does not care about where its clouds lie, nor about units. With
:math:`y_0 = (x_0 - m_0)/s` and :math:`y_1 = (x_1 - m_1)/s` the solution is the same with
:math:`\epsilon/s^2` for ε, and a light bridge changes by

.. math:: r = s \, r' + m_1 - S m_0, \qquad S = S', \qquad
          \log a = \log a' - \tfrac1\epsilon \big( m_0' r + \tfrac12 m_0' S m_0 \big).

So step sizes mean the same for all data, and quadratic forms lose no digits to a distant origin.
"""

__all__ = ["Frame", "seen"]

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from genflow.models.bridges import LightBridge


@dataclass(frozen=True, eq=False)
class Frame:
    """Where two clouds lie, and how wide they are.

    Args:
        source: :math:`m_0`, with shape (d).
        target: :math:`m_1`, with shape (d).
        scale: s, above 0, with shape ().
    """

    source: Tensor
    target: Tensor
    scale: Tensor

    @classmethod
    def of(cls, source: Tensor, target: Tensor) -> "Frame":
        """The means of two clouds, and the root mean square of the target about its own.

        Args:
            source: Points of the source, with shape (n, d).
            target: Points of the target, with shape (m, d).
        """

        place = (x.mean(0, dtype=torch.float64) for x in (source, target))
        return cls(*place, target.std(0, correction=0).double().square().mean().sqrt())

    def epsilon(self, epsilon: float) -> float:
        """ε as it is seen in the frame."""

        return epsilon / float(self.scale) ** 2

    @torch.no_grad()
    def leave(self, bridge: LightBridge, epsilon: float) -> LightBridge:
        """A bridge that was fitted in the frame, as one between the clouds themselves.

        Args:
            bridge: The bridge in the frame.
            epsilon: The ε of the clouds themselves.

        Returns:
            The same bridge, in float64, without gradients.
        """

        bridge = copy.deepcopy(bridge).double()
        m_0, m_1, s = (v.to(bridge.centre) for v in (self.source, self.target, self.scale))
        one = s.new_ones(())
        turned = bridge.covariance.at(one).ratio(0 * one).spread(m_0[None])[0]
        r = s * bridge.centre + m_1 - turned
        log_a = bridge.log_weight - (r @ m_0 + 0.5 * turned @ m_0) / epsilon
        log_a = log_a - log_a.logsumexp(-1)
        return LightBridge(log_a, r, bridge.covariance.settled(), epsilon).requires_grad_(False)


def seen(x: Tensor, place: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """Points as they are seen from a place, at a scale; centred before they lose digits."""

    return x.sub(place.to(x)).div_(scale).to(dtype)
