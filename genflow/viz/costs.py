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
        values = [v for line in lines.values() for v in line.values() if math.isfinite(v)]
        above = [v for v in values if v > 0] or [1.0]
        floor = min(above) / 2
        for way, line in lines.items():
            points = [(x, max(v, floor)) for x, v in line.items() if math.isfinite(v)]
            (handles[way],) = axes.plot(
                *zip(*points, strict=True), lw=1.4, ms=5, label=way, **looks[way]
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        ticks = sorted({x for line in lines.values() for x in line})
        axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
        marks = _marks(min(above), max(above))
        zero = [floor] if 0 in values else []
        axes.set_yticks([*zero, *marks], [*("0" for _ in zero), *(f"{v:g}" for v in marks)])
        axes.minorticks_off()
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


def _marks(low: float, high: float) -> list[float]:
    """The numbers 1, 2, 5, 10, … of a range, and one beyond each of its ends if it has few."""

    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    numbers = [float(f"{m}e{k}") for k in range(first, last + 1) for m in (1, 2, 5)]
    inside = [v for v in numbers if low <= v <= high]
    return inside if len(inside) > 1 else [v for v in numbers if low / 5 <= v <= 5 * high]
