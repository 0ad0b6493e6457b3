r"""Targets with less noise: the posterior mean over a batch, in place of the one datum.

A denoiser regresses on X given :math:`x_t = \alpha X + \sigma Z`. The mean of that regression is
:math:`E[X | x_t]`, and where several data could have given the same :math:`x_t`, at middle noise
levels, single data are scattered widely around it. With a batch of references :math:`y_k` the
target

.. math:: \tilde x = \sum_k w_k y_k, \qquad w_k \propto p_Z\big((x_t - \alpha y_k)/\sigma\big)

has less variance, at the cost of a bias that vanishes as the references become many. The law of
the noise is that of the path, Student-t or Gaussian, and the weights are taken in float64, as
logarithms. No loss has to know: with :math:`\tilde z = (x_t - \alpha \tilde x)/\sigma` the pair
:math:`(\tilde x, \tilde z)` gives the same state, and every prediction its target.
"""

__all__ = ["StableTarget"]

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from genflow.errors import UserError
from genflow.models import Path
from genflow.models.empirical import posterior
from genflow.models.paths import broadcast


@dataclass(frozen=True)
class StableTarget:
    """The posterior mean over a whole batch, of which only the first examples are trained on.

    Args:
        trained: How many examples of a batch are trained on, 1 or more; all are references.

    Raises:
        UserError: If the number is below 1.

    References:
        Stable Target Field for Reduced Variance Score Estimation in Diffusion Models
        https://arxiv.org/abs/2302.00670
    """

    trained: int

    def __post_init__(self) -> None:
        if self.trained < 1:
            raise UserError(f"stable_target is {self.trained}: 1 example or more is trained on.")

    def first(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The part of a batch that is trained on."""

        return {name: value[: self.trained] for name, value in batch.items()}

    def __call__(
        self,
        x: Tensor,
        z: Tensor,
        t: Tensor,
        path: Path,
        references: Tensor,
        allowed: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        r"""A pair that gives the same states, with the posterior mean for the data.

        Args:
            x: The data, with shape (B, \*).
            z: The noise at unit scale, with shape (B, \*).
            t: The times, with shape (B).
            path: The path.
            references: The data that the states may come from, with shape (n, \*).
            allowed: Which of them each state may come from, with shape (B, n); all if None.

        Returns:
            The pair, each with shape (B, \*).
        """

        alpha, sigma = path(t)
        x_t = path.perturb(x, z, t).flatten(1)
        mean, _ = posterior(path.noise, x_t, alpha, sigma, references.flatten(1), allowed)
        noise = (x_t - broadcast(alpha, x_t) * mean) / broadcast(sigma, x_t)
        return mean.to(x).view_as(x), noise.to(z).view_as(z)
