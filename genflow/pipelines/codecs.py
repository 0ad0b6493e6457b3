r"""Codecs: between images and the latents that a network was trained on.

A stock autoencoder returns latents e in units of its own, which a pipeline brings to unit scale,

.. math:: z = (e - m) \, \frac{c}{s}, \qquad e = z \, \frac{s}{c} + m,

with the scaling factor c, and with m and s either the means and deviations of the channels, or the
shift factor and 1. Denoisers see z alone; a path, a schedule or a sampler knows nothing of codecs.

A variational autoencoder answers with a law of latents, whose mean is taken; a deep-compression
autoencoder with the latent itself.
"""

__all__ = ["CODECS", "Codec"]

from collections.abc import Sequence
from typing import Any

from diffusers import AutoencoderDC, AutoencoderKL
import torch
from torch import Tensor, nn

from genflow.errors import UserError

CODECS: dict[str, type[nn.Module]] = {
    "AutoencoderKL": AutoencoderKL,
    "AutoencoderDC": AutoencoderDC,
}
"""The autoencoders that are known here, by class."""

_WIDTHS = ("block_out_channels", "encoder_block_out_channels")


class Codec(nn.Module):
    r"""An autoencoder of diffusers, with the scale of its latents.

    Args:
        vae: The autoencoder.

    Attributes:
        factor: Pixels a latent pixel, along each side.

    Raises:
        UserError: If the autoencoder is of another class.

    References:
        High-Resolution Image Synthesis with Latent Diffusion Models
        https://arxiv.org/abs/2112.10752

        Deep Compression Autoencoder for Efficient High-Resolution Diffusion Models
        https://arxiv.org/abs/2410.10733
    """

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()

        if type(vae).__name__ not in CODECS:
            raise UserError(f"vae is a {type(vae).__name__}: {', '.join(CODECS)} are known here.")

        config = vae.config
        mean, std = config.get("latents_mean"), config.get("latents_std")

        if mean is None or std is None:
            mean, std = [config.get("shift_factor") or 0.0], [1.0]

        self.vae = vae
        widths = next(config[name] for name in _WIDTHS if name in config)
        self.factor = 2 ** (len(widths) - 1)
        self.scale = float(config["scaling_factor"])
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def event(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape (C, H, W) of the image behind a latent with shape (c, h, w)."""

        _, h, w = shape
        return (self.vae.config["in_channels"], h * self.factor, w * self.factor)

    def latent(self, event: Sequence[int]) -> tuple[int, ...]:
        """The shape (c, h, w) of the latent of an image with shape (C, H, W).

        Raises:
            UserError: If images of that shape have none.
        """

        channels, factor = self.vae.config["in_channels"], self.factor

        if len(event) != 3 or event[0] != channels or any(s % factor for s in event[1:]):
            raise UserError(
                f"the data have shape {tuple(event)}: this autoencoder takes images with "
                f"{channels} channels and sides divisible by {factor}; convert or resize them."
            )

        sides = (s // factor for s in event[1:])
        return (self.vae.config["latent_channels"], *sides)

    def encode(self, x: Tensor) -> Tensor:
        """The latents of images: the mean of the posterior, if there is a posterior.

        Args:
            x: Images in [−1, 1], with shape (B, C, H, W), their sides divisible by ``factor``.

        Returns:
            The latents at unit scale, with shape (B, c, h, w).
        """

        found = self._vae().encode(x.to(self.vae.dtype))
        e = (found.latent if hasattr(found, "latent") else found.latent_dist.mean).to(x.dtype)
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
