r"""What a feature, and a distance between two clouds of points, are willing to read.

Every distance of this room takes two finite tables of numbers, one row a point, and reckons
in float64 on the CPU: covariances of networks' features are ill-conditioned (their spectrum
spans ten decades), so single precision loses exactly the small distances that one wants to see.
A table may be larger than what float64 would fit into memory, a memory map for example: then it
is read by :func:`chunks`, and only they are converted. Nothing is assumed of two tables but their
common width; their lengths may differ.
"""

__all__ = ["as_pair", "as_points", "as_table", "as_tables", "check_images", "chunks"]

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from genflow.errors import UserError

CHUNK = 4096  # rows that are converted at once: bounds the memory, not the answer


def as_table(field: str, points: Any, least: int = 1) -> Tensor:
    r"""Reads a table of points as it is, without a copy.

    Arguments:
        field: The name that an error message gives to the table.
        points: The points, a tensor or an array, with shape :math:`(n, d)`.
        least: The fewest points allowed.

    Returns:
        The points on the CPU, detached, in their own type, with shape :math:`(n, d)`.

    Raises:
        UserError: If it is not a finite table of at least ``least`` points.
    """
    points = torch.as_tensor(points).detach().cpu()
    shape = tuple(points.shape)

    if points.ndim != 2 or shape[1] == 0:
        raise UserError(
            f"{field}: shape {shape} is not a table (n, d) of points; "
            "turn images into features first (genflow.metrics.extract)."
        )
    if shape[0] < least:
        raise UserError(f"{field}: {shape[0]} points are too few; give at least {least}.")

    bad = sum(int((~torch.isfinite(part)).any(dim=1).sum()) for part in points.split(CHUNK))
    if bad:
        raise UserError(
            f"{field}: {bad} of {shape[0]} points hold NaN or infinite numbers; "
            "all must be finite, look for a diverged model or leave those points out."
        )

    return points


def as_points(field: str, points: Any, least: int = 1) -> Tensor:
    r"""Reads a table of points into float64: :func:`as_table`, converted whole."""
    return as_table(field, points, least).double()


def as_tables(x: Any, y: Any, least: int = 1) -> tuple[Tensor, Tensor]:
    r"""Reads two tables of points of one width as they are, without a copy.

    Arguments:
        x: The first points, with shape :math:`(n, d)`.
        y: The second points, with shape :math:`(m, d)`.
        least: The fewest points allowed in each.

    Returns:
        Both in their own types, with shapes :math:`(n, d)` and :math:`(m, d)`.

    Raises:
        UserError: If either is no table of points, or if their widths differ.
    """
    x, y = as_table("x", x, least), as_table("y", y, least)

    if x.shape[1] != y.shape[1]:
        raise UserError(
            f"y: points of width {y.shape[1]} cannot be compared with x of width {x.shape[1]}; "
            "take both from one feature."
        )

    return x, y


def as_pair(x: Any, y: Any, least: int = 1) -> tuple[Tensor, Tensor]:
    r"""Reads two tables of one width into float64: :func:`as_tables`, converted whole."""
    x, y = as_tables(x, y, least)

    return x.double(), y.double()


def chunks(points: Tensor, rows: int = CHUNK) -> Iterator[Tensor]:
    r"""Gives a table of points in float64, so many rows at a time."""
    for part in points.split(rows):
        yield part.double()


def check_images(
    images: Tensor, feature: str, *, shape: tuple[int, ...] | None = None, least: int = 1
) -> None:
    r"""Refuses what a feature of images cannot read.

    Arguments:
        images: The images, wanted in 8 bits with shape :math:`(n, C, H, W)`.
        feature: The name that an error message gives to the feature.
        shape: The one shape (C, H, W) that the feature reads; None for any.
        least: The fewest pixels a side.

    Raises:
        UserError: If the images are of another kind.
    """
    if images.dtype != torch.uint8:
        raise UserError(
            f"images: type {images.dtype} is not 8-bit; round to 0 ... 255 and convert to "
            "torch.uint8 before taking features."
        )
    if images.ndim != 4 or (shape is not None and tuple(images.shape[1:]) != shape):
        wanted = "(n, C, H, W)" if shape is None else f"(n, {', '.join(map(str, shape))})"
        raise UserError(
            f"images: shape {tuple(images.shape)} is not {wanted}, which the feature '{feature}' "
            "reads; resize or convert the images, or make a feature for their shape."
        )
    if min(images.shape[2:]) < least:
        raise UserError(
            f"images: {images.shape[2]} × {images.shape[3]} pixels are too few for the feature "
            f"'{feature}', which reads {least} a side and more; take 'random-conv' or 'pixels'."
        )
