"""Bytes and floats of images, one the inverse of the other, and mirror images."""

__all__ = ["mirrored", "to_float", "to_uint8"]

import torch
from torch import Tensor

from genflow.errors import UserError


def to_float(x: Tensor) -> Tensor:
    """Scales bytes 0 .. 255 to [-1, 1].

    Args:
        x: bytes in uint8 with shape (*).

    Returns:
        x / 127.5 - 1 in float32 with shape (*).

    Raises:
        UserError: if `x` is not uint8.
    """
    if x.dtype != torch.uint8:
        raise UserError(f"x has dtype {x.dtype}, but to_float takes uint8: convert it first.")
    return x.to(torch.float32).div_(127.5).sub_(1.0)


def to_uint8(x: Tensor) -> Tensor:
    """Rounds [-1, 1] to the nearest bytes 0 .. 255; what lies outside is clamped.

    The inverse of `to_float`, exactly, on all 256 values.

    Args:
        x: numbers in any float dtype with shape (*).

    Returns:
        (x + 1) · 127.5, rounded, in uint8 with shape (*).
    """
    return x.to(torch.float32).add(1.0).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)


def mirrored(x: Tensor, chosen: Tensor) -> Tensor:
    """Mirrors some images left to right, on the device where they are.

    Args:
        x: images with shape (B, C, H, W).
        chosen: which of them, in bool with shape (B).

    Returns:
        the images with shape (B, C, H, W).
    """
    return torch.where(chosen.to(x.device)[:, None, None, None], x.flip(-1), x)
