r"""Empirical statistics of DPM-Solver-v3: per-element coefficients of the ODE's linear part.

Instead of the data or the noise estimate, DPM-Solver-v3 expands

.. math:: f_\lambda(x) = \frac{\sigma_\lambda \epsilon_\lambda(x) - l_\lambda \odot
          x}{\alpha_\lambda}, \qquad g = e^{-\int s} f - \int e^{-\int s} b,

with statistics :math:`l, s, b` per element and per λ. Between the grid points on which they are
stored, statistics are interpolated linearly: a step's own times are inserted into the grid, so no
time is ever snapped. The degenerate statistics (1, 0, 0) and (0, −1, 0) reproduce the expansions
of the data and of the noise estimate, up to the trapezoidal rule.

References:
    DPM-Solver-v3: Improved Diffusion ODE Solver with Empirical Model Statistics
    https://arxiv.org/abs/2310.13268
"""

__all__ = ["Integrals", "Statistics"]

from dataclasses import dataclass
import math

import torch
from torch import Tensor

from genflow.errors import UserError


@dataclass(frozen=True)
class Statistics:
    r"""The statistics l, s, b on an increasing grid of λ.

    Attributes:
        lam: The grid, increasing, with shape (M).
        l: The linear coefficients, with shape (M, \*event).
        s: The scaling coefficients, with shape (M, \*event).
        b: The biases, with shape (M, \*event).
        snap: Rounds every time to the nearest point of a uniform grid, as the published code does,
            instead of interpolating; for comparisons only.

    Raises:
        UserError: If the grid does not increase, or the shapes disagree.
    """

    lam: Tensor
    l: Tensor
    s: Tensor
    b: Tensor
    snap: bool = False

    def __post_init__(self) -> None:
        if not bool((self.lam.diff() > 0).all()) or len(self.lam) < 2:
            raise UserError("statistics.lam must hold two or more increasing values of λ.")
        if not self.l.shape == self.s.shape == self.b.shape or len(self.l) != len(self.lam):
            raise UserError(
                f"statistics l, s, b have shapes {tuple(self.l.shape)}, {tuple(self.s.shape)}, "
                f"{tuple(self.b.shape)} for {len(self.lam)} values of λ: (M, *event) each is "
                "needed."
            )

    @property
    def event(self) -> tuple[int, ...]:
        """The shape of one sample."""

        return tuple(self.l.shape[1:])

    def integrals(self, lam: Tensor) -> "Integrals":
        """The cumulated statistics at the times of a schedule.

        Args:
            lam: The λ of the schedule's times, with shape (N + 1); infinite ones are left out.
        """

        lam, (l, s, b) = lam.to(self.lam), (self.l, self.s, self.b)
        M = len(self.lam)

        if self.snap:
            unit = (lam - self.lam[0]) / (self.lam[-1] - self.lam[0])
            index = (unit.nan_to_num(0, 0, 0) * (M - 1)).round().long().clamp(0, M - 1)
            return Integrals(self.lam, l, s, b, index)

        finite = lam[torch.isfinite(lam)]
        right = torch.searchsorted(self.lam, finite.detach()).clamp(1, M - 1)
        left = right - 1
        u = (finite - self.lam[left]) / (self.lam[right] - self.lam[left])
        u = u.clamp(0, 1).reshape(-1, *(1,) * len(self.event))

        def merged(values: Tensor) -> Tensor:
            return torch.cat([values, torch.lerp(values[left], values[right], u)])

        nodes, order = torch.cat([self.lam, finite]).sort(stable=True)
        place = order.argsort()
        index = torch.zeros(len(lam), dtype=torch.long)
        index[torch.isfinite(lam)] = place[M:]

        return Integrals(nodes, *(merged(v)[order] for v in (l, s, b)), index)


class Integrals:
    r"""Trapezoidal cumulated integrals of the statistics, read at a schedule's times.

    .. math:: L = \int l, \quad S = \int s, \quad I = \int e^{L + S}, \quad
              B = \int e^{-S} b, \quad C = \int e^{L + S} B

    Args:
        nodes: The grid in λ, with shape (M).
        l: See `Statistics`, with shape (M, \*event).
        s: See `Statistics`, with shape (M, \*event).
        b: See `Statistics`, with shape (M, \*event).
        index: The node of each time of the schedule, with shape (N + 1).
    """

    def __init__(self, nodes: Tensor, l: Tensor, s: Tensor, b: Tensor, index: Tensor) -> None:
        self.nodes = nodes
        self.linear = l
        self.index = index.tolist()
        self.gap = nodes.diff().reshape(-1, *(1,) * (l.ndim - 1))
        self.L = self._cumulate(l)
        self.S = self._cumulate(s)
        self.I = self._cumulate(torch.exp(self.L + self.S))
        self.B = self._cumulate(torch.exp(-self.S) * b)
        self.C = self._cumulate(torch.exp(self.L + self.S) * self.B)

    def _cumulate(self, values: Tensor) -> Tensor:
        areas = 0.5 * (values[1:] + values[:-1]) * self.gap
        return torch.cat([torch.zeros_like(values[:1]), areas.cumsum(0)])

    def slope(self, i: int) -> Tensor:
        r"""The coefficient l at time i, with shape (\*event)."""

        return self.linear[self.index[i]]

    def transport(self, i: int, p: int) -> tuple[Tensor, Tensor]:
        r"""The pair (u, v) with :math:`g_p = u f_p - v`, relative to time i.

        Returns:
            :math:`e^{S_i - S_p}` and :math:`e^{S_i} (B_p - B_i)`.
        """

        i, p = self.index[i], self.index[p]
        return torch.exp(self.S[i] - self.S[p]), torch.exp(self.S[i]) * (self.B[p] - self.B[i])

    def step(self, i: int, j: int) -> tuple[Tensor, Tensor, Tensor]:
        r"""The factors of a step from time i to time j.

        Returns:
            :math:`e^{L_i - L_j}`, :math:`e^{-L_j - S_i} (I_j - I_i)`, and
            :math:`e^{-L_j} (C_j - C_i - B_i (I_j - I_i))`.
        """

        i, j = self.index[i], self.index[j]
        I = self.I[j] - self.I[i]
        bias = self.C[j] - self.C[i] - self.B[i] * I
        return (
            torch.exp(self.L[i] - self.L[j]),
            torch.exp(-self.L[j] - self.S[i]) * I,
            torch.exp(-self.L[j]) * bias,
        )

    def moment(self, i: int, j: int, k: int) -> Tensor:
        r""":math:`\int_{\lambda_i}^{\lambda_j} e^{(L + S) - (L + S)_i} (\lambda - \lambda_i)^k /
        k!
        \, d\lambda`."""

        i, j = self.index[i], self.index[j]
        span = slice(i, j + 1)
        total = self.L[span] + self.S[span]
        power = (self.nodes[span] - self.nodes[i]) ** k / math.factorial(k)
        values = torch.exp(total - total[:1]) * power.reshape(-1, *(1,) * (total.ndim - 1))
        return (0.5 * (values[1:] + values[:-1]) * self.gap[i:j]).sum(0)
