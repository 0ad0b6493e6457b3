"""Schedules drawn like a musical score."""

__all__ = ["score", "scores"]

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from genflow.models.paths import Path
from genflow.solvers.schedules import SolverSchedule, Step
from genflow.viz.figures import blank

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"data": "#2f6db3", "noise": "#d9772b", "empirical": "#3a8f5c"}
MANY = 24
"""The number of steps beyond which notes are small, without numbers."""

EXPANDED = {"data": "data estimate", "noise": "noise estimate", "empirical": "v3 combination"}


def score(schedule: SolverSchedule, path: Path | None = None, title: str = "") -> "Figure":
    """A schedule as a score: a note a step.

    Time runs from noise at the left to data at the right. A note begins where the network is
    called and lasts until the step ends; its height is the order of the step, its colour what is
    expanded, and its number that of the row in ``genflow schedule show``. A hollow head is a step
    without a call, a ring one that the next call corrects, a slur reaches back to the state that
    a singlestep stage starts from, a diamond draws fresh noise, a frame alters the network, and a
    small figure above is the relaxation.

    Args:
        schedule: The schedule.
        path: The path that it runs on, for an axis in λ; an axis in time if None.
        title: What to write above it.

    Returns:
        The figure.
    """

    return scores([(title, schedule, path)])


def scores(staves: Sequence[tuple[str, SolverSchedule, Path | None]]) -> "Figure":
    """Several schedules below each other, on one axis, with a faint line at every time.

    Args:
        staves: For each its title, the schedule, and its path; see [`score`][genflow.viz.score].
            The axis is λ if all have paths, and the time otherwise.

    Returns:
        The figure.
    """

    tops = [max(step.order for step in schedule.steps) for _, schedule, _ in staves]
    figure = blank(9.5, 1.3 + sum(0.75 + 0.48 * top for top in tops))
    rows = figure.subplots(
        len(staves), sharex=True, squeeze=False, height_ratios=[1.4 + top for top in tops]
    )
    in_lam = all(path is not None for _, _, path in staves)
    ends = _ends([(schedule, path) for _, schedule, path in staves]) if in_lam else (0.0, 1.0)
    places = [_places(schedule, path if in_lam else None, ends) for _, schedule, path in staves]

    for axes, (title, schedule, _), x, top in zip(rows[:, 0], staves, places, tops, strict=True):
        _stave(axes, schedule, x, top)
        calls = f"{len(schedule.steps)} steps, {schedule.nfe} calls of the network"
        axes.set_title(": ".join(filter(None, (title, calls))), fontsize=10, loc="left")
        for other in places:
            for v in other:
                axes.axvline(v, color="0.9", lw=0.8, zorder=0)

    axes = rows[-1, 0]
    axes.set_xlabel("λ = log(α/σ), from noise to data" if in_lam else "time, from noise to data")

    if in_lam:
        _infinite(axes, ends, places)
    else:
        axes.set_xlim(max(max(x) for x in places) + 0.03, -0.03)

    _legend(figure, [schedule.steps for _, schedule, _ in staves])
    return figure


def _ends(staves: Sequence[tuple[SolverSchedule, Path]]) -> tuple[float, float]:
    """The finite range of λ of all of them."""

    lam = torch.cat([path.lam(torch.tensor(s.times, dtype=torch.float64)) for s, path in staves])
    lam = lam[torch.isfinite(lam)]
    return (float(lam.min()), float(lam.max())) if len(lam) else (-5.0, 5.0)


def _places(schedule: SolverSchedule, path: Path | None, ends: tuple[float, float]) -> list[float]:
    """Where the times stand on the axis; infinite λ a little beyond its finite range."""

    if path is None:
        return list(schedule.times)

    lam = path.lam(torch.tensor(schedule.times, dtype=torch.float64))
    low, high = ends
    edge = 0.1 * max(high - low, 1.0)
    return lam.clamp(low - edge, high + edge).tolist()


def _infinite(axes: "Axes", ends: tuple[float, float], places: Sequence[Sequence[float]]) -> None:
    """Marks where the axis leaves its finite range."""

    low, high = ends
    ticks = [v for v in axes.get_xticks() if low - 1e-9 <= v <= high + 1e-9]
    labels = [f"{v:g}".replace("-", "−") for v in ticks]

    for beyond, name in ((low, "noise\n(−∞)"), (high, "data\n(∞)")):
        outside = {v for x in places for v in x if (v < low if beyond == low else v > high)}
        for v in outside:
            ticks.append(v)
            labels.append(name)

    axes.set_xticks(ticks, labels)


def _stave(axes: "Axes", schedule: SolverSchedule, x: Sequence[float], top: int) -> None:
    """The notes of one schedule."""

    many = len(schedule.steps) > MANY
    size = 60 if many else 170

    for i, step in enumerate(schedule.steps):
        colour, y = COLOURS[step.predict], step.order
        hollow = step.source != "model"
        marker = "D" if step.eta > 0 else "o"
        axes.plot(x[i : i + 2], [y, y], color=colour, lw=2.5, alpha=0.35, zorder=1)
        face = "white" if hollow else colour
        axes.scatter(x[i], y, s=size, marker=marker, fc=face, ec=colour, lw=1.5, zorder=4)
        if step.correct is not None:
            axes.scatter(x[i], y, s=2.1 * size, fc="none", ec="0.25", lw=1.1, zorder=3)
        if step.change:
            axes.scatter(x[i], y, s=2.9 * size, marker="s", fc="none", ec="0.25", lw=1.1, zorder=3)
        if not many:
            ink = colour if hollow else "white"
            axes.text(
                x[i], y, str(i), color=ink, fontsize=7, ha="center", va="center_baseline", zorder=5
            )
        if step.start:
            back = i - step.start
            axes.annotate(
                "",
                (x[i], y - 0.2),
                (x[back], schedule.steps[back].order - 0.2),
                arrowprops={
                    "arrowstyle": "-",
                    "connectionstyle": "arc3,rad=0.25",
                    "color": "0.45",
                },
            )
        if step.relax and not many:
            number = f"{step.relax:+.2f}".replace("-", "−")
            axes.text(x[i], y + 0.36, number, ha="center", fontsize=7, color="0.35")

    axes.axvline(x[-1], color="0.25", lw=1.4, zorder=2)
    axes.set_ylim(0.4, top + 0.75)
    axes.set_yticks(range(1, top + 1))
    axes.set_ylabel("order")
    axes.spines[["top", "right"]].set_visible(False)


def _legend(figure: "Figure", staves: Sequence[Sequence[Step]]) -> None:
    """What the marks mean, as far as they occur."""

    steps = [step for stave in staves for step in stave]
    noted = [step for stave in staves if len(stave) <= MANY for step in stave]

    from matplotlib.lines import Line2D

    def mark(label: str, **look: Any) -> Line2D:
        return Line2D([], [], ls="none", label=label, **look)

    grey = {"color": "0.45", "markersize": 8}
    entries = [
        mark(f"expands the {EXPANDED[name]}", marker="o", color=colour, markersize=8)
        for name, colour in COLOURS.items()
        if any(step.predict == name for step in steps)
    ]

    ring = {"mfc": "none", "color": "0.25", "markersize": 12}
    marks = (
        ("corrected by the next call", "o", ring, lambda step: step.correct is not None),
        ("no call", "o", {**grey, "mfc": "white"}, lambda step: step.source != "model"),
        ("fresh noise", "D", grey, lambda step: step.eta > 0),
        ("network altered", "s", ring, lambda step: bool(step.change)),
        ("starts further back", r"$\smile$", grey, lambda step: step.start > 0),
        ("±0.00  relaxation", "", {}, lambda step: step.relax != 0 and step in noted),
    )

    for label, marker, look, present in marks:
        if any(map(present, steps)):
            entries.append(mark(label, marker=marker, **look))

    figure.legend(handles=entries, loc="outside right upper", frameon=False, fontsize=8)
