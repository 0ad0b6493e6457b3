r"""Features: what a distance between sets of images looks at.

A feature is a fixed map :math:`\phi` from 8-bit images to vectors,

.. math:: \phi : \{0, \dots, 255\}^{C \times H \times W} \to \mathbb{R}^d

with a name and a digest, so that two numbers are set side by side only if one map made both.
Images are 8-bit on purpose: the map sees what a file holds, not what a sampler left unrounded.

:class:`RandomConv` needs no weights from anywhere: a stack of random convolutions and ReLUs,
whose channels' means and deviations over the image are the features. Random filters separate
textures and noise well, and *classes* less well than trained ones. Measured, one part of the real
data against another, in units of the real-against-real distance:

==================  ==========  ==========  ==========  ==========  ==========  =======
data                noise 5 %   blur        8 classes   5 classes   1 class     uniform
==================  ==========  ==========  ==========  ==========  ==========  =======
digits, 898 each    2.3         230         2.0         4.5         20          310
CIFAR-10 (JPEG),    3.1         25          3.1         4.1         25          1300
2000 each
==================  ==========  ==========  ==========  ==========  ==========  =======

Absolute numbers mean nothing between one feature and another: read ratios to the floor. They are
no FID, which is the name of one trained network's distance, and are never called so.

What is *not* assumed: a GPU, a download, or an image size; square images of 4 pixels and more do.

References:
    | Reliable Fidelity and Diversity Metrics for Generative Models (Naeem et al., 2020)
    | https://arxiv.org/abs/2002.09797

    | Delving Deep into Rectifiers (He et al., 2015)
    | https://arxiv.org/abs/1502.01852
"""

__all__ = ["Features", "Identity", "Pixels", "RandomConv", "extract", "features"]

from collections.abc import Callable, Sequence
import hashlib
import re
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genflow.errors import UserError, nearest


@runtime_checkable
class Features(Protocol):
    r"""A fixed map from images to vectors.

    Attributes:
        name: The name that reports print.
        digest: The sha256 of the name and the weights, in hexadecimal.
    """

    name: str
    digest: str

    def __call__(self, images: Tensor) -> Tensor:
        r"""Maps 8-bit images, with shape :math:`(n, C, H, W)`, to float32 :math:`(n, d)`."""
        ...


class RandomConv(nn.Module):
    r"""Random convolutions: channels' means and deviations after a few strided layers.

    The first layer keeps the size, each next one halves it, until at most 8 pixels are left:

    .. math:: h_{l+1} = \mathrm{ReLU}(W_l * h_l + b_l), \qquad
        \phi = (\mathrm{mean}_{ij} \, h_L, \; \mathrm{std}_{ij} \, h_L) \in \mathbb{R}^{64}

    Narrow and shallow on purpose: more channels and layers raise the floor of a small data set
    faster than they see anything new (measured, on digits and on CIFAR-10).

    Weights are uniform with He's variance :math:`2 / \text{fan-in}`, drawn in float64 from a CPU
    generator without any transcendental function: the same bits, hence the same digest, on every
    machine. On a GPU that multiplies in TF32 the *features* agree to about 1e-3 only; compute
    them on the CPU, or forbid TF32, where the last digits matter.

    Arguments:
        channels: The number of channels :math:`C`, at least 1.
        size: The height and width of the images, at least 4.
        seed: The seed of the weights.

    Raises:
        UserError: If a number is out of its range.

    Example:
        >>> phi = RandomConv(channels=1, size=8)
        >>> phi(torch.zeros(5, 1, 8, 8, dtype=torch.uint8)).shape
        torch.Size([5, 64])
    """

    WIDTHS = (16, 32)  # the first layer's, then all others'
    BIAS = 0.5

    def __init__(self, channels: int, size: int, seed: int = 0) -> None:
        super().__init__()

        if channels < 1:
            raise UserError(f"channels: {channels} is out of range; give 1 or more.")
        if size < 4:
            raise UserError(
                f"size: {size} is out of range; give 4 or more, or take the feature 'pixels'."
            )

        self.channels, self.size, self.seed = channels, size, seed
        self.name = f"random-conv-{channels}x{size}-{seed}"

        generator = torch.Generator().manual_seed(seed)
        fan, left, depth = channels, size, 0
        while left > 8 or depth < 2:
            width = self.WIDTHS[min(depth, 1)]
            bound = (6 / (9 * fan)) ** 0.5
            weight = _uniform((width, fan, 3, 3), bound, generator)
            self.register_buffer(f"weight_{depth}", weight, persistent=False)
            bias = _uniform((width,), self.BIAS, generator)
            self.register_buffer(f"bias_{depth}", bias, persistent=False)
            left = left if depth == 0 else (left + 1) // 2
            fan, depth = width, depth + 1

        self.depth = depth
        self.digest = _sha256(self.name, list(self.buffers()))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        r"""Maps images to features.

        Arguments:
            images: The 8-bit images, with shape :math:`(n, C, H, W)`.

        Returns:
            The features in float32, with shape :math:`(n, 64)`.

        Raises:
            UserError: If the images are not 8-bit images of the shape that the net was made for.
        """
        _check_images(images, (self.channels, self.size, self.size), self.name)

        h = self.maps(images.to(self.weight_0.device).float() / 127.5 - 1)[-1]
        std, mean = torch.std_mean(h, dim=(2, 3), correction=0)
        return torch.cat((mean, std), dim=1)

    def maps(self, x: Tensor) -> list[Tensor]:
        r"""The channels of every layer, differentiable with respect to the images.

        Arguments:
            x: Images in [−1, 1], with shape :math:`(n, C, H, W)`.

        Returns:
            The outputs :math:`h_1, \dots, h_L`, with shapes :math:`(n, c_l, H_l, W_l)`.
        """
        found = []

        for i in range(self.depth):
            weight, bias = getattr(self, f"weight_{i}"), getattr(self, f"bias_{i}")
            x = F.conv2d(x, weight, bias, stride=min(i + 1, 2), padding=1).relu()
            found.append(x)

        return found


class Pixels:
    r"""The pixels themselves, in [0, 1]: wide, blind to shape, and a sound second opinion."""

    def __init__(self) -> None:
        self.name = "pixels"
        self.digest = _sha256(self.name)

    def __call__(self, images: Tensor) -> Tensor:
        r"""Flattens 8-bit images, with shape :math:`(n, C, H, W)`, to :math:`(n, CHW)`."""
        _check_images(images, None, self.name)

        return images.flatten(1).float() / 255


class Identity:
    r"""Vectors as they are, for data that are points and not images."""

    def __init__(self) -> None:
        self.name = "identity"
        self.digest = _sha256(self.name)

    def __call__(self, images: Tensor) -> Tensor:
        r"""Passes vectors, with shape :math:`(n, d)`, on in float32."""
        if images.ndim != 2:
            raise UserError(
                f"images: shape {tuple(images.shape)} is not (n, d); the feature 'identity' is "
                "for vectors, take 'random-conv' or 'pixels' for images."
            )

        return images.float()


def _random_conv(shape: Sequence[int], seed: int = 0) -> RandomConv:
    if len(shape) != 3 or shape[1] != shape[2]:
        raise UserError(
            f"shape: {tuple(shape)} is not (C, S, S); the feature 'random-conv' is for square "
            "images, take 'pixels' for others and 'identity' for vectors."
        )

    return RandomConv(shape[0], shape[1], seed)


REGISTRY: dict[str, Callable[[Sequence[int]], Features]] = {
    "random-conv": _random_conv,
    "pixels": lambda shape: Pixels(),
    "identity": lambda shape: Identity(),
}


def features(name: str, shape: Sequence[int]) -> Features:
    r"""Makes a feature by its name.

    Arguments:
        name: One of ``"random-conv"``, ``"pixels"``, ``"identity"``, or the full name of a random
            net as a report prints it, for example ``"random-conv-3x32-0"``.
        shape: The shape of one image, (C, H, W), or of one vector, (d).

    Returns:
        The feature.

    Raises:
        UserError: If the name is unknown, or does not go with the shape.
    """
    full = re.fullmatch(r"random-conv-(\d+)x(\d+)-(\d+)", name)
    if full:
        channels, size, seed = map(int, full.groups())
        if tuple(shape) != (channels, size, size):
            raise UserError(
                f"name: '{name}' is for images of shape {(channels, size, size)}, not "
                f"{tuple(shape)}; say 'random-conv' to have one that fits."
            )
        return _random_conv(shape, seed)

    if name not in REGISTRY:
        raise UserError(f"feature '{name}'{nearest(name, REGISTRY)}")

    return REGISTRY[name](shape)


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


def _uniform(shape: tuple[int, ...], bound: float, generator: torch.Generator) -> Tensor:
    unit = torch.rand(shape, generator=generator, dtype=torch.float64)

    return ((2 * unit - 1) * bound).float()


def _sha256(name: str, weights: Sequence[Tensor] = ()) -> str:
    digest = hashlib.sha256(name.encode())
    for weight in weights:
        digest.update(weight.cpu().numpy().astype("<f4").tobytes())

    return digest.hexdigest()


def _check_images(images: Tensor, shape: tuple[int, int, int] | None, name: str) -> None:
    if images.dtype != torch.uint8:
        raise UserError(
            f"images: type {images.dtype} is not 8-bit; round to 0 ... 255 and convert to "
            "torch.uint8 before taking features."
        )
    if images.ndim != 4 or (shape is not None and tuple(images.shape[1:]) != shape):
        wanted = "(n, C, H, W)" if shape is None else f"(n, {', '.join(map(str, shape))})"
        raise UserError(
            f"images: shape {tuple(images.shape)} is not {wanted}, which the feature '{name}' "
            "reads; resize or convert the images, or make a feature for their shape."
        )
