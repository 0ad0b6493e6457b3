"""The form that images are brought to: grey or colour, and the side of a square.

Nothing is converted unless it is asked for, since a conversion changes every distance. Where
samples and data differ in form, the error names the option that makes them alike. Whatever they
come from, a file, an array or a sampler, images are converted by the same decoder: Pillow's luma,
and Lanczos on the shorter side with the centre cut out.
"""

__all__ = ["Form", "check_alike"]

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image
import torch
from torch import Tensor

from genflow.data.decode import Decoder
from genflow.errors import UserError

WORDS = {1: "grey", 3: "in colour"}


@dataclass(frozen=True)
class Form:
    """What images are converted to.

    Attributes:
        channels: 1 for grey, 3 for colour, None for as they are.
        size: The shorter side is resized to it and the centre cut out; None for as they are.

    Raises:
        UserError: If a number is out of its range.
    """

    channels: Literal[1, 3] | None = None
    size: int | None = None

    def __post_init__(self) -> None:
        if self.channels not in (None, 1, 3):
            raise UserError(f"channels is {self.channels}: say 1 for grey or 3 for colour.")
        if self.size is not None and self.size < 1:
            raise UserError(f"size is {self.size}: it must be 1 or more.")

    @property
    def decoder(self) -> Decoder:
        """What brings files to this form."""

        return Decoder(channels=self.channels, size=self.size)

    def shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of one image after the conversion, of the shape before it.

        Vectors, with shape (d), stay as they are.
        """

        if len(shape) != 3:
            return tuple(shape)

        side = shape[1:] if self.size is None else (self.size, self.size)
        return (self.channels or shape[0], *side)

    def __call__(self, x: Tensor) -> Tensor:
        """Converts images.

        Args:
            x: Images in uint8 with shape (n, C, H, W), or vectors with shape (n, d).

        Returns:
            Images in uint8, or the vectors as they are.
        """

        if x.ndim != 4 or self.shape(x.shape[1:]) == tuple(x.shape[1:]) or len(x) == 0:
            return x

        channels = self.channels or x.shape[1]
        arrays = x.permute(0, 2, 3, 1).numpy()
        pictures = (Image.fromarray(a.squeeze(-1) if a.shape[-1] == 1 else a) for a in arrays)
        return torch.from_numpy(np.stack([self.decoder.formed(p, channels) for p in pictures]))


def check_alike(samples: Sequence[int], data: Sequence[int]) -> None:
    """Compares the form of samples with that of data, before any work.

    Args:
        samples: The shape of one sample, (C, H, W) or (d).
        data: The shape of one of the data, likewise.

    Raises:
        UserError: If they differ; the message names the option that converts.
    """

    one, other = tuple(samples), tuple(data)

    if one == other:
        return
    if len(one) != len(other) or len(one) != 3:
        raise UserError(
            f"the samples have shape {one} and the data {other}: both must be alike, evaluate "
            "images against images, and vectors against vectors of the same width."
        )
    if one[0] != other[0]:
        raise UserError(
            f"the samples are {WORDS.get(one[0], f'of {one[0]} channels')} and the data "
            f"{WORDS.get(other[0], f'of {other[0]} channels')}: say --channels 1 or --channels 3 "
            "to convert both."
        )

    raise UserError(
        f"the samples are {one[2]}×{one[1]} pixels and the data {other[2]}×{other[1]}: say "
        f"--size {other[1]} to bring both to one size."
    )
