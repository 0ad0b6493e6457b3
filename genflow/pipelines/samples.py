"""What a pipeline returns."""

__all__ = ["Samples"]

from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from genflow.data.pixels import to_uint8


@dataclass(frozen=True)
class Samples:
    r"""What a pipeline returns.

    Attributes:
        x: The samples in the range of the data, with shape (n, \*event), on the CPU.
        seeds: The seed of each; empty if they were made of given states.
        nfe: The number of calls of the denoiser for one sample.
        sampler: The name of the sampler, or ``"schedule"``.
        label: The class of each, with shape (n), or None.
    """

    x: Tensor
    seeds: list[int]
    nfe: int
    sampler: str
    label: Tensor | None = None

    @property
    def uint8(self) -> Tensor:
        """The images in 0 … 255, with shape (n, C, H, W)."""

        return to_uint8(self.x)

    @property
    def images(self) -> list[Image.Image]:
        """The images, as PIL images."""

        arrays = self.uint8.permute(0, 2, 3, 1).numpy()
        return [Image.fromarray(a.squeeze(-1) if a.shape[-1] == 1 else a) for a in arrays]
