r"""Images of any data set, decoded once, as bytes on disk: sets that are larger than memory.

A folder of a million files is slow to list, and decoding its pictures anew in every epoch keeps
many cores busy. ``genflow pack`` writes them, decoded, resized and cut, into a store (see
`genflow.data.shards`), where a batch is a look-up: the operating system keeps in memory what fits,
and reads the rest from the disk in pieces of one image. A million images of 64×64 in colour are
12 GB.
"""

__all__ = ["ImageManifest", "ImageStore", "Packed", "pack"]

from collections.abc import Callable
from dataclasses import dataclass
import os
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from genflow.data.base import DataModule
from genflow.data.checks import at_least
from genflow.data.examples import Batch, Examples
from genflow.data.shards import Manifest, Store, claim, save_shard, shard_file
from genflow.errors import UserError

READ = 256
"""How many images are decoded at a time."""


@dataclass(frozen=True, kw_only=True)
class ImageManifest(Manifest):
    """What a store of images says about itself.

    Attributes:
        data: What they are, in words.
    """

    NOUN: ClassVar[str] = "images"

    data: str = ""


class ImageStore(Store):
    """The images of a folder, read when they are asked for, in uint8 with shape (B, C, H, W)."""

    RECORD = ImageManifest

    def batch(self, indices: Tensor) -> Batch:
        """See `Examples.batch`; images stay bytes until they are on the device."""

        batch = {"x": self.stored(indices)}
        return batch if self.label is None else batch | {"label": self.label[indices]}


class Packed(DataModule):
    """Images as ``genflow pack`` stores them.

    Args:
        root: The folder of the store.
        **options: batch_size, workers, seed, validation and flip, as in `DataModule`.

    Raises:
        UserError: On loading, if the store cannot be used.
    """

    def __init__(self, root: str | os.PathLike[str], **options: Any) -> None:
        super().__init__(**options)
        self.root = root

    @property
    def title(self) -> str:
        """See `DataModule.title`."""

        return ImageManifest.load(self.root).data

    def load(self) -> Examples:
        """See `DataModule.load`."""

        return ImageStore(self.root)


def pack(
    data: DataModule,
    folder: str | os.PathLike[str],
    *,
    shard_size: int = 4096,
    shard: tuple[int, int] = (0, 1),
    report: Callable[[int, int], None] | None = None,
) -> ImageManifest:
    """Writes the training images of a data set, or the part of them that is not there yet.

    Args:
        data: The images; what it holds out for validation is not written.
        folder: The folder of the store.
        shard_size: The number of images in a file, 1 or more.
        shard: The part i of the n parts of the files to make, as (i, n).
        report: Called with the numbers of images done and to do.

    Returns:
        The manifest.

    Raises:
        UserError: If the data are no images, or the folder holds another store.

    Example:
        >>> pack(ImageFolder("photos", size=64, in_memory=False), "photos-64")
        >>> data = Packed("photos-64", batch_size=256, flip=True)
    """

    images, folder = data.train_set, Path(folder)

    if len(images.shape) != 3 or images[:1]["x"].dtype != torch.uint8:
        raise UserError(
            f"{data.title} holds examples with shape {tuple(images.shape)} and dtype "
            f"{str(images[:1]['x'].dtype).removeprefix('torch.')}: only images in uint8 can be "
            "packed."
        )

    manifest = ImageManifest(
        n=len(images),
        shape=images.shape,
        shard_size=at_least("shard_size", shard_size, 1),
        dtype="uint8",
        classes=images.classes,
        class_names=images.class_names,
        data=data.title,
    )
    claim(folder, manifest, resume=True, cure="data and settings")

    done, mine = 0, range(shard[0], manifest.shards, shard[1])
    total = sum(len(manifest.rows(k)) for k in mine)

    for k in mine:
        rows = torch.tensor(manifest.rows(k))
        if not shard_file(folder, k).exists():
            x = torch.cat([images.batch(some)["x"] for some in rows.split(READ)])
            save_shard(folder, k, x.numpy(), None if images.label is None else images.label[rows])
        done += len(rows)
        if report is not None:
            report(done, total)

    return manifest
