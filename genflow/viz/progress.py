"""How a search went: its best score so far, how well its predictor ranks, score against cost."""

__all__ = ["fronts", "progress", "taus"]

from collections.abc import Sequence
import math
from typing import TYPE_CHECKING

from genflow.viz.figures import blank

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def progress(curve: Sequence[float]) -> "Figure":
    """The best score after each evaluation.

    Args:
        curve: The scores, infinite before the first; on a logarithmic axis if all are above 0.
    """

    figure = blank(6, 3)
    axes = figure.add_subplot()
    finite = [(i + 1, v) for i, v in enumerate(curve) if math.isfinite(v)]
    axes.step(*zip(*finite, strict=True), where="post", color="#2f6db3", lw=1.6)
    axes.set_xlabel("schedules scored")
    axes.set_ylabel("best score so far")
    if min(v for _, v in finite) > 0:
        axes.set_yscale("log")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def taus(points: Sequence[tuple[int, float]]) -> "Figure":
    """Kendall's τ against the number of scores that the predictor had learned from."""

    figure = blank(6, 2.4)
    axes = figure.add_subplot()
    axes.axhline(0, color="0.8", lw=1)
    axes.plot(*zip(*points, strict=True), "o-", color="#3a8f5c", lw=1.4)
    axes.set_ylim(-1.05, 1.05)
    axes.set_xlabel("scores learned from")
    axes.set_ylabel("τ")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def fronts(points: Sequence[tuple[float, float]], best: Sequence[tuple[float, float]]) -> "Figure":
    """Score against cost, with the Pareto front.

    Args:
        points: Cost and score of every entry.
        best: Those of the front, the cheapest first.
    """

    figure = blank(6, 3.4)
    axes = figure.add_subplot()
    axes.scatter(*zip(*points, strict=True), s=9, color="0.7", lw=0)
    axes.step(*zip(*best, strict=True), "o-", where="post", color="#d9772b", ms=4, lw=1.4)
    axes.set_xlabel("cost of a sample")
    axes.set_ylabel("score")
    axes.spines[["top", "right"]].set_visible(False)
    return figure
