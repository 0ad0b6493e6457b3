r"""Which noise levels a network cannot do better at, learned beside it.

Were the error at each level a Gaussian likelihood with variance :math:`e^{u(\sigma)}`, its
negative logarithm would be, but for constants,

.. math:: \ell \, e^{-u(\sigma)} + u(\sigma)

and minimising it over u as well gives :math:`u = \log E[\ell \mid \sigma]`: every level then
contributes gradients of a like size, whatever its loss. Only the balance between levels changes,
never the minimiser of a network that can fit them all. u is a small function of the clock that the
network is told, and of no use after training; an exported pipeline does not have it.
"""

__all__ = ["Uncertainty"]

import math

import torch
from torch import Tensor, nn

from genflow.data.stream import seeded
from genflow.errors import UserError


class Uncertainty(nn.Module):
    r"""A learned function of the clock, :math:`u(c) = \sum_j w_j \sqrt{2/n} \cos(f_j c + b_j)`.

    The frequencies are drawn once, normal with deviation 2π; the weights start at 0.

    Args:
        features: n, the number of cosines, 1 or more.
        seed: Names the frequencies and phases, 0 or more.

    Raises:
        UserError: If there are no features.

    References:
        Analyzing and Improving the Training Dynamics of Diffusion Models
        https://arxiv.org/abs/2312.02696
    """

    def __init__(self, features: int = 128, seed: int = 0) -> None:
        super().__init__()

        if features < 1:
            raise UserError(f"features is {features}: 1 or more is needed (128 is usual).")

        source = seeded("uncertainty", seed)
        frequencies = 2 * math.pi * torch.randn(features, generator=source)
        phases = 2 * math.pi * torch.rand(features, generator=source)
        self.register_buffer("frequencies", frequencies)
        self.register_buffer("phases", phases)
        self.weight = nn.Parameter(torch.zeros(features))

    def log_error(self, clock: Tensor) -> Tensor:
        """u, with the shape of the clock."""

        waves = torch.cos(clock[..., None].to(self.weight) * self.frequencies + self.phases)
        return (waves * self.weight).sum(-1) * math.sqrt(2 / len(self.weight))

    def forward(self, loss: Tensor, clock: Tensor) -> Tensor:
        r""":math:`\ell e^{-u} + u`; the losses, the clock and the result have shape (B)."""

        u = self.log_error(clock)
        return loss * torch.exp(-u) + u
