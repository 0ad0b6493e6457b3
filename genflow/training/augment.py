r"""Augmented images that teach the network without leaking into its samples.

A small data set is made larger by moving its images: they are mirrored, scaled, rotated,
stretched, shifted. So that samples are not moved as well, the network is told what was done to
each image: it learns :math:`E[X | x_t, a]` with :math:`a` the label of the transform, and sampling
asks for :math:`a = 0`, the images as they are. Each operation happens with a probability of its
own, so many images remain unmoved.

The label *is* the transform: nine numbers from which `warp` computes everything, so that two
transforms never share a label. In this order, about the centre of the image, and with standard
normal numbers w:

======= =========================================  ===============================================
0, 1    1 or 0                                     mirrored left to right, top to bottom
2       :math:`w_s`                                scaled by :math:`2^{0.2 w_s}`
3, 4    :math:`\cos\theta - 1, \; \sin\theta`      rotated anticlockwise by θ, any angle
5, 6    :math:`w (\cos 2\phi, \sin 2\phi)`         stretched by :math:`2^{0.2 w}` along the axis
                                                   at angle φ, squeezed by as much across it
7, 8    :math:`w_x, w_y`                           shifted right and down by an eighth of the
                                                   sides times these
======= =========================================  ===============================================

An axis has no sign: φ and φ + π are one axis, and a stretch by :math:`-w` is one by :math:`w`
along the axis at right angles. The double angle says just that. The published label
:math:`w (\cos\phi, \sin\phi)` gives opposite stretches, (w, φ) and (−w, φ + π), the same label; a
network trained with it does not understand this one.

Images are resampled on a grid of twice their resolution: reflected at the borders, interpolated by
the twelve taps of Daubechies' least asymmetric wavelet ("sym6"), read bilinearly where the inverse
transform points, and filtered down by the same taps. These are orthonormal, so a transform that
moves nothing changes nothing, and an image that is not moved, or mirrored only, keeps its pixels.

What is *not* assumed: that the data are symmetric. The mirror of a "2" is no digit, but nobody
ever asks for it. Vectors cannot be augmented; latents can, but the mirror of a latent is not the
latent of a mirror, so leave it.

References:
    Elucidating the Design Space of Diffusion-Based Generative Models
    https://arxiv.org/abs/2206.00364

    Training Generative Adversarial Networks with Limited Data
    https://arxiv.org/abs/2006.06676
"""

__all__ = ["FEATURES", "Augmentation", "warp"]

from dataclasses import dataclass, fields
import math

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from genflow.errors import UserError

FEATURES = 9
"""The number of features of a label."""

OCTAVES = 0.2
SHIFT = 0.125

TAPS = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)
"""The low-pass of sym6: orthonormal to its even shifts, with six vanishing moments."""

CENTRE = sum(k * h for k, h in enumerate(TAPS)) / math.sqrt(2)
"""Its centre of mass, from which positions are counted: then linear ramps are moved exactly."""

CHUNK = 64
"""Images that are resampled at a time, which bounds the memory."""


@dataclass(frozen=True)
class Augmentation:
    """Random transforms of images, and the labels that name them.

    An operation happens with probability min(1, p · its multiplier). An axis of a stretch is
    horizontal, or at a random angle, with probability one half each.

    Args:
        p: The overall probability, in (0, 1]; 0.12 to 0.15 is usual.
        xflip: The multiplier of mirroring left to right, which then happens to one image in two;
            so large by default that it is exactly one in two.
        yflip: That of mirroring top to bottom, to one in two of those.
        scale: That of scaling.
        rotate: That of rotating.
        stretch: That of stretching.
        translate: That of shifting.

    Raises:
        UserError: If p is not in (0, 1], or a multiplier is negative.

    Example:
        >>> module = RectifiedFlow(UNet(32, augment=9), augment=Augmentation(0.12))
    """

    p: float = 0.12
    xflip: float = 1e8
    yflip: float = 1.0
    scale: float = 1.0
    rotate: float = 1.0
    stretch: float = 1.0
    translate: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.p <= 1:
            raise UserError(
                f"augment.p is {self.p}: it must lie in (0, 1] (0.12 is usual); for none leave "
                "augment out."
            )
        for name in (f.name for f in fields(self) if f.name != "p"):
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                raise UserError(
                    f"augment.{name} is {value}: a multiplier of p must be 0 or more (0 turns the "
                    "operation off)."
                )

    def labels(
        self,
        n: int,
        *,
        generator: Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Draws transforms.

        Args:
            n: How many.
            generator: The source; it lives on the device.
            device: Where the labels live.

        Returns:
            Labels in float32 with shape (n, 9).
        """

        def rand(count: int) -> Tensor:
            return torch.rand(count, n, generator=generator, device=device)

        gates, (mirrored, flipped, slanted), (turn, axis) = rand(6), rand(3), rand(2)
        zoom, push, right, down = torch.randn(4, n, generator=generator, device=device)
        names = ("xflip", "yflip", "scale", "rotate", "stretch", "translate")
        rates = [self.p * getattr(self, name) for name in names]
        xflip, yflip, scale, rotate, stretch, translate = (
            (u < rate).float() for u, rate in zip(gates, rates, strict=True)
        )
        theta = 2 * math.pi * turn * rotate
        phi = math.pi * axis * (slanted < 0.5)

        return torch.stack(
            [
                xflip * (mirrored < 0.5),
                yflip * (flipped < 0.5),
                scale * zoom,
                torch.cos(theta) - 1,
                torch.sin(theta),
                stretch * push * torch.cos(2 * phi),
                stretch * push * torch.sin(2 * phi),
                translate * right,
                translate * down,
            ],
            dim=1,
        )

    def __call__(self, x: Tensor, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        """Moves images at random.

        Args:
            x: Images with shape (B, C, H, W).
            generator: The source; it lives on the device of the images.

        Returns:
            The images with shape (B, C, H, W), and their labels with shape (B, 9).
        """

        label = self.labels(len(x), generator=generator, device=x.device)
        return warp(x, label), label


def warp(x: Tensor, label: Tensor) -> Tensor:
    """Moves images as their labels say.

    Args:
        x: Images with shape (B, C, H, W), at least 2 pixels a side.
        label: Labels with shape (B, 9).

    Returns:
        The images with shape (B, C, H, W).

    Raises:
        UserError: If the images or the labels are shaped otherwise.
    """

    if x.ndim != 4 or min(x.shape[2:]) < 2:
        raise UserError(
            f"x has shape {tuple(x.shape)}: images (B, C, H, W) of 2 × 2 pixels or more can be "
            "augmented."
        )
    if label.shape != (len(x), FEATURES):
        raise UserError(
            f"label has shape {tuple(label.shape)}: {len(x)} images need ({len(x)}, {FEATURES})."
        )

    work = x if x.dtype == torch.float64 else x.float()
    pairs = zip(work.split(CHUNK), label.to(work.dtype).split(CHUNK), strict=True)
    return torch.cat([_warp(images, own) for images, own in pairs]).to(x.dtype)


def _warp(x: Tensor, label: Tensor) -> Tensor:
    """Mirrors first, pixel for pixel; images that do nothing else are not resampled."""

    mirrored, flipped = label[:, :2, None, None, None].ne(0).unbind(1)
    x = torch.where(mirrored, x.flip(-1), x)
    x = torch.where(flipped, x.flip(-2), x)
    moved = label[:, 2:].ne(0).any(1)[:, None, None, None]
    return torch.where(moved, _resample(x, label), x)


def _resample(x: Tensor, label: Tensor) -> Tensor:
    H, W = x.shape[2:]
    fine = _up(_up(F.pad(x, (W - 1, W - 1, H - 1, H - 1), mode="reflect")).mT).mT

    def place(position: Tensor, size: int, fine_size: int) -> Tensor:
        """From pixels off the centre to the range [-1, 1] of the fine image."""

        return (2 * (2 * position + 3 * (size - 1) + CENTRE) + 1) / fine_size - 1

    across, down = _sources(label, H, W)
    places = [place(across, W, fine.shape[3]), place(down, H, fine.shape[2])]
    grid = torch.stack(places, dim=-1)
    moved = F.grid_sample(fine, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return _down(_down(moved).mT).mT


def _sources(label: Tensor, H: int, W: int) -> tuple[Tensor, Tensor]:
    """Where each point of the fine image comes from: two tensors with shape (B, 2H+10, 2W+10).

    Positions are pixels off the centre. The last operation is undone first. A stretch is the
    exponential of a symmetric matrix without trace, whose two numbers are the label's.
    """

    zoom, cos, sin, a, b, right, low = label[:, 2:, None, None].unbind(1)
    k = OCTAVES * math.log(2)
    size = k * torch.hypot(a, b)
    gain = k * torch.where(size > 0, torch.sinh(size) / size.where(size > 0, 1), 1)
    xx, xy, yy = size.cosh() - gain * a, gain * b, size.cosh() + gain * a
    cos, smaller = 1 + cos, torch.exp(-k * zoom)

    def axis(n: int) -> Tensor:
        i = torch.arange(2 * n + len(TAPS) - 2, device=label.device, dtype=label.dtype)
        return (i - CENTRE) / 2 - (n - 1) / 2

    x = axis(W) - SHIFT * W * right
    y = axis(H)[:, None] - SHIFT * H * low
    x, y = xx * x + xy * y, xy * x + yy * y
    return smaller * (cos * x - sin * y), smaller * (sin * x + cos * y)


def _up(x: Tensor) -> Tensor:
    """Twice as many points along the last axis: zeros between, then the taps.

    Sums of slices instead of a convolution: exact in float32 on every device, also where products
    of matrices and convolutions are allowed to be less.
    """

    half, n = len(TAPS) // 2, x.shape[-1] + len(TAPS) // 2 - 1
    wide = F.pad(x, (half - 1, half - 1))

    def phase(s: int) -> Tensor:
        slices = ((TAPS[2 * k + s], half - 1 - k) for k in range(half))
        return sum(math.sqrt(2) * h * wide[..., i : i + n] for h, i in slices)

    return torch.stack([phase(0), phase(1)], dim=-1).flatten(-2)


def _down(x: Tensor) -> Tensor:
    """The points along the last axis that `_up` was made from."""

    n = x.shape[-1] - len(TAPS) + 2
    return sum(h / math.sqrt(2) * x[..., k : k + n - 1 : 2] for k, h in enumerate(TAPS))
