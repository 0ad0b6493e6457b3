"""Grids of images, and clouds of points."""

__all__ = ["cloud", "grid_of"]

import math

from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from genflow.viz.figures import blank, image_of


def grid_of(
    images: Tensor, columns: int | None = None, *, scale: int | None = None
) -> Image.Image:
    """A grid of images.

    Args:
        images: The images in uint8, with shape (n, C, H, W).
        columns: The number of columns; about √n if None.
        scale: The factor by which small images are enlarged, without smoothing; chosen so that a
            tile has about 48 pixels if None.

    Returns:
        The grid.
    """

    n, _, height, _ = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    scale = scale or max(1, round(48 / height))
    tiles = images.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    tile = make_grid(tiles, nrow=columns, padding=2, pad_value=128)
    return Image.fromarray(tile.permute(1, 2, 0).contiguous().numpy())


def cloud(points: Tensor, label: Tensor | None = None) -> Image.Image:
    """A scatter plot of the first two features of vectors.

    Args:
        points: The points, with shape (n, d), d ≥ 2.
        label: Classes to colour by, with shape (n).

    Returns:
        The picture.
    """

    figure = blank(5, 5)
    axes = figure.add_subplot()
    x = points.detach().float().cpu().numpy()
    colours = {} if label is None else {"c": label, "cmap": "tab10"}
    axes.scatter(x[:, 0], x[:, 1], s=4, lw=0, alpha=0.6, **colours)
    axes.set_aspect("equal")
    axes.spines[["top", "right"]].set_visible(False)
    return image_of(figure)
