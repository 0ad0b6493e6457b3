r"""Empirical statistics of DPM-Solver-v3: per-element coefficients of the ODE's linear part.

Instead of the data or the noise estimate, DPM-Solver-v3 expands

.. math:: f_\lambda(x) = \frac{\sigma_\lambda \epsilon_\lambda(x) - l_\lambda \odot
          x}{\alpha_\lambda}, \qquad g = e^{-\int s} f - \int e^{-\int s} b,

with statistics :math:`l, s, b` per element and per λ. Between the grid points on which they are
stored, statistics are interpolated: s and b linearly, and l, which f holds undiluted, by cubics
with a continuous slope. A step's own times are inserted into the grid, so no time is ever snapped
and a result depends smoothly on the times; beyond the grid its end values hold. The degenerate
statistics (1, 0, 0) and (0, −1, 0) reproduce the expansions of the data and of the noise estimate,
up to the quadrature.

Integrals are taken by the trapezoidal rule with its end correction, :math:`\tfrac{h}{2}(v_0 + v_1)
+ \tfrac{h^2}{12}(v_0' - v_1')`, which is exact for l and s, whose error falls as h⁴ for the
exponentials, and which costs nothing, since the slopes are known.

References:
    DPM-Solver-v3: Improved Diffusion ODE Solver with Empirical Model Statistics
    https://arxiv.org/abs/2310.13268
"""

__all__ = ["Integrals", "Statistics", "read_tensors", "write_tensors"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import json
import math
import os
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
import torch
from torch import Tensor

from genflow.errors import UserError
from genflow.files import writing

FORMAT = "genflow-statistics"
VERSION = 1


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
        UserError: If the grid does not increase, the shapes disagree, or a value is not finite.
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
        for name in ("lam", "l", "s", "b"):
            if not bool(torch.isfinite(getattr(self, name)).all()):
                raise UserError(f"statistics.{name} holds values that are not finite.")

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
        right = torch.searchsorted(self.lam.contiguous(), finite.detach()).clamp(1, M - 1)
        left = right - 1
        ones = (1,) * len(self.event)
        gap = (self.lam[right] - self.lam[left]).reshape(-1, *ones)
        u = ((finite - self.lam[left]).reshape(-1, *ones) / gap).clamp(0, 1)
        (slope,) = torch.gradient(l, spacing=(self.lam,), dim=0, edge_order=min(2, M - 1))
        bend = _hermite(u, gap, l[left], l[right], slope[left], slope[right])

        nodes, order = torch.cat([self.lam, finite]).sort(stable=True)
        place = order.argsort()
        index = torch.zeros(len(lam), dtype=torch.long)
        index[torch.isfinite(lam)] = place[M:]
        s, b = (torch.cat([v, torch.lerp(v[left], v[right], u)])[order] for v in (s, b))
        l, slope = (torch.cat([v, new])[order] for v, new in zip((l, slope), bend, strict=True))
        return Integrals(nodes, l, s, b, index, slope)

    def save(self, file: str | os.PathLike[str], about: Mapping[str, Any] | None = None) -> None:
        """Writes the statistics as safetensors, whole or not at all.

        Args:
            file: The file.
            about: What to note beside them, as plain JSON values.
        """

        columns = {k: getattr(self, k) for k in ("lam", "l", "s", "b")}
        write_tensors(file, columns, FORMAT, {"snap": self.snap, **(about or {})})

    @classmethod
    def load(cls, file: str | os.PathLike[str]) -> "Statistics":
        """Reads what [`save`][genflow.solvers.empirical.Statistics.save] wrote, in float64.

        Raises:
            UserError: If there is no such file, or it is damaged or holds something else.
        """

        columns, about = read_tensors(file, FORMAT, ("lam", "l", "s", "b"))
        columns = {k: v.double() for k, v in columns.items()}
        return cls(**columns, snap=about.get("snap") is True)


def write_tensors(
    file: str | os.PathLike[str], tensors: Mapping[str, Tensor], kind: str, about: Any
) -> None:
    """Writes tensors and a JSON record as one safetensors file, whole or not at all."""

    note = {"format": kind, "version": str(VERSION), "about": json.dumps(about)}

    with writing(file) as part:
        save_file({k: v.contiguous() for k, v in tensors.items()}, part, metadata=note)


def read_tensors(
    file: str | os.PathLike[str], kind: str, names: Sequence[str]
) -> tuple[dict[str, Tensor], Any]:
    """The tensors with the given names, and the JSON record, of a safetensors file.

    Raises:
        UserError: If the file is missing, damaged, of another kind, or of a newer version.
    """

    try:
        with safe_open(file, framework="pt") as opened:
            note = opened.metadata() or {}
            found = note.get("format"), note.get("version")
            missing = sorted(set(names) - set(opened.keys()))
            tensors = {k: opened.get_tensor(k) for k in names if k not in missing}
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"'{file}' cannot be read as safetensors ({error}): it is missing, damaged or "
            "something else."
        ) from None

    if found != (kind, str(VERSION)) or missing:
        lack = f" and lacks {', '.join(missing)}" if missing else ""
        raise UserError(
            f"'{file}' has format {found[0]!r} and version {found[1]!r}{lack}: {kind!r} of "
            f"version {VERSION} is needed."
        )

    return tensors, json.loads(note["about"])


class Integrals:
    r"""Cumulated integrals of the statistics, read at a schedule's times.

    .. math:: L = \int l, \quad S = \int s, \quad I = \int e^{L + S}, \quad
              B = \int e^{-S} b, \quad C = \int e^{L + S} B

    Args:
        nodes: The grid in λ, with shape (M).
        l: See `Statistics`, with shape (M, \*event).
        s: See `Statistics`, with shape (M, \*event).
        b: See `Statistics`, with shape (M, \*event).
        index: The node of each time of the schedule, with shape (N + 1).
        slope: The slope of l, with shape (M, \*event), for the end correction of the trapezoidal
            rule; None for the plain rule of the published code.
    """

    def __init__(
        self,
        nodes: Tensor,
        l: Tensor,
        s: Tensor,
        b: Tensor,
        index: Tensor,
        slope: Tensor | None = None,
    ) -> None:
        self.nodes = nodes
        self.linear = l
        self.index = index.tolist()
        self.gap = nodes.diff().reshape(-1, *(1,) * (l.ndim - 1))
        self.rate = l + s
        self.corrected = slope is not None

        L, S = self.L, self.S = _cumulated(self._areas(l, slope)), _cumulated(self._areas(s))
        E, F = torch.exp(L + S), torch.exp(-S)
        self.I = _cumulated(self._areas(E, E * self.rate))
        # The slope of b jumps at the nodes: it counts as a rise over each gap.
        self.B = _cumulated(self._areas(F * b, -F * s * b, F, b.diff(dim=0)))
        G = E * self.B
        self.C = _cumulated(self._areas(G, G * self.rate + E * F * b))

    def _areas(
        self,
        values: Tensor,
        slopes: Tensor | None = None,
        factor: Tensor | None = None,
        rise: Tensor | None = None,
        span: slice = slice(None),
    ) -> Tensor:
        """The integral over each gap of a function with the given values and slopes at its ends.

        To the slopes a factor times the slope of a piecewise-linear function may be added, given
        by its rise over each gap.
        """

        gap = self.gap[span]
        areas = 0.5 * (values[1:] + values[:-1]) * gap

        if not self.corrected or slopes is None:
            return areas

        turn = gap * (slopes[:-1] - slopes[1:])
        turn = turn if rise is None else turn + rise * (factor[:-1] - factor[1:])
        return areas + gap / 12 * turn

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
        k! \, d\lambda`."""

        i, j = self.index[i], self.index[j]
        span = slice(i, j + 1)
        total = self.L[span] + self.S[span]
        E = torch.exp(total - total[:1])
        r = (self.nodes[span] - self.nodes[i]).reshape(-1, *(1,) * (total.ndim - 1))
        values = E * r**k / math.factorial(k)
        slopes = self.rate[span] * values + E * r ** (k - 1) / math.factorial(k - 1)
        return self._areas(values, slopes, span=slice(i, j)).sum(0)


def _hermite(
    u: Tensor, gap: Tensor, v0: Tensor, v1: Tensor, d0: Tensor, d1: Tensor
) -> tuple[Tensor, Tensor]:
    """The cubic with values v0, v1 and slopes d0, d1 at the ends of a gap, and its slope, at u."""

    w, d0, d1 = 1 - u, gap * d0, gap * d1
    value = w * w * ((1 + 2 * u) * v0 + u * d0) + u * u * ((1 + 2 * w) * v1 - w * d1)
    slope = (6 * u * w * (v1 - v0) + w * (w - 2 * u) * d0 + u * (u - 2 * w) * d1) / gap
    return value, slope


def _cumulated(areas: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(areas[:1]), areas.cumsum(0)])
