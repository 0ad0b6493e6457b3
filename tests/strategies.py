"""Hypothesis strategies: times on a path, and schedules that are legal but otherwise arbitrary."""

from hypothesis import strategies as st
import torch

from genflow.models import Path
from genflow.solvers import Corrector, SolverSchedule, Step


@st.composite
def decreasing_times(draw, path: Path, count: int, gap=(0.3, 1.2), ends: bool = False):
    """``count`` times whose λ lie at least the smallest gap apart.

    With ``ends`` the first may be pure noise and the last may be clean data, where λ is infinite.
    """

    top = float(path.lam(torch.tensor(path.t_max, dtype=torch.float64)))
    first = max(top, -3.0) + draw(st.floats(0.05, 1.0))
    gaps = draw(st.lists(st.floats(*gap), min_size=count - 1, max_size=count - 1))
    lam = first + torch.tensor([0.0, *gaps], dtype=torch.float64).cumsum(0)
    times = path.inverse(lam).tolist()

    if ends and draw(st.booleans()):
        times[0] = path.t_max
    if ends and draw(st.booleans()):
        times[-1] = 0.0

    return tuple(times)


@st.composite
def history_points(draw, order: int, start: int, count: int):
    """Any legal value of ``points`` for a step of an order."""

    others = [k for k in range(count) if k != start]
    forms = ["none"] if order == 1 else ["none", "number", "set", "sets"]
    form = draw(st.sampled_from(forms))

    def subset(least: int):
        most = min(len(others), max(least, order - 1))
        return tuple(
            draw(st.lists(st.sampled_from(others), min_size=least, max_size=most, unique=True))
        )

    if form == "none":
        return None
    if form == "number":
        return draw(st.integers(1, min(len(others), order - 1)))
    if form == "set":
        return subset(order - 1)
    return tuple(subset(d) for d in range(1, order))


relaxations = st.floats(-0.3, 0.3).map(lambda v: round(v, 3))


@st.composite
def correctors(draw, order: int, start: int, count: int):
    """A corrector of a step, by default or spelled out."""

    if draw(st.booleans()):
        return Corrector(relax=draw(relaxations))

    mended = draw(st.integers(1, min(order + 1, count + 1)))
    points = draw(history_points(mended, start + 1, count + 1))
    usual = points is None and mended > order + 1
    return Corrector(order=None if usual else mended, points=points, relax=draw(relaxations))


@st.composite
def steps(draw, i: int, *, noisy: bool = False, correct: bool = True):
    """A legal step at index i."""

    order = draw(st.integers(1, min(4, i + 1)))
    predict = draw(st.sampled_from(["data", "noise"]))

    if noisy and order == 1 and draw(st.booleans()):
        return Step(predict=predict, eta=draw(st.floats(0.0, 1.0)))

    start = draw(st.integers(0, min(i, 2)))
    mend = draw(correctors(order, start, i + 1)) if correct and draw(st.booleans()) else None
    return Step(
        order=order,
        predict=predict,
        points=draw(history_points(order, start, i + 1)),
        relax=draw(relaxations) if order > 1 else 0.0,
        correct=mend,
        start=start,
    )


@st.composite
def schedules(
    draw,
    path: Path,
    *,
    most: int = 6,
    ends: bool = False,
    noisy: bool = False,
    source: bool = False,
):
    """A legal schedule on a path.

    Args:
        path: The path.
        most: The largest number of steps.
        ends: Whether λ may be infinite at the ends.
        noisy: Whether order-1 steps may draw fresh noise.
        source: Whether the first step may take its state as noise instead of calling the model.
    """

    N = draw(st.integers(1, most))
    times = draw(decreasing_times(path, N + 1, ends=ends))
    drawn = [draw(steps(i, noisy=noisy, correct=i < N - 1 or times[-1] > 0)) for i in range(N)]

    if source and draw(st.booleans()):
        first = drawn[0]
        drawn[0] = Step(
            order=first.order, predict=first.predict, correct=first.correct, source="noise"
        )

    return SolverSchedule(times, drawn)
