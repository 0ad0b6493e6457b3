r"""The space of solver schedules of USF, with its law of mutation.

A schedule with a given number of calls is its times and, for every step, what is expanded (data,
noise, or the combination of DPM-Solver-v3), the order, the history points behind the slope, the
relaxation, and whether the next call corrects it; beside these one choice for the whole schedule:
whether the first call is saved by an analytic first step. The law follows the released search of
USF: each decision of each step is drawn again with its own small probability, and numbers are
moved by Gaussians.

It differs in four places. The number of calls is kept: a saved first call buys a step, and a step
is taken out only where another goes in. A time moves in t or in λ, at even odds, since paths
differ in which of the two is the natural one. Neighbouring times keep a gap, so no schedule is
illegal. Steps into the past (``Step.start``) come in with the seeds, and are kept while they fit.

References:
    Unified Sampling Framework for Diffusion Probabilistic Models (USF)
    https://openreview.net/forum?id=W2d3LZbhhI
"""

__all__ = ["Law", "SolverSpace"]

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
import math
from typing import Any

import torch

from genflow.errors import UserError
from genflow.models.grids import inner_end
from genflow.models.paths import Path
from genflow.models.records import path_to_dict
from genflow.search.repair import possible, spaced
from genflow.search.spaces import Random, Trial, expect_budget
from genflow.solvers.alterations import UNCHANGED, Alteration
from genflow.solvers.schedules import Corrector, Prediction, SolverSchedule, Step

GAP = 1e-3
"""The smallest distance of neighbouring times."""


@dataclass(frozen=True)
class Law:
    """Probabilities and widths of the law of mutation.

    Attributes:
        orders: The weights of the orders 1, 2, 3 …
        predictions: The weights of what is expanded.
        corrector: The probability of a corrector.
        first: The weight of each source of the first step.
        time: The probability that a time moves.
        width: The deviation of its move in t.
        width_lam: The deviation of its move in λ.
        order: The probability that an order is drawn again.
        predict: The same for what is expanded.
        correct: The same for the corrector.
        slope: The same for the points behind the slope, of which there are 1 or 2.
        relax: The probability that a relaxation moves.
        width_relax: The deviation of its move.
        source: The probability that the source of the first step is drawn again.
        move: The probability that a step is taken out, and one put in elsewhere.
        skip: The probability that a factor of the skip connections moves.
        width_skip: The deviation of its move.
    """

    orders: tuple[float, ...] = (0.2, 0.4, 0.3, 0.1)
    predictions: dict[str, float] = field(default_factory=lambda: {"data": 0.5, "noise": 0.5})
    corrector: float = 0.5
    first: dict[str, float] = field(default_factory=lambda: {"model": 0.7, "noise": 0.3})
    time: float = 0.3
    width: float = 0.03
    width_lam: float = 0.15
    order: float = 0.2
    predict: float = 0.2
    correct: float = 0.2
    slope: float = 0.2
    relax: float = 0.3
    width_relax: float = 0.05
    source: float = 0.1
    move: float = 0.1
    skip: float = 0.3
    width_skip: float = 0.02


class SolverSpace:
    """Solver schedules with a number of calls, as a `Space`.

    Args:
        path: The path.
        nfe: The number of calls of the network, 1 or more.
        start: The first time, or the range it may lie in. If None the path's ``t_max``; where λ is
            infinite there, from where grids in λ begin, 1e-3 below it.
        stop: The last time, or its range. If None from clean data, 0, to where grids in λ end: the
            path's ``t_min``, or 1e-3 above it where λ is infinite there.
        law: The law of mutation; ``"empirical"`` predictions and the ``"mean"`` source are taken
            in by giving them a weight, and need statistics and a mean in the score.
        skips: The number of factors of the network's skip connections, or 0 to leave them.

    Raises:
        UserError: If a value is out of its range.
    """

    def __init__(
        self,
        path: Path,
        nfe: int,
        *,
        start: float | tuple[float, float] | None = None,
        stop: float | tuple[float, float] | None = None,
        law: Law | None = None,
        skips: int = 0,
    ) -> None:
        expect_budget(nfe, 1, "calls of the network")
        start = (inner_end(path, path.t_max, -1), path.t_max) if start is None else start
        stop = (0.0, inner_end(path, path.t_min, 1)) if stop is None else stop
        self.path, self.nfe, self.skips = path, int(nfe), skips
        self.start = start if isinstance(start, tuple) else (start, start)
        self.stop = stop if isinstance(stop, tuple) else (stop, stop)
        self.law = Law() if law is None else law
        room = self.start[0] - max(self.stop[1], path.t_min)

        if not 0 <= self.stop[0] <= self.stop[1] < self.start[0] <= self.start[1]:
            raise UserError(
                f"start is {start} and stop is {stop}: 0 <= stop < start is needed, ranges low to "
                "high."
            )
        if room < (self.nfe + 3) * GAP:
            raise UserError(
                f"nfe is {nfe}: between the times {self.stop[1]:g} and {self.start[0]:g} there is "
                f"room for fewer calls, which keep {GAP} apart."
            )

    # -------------------------------------------------------------------------- the laws

    def sample(self, rng: Random) -> SolverSchedule:
        """See [`Space.sample`][genflow.search.spaces.Space.sample]."""

        source = _choice(self.law.first, rng)
        N = self.nfe + (source != "model")
        uniform = rng.random(N - 1) if rng.random() < 0.5 else rng.beta(0.6, 0.6, N - 1)
        low, high = self._inside()
        times = [self._first(rng), *(low + (high - low) * uniform), self._stop(rng)]
        steps = [self._step(i, rng) for i in range(N)]
        steps[0] = replace(steps[0], source=source)
        change = Alteration(tuple(rng.uniform(0.8, 1, self.skips))) if self.skips else UNCHANGED
        return self._repaired(times, [replace(s, change=change) for s in steps])

    def mutate(self, schedule: SolverSchedule, rng: Random) -> SolverSchedule:
        """See [`Space.mutate`][genflow.search.spaces.Space.mutate]."""

        law, times, steps = self.law, list(schedule.times), list(schedule.steps)

        if rng.random() < law.move and len(steps) > 2:
            self._take(times, steps, rng)
            self._put(times, steps, rng)

        for i in range(1, len(steps)):
            if rng.random() < law.time:
                times[i] = self._moved(times[i], rng)
        if rng.random() < law.time:
            times[0] = self._first(rng)
            times[-1] = self._stop(rng)

        steps = [self._changed(i, step, rng) for i, step in enumerate(steps)]

        if rng.random() < law.source:
            self._resource(times, steps, _choice(law.first, rng), rng)

        return self._repaired(times, self._faded(steps, rng))

    def cross(self, a: SolverSchedule, b: SolverSchedule, rng: Random) -> SolverSchedule:
        """See [`Space.cross`][genflow.search.spaces.Space.cross]."""

        if len(a.steps) != len(b.steps):
            return (a, b)[rng.integers(2)]

        pair = (a, b)
        if rng.random() < 0.5:  # field by field
            fields = (("order", "points", "relax", "start"), ("predict",), ("correct",))
            names = {n: pair[k] for f in fields for k in [rng.integers(2)] for n in f}
            steps = [
                replace(s, **{n: getattr(p.steps[i], n) for n, p in names.items()})
                for i, s in enumerate(a.steps)
            ]
            times = list(pair[rng.integers(2)].times)
        else:  # step by step, each with the time it begins at
            who = rng.integers(2, size=len(a.times))
            steps = [pair[who[i]].steps[i] for i in range(len(a.steps))]
            times = [pair[k].times[i] for i, k in enumerate(who)]

        steps[0] = replace(steps[0], source=a.steps[0].source)
        change = pair[rng.integers(2)].steps[0].change
        return self._repaired(times, [replace(s, change=change) for s in steps])

    def suggest(self, trial: Trial) -> SolverSchedule:
        """See [`Space.suggest`][genflow.search.spaces.Space.suggest]."""

        law = self.law
        source = trial.suggest_categorical("source", list(law.first))
        N = self.nfe + (source != "model")
        low, high = self._inside()
        times = [trial.suggest_float("start", *self.start)]
        times += [trial.suggest_float(f"time {i}", low, high) for i in range(1, N)]
        times += [trial.suggest_float("stop", *self.stop)]
        steps = []

        for i in range(N):
            most = min(len(law.orders), i + 1)
            order = trial.suggest_categorical(f"order {i}", list(range(1, most + 1)))
            correct = trial.suggest_categorical(f"correct {i}", [False, True])
            steps.append(
                Step(
                    order=order,
                    predict=trial.suggest_categorical(f"predict {i}", list(law.predictions)),
                    points=trial.suggest_categorical(f"slope {i}", [1, 2]),
                    relax=trial.suggest_float(f"relax {i}", -0.5, 0.5),
                    correct=Corrector() if correct else None,
                    source=source if i == 0 else "model",
                )
            )

        skips = tuple(trial.suggest_float(f"skip {j}", 0.0, 1.0) for j in range(self.skips))
        change = Alteration(skips) if skips else UNCHANGED
        return self._repaired(times, [replace(s, change=change) for s in steps])

    def legal(self, schedule: SolverSchedule) -> bool:
        """See [`Space.legal`][genflow.search.spaces.Space.legal]."""

        first, last = schedule.times[0], schedule.times[-1]
        steps, slack = schedule.steps, 1e-9
        return (
            schedule.nfe == self.nfe
            and steps[-1].correct is None
            and self.start[0] - slack <= first <= self.start[1] + slack
            and self.stop[0] - slack <= last <= self.stop[1] + slack
            and all(s.predict in self.law.predictions and s.eta == 0 for s in steps)
            and steps[0].source in self.law.first
            and all(len(s.change.skips) in (0, self.skips) for s in steps)
            and all(s.change == Alteration(s.change.skips) for s in steps)
        )

    def cost(self, schedule: SolverSchedule) -> float:
        """The number of calls."""

        return float(schedule.nfe)

    def record(self) -> dict[str, Any]:
        """See [`Space.record`][genflow.search.spaces.Space.record]."""

        return {
            "space": "solver",
            "path": path_to_dict(self.path),
            "nfe": self.nfe,
            "start": list(self.start),
            "stop": list(self.stop),
            "skips": self.skips,
            "law": asdict(self.law),
        }

    # ------------------------------------------------------------------------- the times

    def _inside(self, stop: float = 0.0) -> tuple[float, float]:
        """Where inner times lie: between the ends, and where the network knows its way."""

        return max(stop + GAP, self.path.t_min), self.start[0] - GAP

    def _first(self, rng: Random) -> float:
        """The first time: an end of its range, or anywhere in it."""

        ends = self.start[0] < self.start[1] and rng.random() < 0.7
        return self.start[rng.integers(2)] if ends else _uniform(self.start, rng)

    def _stop(self, rng: Random) -> float:
        """The last time: an end of its range, or anywhere in it."""

        return self.stop[rng.integers(2)] if rng.random() < 0.7 else _uniform(self.stop, rng)

    def _moved(self, t: float, rng: Random) -> float:
        lam = float(self.path.lam(torch.tensor(t, dtype=torch.float64)))

        if not math.isfinite(lam) or rng.random() < 0.5:
            return t + self.law.width * rng.standard_normal()

        lam += self.law.width_lam * rng.standard_normal()
        return float(self.path.inverse(torch.tensor(lam, dtype=torch.float64)))

    def _take(self, times: list[float], steps: list[Step], rng: Random) -> None:
        k = int(rng.integers(1, len(steps)))
        del times[k], steps[k]

    def _put(self, times: list[float], steps: list[Step], rng: Random) -> None:
        t = _uniform(self._inside(), rng)
        k = max(1, sum(u > t for u in times))
        times.insert(k, t)
        steps.insert(k, self._step(k, rng))

    def _resource(self, times: list[float], steps: list[Step], source: str, rng: Random) -> None:
        """Another source of the first step, and a step more or less to keep the calls."""

        more = (source != "model") - (steps[0].source != "model")

        if more < 0 and len(steps) < 2:
            return
        steps[0] = replace(steps[0], source=source)
        if more > 0:
            self._put(times, steps, rng)
        elif more < 0:
            self._take(times, steps, rng)

    # ------------------------------------------------------------------------- the steps

    def _step(self, i: int, rng: Random) -> Step:
        law = self.law
        return Step(
            order=self._order(i, rng),
            predict=_choice(law.predictions, rng),
            points=int(rng.integers(1, 3)),
            relax=law.width_relax * rng.standard_normal(),
            correct=Corrector() if rng.random() < law.corrector else None,
        )

    def _order(self, i: int, rng: Random) -> int:
        weights = self.law.orders
        order = 1 + int(rng.choice(len(weights), p=_shares(weights)))
        return min(order, i + 1)

    def _changed(self, i: int, step: Step, rng: Random) -> Step:
        law, new = self.law, {}

        if rng.random() < law.order:
            new["order"] = self._order(i, rng)
        if rng.random() < law.predict:
            new["predict"] = _choice(law.predictions, rng)
        if rng.random() < law.slope:
            new["points"] = int(rng.integers(1, 3))
        if rng.random() < law.relax:
            new["relax"] = step.relax + law.width_relax * rng.standard_normal()
        if rng.random() < law.correct:
            new["correct"] = Corrector() if rng.random() < law.corrector else None

        return replace(step, **new)

    def _faded(self, steps: Sequence[Step], rng: Random) -> list[Step]:
        """Moves the factors of the skip connections, which all steps share."""

        skips = steps[0].change.skips or (1.0,) * self.skips
        moves = self.law.width_skip * rng.standard_normal(len(skips))
        moved = [
            min(1.0, max(0.0, c + d)) if rng.random() < self.law.skip else c
            for c, d in zip(skips, moves, strict=True)
        ]
        change = Alteration(tuple(moved)) if any(c != 1 for c in moved) else UNCHANGED
        return [replace(s, change=change) for s in steps]

    # -------------------------------------------------------------------------- legality

    def _repaired(self, times: Sequence[float], steps: Sequence[Step]) -> SolverSchedule:
        """The nearest legal schedule: times apart and in order, and steps that can be made."""

        stop = _within(times[-1], self.stop)
        low, high = self._inside(stop)
        whole = (_within(times[0], self.start), *spaced(times[1:-1], low, high, GAP), stop)
        made = [possible(i, step) for i, step in enumerate(steps)]
        made[-1] = replace(made[-1], correct=None)
        return SolverSchedule(whole, tuple(made))


def _shares(weights: Sequence[float]) -> list[float]:
    total = math.fsum(weights)
    return [w / total for w in weights]


def _choice(weights: dict[str, float], rng: Random) -> Prediction:
    names = list(weights)
    return names[int(rng.choice(len(names), p=_shares(list(weights.values()))))]


def _uniform(ends: tuple[float, float], rng: Random) -> float:
    return ends[0] + (ends[1] - ends[0]) * float(rng.random())


def _within(value: float, ends: tuple[float, float]) -> float:
    return min(max(float(value), ends[0]), ends[1])
