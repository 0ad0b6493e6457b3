r"""The space of times: where a fixed method calls the network.

AutoDiffusion's first stage: K different times, decreasing, and nothing else; the steps between
them are those of a named sampler, made anew for every set of times. Times lie anywhere between two
bounds, or on a list of allowed ones, such as the levels that a discrete model was trained on. The
law of mutation is the published one, each time is drawn again with a probability, and half of the
time only moved a little; a draw is uniform in t or in λ at even odds, since paths differ in which
is natural. Of two parents of one length each time comes from either, place by place; of other
parents, from their union.

It differs from the released code in what goes wrong there: times are sorted before parents are
mixed, no time is ever repeated, so no step has length zero, and whatever belongs to a step stays
with its time.

References:
    AutoDiffusion: Training-Free Optimization of Time Steps and Architectures for Automated
    Diffusion Model Acceleration
    https://arxiv.org/abs/2309.10438
"""

__all__ = ["Gene", "TimeLaw", "TimeSpace"]

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from genflow.errors import UserError
from genflow.models.paths import Path
from genflow.models.records import path_to_dict
from genflow.search.repair import spaced
from genflow.search.spaces import Random, Trial, expect_budget
from genflow.solvers.registry import schedule_for
from genflow.solvers.schedules import SolverSchedule

GAP = 1e-3
"""The smallest distance of neighbouring times, where they are not taken from a list."""

Gene = tuple[float, Any]
"""A time, and what the step that begins there decides beside it."""


@dataclass(frozen=True)
class TimeLaw:
    """Probabilities and widths of the law of mutation.

    Attributes:
        time: The probability that a time is drawn again, in [0, 1]; published: 0.25 or 0.1.
        local: The share of those that only move a little, in [0, 1]; published: 0.
        width: The deviation of such a move, in t.
        count: The probability that a step comes or goes, where their number is free.
    """

    time: float = 0.25
    local: float = 0.5
    width: float = 0.03
    count: float = 0.2


class TimeSpace:
    """The times of a sampler, as a `Space`.

    Args:
        path: The path.
        steps: The number of steps K, 1 or more, or the range it may lie in.
        sampler: The name of a sampler that makes schedules from times.
        options: The options of its method.
        start: The first time, or the range it may lie in; the last tenth of the path if None.
        stop: The last time, or its range; from clean data, 0, to the path's ``t_min`` if None.
        allowed: The times that the network may be called at; any if None.
        law: The law of mutation.
        call: What a call of the network costs.

    Raises:
        UserError: If a value is out of its range, there are fewer allowed times than steps, or the
            sampler has no schedules.
    """

    def __init__(
        self,
        path: Path,
        steps: int | tuple[int, int],
        *,
        sampler: str = "dpmpp-2m",
        options: Mapping[str, Any] | None = None,
        start: float | tuple[float, float] | None = None,
        stop: float | tuple[float, float] | None = None,
        allowed: Sequence[float] | None = None,
        law: TimeLaw | None = None,
        call: float = 1.0,
    ) -> None:
        start = (0.9 * path.t_max, path.t_max) if start is None else start
        stop = (0.0, path.t_min) if stop is None else stop
        self.path, self.sampler, self.call = path, sampler, call
        self.options = dict(options or {})
        self.steps = steps if isinstance(steps, tuple) else (steps, steps)
        self.start = start if isinstance(start, tuple) else (start, start)
        self.stop = stop if isinstance(stop, tuple) else (stop, stop)
        self.law = TimeLaw() if law is None else law
        expect_budget(self.steps[0], 1, "steps")

        if not self.steps[0] <= self.steps[1]:
            raise UserError(f"steps is {steps}: a range goes from low to high.")
        if not 0 <= self.stop[0] <= self.stop[1] < self.start[0] <= self.start[1]:
            raise UserError(
                f"start is {start} and stop is {stop}: 0 <= stop < start is needed, ranges low to "
                "high."
            )

        self.low = max(self.stop[1] + GAP, path.t_min)
        self.allowed = self._within_bounds(allowed)
        room = len(self.allowed) if allowed is not None else int((self.start[0] - self.low) / GAP)

        if room < self.steps[1]:
            raise UserError(
                f"steps is {self.steps[1]}: between {self.low:g} and {self.start[1]:g} there is "
                f"room for {room}."
            )

        count = self.steps[0]
        if not isinstance(
            self.of(np.linspace(self.start[1], self.stop[1], count + 1)), (SolverSchedule)
        ):
            raise UserError(
                f"sampler '{sampler}' makes tables, which have no steps to search in: choose one "
                "that 'genflow schedule make' can write, such as dpmpp-2m."
            )

    def _within_bounds(self, allowed: Sequence[float] | None) -> tuple[float, ...]:
        """The allowed times, growing; empty if all are allowed."""

        inside = sorted({float(t) for t in allowed or () if self.low <= t <= self.start[1]})

        if allowed is not None and (not inside or inside[-1] < self.start[0]):
            raise UserError(
                f"allowed has no time between {self.start[0]:g} and {self.start[1]:g} to start "
                "from: add one, or widen start."
            )

        return tuple(inside)

    def of(self, times: Sequence[float]) -> SolverSchedule:
        """The schedule of the sampler at times, the last one included."""

        times = tuple(map(float, times))
        return schedule_for(self.sampler, self.path, times=times, **self.options)

    # -------------------------------------------------------------------------- the laws

    def sample(self, rng: Random) -> SolverSchedule:
        """See [`Space.sample`][genflow.search.spaces.Space.sample]."""

        return self._made(self.drawn(rng), self.ending(rng))

    def mutate(self, schedule: SolverSchedule, rng: Random) -> SolverSchedule:
        """See [`Space.mutate`][genflow.search.spaces.Space.mutate]."""

        genes, stop = self._read(schedule)
        return self._made(self.moved(genes, rng), self.ended(stop, rng))

    def cross(self, a: SolverSchedule, b: SolverSchedule, rng: Random) -> SolverSchedule:
        """See [`Space.cross`][genflow.search.spaces.Space.cross]."""

        one, other = self._read(a), self._read(b)
        return self._made(self.mixed(one[0], other[0], rng), (one, other)[rng.integers(2)][1])

    def suggest(self, trial: Trial) -> SolverSchedule:
        """See [`Space.suggest`][genflow.search.spaces.Space.suggest]."""

        low, high = self.steps
        count = low if low == high else trial.suggest_categorical("steps", [*range(low, high + 1)])
        genes = [(trial.suggest_float("start", *self.start), None)]
        genes += [
            (trial.suggest_float(f"time {i}", self.low, self.start[1]), None)
            for i in range(1, count)
        ]
        return self._made(genes, trial.suggest_float("stop", *self.stop))

    def legal(self, schedule: SolverSchedule) -> bool:
        """See [`Space.legal`][genflow.search.spaces.Space.legal]."""

        genes, stop = self._read(schedule)
        return self.steps[0] <= len(genes) <= self.steps[1] and self._made(genes, stop) == schedule

    def cost(self, schedule: SolverSchedule) -> float:
        """The number of calls, times what a call costs."""

        return self.call * schedule.nfe

    def record(self) -> dict[str, Any]:
        """See [`Space.record`][genflow.search.spaces.Space.record]."""

        return {
            "space": "times",
            "path": path_to_dict(self.path),
            "sampler": self.sampler,
            "options": self.options,
            "steps": list(self.steps),
            "start": list(self.start),
            "stop": list(self.stop),
            "allowed": list(self.allowed),
            "law": asdict(self.law),
            "call": self.call,
        }

    def _read(self, schedule: SolverSchedule) -> tuple[list[Gene], float]:
        return [(t, None) for t in schedule.times[:-1]], schedule.times[-1]

    def _made(self, genes: Sequence[Gene], stop: float) -> SolverSchedule:
        times, _ = self.settled(genes)
        return self.of((*times, _within(stop, self.stop)))

    # ---------------------------------------------------- the laws, of times with belongings

    def drawn(self, rng: Random) -> list[Gene]:
        """New times, with nothing beside them."""

        count = int(rng.integers(self.steps[0], self.steps[1] + 1))
        return [
            (_uniform(self.start, rng), None),
            *((self._time(rng), None) for _ in range(count - 1)),
        ]

    def moved(
        self, genes: Sequence[Gene], rng: Random, fresh: Callable[[], Any] = lambda: None
    ) -> list[Gene]:
        """Times of which some are drawn again or moved; what belongs to them stays with them.

        Args:
            genes: Times, and what belongs to them.
            rng: The random numbers.
            fresh: Makes what belongs to a new time.
        """

        out = [
            (self._elsewhere(t, i, rng) if rng.random() < self.law.time else t, own)
            for i, (t, own) in enumerate(genes)
        ]

        if self.steps[0] < self.steps[1] and rng.random() < self.law.count:
            if rng.random() < 0.5:
                out.append((self._time(rng), fresh()))
            elif len(out) > 1:
                del out[int(rng.integers(1, len(out)))]

        return self.counted(out, rng, fresh)

    def mixed(self, a: Sequence[Gene], b: Sequence[Gene], rng: Random) -> list[Gene]:
        """Times of two parents, each with what belongs to it."""

        if len(a) == len(b):
            return [(x, y)[rng.integers(2)] for x, y in zip(a, b, strict=True)]

        first = (a, b)[rng.integers(2)][0]
        rest = [g for g in (*a, *b) if g is not first]
        count = (len(a), len(b))[rng.integers(2)]
        taken = rng.permutation(len(rest))[: count - 1]
        return [first, *(rest[k] for k in taken)]

    def counted(
        self, genes: Sequence[Gene], rng: Random, fresh: Callable[[], Any] = lambda: None
    ) -> list[Gene]:
        """As many times as the space allows: some taken out, or drawn."""

        out = list(genes)

        while len(out) > self.steps[1]:
            del out[int(rng.integers(1, len(out)))]
        while len(out) < self.steps[0]:
            out.append((self._time(rng), fresh()))

        return out

    def settled(self, genes: Sequence[Gene]) -> tuple[tuple[float, ...], list[Any]]:
        """Times in order, apart and within bounds, and what belongs to each."""

        genes = sorted(genes, key=lambda gene: -gene[0])
        first, *rest = (t for t, _ in genes)

        if self.allowed:
            place = [int(np.abs(np.subtract(self.allowed, t)).argmin()) for t in (first, *rest)]
            top = int(np.searchsorted(self.allowed, self.start[0]))
            top = max(place[0], top, len(rest))
            below = spaced(place[1:], 0, top - 1, 1)
            times = tuple(self.allowed[round(k)] for k in (top, *below))
        else:
            first = _within(first, self.start)
            times = (first, *spaced(rest, self.low, first - GAP, GAP))

        return times, [own for _, own in genes]

    def ending(self, rng: Random) -> float:
        """A last time: an end of its range, or anywhere in it."""

        return self.stop[rng.integers(2)] if rng.random() < 0.7 else _uniform(self.stop, rng)

    def ended(self, stop: float, rng: Random) -> float:
        """The last time, which may be drawn again."""

        return self.ending(rng) if rng.random() < self.law.time else stop

    # ------------------------------------------------------------------------ single times

    def _time(self, rng: Random) -> float:
        """A time, uniform in t or in λ."""

        ends = self.low, self.start[1] - GAP

        if rng.random() < 0.5:
            return _uniform(ends, rng)

        lam = self.path.lam(torch.tensor(ends, dtype=torch.float64))
        lam = torch.nan_to_num(lam, posinf=12.0, neginf=-12.0).tolist()
        return float(self.path.inverse(torch.tensor(_uniform(lam, rng), dtype=torch.float64)))

    def _elsewhere(self, t: float, i: int, rng: Random) -> float:
        if rng.random() < self.law.local:
            return t + self.law.width * rng.standard_normal()
        return _uniform(self.start, rng) if i == 0 else self._time(rng)


def _uniform(ends: Sequence[float], rng: Random) -> float:
    return ends[0] + (ends[1] - ends[0]) * float(rng.random())


def _within(value: float, ends: tuple[float, float]) -> float:
    return min(max(float(value), ends[0]), ends[1])
