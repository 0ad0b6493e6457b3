r"""Adam for bridges, with steps in units of each parameter's own.

A step of the learning rate should mean the same for all that a bridge consists of. For log-weights
and log-scales it does: it is a relative change. A centre is moved in units of the width of its
component,

.. math:: \Delta r_k = \eta \, (\epsilon \, \mathrm{diag} \, S_k)^{1/2} \, \hat m / \sqrt{\hat v},

which is Adam in the coordinates :math:`r_k / (\epsilon \, \mathrm{diag} \, S_k)^{1/2}`. With ε at
one hundredth of the data's variance, a step that all share is too coarse for the centres, or too
fine for the rest. Gradients below 1e-6 count as none, so that components without mass rest instead
of walking at random. Batches grow while the rate falls: the noise that is left at the end is that
of the last steps.
"""

__all__ = ["BridgeAdam", "growth", "one_cycle", "variances"]

from collections.abc import Callable
import math

import torch
from torch import Tensor

from genflow.models.bridges import LightBridge

RISE = 0.3  # the fraction of the steps in which the learning rate rises
NIL = 1e-6  # a gradient that counts as none
FIRST = 0.04  # the first learning rate, in units of the largest


class BridgeAdam(torch.optim.Adam):
    """Adam for the parameters of a bridge; its widths at this moment are the centres' units.

    Args:
        bridge: The bridge.
        lr: The learning rate, above 0.
        betas: The two decay rates, in [0, 1).
    """

    def __init__(
        self, bridge: LightBridge, lr: float, betas: tuple[float, float] = (0.9, 0.95)
    ) -> None:
        centre = bridge.centre
        rest = [p for p in bridge.parameters() if p is not centre]
        groups = [
            {"params": rest, "unit": None},
            {"params": [centre], "unit": variances(bridge).sqrt()},  # kept with the state
        ]
        super().__init__(groups, lr=lr, betas=betas, eps=NIL, fused=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step."""

        group = self.param_groups[1]
        (centre,) = group["params"]
        before = centre.detach().clone()
        loss = super().step(closure)
        centre.copy_(torch.addcmul(before, group["unit"], centre - before))
        return loss


@torch.no_grad()
def variances(bridge: LightBridge) -> Tensor:
    r"""The variances :math:`\epsilon \, \mathrm{diag} \, S_k` of the components, (K, d)."""

    one = bridge.centre.new_ones(())
    eye = torch.eye(bridge.dimension, dtype=one.dtype, device=one.device)
    return bridge.epsilon * bridge.covariance.at(one).ratio(0 * one).quadratic(eye).mT.contiguous()


def one_cycle(step: int, steps: int) -> float:
    """The factor of the learning rate at a step: up over 30 % of the steps, then down to 0.

    Both ways are half cosines; the first step has 4 % of the largest rate.
    """

    peak = max(1, round(RISE * steps))

    if step < peak:
        return FIRST + (1 - FIRST) * 0.5 * (1 - math.cos(math.pi * step / peak))

    return 0.5 * (1 + math.cos(math.pi * (step - peak) / max(1, steps - peak)))


def growth(step: int, steps: int) -> int:
    """How much larger a batch is at a step: 1 in the first half, then 4, in the last quarter 8."""

    return 1 if 2 * step < steps else 4 if 4 * step < 3 * steps else 8
