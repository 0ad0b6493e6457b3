r"""What nearest neighbours tell: fidelity, diversity, and copied training data.

With :math:`r_k(p)` the distance from a point of a cloud to its :math:`k`-th nearest other one, and
an *open* ball of that radius around each, for samples :math:`x_1 \dots x_n` and real points
:math:`y_1 \dots y_m`,

.. math::
    \text{precision} &= \tfrac1n \sum_i 1 [\exists j: |x_i - y_j| < r_k(y_j)], &
    \text{recall} &= \tfrac1m \sum_j 1 [\exists i: |x_i - y_j| < r_k(x_i)], \\
    \text{density} &= \tfrac{1}{k n} \sum_i \sum_j 1 [|x_i - y_j| < r_k(y_j)], &
    \text{coverage} &= \tfrac1m \sum_j 1 [\exists i: |x_i - y_j| < r_k(y_j)].

Precision and density look at what the samples are worth, recall and coverage at what they miss.
A single outlier among the real points has a large ball, which raises precision, and one among the
samples raises recall; density and coverage count around that. All four depend on the number of
points: read them beside those of two halves of the real data at equal numbers, where coverage is
about :math:`1 - 2^{-k}`, and density about one.

A model that hands out its training data scores perfectly on all of these. The memorisation check
compares, for each sample, the distance to its nearest training item with the distance that this
item has from its own nearest *other* training item,

.. math:: \rho_i = \frac{|x_i - y_{j(i)}|}{\min_{j \neq j(i)} |y_j - y_{j(i)}|},
    \qquad j(i) = \arg\min_j |x_i - y_j|

and counts the samples with :math:`\rho` below a threshold. New draws of the true law have
:math:`\rho` around one. Training items at no distance from each other count as one, so duplicates
in the data do not hide a copy. What is *not* assumed: that the whole set fits into float64, it is
read in chunks. What is *not* seen: a copy that is mirrored, shifted or cropped, if the feature
tells it from the original.

References:
    | Improved Precision and Recall Metric for Assessing Generative Models
    | (Kynkäänniemi et al., 2019)
    | https://arxiv.org/abs/1904.06991

    | Reliable Fidelity and Diversity Metrics for Generative Models (Naeem et al., 2020)
    | https://arxiv.org/abs/2002.09797
"""

__all__ = ["Memorisation", "memorisation", "prdc"]

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genflow.errors import UserError
from genflow.metrics.distances import square_gaps
from genflow.metrics.inputs import as_tables, chunks

CHUNK = 256  # rows whose distances to all others are held at once
SAME = 1e-5  # of the cloud's root mean square radius: nearer points are one point


def prdc(x: Any, y: Any, *, k: int = 5) -> dict[str, float]:
    r"""Computes precision, recall, density and coverage.

    The work grows as :math:`(n + m)^2 d`, and the memory as :math:`n d`.

    Arguments:
        x: The samples, with shape :math:`(n, d)`, more than ``k``.
        y: The real points, with shape :math:`(m, d)`, more than ``k``.
        k: Which neighbour sets the radius, at least 1.

    Returns:
        ``precision``, ``recall`` and ``coverage`` in [0, 1], ``density`` in
        :math:`[0, \infty)`.

    Raises:
        UserError: If they are not finite tables of one width with more than ``k`` rows.
    """
    if k < 1:
        raise UserError(f"k: {k} is out of range; give 1 or more.")

    x, y = as_tables(x, y, least=k + 1)
    centre = _mean(y)  # distances do not change, their rounding does
    x, y = x - centre, y - centre  # the centre is in float64, hence so are they
    around_x, around_y = _radii(x, k), _radii(y, k)

    precise = inside = 0
    covered = torch.zeros(len(y), dtype=torch.bool)
    recalled = covered.clone()
    for part, radius in zip(x.split(CHUNK), around_x.split(CHUNK), strict=True):
        gaps = square_gaps(part, y)
        real = gaps < around_y
        precise += int(real.any(dim=1).sum())
        inside += int(real.sum())
        covered |= real.any(dim=0)
        recalled |= (gaps < radius[:, None]).any(dim=0)

    return {
        "precision": precise / len(x),
        "recall": float(recalled.double().mean()),
        "density": inside / (k * len(x)),
        "coverage": float(covered.double().mean()),
    }


@dataclass(frozen=True, eq=False)
class Memorisation:
    r"""What the memorisation check found.

    Arguments:
        fraction: The part of the samples with a ratio below the threshold.
        threshold: The threshold.
        copies: The number of samples at no distance from a training item.
        ratios: All ratios :math:`\rho_i`, infinite where the training items are all one, with
            shape :math:`(n)`.
        nearest: The index of the nearest training item of each sample, with shape :math:`(n)`.
    """

    fraction: float
    threshold: float
    copies: int
    ratios: Tensor
    nearest: Tensor

    def closest(self, count: int = 10) -> list[tuple[int, int, float]]:
        """The index of the sample, that of its training item, and the ratio, smallest first."""
        order = self.ratios.argsort(stable=True)[:count].tolist()

        return [(i, int(self.nearest[i]), float(self.ratios[i])) for i in order]


def memorisation(x: Any, y: Any, *, threshold: float = 0.5) -> Memorisation:
    r"""Looks for samples that lie suspiciously near a training item.

    Arguments:
        x: The samples, with shape :math:`(n, d)`.
        y: The training items, all of them, with shape :math:`(m, d)`, at least 2.
        threshold: The ratio below which a sample is suspicious, above 0.

    Returns:
        The fraction, the copies, and every sample's ratio and nearest item.

    Raises:
        UserError: If they are not finite tables of one width, or the threshold is not positive.
    """
    if not threshold > 0:
        raise UserError(f"threshold: {threshold} is out of range; give a number above 0.")

    x, y = as_tables(x, y)
    if len(y) < 2:
        raise UserError("y: 1 points are too few; give at least 2 training items.")

    centre = _mean(y)
    spread = sum(float((part - centre).square().sum()) for part in chunks(y)) / len(y)
    same = SAME**2 * spread

    _, nearest = _nearest(x, y, centre, -1.0)
    items, place = nearest.unique(return_inverse=True)
    # Between a sample and its item alone the difference is exact, which a copy asks for.
    to_item = torch.cat([(a - b).square().sum(dim=1) for a, b in _pairs_of_rows(x, y, nearest)])
    between, _ = _nearest(y[items], y, centre, same)
    copied = to_item <= same
    ratios = torch.where(copied, 0.0, (to_item / between[place]).sqrt())
    ratios = torch.where(between[place].isinf() & ~copied, torch.inf, ratios)

    return Memorisation(
        fraction=float((ratios < threshold).double().mean()),
        threshold=threshold,
        copies=int(copied.sum()),
        ratios=ratios,
        nearest=nearest,
    )


def _mean(y: Tensor) -> Tensor:
    return sum(part.sum(dim=0) for part in chunks(y)) / len(y)


def _radii(x: Tensor, k: int) -> Tensor:
    """The squared distance of each point to its k-th nearest other one, with shape (n)."""
    radii = x.new_empty(len(x))  # small pieces kept one by one would pin the heap between them

    for start in range(0, len(x), CHUNK):
        gaps = square_gaps(x[start : start + CHUNK], x)
        rows = torch.arange(len(gaps))
        gaps[rows, start + rows] = torch.inf
        radii[start : start + CHUNK] = gaps.kthvalue(k, dim=1).values

    return radii


def _nearest(x: Tensor, y: Tensor, centre: Tensor, above: float) -> tuple[Tensor, Tensor]:
    """The least squared distance above a bound, infinite if there is none, and its index."""
    x = x - centre
    best = x.new_full((len(x),), torch.inf)
    index = torch.zeros(len(x), dtype=torch.long)

    for i, part in enumerate(chunks(y, CHUNK)):
        gaps = square_gaps(x, part - centre)
        least, where = gaps.masked_fill_(gaps <= above, torch.inf).min(dim=1)
        index = torch.where(least < best, i * CHUNK + where, index)
        best = torch.minimum(best, least)

    return best, index


def _pairs_of_rows(x: Tensor, y: Tensor, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of x beside the rows of y that an index names, in chunks."""
    for part, chosen in zip(chunks(x, CHUNK), rows.split(CHUNK), strict=True):
        yield part, y[chosen].double()
