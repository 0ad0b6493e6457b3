"""Pictures: grids of images, clouds of points, and a schedule drawn like a musical score.

The only module that knows matplotlib. Functions return a PIL image or a figure; saving is the
caller's.
"""

__all__ = ["cloud", "grid_of", "score"]

import math
from typing import TYPE_CHECKING

from PIL import Image
import torch
from torch import Tensor
from torchvision.utils import make_grid

from genflow.models.paths import Path
from genflow.solvers.schedules import SolverSchedule

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def cloud(points: Tensor, label: Tensor | None = None) -> Image.Image:
    """A scatter plot of the first two features of vectors.

    Args:
        points: The points, with shape (n, d), d ≥ 2.
        label: Classes to colour by, with shape (n).

    Returns:
        The picture.
    """

    figure = _figure(5, 5)
    axes = figure.add_subplot()
    x = points.detach().float().cpu().numpy()
    colours = {} if label is None else {"c": label, "cmap": "tab10"}
    axes.scatter(x[:, 0], x[:, 1], s=4, lw=0, alpha=0.6, **colours)
    axes.set_aspect("equal")
    axes.spines[["top", "right"]].set_visible(False)
    return _image(figure)


def score(schedule: SolverSchedule, path: Path) -> "Figure":
    """A schedule as a score: a note a step.

    Time in λ runs from noise to data; a note's height is the order of the step, its colour what is
    expanded, a ring around it a corrector, and a slur the state that a singlestep stage starts
    from.

    Args:
        schedule: The schedule.
        path: The path that it runs on.

    Returns:
        The figure.
    """

    figure = _figure(8, 3)
    axes = figure.add_subplot()
    t = torch.tensor(schedule.times, dtype=torch.float64)
    lam = path.lam(t)
    span = lam[torch.isfinite(lam)]
    low, high = (float(span.min()), float(span.max())) if len(span) else (-5.0, 5.0)
    edge = 0.08 * max(high - low, 1.0)
    x = (
        lam.nan_to_num(posinf=high + edge, neginf=low - edge)
        .clamp(low - edge, high + edge)
        .tolist()
    )
    colours = {"data": "tab:blue", "noise": "tab:orange", "empirical": "tab:green"}

    for i, step in enumerate(schedule.steps):
        axes.plot(x[i : i + 2], [step.order] * 2, color="0.8", lw=1, zorder=1)
        axes.scatter(x[i], step.order, s=70, color=colours[step.predict], zorder=3)
        if step.correct is not None:
            axes.scatter(x[i], step.order, s=190, facecolors="none", edgecolors="0.3", zorder=2)
        if step.start:
            start = x[i - step.start]
            axes.annotate(
                "",
                (x[i], step.order - 0.08),
                (start, schedule.steps[i - step.start].order - 0.08),
                arrowprops={"arrowstyle": "-", "connectionstyle": "arc3,rad=0.3", "color": "0.5"},
            )
        if step.relax:
            axes.text(x[i], step.order + 0.22, f"{step.relax:+.2f}", ha="center", fontsize=7)

    for name, colour in colours.items():
        if any(step.predict == name for step in schedule.steps):
            axes.scatter([], [], s=70, color=colour, label=name)
    if any(step.correct is not None for step in schedule.steps):
        axes.scatter([], [], s=150, facecolors="none", edgecolors="0.3", label="corrected")

    highest = max(step.order for step in schedule.steps)
    axes.set_ylim(0.5, highest + 0.6)
    axes.set_yticks(range(1, highest + 1))
    axes.set_ylabel("order")
    axes.set_xlabel("λ = log(α/σ): noise → data")
    axes.set_title(f"{len(schedule.steps)} steps, {schedule.nfe} calls", fontsize=10, loc="left")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _image(figure: "Figure") -> Image.Image:
    figure.canvas.draw()
    return Image.frombuffer(
        "RGBA", figure.canvas.get_width_height(), figure.canvas.buffer_rgba()
    ).convert("RGB")
