"""Curves with their spread: what a number does as another is turned, over repeats."""

__all__ = ["curves"]

from collections.abc import Mapping, Sequence
import math
from typing import TYPE_CHECKING, Literal

from genflow.errors import UserError
from genflow.viz.figures import blank

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = Mapping[float, Sequence[float]]
"""The values of the repeats at each x."""

Scale = Literal["linear", "log"]

COLUMNS = 3


def curves(
    panels: Mapping[str, Mapping[str, Curve]],
    *,
    xlabel: str = "",
    ylabel: str = "",
    xscale: Scale = "linear",
    yscale: Scale = "linear",
    marks: Mapping[str, float] | None = None,
) -> "Figure":
    """Panels of curves: the line is the mean of the repeats, the band reaches from end to end.

    A curve keeps its colour from panel to panel, and the panels share their vertical axis. Ticks
    stand at the values of x. Values that are not finite are left out; the line breaks there.

    Args:
        panels: The curves of each panel by their names: the values of all repeats at each x.
        xlabel: What x is, below each panel.
        ylabel: What y is.
        xscale: ``"linear"`` or ``"log"``.
        yscale: ``"linear"`` or ``"log"``.
        marks: Horizontal lines by name, in every panel.

    Returns:
        The figure.

    Raises:
        UserError: If there is no panel, or a curve has no values.

    Example:
        >>> found = {"D = 16": {0.0: [1.2, 1.3], 0.1: [1.5, 1.7]}, "D = ∞": {0.0: [1.2, 1.2]}}
        >>> curves({"noise on the state": found}, ylabel="distance").savefig("noise.png")
    """

    from matplotlib.ticker import LogLocator

    if not panels:
        raise UserError("panels is empty: give at least one, as in {'title': {'name': curve}}.")
    for title, panel in panels.items():
        for name, curve in panel.items():
            if not curve or not all(len(v) for v in curve.values()):
                raise UserError(f"the curve '{name}' of '{title}' has no values: leave it out.")

    names = list(dict.fromkeys(name for panel in panels.values() for name in panel))
    colours = {name: f"C{i}" for i, name in enumerate(names)}
    columns = min(COLUMNS, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure = blank(4.1 * columns + 1.4, 3.5 * lines)
    grid = figure.subplots(lines, columns, sharey=True, squeeze=False)

    for axes, (title, panel) in zip(grid.flat, panels.items(), strict=False):
        for name, curve in panel.items():
            _draw(axes, curve, name, colours[name])
        for place, (name, level) in enumerate((marks or {}).items()):
            style = ("--", ":", "-.")[place % 3]
            axes.axhline(level, color="0.45", lw=1, ls=style, label=name, zorder=1)
        ticks = sorted({x for curve in panel.values() for x in curve})
        axes.set(title=title, xlabel=xlabel, xscale=xscale, yscale=yscale)
        axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
        if yscale == "log":  # 1, 2, 5, 10 …, since the values may lie within a decade
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)

    for axes in grid.flat[len(panels) :]:
        axes.remove()
    for axes in grid[:, 0]:
        axes.set_ylabel(ylabel)

    shown = [
        pair for a in figure.axes for pair in zip(*a.get_legend_handles_labels(), strict=True)
    ]
    entries = {label: handle for handle, label in shown}
    figure.legend(
        entries.values(), entries.keys(), loc="outside right upper", frameon=False, fontsize=8
    )
    return figure


def _draw(axes: "Axes", curve: Curve, name: str, colour: str) -> None:
    """One curve, in the order of x."""

    x = sorted(curve)
    spread = [[v for v in curve[k] if math.isfinite(v)] or [math.nan] for k in x]
    mean = [sum(values) / len(values) for values in spread]
    low, high = [min(v) for v in spread], [max(v) for v in spread]
    axes.plot(x, mean, color=colour, marker="o", ms=3.5, lw=1.6, label=name, zorder=3)
    axes.fill_between(x, low, high, color=colour, alpha=0.18, lw=0, zorder=2)
