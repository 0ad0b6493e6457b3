"""What a pipeline returns."""

__all__ = ["Samples", "joined"]

from collections.abc import Sequence
from dataclasses import dataclass, replace

from PIL import Image
import torch
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


def joined(batches: Sequence[Samples], event: Sequence[int]) -> Samples:
    """The samples of all batches of one call; for none, no sample of this shape."""

    if not batches:
        return Samples(torch.empty(0, *event), [], 0, "")

    labels = [b.label for b in batches if b.label is not None]
    return replace(
        batches[0],
        x=torch.cat([b.x for b in batches]),
        seeds=[s for b in batches for s in b.seeds],
        label=torch.cat(labels) if labels else None,
    )
