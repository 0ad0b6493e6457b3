r"""How far two laws, or two plans, are apart by their first two moments: the Bures distance.

For means :math:`m_1, m_2` and covariances :math:`C_1, C_2`, with the factor ½ of the literature
on entropic transport (half the square of the Wasserstein distance between Gaussians),

.. math:: \mathrm{BW}_2^2 = \tfrac12 \| m_1 - m_2 \|^2 + \tfrac12 \mathrm{tr} \, C_1
    + \tfrac12 \mathrm{tr} \, C_2 - \mathrm{tr} \, (C_1^{1/2} C_2 C_1^{1/2})^{1/2}.

Divided by ½ Var(Y), the distance that the constant guess E[Y] has from a plan that knows Y
exactly, it becomes a percentage, the unexplained variance:

.. math:: \mathrm{BW}_2\text{-}\mathrm{UVP} = 100 \, \frac{\mathrm{BW}_2^2(T, Y)}
        {\tfrac12 \mathrm{Var} \, Y}, \qquad
    \mathrm{cBW}_2\text{-}\mathrm{UVP} = \frac{100}{\tfrac12 \mathrm{Var} \, Y} \,
        \mathbb{E}_{x_0} \, \mathrm{BW}_2^2 \big( T(\cdot | x_0), \pi^\star(\cdot | x_0) \big)

The first compares marginal laws, the second the conditional laws of a plan, start by start. What
is *not* assumed: that the laws are Gaussian; the numbers see two moments only, and vanish for some
laws that differ. Moments of samples carry a floor: with 1,000 draws a start, the *true* plan
scores 0.02 to 1.1 per cent, more in high dimension. A model whose moments are closed forms should
be judged by those. Earlier literature divides by Var(Y) instead of its half; such figures are half
of these.

References:
    | Do Neural Optimal Transport Solvers Work? A Continuous Wasserstein-2 Benchmark
    | (Korotin et al., 2021)
    | https://arxiv.org/abs/2106.01954

    | Building the Bridge of Schrödinger: A Continuous Entropic Optimal Transport Benchmark
    | (Gushchin et al., 2023)
    | https://arxiv.org/abs/2306.10161
"""

__all__ = ["bures_distance", "bw_uvp", "cbw_uvp", "cbw_uvp_from_samples"]

from typing import Any

import torch
from torch import Tensor

from genflow.errors import UserError
from genflow.metrics.inputs import as_pair

CHUNK = 64  # starts whose square roots are held at once


def bures_distance(
    mean_1: Tensor, covariance_1: Tensor, mean_2: Tensor, covariance_2: Tensor
) -> Tensor:
    r"""Computes :math:`\mathrm{BW}_2^2` of two laws, or of many pairs of them, by their moments.

    Arguments:
        mean_1: The means of the first laws, with shape :math:`(*, d)`.
        covariance_1: Their covariances, with shape :math:`(*, d, d)`.
        mean_2: The means of the second laws, with shape :math:`(*, d)`.
        covariance_2: Their covariances, with shape :math:`(*, d, d)`.

    Returns:
        The distances, in float64 and in :math:`[0, \infty)`, with shape :math:`(*)`.

    Raises:
        UserError: If shapes disagree or a number is not finite.
    """
    moments = [mean_1, covariance_1, mean_2, covariance_2]
    moments = [torch.as_tensor(v).detach().to("cpu", torch.float64) for v in moments]
    m_1, C_1, m_2, C_2 = moments
    d = m_1.shape[-1:]

    if m_2.shape != m_1.shape or any(C.shape != m_1.shape + d for C in (C_1, C_2)):
        raise UserError(
            f"moments: shapes {[tuple(v.shape) for v in moments]} do not go together; give means "
            "(*, d) and covariances (*, d, d) of the same laws."
        )
    if not all(bool(v.isfinite().all()) for v in moments):
        raise UserError(
            "moments: NaN or infinite numbers; all must be finite, look for a diverged model."
        )

    R_1, R_2 = _root(C_1), _root(C_2)
    overlap = torch.linalg.svdvals(R_1.mT @ R_2).sum(-1)  # tr (C_1^1/2 C_2 C_1^1/2)^1/2
    shift = 0.5 * (m_1 - m_2).square().sum(-1)
    spread = 0.5 * (R_1.square().sum((-2, -1)) + R_2.square().sum((-2, -1)))

    return (shift + spread - overlap).clamp_min(0)


def bw_uvp(x: Any, y: Any) -> float:
    r"""Computes :math:`\mathrm{BW}_2`-UVP of a cloud of samples against a cloud of data.

    Arguments:
        x: The samples, with shape :math:`(n, d)`, at least 2 points.
        y: The data, with shape :math:`(m, d)`, at least 2 points.

    Returns:
        The unexplained variance in per cent, in :math:`[0, \infty)`; 100 is what the constant
        E[Y] scores.

    Raises:
        UserError: If they are not finite tables of one width, or the data do not vary.
    """
    x, y = as_pair(x, y, least=2)
    distance = bures_distance(*_moments(x[None]), *_moments(y[None]))

    return float(_percent(distance, float(y.var(0).sum())))


def cbw_uvp(
    mean: Tensor,
    covariance: Tensor,
    true_mean: Tensor,
    true_covariance: Tensor,
    *,
    variance: float,
) -> float:
    r"""Computes :math:`\mathrm{cBW}_2`-UVP of a plan by its exact conditional moments.

    Arguments:
        mean: The means of the plan at n starts :math:`x_0`, with shape :math:`(n, d)`.
        covariance: Its covariances there, with shape :math:`(n, d, d)`.
        true_mean: The means of the true plan, with shape :math:`(n, d)`.
        true_covariance: Its covariances, with shape :math:`(n, d, d)`.
        variance: Var(Y), the trace of the covariance of the target law, above 0.

    Returns:
        The unexplained variance in per cent, the mean over the starts.

    Raises:
        UserError: If shapes disagree, a number is not finite, or ``variance`` is not above 0.
    """
    parts = zip(
        *(v.split(CHUNK) for v in (mean, covariance, true_mean, true_covariance)), strict=True
    )
    distance = torch.cat([bures_distance(*part) for part in parts])

    return float(_percent(distance.mean(), variance))


def cbw_uvp_from_samples(
    samples: Tensor, true_mean: Tensor, true_covariance: Tensor, *, variance: float
) -> float:
    r"""Computes :math:`\mathrm{cBW}_2`-UVP of a plan by samples, as it is usually reported.

    The floor of the true plan itself does not vanish: see above, and prefer
    :func:`cbw_uvp` where moments are known.

    Arguments:
        samples: m draws at each of n starts, with shape :math:`(n, m, d)`, m at least 2.
        true_mean: The means of the true plan at the starts, with shape :math:`(n, d)`.
        true_covariance: Its covariances, with shape :math:`(n, d, d)`.
        variance: Var(Y), the trace of the covariance of the target law, above 0.

    Raises:
        UserError: If shapes disagree, a number is not finite, or ``variance`` is not above 0.
    """
    if samples.ndim != 3 or samples.shape[1] < 2:
        raise UserError(
            f"samples: shape {tuple(samples.shape)} is not (n, m, d) with m of 2 or more; draw "
            "several ends for each start."
        )

    x = torch.as_tensor(samples).detach().to("cpu", torch.float64)

    return cbw_uvp(*_moments(x), true_mean, true_covariance, variance=variance)


def _moments(clouds: Tensor) -> tuple[Tensor, Tensor]:
    """Means (n, d) and covariances (n, d, d) of n clouds of m points, with shape (n, m, d)."""
    mean = clouds.mean(1)
    centred = clouds - mean[:, None]

    return mean, centred.mT @ centred / (clouds.shape[1] - 1)


def _root(covariance: Tensor) -> Tensor:
    """Any R with R R' = C; what rounding left of an eigenvalue 0 is dropped."""
    values, vectors = torch.linalg.eigh(covariance)
    noise = values.shape[-1] * torch.finfo(values.dtype).eps * values.abs().amax(-1, keepdim=True)
    values = values.where(values > noise, 0 * values)

    return vectors * values.sqrt()[..., None, :]


def _percent(distance: Tensor, variance: float) -> Tensor:
    if not variance > 0:
        raise UserError(
            f"variance: {variance} leaves nothing to explain; give Var(Y) of a target that varies."
        )
    return 100 * distance / (0.5 * variance)
