"""The true denoiser of data whose law is known: what samplers are measured against."""

__all__ = ["Exact"]

from torch import Tensor

from genflow.errors import UserError
from genflow.models.denoisers import Denoiser
from genflow.models.mixtures import Mixture
from genflow.models.noise import Gaussian
from genflow.models.paths import Path
from genflow.models.predictions import combine


class Exact(Denoiser):
    r"""The true denoiser of data that follow a Gaussian mixture; the noise must be Gaussian.

    Args:
        path: The path, with Gaussian noise.
        mixture: The law of the data in d dimensions; states with shape (B, \*) are flattened to
            (B, d).

    Raises:
        UserError: If the noise of the path is not Gaussian.
    """

    def __init__(self, path: Path, mixture: Mixture) -> None:
        super().__init__()

        if not isinstance(path.noise, Gaussian):
            raise UserError(
                f"noise is {path.noise}: the exact denoiser of a mixture needs Gaussian noise, "
                "that of single points (Empirical) takes any."
            )

        self.path = path
        self.mixture = mixture

    def _posterior(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha_t, sigma_t = self.path(t)
        data, noise = self.mixture.posterior(x_t.flatten(1), alpha_t, sigma_t)
        return data.view_as(x_t), noise.view_as(x_t)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """See [`Denoiser.forward`][genflow.models.denoisers.Denoiser.forward]."""

        return self._posterior(x_t, t)[0]

    def velocity(self, x_t: Tensor, t: Tensor) -> Tensor:
        """α̇ E[X|x_t] + σ̇ E[Z|x_t], regular where σ = 0."""

        data, noise = self._posterior(x_t, t)
        alpha_dot, sigma_dot = self.path.rates(t)
        return combine(alpha_dot, data, sigma_dot, noise)
