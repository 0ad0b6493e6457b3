r"""Gaussian mixtures, and what a path makes of them, in closed form.

If the data are :math:`X \sim \sum_k w_k \mathcal{N}(\mu_k, C_k)` and the noise is standard normal,
then :math:`X_t = \alpha X + \sigma Z` is again a mixture, with means :math:`\alpha\mu_k` and
covariances :math:`S_k = \alpha^2 C_k + \sigma^2 I`, and the posterior means are

.. math:: E[X | x_t] &= \sum_k r_k(x_t) \big(\mu_k + \alpha C_k S_k^{-1} (x_t - \alpha\mu_k)\big)
          \\ E[Z | x_t] &= \sum_k r_k(x_t) \, \sigma S_k^{-1} (x_t - \alpha\mu_k)

with responsibilities :math:`r_k`. Each :math:`C_k` is kept as its eigenvectors and eigenvalues, so
that :math:`S_k^{-1}` costs no solve at any time. A variance of 0 (a Dirac) is allowed. These are
the exact truths that samplers are tested against.
"""

__all__ = ["Mixture"]

import math

import torch
from torch import Generator, Tensor, nn

from genflow.errors import UserError


class Mixture(nn.Module):
    r"""A mixture of K Gaussians in d dimensions.

    Args:
        weights: The weights :math:`w_k`, above 0, with shape (K); they are normalised.
        means: The means :math:`\mu_k`, with shape (K, d).
        covariances: Full covariances with shape (K, d, d), or variances of diagonal ones with
            shape (K, d).

    Raises:
        UserError: If shapes disagree, a weight is not above 0, or a covariance has a negative
            eigenvalue.
    """

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor) -> None:
        super().__init__()

        weights, means, covariances = map(torch.as_tensor, (weights, means, covariances))
        K, d = means.shape if means.ndim == 2 else (-1, -1)

        if weights.shape != (K,) or covariances.shape not in ((K, d), (K, d, d)):
            raise UserError(
                f"weights, means and covariances have shapes {tuple(weights.shape)}, "
                f"{tuple(means.shape)} and {tuple(covariances.shape)}: (K), (K, d) and (K, d, d) "
                "or (K, d) are needed."
            )
        if not bool((weights > 0).all()):
            raise UserError(f"weights are {weights.tolist()}: each must be above 0.")

        basis = None

        if covariances.ndim == 3:
            variances, basis = torch.linalg.eigh(covariances)
            floor = -1e-10 * variances.abs().amax(dim=-1, keepdim=True)
            covariances = variances.where((variances > 0) | (variances < floor), 0 * variances)

        if not bool((covariances >= 0).all()):
            raise UserError("covariances have a negative eigenvalue: each must be 0 or more.")

        self.register_buffer("weights", weights / weights.sum())
        self.register_buffer("means", means)
        self.register_buffer("variances", covariances)
        self.register_buffer("basis", basis)

    def _rotate(self, u: Tensor) -> Tensor:
        """Coordinates (*, K, d) in each component's eigenbasis."""

        return u if self.basis is None else torch.einsum("...kd,kde->...ke", u, self.basis)

    def _unrotate(self, u: Tensor) -> Tensor:
        return u if self.basis is None else torch.einsum("...ke,kde->...kd", u, self.basis)

    def _components(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, ...]:
        """Residuals in the eigenbasis, their variances, and joint log-densities (B, K)."""

        alpha, sigma = (c if c.ndim == 0 else c[:, None, None] for c in (alpha, sigma))
        u = self._rotate(x[:, None, :] - alpha * self.means)
        s = alpha**2 * self.variances + sigma**2
        log_p = -0.5 * (u.square() / s + torch.log(2 * math.pi * s)).sum(-1)
        return u, s, log_p + self.weights.log()

    def log_prob(
        self, x: Tensor, alpha: Tensor | None = None, sigma: Tensor | None = None
    ) -> Tensor:
        r"""The log-density of :math:`\alpha X + \sigma Z` (of X itself by default).

        Args:
            x: The points, with shape (B, d).
            alpha: The scale of the data, with shape () or (B); 1 if None.
            sigma: The scale of the noise, with shape () or (B); 0 if None.

        Returns:
            The log-densities in nats, with shape (B).
        """

        alpha = x.new_ones(()) if alpha is None else alpha
        sigma = x.new_zeros(()) if sigma is None else sigma
        return self._components(x, alpha, sigma)[2].logsumexp(dim=-1)

    def posterior(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        r"""The posterior means of data and noise given :math:`\alpha X + \sigma Z = x`.

        Args:
            x: The noisy points, with shape (B, d).
            alpha: The scale of the data, with shape () or (B).
            sigma: The scale of the noise, with shape () or (B).

        Returns:
            E[X | x] and E[Z | x], each with shape (B, d).
        """

        u, s, log_p = self._components(x, alpha, sigma)
        alpha, sigma = (c if c.ndim == 0 else c[:, None, None] for c in (alpha, sigma))
        r = log_p.softmax(dim=-1)[..., None]
        data = self.means + self._unrotate(alpha * self.variances / s * u)
        noise = self._unrotate(sigma / s * u)
        return (r * data).sum(-2), (r * noise).sum(-2)

    def sample(self, n: int, *, generator: Generator | None = None) -> Tensor:
        """Draws n points, with shape (n, d)."""

        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        z = torch.randn(
            (n, *self.means.shape[1:]),
            generator=generator,
            device=self.means.device,
            dtype=self.means.dtype,
        )
        z = z * self.variances[k].sqrt()

        if self.basis is not None:
            z = torch.einsum("ne,nde->nd", z, self.basis[k])

        return self.means[k] + z

    def moments(self) -> tuple[Tensor, Tensor]:
        """The mean, with shape (d), and the covariance, with shape (d, d), of the mixture."""

        w = self.weights
        mean = w @ self.means
        centred = self.means - mean
        basis = self.basis

        if basis is None:
            within = torch.diag(w @ self.variances)
        else:
            within = torch.einsum("k,kde,ke,kfe->df", w, basis, self.variances, basis)

        return mean, within + torch.einsum("k,kd,ke->de", w, centred, centred)
