r"""Where a fit begins: potentials made from the two clouds in a tenth of a second.

``sinkhorn``, the default, solves a small transport problem first. The target is cut into K cells
(k-means) with centres :math:`\mu_k` and masses :math:`m_k`; Sinkhorn's iteration, with ε lowered
in stages, finds the dual values :math:`g_k` for which the soft cells of the source,

.. math:: w_k(x) \propto \exp\big( g_k + \langle x, \mu_k \rangle / \epsilon \big),

weigh what the cells of the target weigh. Each component then takes the map between its two cells,
with :math:`(n_k, U_k)` the mean and covariance of the source under :math:`w_k`, and
:math:`(\mu_k, V_k)` those of the cell:

.. math:: S_k U_k S_k + \epsilon S_k = V_k, \qquad r_k = \mu_k - S_k n_k, \qquad
          \log a_k = g_k + \tfrac{1}{2 \epsilon} n_k' S_k n_k.

These equations hold at every minimum of the objective, with the model's own weights and
responsibilities in place of the cells; for K = 1 they *are* the minimum, and no descent is needed.
Iterating them further is not done here: for small ε it can lead uphill, and components die.

``k-means`` takes the cells, one width, and equal odds; ``samples`` puts the components on points
drawn from the target, which is what is usual in the literature.
"""

__all__ = ["FAMILIES", "STARTS", "begin", "enough"]

from collections.abc import Callable
import math

import torch
from torch import Generator, Tensor

from genflow.models.bridges import LightBridge
from genflow.models.clusters import Clusters, k_means
from genflow.models.covariances import Covariance, Diagonal, Full, LowRank, entropic_map

SOURCES = 4000  # points of the source that Sinkhorn's iteration needs
TARGETS = 8000  # points of the target that cells need, or 20 a cell
PRIOR = 5.0  # points with the mean covariance that every cell is given beside its own
RIDGE = 1e-12  # the same for a single component, in units of all points: exact but for this
STAGES = 8  # values of ε on the way down
ROUNDS = 60  # of Sinkhorn's iteration at the last ε, unless it has come
CLOSE = 1e-3  # this close to the masses, as a ratio


def enough(components: int) -> tuple[int | None, int | None]:
    """How many points of the source and of the target a start needs; None for all there are."""

    return (None, None) if components == 1 else (SOURCES, max(TARGETS, 20 * components))


def begin(
    source: Tensor,
    target: Tensor,
    epsilon: float,
    *,
    components: int,
    family: str = "diagonal",
    rank: int = 4,
    method: str = "sinkhorn",
    width: float = 0.1,
    generator: Generator | None = None,
) -> LightBridge:
    """A bridge to begin a fit with.

    Args:
        source: Points of the source, with shape (n, d), centred and of order one.
        target: Points of the target, with shape (m, d), likewise; K or more.
        epsilon: ε in the units of the points.
        components: K.
        family: A name in ``FAMILIES``.
        rank: The rank of the low-rank part, where the family has one.
        method: A name in ``STARTS``.
        width: The variance of the components in units of ε, for the methods without cells.
        generator: The source of random numbers, on the CPU.

    Returns:
        The bridge, in float64.
    """

    source, target = source.double(), target.double()
    diagonal = family == "diagonal"

    if method == "sinkhorn":
        log_a, r, S = _sinkhorn(source, target, epsilon, components, diagonal, generator)
    else:
        r = STARTS[method](target, components, generator)
        log_a = r.new_full((components,), -math.log(components))
        S = torch.full_like(r, width)
        S = S if diagonal else torch.diag_embed(S)

    return LightBridge(log_a, r, FAMILIES[family](S, rank), epsilon)


def _sinkhorn(
    source: Tensor,
    target: Tensor,
    epsilon: float,
    K: int,
    diagonal: bool,
    generator: Generator | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """log a with shape (K), r with shape (K, d), and S with shape (K, d) or (K, d, d)."""

    cells = k_means(target, K, generator=generator)
    mass = cells.count.clamp_min(1).to(target.dtype)
    dual = _dual(source @ cells.centre.mT, (mass / mass.sum()).log(), epsilon)

    share = (dual + source @ cells.centre.mT / epsilon).softmax(-1)
    share = share / share.sum(0)
    n, U = _moments(share, source, diagonal)
    V = _within(cells, target, diagonal)
    S = entropic_map(U, V, epsilon)
    moved = S * n if diagonal else (S @ n[..., None])[..., 0]
    return dual + 0.5 * (n * moved).sum(-1) / epsilon, cells.centre - moved, S


def _dual(inner: Tensor, log_mass: Tensor, epsilon: float) -> Tensor:
    """Sinkhorn's iteration in the duals of the cells, from inner products (n, K), in stages."""

    high = max(epsilon, float(inner.std()))
    dual = torch.zeros_like(log_mass)  # ε g

    for i in range(STAGES):
        eps = high * (epsilon / high) ** (i / (STAGES - 1))
        for _ in range(ROUNDS if i == STAGES - 1 else ROUNDS // STAGES):
            share = ((dual + inner) / eps).log_softmax(-1).logsumexp(0) - math.log(len(inner))
            dual = dual + eps * (log_mass - share)
            if float((log_mass - share).abs().max()) < CLOSE:
                break

    return dual / epsilon


def _moments(share: Tensor, x: Tensor, diagonal: bool) -> tuple[Tensor, Tensor]:
    """Means, and variances or covariances, of points under K columns of weights (n, K)."""

    mean = share.mT @ x

    if diagonal:
        return mean, (share.mT @ x.square() - mean.square()).clamp_min(0)

    second = torch.stack([(x * w[:, None]).mT @ x for w in share.unbind(1)])
    return mean, second - mean[:, :, None] * mean[:, None]


def _within(cells: Clusters, x: Tensor, diagonal: bool) -> Tensor:
    """The variances or covariances of cells, drawn towards their mean where points are few."""

    K, d = cells.centre.shape
    gap = x - cells.centre[cells.cell]
    count = cells.count.to(x.dtype)
    pooled = gap.square().mean(0).clamp_min(1e-8)

    if diagonal:
        total = x.new_zeros(K, d).index_add_(0, cells.cell, gap.square())
        return (total + PRIOR * pooled) / (count + PRIOR)[:, None]

    total = torch.stack([gap[cells.cell == k].mT @ gap[cells.cell == k] for k in range(K)])
    prior = RIDGE * len(x) if K == 1 and len(x) > d else PRIOR + d
    return (total + prior * torch.diag(pooled)) / (count + prior)[:, None, None]


def _k_means(target: Tensor, K: int, generator: Generator | None) -> Tensor:
    return k_means(target, K, generator=generator).centre


def _samples(target: Tensor, K: int, generator: Generator | None) -> Tensor:
    return target[torch.randperm(len(target), generator=generator)[:K].to(target.device)]


def _diagonal(S: Tensor, rank: int) -> Covariance:
    return Diagonal(S.log())


def _full(S: Tensor, rank: int) -> Covariance:
    return Full.of(S).turning()


def _low_rank(S: Tensor, rank: int) -> Covariance:
    """The longest axes, as far as they stand out from the rest; what is left is diagonal."""

    value, axis = torch.linalg.eigh(S)
    floor = value[:, :-rank].mean(1, keepdim=True)
    excess = (value[:, -rank:] - floor).clamp_min(1e-3 * floor)
    factor = axis[:, :, -rank:] * excess.sqrt()[:, None]
    rest = S.diagonal(dim1=1, dim2=2) - factor.square().sum(-1)
    return LowRank(rest.clamp_min(1e-3 * floor).log(), factor)


STARTS: dict[str, Callable[[Tensor, int, Generator | None], Tensor] | None] = {
    "sinkhorn": None,
    "k-means": _k_means,
    "samples": _samples,
}
"""The ways to begin; all but the first give the centres alone."""

FAMILIES: dict[str, Callable[[Tensor, int], Covariance]] = {
    "diagonal": _diagonal,
    "lowrank": _low_rank,
    "full": _full,
}
"""The families of covariances, made from the matrices of a start."""
