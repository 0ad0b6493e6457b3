r"""Features: what a distance between sets of images looks at.

A feature is a fixed map :math:`\phi` from 8-bit images to vectors,

.. math:: \phi : \{0, \dots, 255\}^{C \times H \times W} \to \mathbb{R}^d

with a name and a digest, so that two numbers are set side by side only if one map made both.
Images are 8-bit on purpose: the map sees what a file holds, not what a sampler left unrounded.

=================  =======  ========================  =========================================
name               width    its Fréchet distance      what it needs
=================  =======  ========================  =========================================
``inception``      2048     FID                       a file of 95 MB, see ``inception``
``dinov2``         1024     FD-DINOv2                 a folder, transformers, see ``vision``
``clip``           768      FD-CLIP                   likewise
``genflow-small``  128 C    FD-genflow-small          nothing; images of 8 pixels or more a side
``random-conv``    64       FD-random-conv            nothing; square images of 4 or more
``pixels``         C H W    FD-pixels                 nothing
``identity``       d        FD-identity               nothing; for vectors
=================  =======  ========================  =========================================

The last four are also differentiable functions of images that are not rounded, by their method
``embed``: a distance on them can be followed downhill.

Absolute numbers mean nothing between one feature and another: read ratios to the floor. Only the
first is FID, which is the name of one trained network's distance.

What is *not* assumed: a GPU, or a network connection. Nothing is ever downloaded here.
"""

__all__ = [
    "Differentiable",
    "Features",
    "Identity",
    "Pixels",
    "RandomConv",
    "extract",
    "features",
]

from collections.abc import Callable, Sequence
import os
import re
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from genflow.errors import UserError, nearest
from genflow.metrics.inception import Inception
from genflow.metrics.inputs import check_images
from genflow.metrics.random_conv import RandomConv
from genflow.metrics.small import Small
from genflow.metrics.vision import VisionNet
from genflow.metrics.weights import digest_of


@runtime_checkable
class Features(Protocol):
    r"""A fixed map from images to vectors.

    Attributes:
        name: The name that reports print.
        digest: The sha256 of the weights, in hexadecimal.
        resize: How images are brought to the size that it reads, in words; "none" if not at all.
        prefix: How the Fréchet distance on it is called.
    """

    name: str
    digest: str
    resize: str
    prefix: str

    def __call__(self, images: Tensor) -> Tensor:
        r"""Maps 8-bit images, with shape :math:`(n, C, H, W)`, to float32 :math:`(n, d)`."""
        ...


@runtime_checkable
class Differentiable(Protocol):
    r"""A feature that gradients can be taken through."""

    def embed(self, images: Tensor) -> Tensor:
        r"""Maps images in [−1, 1], or vectors as they are, to features, differentiably."""
        ...


class Pixels:
    r"""The pixels themselves, in [0, 1]: wide, blind to shape, and a sound second opinion."""

    name = "pixels"
    prefix = "FD-pixels"
    resize = "none"
    digest = digest_of("pixels")

    def __call__(self, images: Tensor) -> Tensor:
        r"""Flattens 8-bit images, with shape :math:`(n, C, H, W)`, to :math:`(n, CHW)`."""
        check_images(images, self.name)

        return images.flatten(1).float() / 255

    def embed(self, images: Tensor) -> Tensor:
        r"""Flattens images in [−1, 1], with shape :math:`(n, C, H, W)`, to :math:`(n, CHW)`."""
        return (images.flatten(1) + 1) / 2


class Identity:
    r"""Vectors as they are, for data that are points and not images."""

    name = "identity"
    prefix = "FD-identity"
    resize = "none"
    digest = digest_of("identity")

    def __call__(self, images: Tensor) -> Tensor:
        r"""Passes vectors, with shape :math:`(n, d)`, on in float32."""
        if images.ndim != 2:
            raise UserError(
                f"images: shape {tuple(images.shape)} is not (n, d); the feature 'identity' is "
                "for vectors, take 'random-conv' or 'pixels' for images."
            )

        return images.float()

    def embed(self, images: Tensor) -> Tensor:
        r"""Passes vectors, with shape :math:`(n, d)`, on as they are."""
        return images


Place = str | os.PathLike[str] | None

REGISTRY: dict[str, Callable[[Sequence[int], Place], Features]] = {
    "inception": lambda shape, weights: Inception(_channels("inception", shape), weights),
    "dinov2": lambda shape, weights: VisionNet("dinov2", _channels("dinov2", shape), weights),
    "clip": lambda shape, weights: VisionNet("clip", _channels("clip", shape), weights),
    "genflow-small": lambda shape, weights: _small(shape),
    "random-conv": lambda shape, weights: _random_conv(shape),
    "pixels": lambda shape, weights: Pixels(),
    "identity": lambda shape, weights: Identity(),
}
WEIGHTED = ("inception", "dinov2", "clip")


def features(name: str, shape: Sequence[int], *, weights: Place = None) -> Features:
    r"""Makes a feature by its name.

    Arguments:
        name: One of the names above, or the full name of a random net as a report prints it, for
            example ``"random-conv-3x32-0"``.
        shape: The shape of one image, (C, H, W), or of one vector, (d).
        weights: The file of ``inception``, or the folder of ``dinov2`` or ``clip``; None to look
            into the cache folder.

    Returns:
        The feature.

    Raises:
        Absent: If its weights are not on this machine; the sentence tells what to put where.
        UserError: If the name is unknown, or does not go with the shape or the weights.
    """
    full = re.fullmatch(r"random-conv-(\d+)x(\d+)-(\d+)", name)

    if not full and name not in REGISTRY:
        raise UserError(f"feature '{name}'{nearest(name, REGISTRY)}")
    if weights is not None and name not in WEIGHTED:
        raise UserError(
            f"weights: the feature '{name}' reads none; leave '{weights}' out, or take one of "
            f"{', '.join(WEIGHTED)}."
        )
    if full is None:
        return REGISTRY[name](shape, weights)

    channels, size, seed = map(int, full.groups())
    if tuple(shape) != (channels, size, size):
        raise UserError(
            f"name: '{name}' is for images of shape {(channels, size, size)}, not "
            f"{tuple(shape)}; say 'random-conv' to have one that fits."
        )

    return _random_conv(shape, seed)


def extract(feature: Features, images: Tensor, batch_size: int = 512) -> Tensor:
    r"""Computes the features of many images, batch by batch.

    Arguments:
        feature: The feature; it moves each batch to where its weights are.
        images: The 8-bit images, with shape :math:`(n, C, H, W)`, or vectors, :math:`(n, d)`.
        batch_size: The number of images at once, at least 1; no effect but on memory and speed.

    Returns:
        The features in float32, on the CPU, with shape :math:`(n, d)`.

    Raises:
        UserError: If there are no images, or they do not suit the feature.
    """
    if batch_size < 1:
        raise UserError(f"batch_size: {batch_size} is out of range; give 1 or more.")
    if len(images) == 0:
        raise UserError("images: there are 0; give at least one.")

    return torch.cat([feature(batch).cpu() for batch in images.split(batch_size)])


def _channels(name: str, shape: Sequence[int]) -> int:
    if len(shape) != 3:
        raise UserError(
            f"shape: {tuple(shape)} is not (C, H, W); the feature '{name}' is for images, take "
            "'identity' for vectors."
        )

    return shape[0]


def _small(shape: Sequence[int]) -> Small:
    _channels("genflow-small", shape)

    return Small()


def _random_conv(shape: Sequence[int], seed: int = 0) -> RandomConv:
    if len(shape) != 3 or shape[1] != shape[2]:
        raise UserError(
            f"shape: {tuple(shape)} is not (C, S, S); the feature 'random-conv' is for square "
            "images, take 'pixels' for others and 'identity' for vectors."
        )

    return RandomConv(shape[0], shape[1], seed)
