r"""Codecs: between images and the latents that a network was trained on.

A stock autoencoder returns latents e in units of its own, which a pipeline brings to unit scale,

.. math:: z = (e - m) \, \frac{c}{s}, \qquad e = z \, \frac{s}{c} + m,

with the scaling factor c, and with m and s either the means and deviations of the channels, or the
shift factor and 1. Denoisers see z alone; a path, a schedule or a sampler knows nothing of codecs.
"""

__all__ = ["Codec"]

from collections.abc import Sequence
from typing import Any

from diffusers import AutoencoderKL
import torch
from torch import Tensor, nn

from genflow.errors import UserError


class Codec(nn.Module):
    r"""A variational autoencoder of diffusers, with the scale of its latents.

    Args:
        vae: The autoencoder.

    Attributes:
        factor: Pixels a latent pixel, along each side.

    Raises:
        UserError: If the autoencoder is of another class.

    References:
        High-Resolution Image Synthesis with Latent Diffusion Models
        https://arxiv.org/abs/2112.10752
    """

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()

        if not isinstance(vae, AutoencoderKL):
            raise UserError(f"vae is a {type(vae).__name__}: AutoencoderKL alone is known here.")

        config = vae.config
        mean, std = config.get("latents_mean"), config.get("latents_std")

        if mean is None or std is None:
            mean, std = [config.get("shift_factor") or 0.0], [1.0]

        self.vae = vae
        self.factor = 2 ** (len(config["block_out_channels"]) - 1)
        self.scale = float(config["scaling_factor"])
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def event(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape (C, H, W) of the image behind a latent with shape (c, h, w)."""

        _, h, w = shape
        return (self.vae.config["out_channels"], h * self.factor, w * self.factor)

    def encode(self, x: Tensor) -> Tensor:
        """The latents of images: the mean of the posterior.

        Args:
            x: Images in [−1, 1], with shape (B, C, H, W), their sides divisible by ``factor``.

        Returns:
            The latents at unit scale, with shape (B, c, h, w).
        """

        e = self._vae().encode(x.to(self.vae.dtype)).latent_dist.mean.to(x.dtype)
        return (e - self.mean.to(x)) * (self.scale / self.std.to(x))

    def decode(self, z: Tensor) -> Tensor:
        """The images of latents.

        Args:
            z: Latents at unit scale, with shape (B, c, h, w).

        Returns:
            The images, in about [−1, 1], with shape (B, C, H, W).
        """

        e = z * (self.std.to(z) / self.scale) + self.mean.to(z)
        return self._vae().decode(e.to(self.vae.dtype), return_dict=False)[0].to(z.dtype)

    def _vae(self) -> Any:
        """The autoencoder, in float32 if its config says that it overflows in half precision."""

        if self.vae.dtype == torch.float16 and self.vae.config.get("force_upcast"):
            self.vae.float()
        return self.vae
