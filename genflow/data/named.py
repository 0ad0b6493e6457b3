"""Data sets by a short name, as the command line gives them."""

__all__ = ["images_of", "is_set", "named"]

import os
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from genflow.data.base import DataModule
from genflow.data.given import Arrays
from genflow.data.images import Digits, ImageFolder, ImageZip, Torchvision
from genflow.data.toy import LAWS, Toy
from genflow.errors import UserError, nearest

SETS = ("MNIST", "FashionMNIST", "CIFAR10")
KNOWN = ("digits", *LAWS, *SETS)


def is_set(text: str | os.PathLike[str]) -> bool:
    """Whether a text names a data set, whatever folders there are."""

    return str(text).partition(":")[0] in KNOWN


def named(
    text: str | os.PathLike[str],
    *,
    size: int | None = None,
    channels: Literal[1, 3] = 3,
    labels: bool = False,
) -> DataModule:
    """The data set that a text names.

    Args:
        text: ``digits``; a torchvision set with its root, as in ``FashionMNIST:data``; a toy set,
            as in ``moons``; a folder or zip of images; or a ``.npy`` file.
        size: The side to which images of a folder or zip are brought.
        channels: The channels of images of a folder or zip.
        labels: Whether the sub-folders of a folder, or the labels in a zip, are classes.

    Returns:
        The data module, ready for ``reference()``.

    Raises:
        UserError: If the text names nothing.
    """

    text = str(text)
    name, _, root = text.partition(":")

    if text == "digits":
        return Digits()
    if text in LAWS:
        return Toy(text)
    if name in SETS:
        return Torchvision(name, root or "data")
    if Path(text).is_dir():
        return ImageFolder(text, size=size, channels=channels, labels=labels)
    if Path(text).is_file() and text.endswith(".zip"):
        return ImageZip(text, size=size, channels=channels, labels=labels)

    if Path(text).is_file() and text.endswith(".npy"):
        return Arrays(text)

    raise UserError(f"data is no folder and no file, but '{text}'{nearest(name, KNOWN)}")


def images_of(
    where: str | os.PathLike[str], *, channels: Literal[1, 3] = 3, size: int | None = None
) -> Tensor:
    """All images of a folder or zip, or the vectors of a job.

    Of a generating job's folder the images are taken, and not the grid beside them.

    Args:
        where: The folder or zip.
        channels: 1 or 3.
        size: The side to which images are brought.

    Returns:
        Images in uint8 with shape (n, C, H, W), or vectors with shape (n, d).

    Raises:
        UserError: If there are none.
    """

    vectors = sorted(Path(where).glob("samples*.npy")) if Path(where).is_dir() else []

    if vectors:
        import numpy as np

        return torch.from_numpy(np.concatenate([np.load(v) for v in vectors]))

    images = Path(where) / "images"
    return named(images if images.is_dir() else where, size=size, channels=channels).reference()
