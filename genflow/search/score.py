r"""Scores: what a search minimises, and what it reports.

A score carries schedules out from common noise (`genflow.search.population`) and judges their
samples; a *judge* is a function from samples to a number, lower is better:

========= =======================================================================================
judge     the number
========= =======================================================================================
error     :math:`\sqrt{\mathrm{mean} \, (x - x^\star)^2}` to a teacher's solution, sample by sample
frechet   the Fréchet distance of a feature to the moments of data, or of a teacher's samples
kernel    the kernel distance (KID) of a feature to data, or to a teacher's samples
(yours)   any function of the samples
========= =======================================================================================

Errors are paired: each sample has its own target, so they order schedules with a few dozen
samples. Distances between clouds need thousands, and are biased at few; never compare them across
numbers of samples. A distance to the *teacher's* cloud asks for less than an error does, and
needs no data.

The number that was minimised is not the number to report: of many noisy scores the lowest is too
low. `split` gives disjoint seeds for searching, for ranking the finalists, and for reporting.
"""

__all__ = [
    "Cached",
    "Judge",
    "Simulated",
    "error",
    "finalists",
    "frechet",
    "kernel",
    "ranked",
    "split",
]

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
import math
from typing import Any, TypeVar

import torch
from torch import Tensor

from genflow.errors import UserError
from genflow.metrics.distances import kernel_distance
from genflow.metrics.features import Features, extract
from genflow.metrics.frechet import Moments, MomentSum, frechet_distance
from genflow.search.archive import Entry
from genflow.search.population import Population, Solver
from genflow.search.spaces import Score

K = TypeVar("K")
Judge = Callable[[Tensor], float]
"""Samples with shape (n, \\*) → a number, lower is better."""


class Simulated:
    """The score that runs schedules from common noise and judges their samples.

    Args:
        population: The noise and the denoiser.
        judge: What judges the samples.
    """

    def __init__(self, population: Population, judge: Judge) -> None:
        self.population, self.judge = population, judge

    def __call__(self, solvers: Sequence[Solver]) -> list[float]:
        """The scores of schedules, or of tables, in their order."""

        values = [math.nan] * len(solvers)

        for i, samples in self.population(solvers):
            values[i] = float(self.judge(samples)) if _finite(samples) else math.nan

        return values


def _finite(samples: Tensor) -> bool:
    return bool(torch.isfinite(samples).all())


def error(target: Tensor) -> Judge:
    r"""The root-mean-square error to targets, over samples and elements.

    Args:
        target: The solutions of a teacher from the same noise, with shape (n, \*).
    """

    def judge(samples: Tensor) -> float:
        return float((samples - target).double().square().mean().sqrt())

    return judge


def frechet(
    reference: Moments,
    feature: Callable[[Tensor], Tensor] | Features,
    decode: Callable[[Tensor], Tensor] | None = None,
) -> Judge:
    """The Fréchet distance of a feature to reference moments.

    Args:
        reference: The moments of data, or of a teacher's samples.
        feature: Maps what ``decode`` returns to vectors.
        decode: From states to what the feature looks at, such as 8-bit images; nothing if None.
    """

    def judge(samples: Tensor) -> float:
        total = MomentSum(reference.feature, reference.digest)
        total.update(_features(feature, decode, samples))
        return frechet_distance(total.moments(), reference)

    return judge


def kernel(
    reference: Tensor,
    feature: Callable[[Tensor], Tensor] | Features,
    decode: Callable[[Tensor], Tensor] | None = None,
) -> Judge:
    """The kernel distance (KID) of a feature to reference features; it may be negative.

    Args:
        reference: The features of data, or of a teacher's samples, with shape (m, d).
        feature: Maps what ``decode`` returns to vectors.
        decode: From states to what the feature looks at; nothing if None.
    """

    return lambda samples: kernel_distance(_features(feature, decode, samples), reference)[0]


def _features(
    feature: Callable[[Tensor], Tensor] | Features,
    decode: Callable[[Tensor], Tensor] | None,
    samples: Tensor,
) -> Tensor:
    return extract(feature, samples if decode is None else decode(samples))


class Cached:
    """A score that asks another one about each schedule once.

    Args:
        score: The score.

    Attributes:
        asked: The number of schedules that were asked for.
        scored: The number of those that the other score was asked about.
    """

    def __init__(self, score: Score) -> None:
        self.score, self.asked, self.scored = score, 0, 0
        self._known: dict[object, float] = {}

    def __call__(self, solvers: Sequence[Solver]) -> list[float]:
        """The scores of schedules in their order; equal ones are scored once."""

        new = [s for s in dict.fromkeys(solvers) if s not in self._known]
        self.asked += len(solvers)
        self.scored += len(new)
        self._known |= zip(new, map(float, self.score(new)), strict=True) if new else {}
        return [self._known[s] for s in solvers]


def ranked(
    named: Sequence[tuple[K, Solver]], rungs: Sequence[tuple[int, Score]]
) -> list[tuple[K, Any, float]]:
    """Successive halving: the best of many by a cheap score are ranked again by dearer ones.

    Args:
        named: Names and schedules, or tables, from the best to the worst where that is known.
        rungs: For each rung how many of the best go on to it, 1 or more, and its score.

    Returns:
        The names, schedules and scores of the last rung, the best first; those with a score that
        is not finite are left out.

    Raises:
        UserError: If a rung takes none.

    Source: K. Jamieson and A. Talwalkar, "Non-stochastic Best Arm Identification and
    Hyperparameter Optimization", AISTATS 2016, https://arxiv.org/abs/1502.07943.

    Example:
        >>> best = ranked(presets(path, 5), [(10_000, on_48), (20, on_192), (8, on_512)])
    """

    left = [(name, solver, math.nan) for name, solver in named]

    for count, score in rungs:
        if count < 1:
            raise UserError(f"a rung takes {count} schedules: it must take 1 or more.")
        values = score([solver for _, solver, _ in left[:count]])
        order = sorted((float(v), i) for i, v in enumerate(values) if math.isfinite(v))
        left = [(*left[i][:2], v) for v, i in order]

    return left


def finalists(entries: Sequence[Entry], rungs: Sequence[tuple[int, Score]]) -> list[Entry]:
    """Scored entries ranked again by successive halving, as in `ranked`.

    Args:
        entries: Scored entries, as `Archive.top` gives them.
        rungs: For each rung how many of the best go on to it, 1 or more, and its score.

    Returns:
        The entries of the last rung with its scores, the best first; rejected ones are left out.

    Raises:
        UserError: If a rung takes none.

    Example:
        >>> best = finalists(archive.top(16), [(16, on_512), (4, on_4096)])[0]
    """

    best = sorted((e for e in entries if not e.rejected), key=lambda e: (e.value, e.number))
    found = ranked([(i, e.schedule) for i, e in enumerate(best)], rungs) if rungs else None
    return best if found is None else [replace(best[i], value=v) for i, _, v in found]


@dataclass(frozen=True)
class Seeds:
    """Disjoint seeds of samples.

    Attributes:
        search: Those that the search scores with.
        final: Those that rank the finalists.
        report: Groups for the reported number; their spread is the number's.
    """

    search: range
    final: range
    report: tuple[range, ...]


def split(search: int, final: int, report: int, groups: int = 3, first: int = 0) -> Seeds:
    """Disjoint seeds for searching, for ranking the finalists, and for reporting.

    Args:
        search: The number of samples of the search, 1 or more.
        final: The number for the finalists, 1 or more.
        report: The number in each group of the report, 1 or more.
        groups: The number of groups, 1 or more.
        first: The first seed.

    Raises:
        UserError: If a number is below 1.
    """

    numbers = {"search": search, "final": final, "report": report, "groups": groups}

    for name, value in numbers.items():
        if value < 1:
            raise UserError(f"{name} is {value}: 1 or more is needed.")

    a, b = first + search, first + search + final
    ranges = (range(b + k * report, b + (k + 1) * report) for k in range(groups))
    return Seeds(range(first, a), range(a, b), tuple(ranges))
