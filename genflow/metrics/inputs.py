r"""What a distance between two clouds of points is willing to read.

Every distance of this room takes two finite tables of numbers, one row a point, and reckons
in float64 on the CPU: covariances of networks' features are ill-conditioned (their spectrum
spans ten decades), so single precision loses exactly the small distances that one wants to see.
Nothing is assumed of the two tables but their common width; their lengths may differ.
"""

__all__ = ["as_pair", "as_points"]

from typing import Any

import torch
from torch import Tensor

from genflow.errors import UserError


def as_points(field: str, points: Any, least: int = 1) -> Tensor:
    r"""Reads a table of points into float64 on the CPU.

    Arguments:
        field: The name that an error message gives to the table.
        points: The points, a tensor or an array, with shape :math:`(n, d)`.
        least: The fewest points allowed.

    Returns:
        The points, in float64, detached, with shape :math:`(n, d)`.

    Raises:
        UserError: If it is not a finite table of at least ``least`` points.
    """
    points = torch.as_tensor(points).detach().to("cpu", torch.float64)
    shape = tuple(points.shape)

    if points.ndim != 2 or shape[1] == 0:
        raise UserError(
            f"{field}: shape {shape} is not a table (n, d) of points; "
            "turn images into features first (genflow.metrics.extract)."
        )
    if shape[0] < least:
        raise UserError(f"{field}: {shape[0]} points are too few; give at least {least}.")
    if not torch.isfinite(points).all():
        bad = int((~torch.isfinite(points)).any(dim=1).sum())
        raise UserError(
            f"{field}: {bad} of {shape[0]} points hold NaN or infinite numbers; "
            "all must be finite, look for a diverged model or leave those points out."
        )

    return points


def as_pair(x: Any, y: Any, least: int = 1) -> tuple[Tensor, Tensor]:
    r"""Reads two tables of points of one width.

    Arguments:
        x: The first points, with shape :math:`(n, d)`.
        y: The second points, with shape :math:`(m, d)`.
        least: The fewest points allowed in each.

    Returns:
        Both in float64, with shapes :math:`(n, d)` and :math:`(m, d)`.

    Raises:
        UserError: If either is no table of points, or if their widths differ.
    """
    x, y = as_points("x", x, least), as_points("y", y, least)

    if x.shape[1] != y.shape[1]:
        raise UserError(
            f"y: points of width {y.shape[1]} cannot be compared with x of width {x.shape[1]}; "
            "take both from one feature."
        )

    return x, y
