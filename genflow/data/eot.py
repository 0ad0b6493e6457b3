r"""Problems of entropic transport whose solution is known, to measure solvers against.

The plan of entropic transport with the cost ½|x − y|² and the weight ε of the entropy has the form

.. math:: \pi^\star(x, y) = p_0(x) \, \frac{\exp(-|x - y|^2 / 2\epsilon) \, \psi(y)}{Z(x)},
    \qquad Z(x) = \int \exp(-|x - y|^2 / 2\epsilon) \, \psi(y) \, dy,

and conversely *every* source law :math:`p_0` and every positive ψ give the solution of some
problem: the one whose target law is the second marginal of this plan. So a problem is made from
its answer. Here ψ is a mixture :math:`\sum_k w_k \mathcal{N}(b_k, \Sigma_k)`, and all is closed:

.. math:: \pi^\star(\cdot | x) = \sum_k q_k(x) \, \mathcal{N}\big(C_k (\tfrac{x}{\epsilon} +
    \Sigma_k^{-1} b_k), \, C_k\big), \quad C_k = (\tfrac1\epsilon I + \Sigma_k^{-1})^{-1}, \quad
    q_k(x) \propto w_k \, \mathcal{N}(x | b_k, \Sigma_k + \epsilon I)

The target law is drawn by drawing sources and then ends. Two families:

    isotropic     Σ_k a multiple of the identity, centres far out: the kind of the public benchmark
    anisotropic   Σ_k with axes and lengths of its own: no diagonal model contains the answer

The first is kind to models with diagonal covariances, which contain its truth; the second is not.

References:
    | Building the Bridge of Schrödinger: A Continuous Entropic Optimal Transport Benchmark
    | https://arxiv.org/abs/2306.10161
"""

from dataclasses import dataclass
import math

import torch
from torch import Generator, Tensor

from genflow.data.checks import at_least
from genflow.data.stream import seeded
from genflow.errors import UserError

__all__ = ["KnownPlan", "anisotropic", "isotropic"]

CHUNK = 20_000  # points that are drawn at once


@dataclass(frozen=True, eq=False)
class KnownPlan:
    r"""A problem of entropic transport and its plan; the source is :math:`\mathcal{N}(0, s^2 I)`.

    Args:
        weight: the :math:`w_k`, above 0, with shape (K,).
        centre: the :math:`b_k`, with shape (K, d).
        covariance: the :math:`\Sigma_k`, symmetric and positive, with shape (K, d, d).
        epsilon: ε, above 0.
        spread: s, the standard deviation of the source, above 0.

    Raises:
        UserError: if shapes disagree or a number is out of its range.
    """

    weight: Tensor
    centre: Tensor
    covariance: Tensor
    epsilon: float
    spread: float = 1.0

    def __post_init__(self) -> None:
        for field in ("weight", "centre", "covariance"):
            value = torch.as_tensor(getattr(self, field), dtype=torch.float64)
            object.__setattr__(self, field, value)
        K, d = self.centre.shape if self.centre.ndim == 2 else (-1, -1)
        if self.weight.shape != (K,) or self.covariance.shape != (K, d, d):
            raise UserError(
                f"weight, centre and covariance have shapes {tuple(self.weight.shape)}, "
                f"{tuple(self.centre.shape)} and {tuple(self.covariance.shape)}: (K), (K, d) and "
                f"(K, d, d) are needed."
            )
        if not bool((self.weight > 0).all()):
            raise UserError(f"weight is {self.weight.tolist()}: each must be above 0.")
        for field in ("epsilon", "spread"):
            value = getattr(self, field)
            if not 0 < value < math.inf:
                raise UserError(f"{field} is {value}: a finite number above 0 is needed.")
        if not bool((torch.linalg.eigvalsh(self.covariance) > 0).all()):
            raise UserError("covariance has an eigenvalue of 0 or less: each must be above 0.")

    @property
    def dimension(self) -> int:
        """d."""
        return self.centre.shape[1]

    # The plan ------------------------------------------------------------------------------

    def _conditional(self) -> tuple[Tensor, Tensor, Tensor]:
        """C_k and Σ_k⁻¹ b_k, and the precisions of Σ_k + εI."""
        eye = torch.eye(self.dimension, dtype=torch.float64)
        precision = torch.linalg.inv(self.covariance)
        pull = (precision @ self.centre[..., None])[..., 0]
        C = torch.linalg.inv(eye / self.epsilon + precision)
        return C, pull, torch.linalg.inv(self.covariance + self.epsilon * eye)

    def responsibilities(self, x: Tensor) -> Tensor:
        """The weights q_k(x) of the plan's components, with shape (B, K)."""
        _, _, precision = self._conditional()
        gap = x.double()[:, None] - self.centre
        form = torch.einsum("bkd,kde,bke->bk", gap, precision, gap)
        return (self.weight.log() + 0.5 * torch.logdet(precision) - 0.5 * form).softmax(-1)

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The mean and the covariance of the end given the start.

        Args:
            x: starts, with shape (B, d).

        Returns:
            means with shape (B, d) and covariances with shape (B, d, d), in float64.
        """
        C, pull, _ = self._conditional()
        q, x = self.responsibilities(x), x.double()
        means = torch.einsum("kde,bke->bkd", C, x[:, None] / self.epsilon + pull)
        mean = torch.einsum("bk,bkd->bd", q, means)
        gap = means - mean[:, None]
        between = torch.einsum("bk,bkd,bke->bde", q, gap, gap)
        return mean, torch.einsum("bk,kde->bde", q, C) + between

    def potential(self) -> tuple[Tensor, Tensor, Tensor]:
        r"""The adjusted potential, a sum of a_k N(r_k, ε S_k), as a light bridge has it.

        Returns:
            log a_k with shape (K,), r_k with shape (K, d) and S_k with shape (K, d, d).
        """
        C, pull, _ = self._conditional()
        S, r = C / self.epsilon, (C @ pull[..., None])[..., 0]
        # exp(−|y|²/2ε) is taken out of each Gaussian, and the square completed
        form = (self.centre * pull).sum(-1) - (r * pull).sum(-1)
        log_a = self.weight.log() + 0.5 * (torch.logdet(C) - torch.logdet(self.covariance))
        return log_a - 0.5 * form, r, S

    # Draws ---------------------------------------------------------------------------------

    def source(self, n: int, *, generator: Generator | None = None) -> Tensor:
        """Draws n sources, with shape (n, d) in float32."""
        return self.spread * torch.randn(n, self.dimension, generator=generator)

    def target(self, n: int, *, generator: Generator | None = None) -> Tensor:
        """Draws n points of the target law, with shape (n, d) in float32."""
        return self.pairs(n, generator=generator)[1]

    def pairs(self, n: int, *, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draws n starts and their ends, each with shape (n, d) in float32."""
        C, pull, _ = self._conditional()
        root = torch.linalg.cholesky(C)
        starts, ends = [], []
        for done in range(0, n, CHUNK):
            x = self.source(min(CHUNK, n - done), generator=generator)
            q = self.responsibilities(x)
            k = torch.multinomial(q, 1, generator=generator)[:, 0]
            z = torch.randn(x.shape, generator=generator, dtype=torch.float64)
            y = torch.empty_like(x)
            for i in range(len(C)):
                mine = k == i
                drawn = (x[mine].double() / self.epsilon + pull[i]) @ C[i] + z[mine] @ root[i].T
                y[mine] = drawn.to(y.dtype)
            starts.append(x)
            ends.append(y)
        return torch.cat(starts), torch.cat(ends)


def _directions(components: int, dimension: int, source: Generator) -> Tensor:
    b = torch.randn(components, dimension, generator=source, dtype=torch.float64)
    return b / b.norm(dim=1, keepdim=True)


def isotropic(dimension: int, epsilon: float, *, components: int = 5, seed: int = 0) -> KnownPlan:
    """A problem whose plan has isotropic parts: centres at distance 5, a source of width ½.

    The variance of the parts of ψ is 1/16 for ε around 1, and 1/100 elsewhere.

    Args:
        dimension: d, at least 1.
        epsilon: ε, above 0.
        components: K.
        seed: names the problem.
    """
    source = seeded("isotropic", at_least("seed", seed, 0), at_least("dimension", dimension, 1))
    width = 0.0625 if 0.3 < epsilon < 3 else 0.01
    return KnownPlan(
        weight=torch.full((components,), 1 / components),
        centre=5 * _directions(components, dimension, source),
        covariance=width * torch.eye(dimension).expand(components, dimension, dimension),
        epsilon=epsilon,
        spread=0.5,
    )


def anisotropic(
    dimension: int, epsilon: float, *, components: int = 5, seed: int = 0
) -> KnownPlan:
    """A problem whose parts have axes and lengths of their own, and weights that differ.

    With m = max(ε, ¼), the lengths are log-uniform between m/4 and 2m and the centres at distance
    3√m, so that parts overlap; the source is standard normal.

    Args:
        dimension: d, at least 1.
        epsilon: ε, above 0.
        components: K.
        seed: names the problem.
    """
    source = seeded("anisotropic", at_least("seed", seed, 0), at_least("dimension", dimension, 1))
    shape, scale = (components, dimension), max(epsilon, 0.25)
    centre = 3 * math.sqrt(scale) * _directions(*shape, source)
    axes, _ = torch.linalg.qr(
        torch.randn(*shape, dimension, generator=source, dtype=torch.float64)
    )
    length = torch.rand(shape, generator=source, dtype=torch.float64)
    length = scale * torch.exp(math.log(0.25) + math.log(8) * length)
    weight = 0.3 + torch.rand(components, generator=source, dtype=torch.float64)
    covariance = (axes * length[:, None]) @ axes.mT
    return KnownPlan(weight / weight.sum(), centre, covariance, epsilon, spread=1.0)
