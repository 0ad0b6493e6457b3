r"""One evolutionary loop over any space, in a steady state, by ask and tell.

There are no generations: whoever asks gets children of the best K schedules that are known at that
moment, so workers never wait for each other. A child is drawn afresh (with probability
``fresh``), or is the mutant of a parent, or of a mixture of two; one that has been proposed before
is never scored again. The law of the children is that of USF's released search, with a surrogate
between breeding and scoring if there is one (S³): many more children are bred, for some rounds
among themselves, the surrogate ranks them, and only the foremost are scored, beside a few that it
did not choose. It learns from everything seen before each stage, and how well its order agrees
with the truth is kept as Kendall's τ of the children it ranked.

The loop reads and writes a *ledger* (`genflow.search.ledger`), which holds the queue too. What is
*not* assumed: that this worker is the only one, that a score is finite, or that the space is
larger than the budget.

References:
    Unified Sampling Framework for Diffusion Probabilistic Models (USF)
    https://openreview.net/forum?id=W2d3LZbhhI

    OMS-DPM: Optimizing the Model Schedule for Diffusion Probabilistic Models
    https://arxiv.org/abs/2306.08860
"""

__all__ = ["Evolution", "evolve"]

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
import math
import time

import numpy as np
from scipy.stats import kendalltau

from genflow.errors import UserError
from genflow.search.archive import Archive, Entry, Stage
from genflow.search.ledger import Candidate, Ledger, Memory
from genflow.search.spaces import Random, Score, Space, Surrogate
from genflow.solvers.schedules import SolverSchedule

Select = Callable[[Archive, int], Sequence[Entry]]
"""Which n entries become parents."""

Seed = SolverSchedule | tuple[str, SolverSchedule]
"""A schedule to begin with, and what to call it."""


@dataclass
class Evolution:
    """The law of the children, by ask and tell.

    Attributes:
        space: The space.
        ledger: Where proposals queue and scores are kept.
        parents: The number K of entries that children come from, 1 or more.
        crossover: The probability that a child has two parents, in [0, 1].
        fresh: The probability that a child is drawn afresh, in [0, 1].
        surrogate: Ranks children before they are scored, if there is one.
        initial: The number of scores before the surrogate is asked.
        pool: How many children the surrogate ranks for each that is scored.
        rounds: How often the foremost of them breed among themselves.
        explore: The share of scored children that the surrogate did not choose, in [0, 1].
        select: Who becomes a parent; the best scores by default.
        seed: The seed of all random numbers.
        worker: A number that differs between workers of one ledger.

    Raises:
        UserError: If a number is out of its range.
    """

    space: Space
    ledger: Ledger = field(default_factory=Memory)
    parents: int = 15
    crossover: float = 0.5
    fresh: float = 0.1
    surrogate: Surrogate | None = None
    initial: int = 60
    pool: int = 8
    rounds: int = 2
    explore: float = 0.2
    select: Select = Archive.top
    seed: int = 0
    worker: int = 0

    def __post_init__(self) -> None:
        for name, least in (("parents", 1), ("initial", 2), ("pool", 1), ("rounds", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}: {least} or more is needed.")
        for name in ("crossover", "fresh", "explore"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is {getattr(self, name)}: it must lie in [0, 1].")

        self.stages: list[Stage] = []
        self._guesses: dict[SolverSchedule, float] = {}
        self._seen = 0

    def plant(self, seeds: Iterable[Seed]) -> int:
        """Queues schedules to begin with; returns how many of them lie in the space and are new.

        Args:
            seeds: The schedules, with names or without.
        """

        known, planted = self.ledger.known(), 0

        for seed in seeds:
            name, schedule = seed if isinstance(seed, tuple) else ("", seed)
            if schedule not in known and self.space.legal(schedule):
                self.ledger.propose(schedule, f"seed {name}".strip())
                known.add(schedule)
                planted += 1

        return planted

    def ask(self, n: int) -> list[Candidate]:
        """Up to n schedules to score; fewer if the space has no more that are new."""

        claimed = self._claim(n)

        if len(claimed) < n:
            for schedule, origin in self._children(n - len(claimed)):
                self.ledger.propose(schedule, origin)
            claimed += self._claim(n - len(claimed))

        return claimed

    def tell(
        self, candidates: Sequence[Candidate], values: Sequence[float], seconds: float = 0.0
    ) -> None:
        """Writes scores down.

        Args:
            candidates: What [`ask`][genflow.search.evolve.Evolution.ask] gave.
            values: Their scores; one that is not finite rejects its schedule.
            seconds: The time that each took.
        """

        for candidate, value in zip(candidates, values, strict=True):
            cost = self.space.cost(candidate.schedule)
            self.ledger.close(candidate, float(value), cost=cost, seconds=seconds)

        guessed = [
            (self._guesses.pop(c.schedule), v)
            for c, v in zip(candidates, values, strict=True)
            if c.schedule in self._guesses and math.isfinite(v)
        ]

        if len(guessed) > 1:
            tau = float(kendalltau(*zip(*guessed, strict=True)).statistic)
            self.stages.append(Stage(self._seen, len(guessed), tau))

    def archive(self) -> Archive:
        """Everything scored so far, by all workers, and this worker's stages."""

        return Archive(self.ledger.entries(), list(self.stages))

    # ---------------------------------------------------------------------- the children

    def _claim(self, n: int) -> list[Candidate]:
        claimed: list[Candidate] = []

        while len(claimed) < n and (candidate := self.ledger.claim()) is not None:
            claimed.append(candidate)

        return claimed

    def _children(self, n: int) -> list[tuple[SolverSchedule, str]]:
        archive, known = self.archive(), self.ledger.known()
        rng = np.random.default_rng([self.seed, self.worker, len(known)])
        best = [e.schedule for e in self.select(archive, self.parents)]

        if self.surrogate is None or len(archive.kept) < self.initial:
            return self._breed(n, best, known, rng)

        return self._chosen(n, archive, best, known, rng)

    def _breed(
        self, n: int, parents: Sequence[SolverSchedule], known: set[SolverSchedule], rng: Random
    ) -> list[tuple[SolverSchedule, str]]:
        """n new children, or as many as fifty tries for each find; ``known`` takes them in."""

        children: list[tuple[SolverSchedule, str]] = []

        for _ in range(50 * n):
            if len(children) == n:
                break
            child, origin = self._child(parents, rng)
            if child not in known:
                known.add(child)
                children.append((child, origin))

        return children

    def _child(self, parents: Sequence[SolverSchedule], rng: Random) -> tuple[SolverSchedule, str]:
        if not parents or rng.random() < self.fresh:
            return self.space.sample(rng), "random"

        a = parents[rng.integers(len(parents))]

        if len(parents) > 1 and rng.random() < self.crossover:
            b = parents[rng.integers(len(parents))]
            return self.space.mutate(self.space.cross(a, b, rng), rng), "crossover"

        return self.space.mutate(a, rng), "mutation"

    def _chosen(
        self,
        n: int,
        archive: Archive,
        best: Sequence[SolverSchedule],
        known: set[SolverSchedule],
        rng: Random,
    ) -> list[tuple[SolverSchedule, str]]:
        """Children that the surrogate put first, and some of the first brood as they came."""

        kept = archive.kept
        self._seen = len(kept)
        self.surrogate.fit([e.schedule for e in kept], [e.value for e in kept])

        brood = self._breed(self.pool * n, best, known, rng)
        few = min(round(self.explore * n), len(brood))
        free, pool = brood[:few], brood[few:]
        guess = dict(zip((s for s, _ in brood), self._guess(brood), strict=True))

        for _ in range(self.rounds):
            foremost = sorted((s for s, _ in pool), key=guess.__getitem__)[: max(40, n)]
            more = self._breed(self.pool * n, foremost, known, rng)
            guess |= dict(zip((s for s, _ in more), self._guess(more), strict=True))
            pool += more

        pool.sort(key=lambda child: guess[child[0]])
        children = [*((s, "chosen") for s, _ in pool[: n - few]), *free]
        self._guesses |= {s: guess[s] for s, _ in children}
        return children

    def _guess(self, children: Sequence[tuple[SolverSchedule, str]]) -> list[float]:
        return list(map(float, self.surrogate([s for s, _ in children]))) if children else []


def evolve(
    space: Space,
    score: Score,
    *,
    budget: int,
    seeds: Iterable[Seed] = (),
    batch: int = 16,
    ledger: Ledger | None = None,
    report: Callable[[Archive, int], None] | None = None,
    **law: object,
) -> Archive:
    """Searches a space until a number of schedules have been scored, by all workers together.

    Args:
        space: The space.
        score: The score, called with up to ``batch`` schedules.
        budget: The number of schedules to score, 1 or more, with those already in the ledger.
        seeds: Schedules to begin with, with names or without.
        batch: How many schedules are scored at a time: the size of a surrogate's stage, and what
            a killed worker leaves to be done again.
        ledger: The ledger; one in memory if None.
        report: Called with the archive and the budget after every batch.
        law: The fields of `Evolution`: ``parents``, ``crossover``, ``surrogate``, ``seed`` …

    Returns:
        Everything that was scored.

    Raises:
        UserError: If a number is out of its range.

    Example:
        >>> space = SolverSpace(denoiser.path, nfe=5)
        >>> found = evolve(space, score, budget=500)
        >>> found.best.schedule.save("schedule.json", denoiser.path)
    """

    if budget < 1 or batch < 1:
        raise UserError(f"budget is {budget} and batch is {batch}: both must be 1 or more.")

    ledger = Memory() if ledger is None else ledger
    evolution = Evolution(space, ledger, **law)
    evolution.plant(seeds)

    while (left := budget - ledger.finished()) > 0:
        room = left - ledger.running()
        candidates = evolution.ask(min(batch, room)) if room > 0 else []

        if not candidates:
            if not ledger.running():
                break
            # Others are at work; what they leave behind is taken up by whoever asks next.
            time.sleep(0.1)
            continue

        began = time.perf_counter()
        values = score([c.schedule for c in candidates])
        evolution.tell(candidates, values, (time.perf_counter() - began) / len(candidates))

        if report is not None:
            report(evolution.archive(), budget)

    return evolution.archive()
