"""A bridge at work: where points come from, where they go, and on which paths."""

__all__ = ["journey"]

from PIL import Image
import torch
from torch import Tensor

from genflow.viz.figures import blank, image_of

FROM, TO, MADE = "#4c72b0", "0.55", "#c44e52"
LINES = 60  # paths that are drawn as lines


def journey(
    source: Tensor,
    target: Tensor,
    paths: Tensor,
    *,
    names: tuple[str, str] = ("source", "target"),
) -> Image.Image:
    r"""Draws source, target, the points that a bridge makes of the source, and some of the paths.

    Args:
        source: Points of the source, with shape (n, d), d ≥ 2; the first two columns are drawn.
        target: Points of the target, with shape (m, d).
        paths: Paths from source points to the target, as `LightBridge.trajectory` gives them, with
            shape (T, k, d).
        names: What the two clouds are called.

    Returns:
        The picture: four panels with the same axes.
    """

    cloud = {"s": 3, "lw": 0, "alpha": 0.5}
    source, target, paths = (v.detach().float().cpu()[..., :2] for v in (source, target, paths))
    figure = blank(13, 3.6)
    panels = figure.subplots(1, 4, sharex=True, sharey=True)
    made = paths[-1]

    for axes, points, colour, title in zip(
        panels, (source, target, made), (FROM, TO, MADE), (*names, "bridged"), strict=False
    ):
        axes.scatter(*points.T.numpy(), color=colour, **cloud)
        axes.set_title(title)

    lines = paths[:, :LINES].numpy()
    panels[3].scatter(*target.T.numpy(), color=TO, s=2, lw=0, alpha=0.25)
    for i in range(lines.shape[1]):
        panels[3].plot(*lines[:, i].T, color="0.2", lw=0.5, alpha=0.6)
    panels[3].scatter(*lines[0].T, color=FROM, s=9, lw=0, zorder=3)
    panels[3].scatter(*lines[-1].T, color=MADE, s=9, lw=0, zorder=3)
    panels[3].set_title("paths")

    both = torch.cat((source, target, made))
    low, high = both.quantile(0.001, dim=0), both.quantile(0.999, dim=0)
    rim = 0.08 * float((high - low).max())
    panels[0].set_xlim(float(low[0]) - rim, float(high[0]) + rim)
    panels[0].set_ylim(float(low[1]) - rim, float(high[1]) + rim)
    for axes in panels:
        axes.set_aspect("equal")
        axes.set_xticks([])
        axes.set_yticks([])
    return image_of(figure)
