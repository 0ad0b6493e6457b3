r"""Distances between two clouds of points that look beyond their first two moments.

For clouds :math:`x_1 \dots x_n` and :math:`y_1 \dots y_m` in :math:`\mathbb{R}^d`,

.. math::
    \mathrm{SW}_2^2 &= \mathbb{E}_\theta \int_0^1
        | Q_{\theta^\top x}(u) - Q_{\theta^\top y}(u) |^2 \, du \\
    \mathcal{E} &= 2 \, \mathbb{E} \| x - y \| - \mathbb{E} \| x - x' \|
        - \mathbb{E} \| y - y' \| \\
    \mathrm{KID} &= \mathbb{E} \, k(x, x') + \mathbb{E} \, k(y, y') - 2 \, \mathbb{E} \, k(x, y),
        \qquad k(x, y) = (x^\top y / d + 1)^3 \\
    \mathrm{MMD}^2 &= \mathbb{E} \, g(x, x') + \mathbb{E} \, g(y, y') - 2 \, \mathbb{E} \, g(x, y),
        \qquad g(x, y) = \exp \frac{-| x - y |^2}{2 \sigma^2}

where :math:`Q` is a quantile function. What is random in them (directions, subsets) comes from a
fixed seed, so a number is a function of the two clouds. All but KID vanish only if both laws are
the same; KID sees three moments, but is unbiased: its floor is zero, and it may come out slightly
negative. On CLIP's embeddings, with :math:`\sigma = 10` and times 1,000, the last is CMMD.

What is *not* assumed: clouds of equal size, or features rather than the data themselves. The
sizes must be modest for the energy distance and for MMD, whose work grows as
:math:`(n + m)^2 d`; the others read a memory map in chunks.

References:
    | Sliced and Radon Wasserstein Barycenters of Measures (Bonneel et al., 2015)
    | https://doi.org/10.1007/s10851-014-0506-3

    | Energy statistics: A class of statistics based on distances (Székely & Rizzo, 2013)
    | https://doi.org/10.1016/j.jspi.2013.03.018

    | Demystifying MMD GANs (Bińkowski et al., 2018)
    | https://arxiv.org/abs/1801.01401

    | A Kernel Two-Sample Test (Gretton et al., 2012)
    | https://jmlr.org/papers/v13/gretton12a.html

    | Rethinking FID: Towards a Better Evaluation Metric for Image Generation
    | (Jayasumana et al., 2024)
    | https://arxiv.org/abs/2401.09603
"""

__all__ = [
    "energy_distance",
    "gaussian_mmd",
    "kernel_distance",
    "median_gap",
    "sliced_wasserstein",
    "square_gaps",
]

from typing import Any

import torch
from torch import Tensor

from genflow.errors import UserError
from genflow.metrics.inputs import as_pair, as_table, as_tables, chunks

CHUNK = 1024  # rows, or directions times 32, that are held at once


def sliced_wasserstein(x: Any, y: Any, *, projections: int = 256, seed: int = 0) -> float:
    r"""Computes the sliced Wasserstein-2 distance.

    Along each direction the distance is exact, for clouds of different sizes too: both quantile
    functions are steps, and their squared difference is summed over the common steps. In one
    dimension it is the Wasserstein-2 distance itself. Directions carry a relative error of about
    :math:`1 / \sqrt{2 \cdot \text{projections}}` at worst, the same for all clouds of one width.

    Arguments:
        x: The first points, with shape :math:`(n, d)`.
        y: The second points, with shape :math:`(m, d)`.
        projections: The number of directions, at least 1.
        seed: The seed of the directions.

    Returns:
        The distance :math:`\mathrm{SW}_2` (not squared), in :math:`[0, \infty)`.

    Raises:
        UserError: If they are not finite tables of one width, or ``projections`` is below 1.
    """
    x, y = as_tables(x, y)
    _at_least("projections", projections, 1)

    generator = torch.Generator().manual_seed(seed)
    theta = torch.randn(projections, x.shape[1], generator=generator, dtype=torch.float64)
    theta = theta / theta.norm(dim=1, keepdim=True)

    def along(points: Tensor, directions: Tensor) -> Tensor:
        return torch.cat([part @ directions.T for part in chunks(points)])

    parts = theta.split(CHUNK // 32)
    squares = [_quantile_gap(along(x, part), along(y, part)) for part in parts]

    return float(torch.cat(squares).mean().sqrt())


def energy_distance(x: Any, y: Any) -> float:
    r"""Computes the energy distance, all pairs of points, rows in chunks.

    The means run over all pairs, a point with itself too, so the distance of a cloud to itself is
    zero and none is negative. It is :math:`\mathcal{E}` itself; some libraries give its root.

    Arguments:
        x: The first points, with shape :math:`(n, d)`.
        y: The second points, with shape :math:`(m, d)`.

    Returns:
        The distance :math:`\mathcal{E}`, in :math:`[0, \infty)`.

    Raises:
        UserError: If they are not finite tables of one width.
    """
    x, y = as_pair(x, y)
    across, within_x, within_y = _mean_gap(x, y), _mean_gap(x, x), _mean_gap(y, y)

    return max(2 * across - within_x - within_y, 0.0)


def kernel_distance(
    x: Any, y: Any, *, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    r"""Computes the unbiased squared kernel distance (KID, if the features are Inception's).

    Subsets larger than the smaller cloud are cut to its size; the deviation then understates the
    uncertainty, as the subsets share their points. If a subset is all of both clouds, one is
    enough, and the deviation is zero.

    Arguments:
        x: The first points, with shape :math:`(n, d)`, at least 2.
        y: The second points, with shape :math:`(m, d)`, at least 2.
        subsets: The number of subsets, at least 1.
        subset_size: The number of points of each cloud in a subset, at least 2.
        seed: The seed of the subsets.

    Returns:
        The mean and the standard deviation over the subsets; the mean may be slightly negative.

    Raises:
        UserError: If they are not finite tables of one width, or a number is out of range.
    """
    x, y = as_tables(x, y, least=2)
    _at_least("subsets", subsets, 1)
    _at_least("subset_size", subset_size, 2)

    size = min(subset_size, len(x), len(y))
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(1 if size == len(x) == len(y) else subsets):
        rows_x = torch.randperm(len(x), generator=generator)[:size]
        rows_y = torch.randperm(len(y), generator=generator)[:size]
        values.append(_unbiased_mmd(x[rows_x].double(), y[rows_y].double()))

    return float(torch.stack(values).mean()), float(torch.stack(values).std(correction=0))


def gaussian_mmd(x: Any, y: Any, *, sigma: float) -> float:
    r"""Computes the squared maximum mean discrepancy with a Gaussian kernel.

    The means run over all pairs, a point with itself too, as in the authors' code for CMMD: the
    distance of a cloud to itself is zero and none is negative. Pairs are summed as
    :math:`g - 1`, so a kernel much wider than the clouds costs no digits.

    Arguments:
        x: The first points, with shape :math:`(n, d)`.
        y: The second points, with shape :math:`(m, d)`.
        sigma: The width of the kernel, above 0; :func:`median_gap` is a usual choice.

    Returns:
        The squared discrepancy, in [0, 2].

    Raises:
        UserError: If they are not finite tables of one width, or ``sigma`` is not positive.
    """
    x, y = as_tables(x, y)
    if not sigma > 0:
        raise UserError(f"sigma: {sigma} is out of range; give a number above 0.")

    centre = y.mean(dim=0, dtype=torch.float64)
    x, y = x - centre, y - centre  # the centre is in float64, hence so are they

    def mean(a: Tensor, b: Tensor) -> float:
        parts = (square_gaps(part, b) for part in a.split(CHUNK))
        total = sum(gaps.div_(-2 * sigma**2).expm1_().sum() for gaps in parts)
        return float(total) / (len(a) * len(b))

    return max(mean(x, x) + mean(y, y) - 2 * mean(x, y), 0.0)


def median_gap(y: Any, *, most: int = 1000, seed: int = 0) -> float:
    r"""Computes the median distance between two points of a cloud.

    Arguments:
        y: The points, with shape :math:`(m, d)`, at least 2.
        most: How many of them are looked at, drawn at random, at least 2.
        seed: The seed of the draw.

    Returns:
        The median, in :math:`[0, \infty)`.

    Raises:
        UserError: If it is no finite table, or a number is out of range.
    """
    y = as_table("y", y, least=2)
    _at_least("most", most, 2)

    rows = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))[:most]

    return float(torch.pdist(y[rows].double()).median())


def square_gaps(x: Tensor, y: Tensor) -> Tensor:
    r"""Computes :math:`|x_i - y_j|^2`, exact to about 1e-15 of the largest :math:`|x|^2`.

    Arguments:
        x: Points in float64, with shape :math:`(n, d)`.
        y: Points in float64, with shape :math:`(m, d)`.

    Returns:
        The squared distances, none negative, with shape :math:`(n, m)`.
    """
    a, b = (torch.linalg.vector_norm(p, dim=1).square() for p in (x, y))  # holds no p² in memory

    return (a[:, None] + b).addmm_(x, y.T, alpha=-2).clamp_(min=0)


def _quantile_gap(x: Tensor, y: Tensor) -> Tensor:
    """Squared Wasserstein-2 distance of columns, with shapes (n, p) and (m, p), to shape (p)."""
    n, m = len(x), len(y)
    x, y = x.sort(dim=0).values, y.sort(dim=0).values
    if n == m:
        return (x - y).square().mean(dim=0)

    # Steps end at i/n and j/m; on the grid of n m cells they are integers, and nothing rounds.
    ends = torch.cat((torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n)).unique()
    widths = ends.diff(prepend=ends.new_zeros(1)).double() / (n * m)
    gap = x[(ends - 1) // m] - y[(ends - 1) // n]

    return widths @ gap.square()


def _mean_gap(x: Tensor, y: Tensor) -> float:
    mode = "donot_use_mm_for_euclid_dist"  # the fast mode is wrong for near points
    total = sum(torch.cdist(part, y, compute_mode=mode).sum() for part in x.split(CHUNK))

    return float(total / (len(x) * len(y)))


def _unbiased_mmd(x: Tensor, y: Tensor) -> Tensor:
    n = len(x)
    k_xx, k_yy, k_xy = _cubic(x, x), _cubic(y, y), _cubic(x, y)
    within = k_xx.sum() - k_xx.trace() + k_yy.sum() - k_yy.trace()

    return within / (n * (n - 1)) - 2 * k_xy.mean()


def _cubic(x: Tensor, y: Tensor) -> Tensor:
    k = torch.addmm(x.new_ones(1, 1), x, y.T, alpha=1 / x.shape[1])

    return k.square().mul_(k)


def _at_least(field: str, value: int, least: int) -> None:
    if value < least:
        raise UserError(f"{field}: {value} is out of range; give {least} or more.")
