"""Repair: the nearest thing that can be carried out.

Laws of mutation and samplers that know nothing of schedules write down what they please; what they
wrote is brought into order here, and stays as it is where it was in order.
"""

__all__ = ["possible", "spaced"]

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from genflow.solvers.schedules import Corrector, Step, resolve


def spaced(times: Sequence[float], low: float, high: float, gap: float) -> tuple[float, ...]:
    """Times in decreasing order between two bounds, with a gap between neighbours.

    Args:
        times: Any numbers; there must be room for them.
        low: The smallest time allowed.
        high: The largest.
        gap: The smallest distance of neighbours.

    Returns:
        As many times; those that keep all the rules already are left as they are.
    """

    out: list[float] = []

    for i, t in enumerate(sorted(map(float, times), reverse=True)):
        t = min(t, high if not out else out[-1] - gap)
        out.append(max(t, low + gap * (len(times) - 1 - i)))

    return tuple(out)


def possible(i: int, step: Step) -> Step:
    """A step as it can be made at index i."""

    start, order = min(step.start, i), min(step.order, i + 1)
    points = step.points
    source = step.source if i == 0 else "model"
    plain = order == 1

    if isinstance(points, int):
        points = None if points >= order - 1 else points
    elif not carried(points, order, start, i + 1):
        points = None
    if plain:
        points = None

    step = replace(
        step,
        order=order,
        start=start,
        points=points,
        relax=0.0 if plain else step.relax,
        source=source,
    )

    if step.correct is not None and step.correct.points is not None:
        mended = step.correct.order or order + 1
        if not carried(step.correct.points, mended, start + 1, i + 2):
            step = replace(step, correct=Corrector(relax=step.correct.relax))
    elif step.correct is not None and (step.correct.order or 1) > order + 1:
        step = replace(step, correct=Corrector(relax=step.correct.relax))

    return step


def carried(points: Any, order: int, start: int, count: int) -> bool:
    """Whether history points can stand behind the derivatives of a step."""

    sets = resolve(points, order, start, count)
    return len(sets) == order - 1 and all(
        len(set(used)) == len(used) >= d and all(0 <= k < count and k != start for k in used)
        for d, used in enumerate(sets, start=1)
    )
