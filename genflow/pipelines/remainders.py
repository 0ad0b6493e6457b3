"""The rest of a schedule, for those who start in the middle of it.

Image-to-image and in-painting pipelines begin at an inner time with no history behind them. A step
of the rest keeps all its decisions if the history that it asks for is there; if it is not, the
step becomes the nearest one that can be carried out, as the first steps of any multistep method
are: of lower order, on the points that exist, from a state that exists.
"""

__all__ = ["remainder"]

from collections.abc import Sequence
import dataclasses

from genflow.solvers.schedules import Corrector, SolverSchedule, Step, correction, resolve


def remainder(schedule: SolverSchedule, begin: int) -> SolverSchedule | None:
    """What is left of a schedule from a stage on, with nothing known of the stages before.

    Args:
        schedule: The schedule, of N steps.
        begin: The stage to begin at, 0 or more.

    Returns:
        A schedule of N − ``begin`` steps; the schedule itself if ``begin`` is 0; None if no step
        is left, as at the extra stage of a corrected last step.

    Example:
        >>> whole = schedule_for("dpmpp-3m", path, 10)
        >>> [step.order for step in remainder(whole, 6).steps]
        [1, 2, 2, 1]
    """

    if begin == 0:
        return schedule
    if begin >= len(schedule.steps):
        return None

    steps = [_fitted(step, i) for i, step in enumerate(schedule.steps[begin:])]
    return SolverSchedule(schedule.times[begin:], steps)


def _carried(sets: Sequence[Sequence[int]], start: int, count: int) -> bool:
    """Whether each derivative d has d or more points among the stages that exist."""

    return all(
        len(used) >= d and all(k < count and k != start for k in used)
        for d, used in enumerate(sets, start=1)
    )


def _fitted(step: Step, i: int) -> Step:
    """The step, or the nearest one that needs no more than i stages before the newest."""

    sets = resolve(step.points, step.order, step.start, i + 1) if step.start <= i else ((),)

    if not _carried(sets, step.start, i + 1):
        step = dataclasses.replace(
            step, order=min(step.order, i + 1), start=min(step.start, i), points=None, relax=0.0
        )

    if step.correct is not None:
        _, sets = correction(step, i + 1)
        if not _carried(sets, step.start + 1, i + 2):
            step = dataclasses.replace(step, correct=Corrector())

    return step
