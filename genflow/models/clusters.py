r"""K-means: K centres such that points are near one of them.

Lloyd's iteration from a k-means++ start, on the device of the points. It finds a local minimum of
the mean squared distance to the nearest centre; nothing more is needed of a start for a fit.

References:
    k-means++: The Advantages of Careful Seeding
    https://dl.acm.org/doi/10.5555/1283383.1283494
"""

__all__ = ["Clusters", "k_means"]

from dataclasses import dataclass

import torch
from torch import Generator, Tensor


@dataclass(frozen=True, eq=False)
class Clusters:
    """Centres, and which points belong to them.

    Args:
        centre: The means of the cells, with shape (K, d).
        cell: The cell of each point, with shape (n).
    """

    centre: Tensor
    cell: Tensor

    @property
    def count(self) -> Tensor:
        """The number of points in each cell, with shape (K)."""

        return torch.bincount(self.cell, minlength=len(self.centre))


def k_means(
    x: Tensor, clusters: int, *, iterations: int = 15, generator: Generator | None = None
) -> Clusters:
    """Finds K centres.

    Args:
        x: The points, with shape (n, d).
        clusters: K, from 1 to n.
        iterations: Rounds of Lloyd's iteration.
        generator: The source of the start, on the CPU.
    """

    centre = _spread(x, clusters, generator)

    for _ in range(iterations):
        cell = _nearest(x, centre)
        count = torch.bincount(cell, minlength=clusters).to(x.dtype)[:, None]
        total = torch.zeros_like(centre).index_add_(0, cell, x)
        moved = torch.where(count > 0, total / count.clamp_min(1), centre)
        if torch.equal(moved, centre):
            break
        centre = moved

    return Clusters(centre, _nearest(x, centre))


def _nearest(x: Tensor, centre: Tensor) -> Tensor:
    return torch.addmm(centre.square().sum(1), x, centre.mT, alpha=-2).argmin(1)


def _spread(x: Tensor, clusters: int, generator: Generator | None) -> Tensor:
    """Centres far from each other: each next one is a point, likely where the gap is large."""

    first = torch.randint(len(x), (1,), generator=generator)
    chosen, gap = [first], (x - x[first.to(x.device)]).square().sum(1)

    for _ in range(clusters - 1):
        odds = gap.cpu().double() + 1e-300
        place = torch.rand(1, generator=generator).double() * odds.sum()
        i = torch.searchsorted(odds.cumsum(0), place).clamp_max(len(x) - 1)
        chosen.append(i)
        gap = torch.minimum(gap, (x - x[i.to(x.device)]).square().sum(1))

    return x[torch.cat(chosen).to(x.device)].clone()
