"""What several ways to the same end cost: a panel for each price, a line for each way."""

__all__ = ["costs"]

from collections.abc import Mapping
import math
from typing import TYPE_CHECKING

from genflow.viz.figures import blank

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKERS = "osD^vP*X<>"


def costs(
    panels: Mapping[str, Mapping[str, Mapping[float, float]]], xlabel: str = "steps"
) -> "Figure":
    """Panels of lines on logarithmic axes, one legend for all.

    Values that are 0, which a logarithmic axis has no place for, are drawn on its lower edge;
    values that are not finite are left out.

    Args:
        panels: By title, which names the price and its unit: for each way its values at each x.
        xlabel: What x is.

    Returns:
        The figure.

    Example:
        >>> found = {"exact": {10: 55.0, 50: 58.0}, "autograd": {10: 404.0, 50: 2000.0}}
        >>> costs({"peak memory in MB": found}).savefig("costs.png")
    """

    figure = blank(0.5 + 3.4 * len(panels), 4.6)
    rows = figure.subplots(1, len(panels), squeeze=False)[0]
    ways = list(dict.fromkeys(way for lines in panels.values() for way in lines))
    looks = {
        way: {"color": f"C{i % 10}", "marker": MARKERS[i % len(MARKERS)]}
        for i, way in enumerate(ways)
    }
    handles = {}

    for axes, (title, lines) in zip(rows, panels.items(), strict=True):
        values = [v for line in lines.values() for v in line.values() if 0 < v < math.inf]
        floor = 0.5 * min(values, default=1.0)
        for way, line in lines.items():
            points = [(x, max(v, floor)) for x, v in line.items() if math.isfinite(v)]
            (handles[way],) = axes.plot(
                *zip(*points, strict=True), lw=1.4, ms=5, label=way, **looks[way]
            )
        ticks = sorted({x for line in lines.values() for x in line})
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
        axes.set_xticks([], minor=True)
        axes.set_xlabel(xlabel)
        axes.set_title(title, fontsize=10, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.92")

    figure.legend(
        handles=[handles[way] for way in ways],
        loc="outside lower center",
        ncols=min(len(ways), 4),
        frameon=False,
        fontsize=8,
    )
    return figure
