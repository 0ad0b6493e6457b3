r"""The law of the radius :math:`R = \|\sigma Z\|` of Student-t noise, in closed form.

With N coordinates and D degrees of freedom

.. math:: \frac{R^2}{N \sigma^2} \sim F(N, D), \qquad
          \log R: \quad \text{mean } \log(\sigma \sqrt D) + \tfrac12 \big(\psi(\tfrac N2) -
          \psi(\tfrac D2)\big), \quad \text{variance } \tfrac14 \big(\psi'(\tfrac N2) +
          \psi'(\tfrac D2)\big)

The mean of R is infinite for :math:`D \le 1` and its variance for :math:`D \le 2`; the moments of
its logarithm are finite for every D. The relative spread of R is about
:math:`\sqrt{(1/N + 1/D)/2}`: noise is close to Gaussian where :math:`D \gg N`, and a large D alone
does not make it so.
"""

__all__ = ["Radius"]

from dataclasses import dataclass
import math
from typing import Any

from numpy.typing import ArrayLike
from scipy import special, stats

from genflow.errors import UserError
from genflow.models.gamma import log_gamma_ratio

GAUSSIAN = 1e15
"""From here on quantiles are taken from D = ∞; they differ by 1e-13 at N = 3072."""


@dataclass(frozen=True)
class Radius:
    """The law of the length of a noise vector.

    Args:
        N: The number of coordinates, 1 or more.
        D: The degrees of freedom, above 0, or ``inf``.
        sigma: The scale of the noise, above 0.

    Raises:
        UserError: If a number is out of its range.

    References:
        PFGM++: Unlocking the Potential of Physics-Inspired Generative Models
        https://arxiv.org/abs/2302.04265
    """

    N: int
    D: float = math.inf
    sigma: float = 1.0

    def __post_init__(self) -> None:
        if not self.N >= 1:
            raise UserError(f"N is {self.N}: noise has 1 coordinate or more.")
        if not self.D > 0:
            raise UserError(f"D is {self.D}: the degrees of freedom must be above 0, or inf.")
        if not 0 < self.sigma < math.inf:
            raise UserError(f"sigma is {self.sigma}: a finite number above 0 is needed.")

    @property
    def _square(self) -> Any:
        """The law of (R/σ)²."""

        if self.D >= GAUSSIAN:
            return stats.chi2(self.N)
        return stats.f(self.N, self.D, scale=self.N)

    def cdf(self, r: ArrayLike) -> Any:
        """The probability of a radius up to r, with the shape of r."""

        return self._square.cdf((r / self.sigma) ** 2)

    def quantile(self, p: ArrayLike) -> Any:
        """The radius below which a fraction p of the draws lies, with the shape of p."""

        return self.sigma * self._square.ppf(p) ** 0.5

    @property
    def mean(self) -> float:
        r""":math:`\sigma \sqrt D \, \Gamma(\tfrac{N+1}2) \Gamma(\tfrac{D-1}2) / (\Gamma(\tfrac
        N2) \Gamma(\tfrac D2))`, infinite for D ≤ 1."""

        if self.D <= 1:
            return math.inf

        heavy = 0.0  # how much longer than Gaussian noise, as a logarithm

        if not math.isinf(self.D):
            heavy = 0.5 * math.log(self.D / 2) + log_gamma_ratio(self.D / 2, -0.5)

        return self.sigma * math.sqrt(2) * math.exp(heavy + log_gamma_ratio(self.N / 2, 0.5))

    @property
    def square_mean(self) -> float:
        r""":math:`E[R^2] = \sigma^2 N D / (D - 2)`, infinite for D ≤ 2."""

        if self.D <= 2:
            return math.inf

        return self.sigma**2 * self.N / (1 - 2 / self.D)

    @property
    def log_mean(self) -> float:
        """E[log R], finite for every D."""

        scale = self.sigma * math.sqrt(2)

        if math.isinf(self.D):
            return math.log(scale) + 0.5 * float(special.digamma(self.N / 2))

        heavy = math.log(self.D / 2) - special.digamma(self.D / 2)
        return math.log(scale) + 0.5 * float(heavy + special.digamma(self.N / 2))

    @property
    def log_variance(self) -> float:
        """Var[log R], finite for every D."""

        heavy = 0.0 if math.isinf(self.D) else special.polygamma(1, self.D / 2)
        return 0.25 * float(special.polygamma(1, self.N / 2) + heavy)

    @property
    def spread(self) -> float:
        r"""The deviation of log R, the relative spread: about :math:`\sqrt{(1/N + 1/D)/2}`."""

        return math.sqrt(self.log_variance)

    @property
    def trust(self) -> float:
        r"""How much the nominal noise level counts, :math:`D/(N + D)` in (0, 1].

        Around a radius R the posterior of the data is that of Gaussian noise with variance
        :math:`(D \sigma^2 + R^2)/(N + D)`: the rest is read off the state itself.
        """

        return 1.0 if math.isinf(self.D) else self.D / (self.N + self.D)
