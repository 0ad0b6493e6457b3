r"""AutoDiffusion: times first, then times and architecture, without training.

A search in stages over `TimeSpace` and `BlockSpace`, each of which begins with the best of the
one before:

1. *times*: the full network, K times;
2. *steps*: times, and steps at which everything is left out that can be, under the budget; the
   first entries are the best of stage 1 under regular patterns;
3. *groups*: the same with the stages of the network, each for itself;
4. *blocks*: the same with single blocks.

The published search goes from 1 to 4 at once. On a small U-Net, at some hundred evaluations, whole
steps came first by far: harms are not additive, since a branch that is reused at steps running
grows old, and a step that is spared already can lose more.

The published search knows one way to leave a block out, dropping it. Reusing its branch from the
last step that ran it costs as little, and usually does far less harm, so both are genes here. Its
budget counts layers; here it is FLOPs or measured time, which differ between layers by factors of
a hundred.

What is *not* promised: that a call which costs 30 % fewer FLOPs takes 30 % less time
(`genflow.nn.seconds` measures), or that the score of the search is the quality of the result;
judge that on seeds which the search has not seen.

References:
    AutoDiffusion: Training-Free Optimization of Time Steps and Architectures for Automated
    Diffusion Model Acceleration
    https://arxiv.org/abs/2309.10438

    Flexiffusion: Segment-wise Neural Architecture Search for Flexible Denoising Schedule
    https://arxiv.org/abs/2409.17566
"""

__all__ = ["PUBLISHED", "Found", "Settings", "autodiffusion", "begin", "patterns", "stages"]

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from genflow.errors import UserError
from genflow.nn import Costs
from genflow.search.archive import Archive, Entry, front
from genflow.search.blocks import BlockSpace, groups
from genflow.search.evolve import Seed, evolve
from genflow.search.ledger import Ledger, Memory
from genflow.search.spaces import Random, Score, Space
from genflow.search.times import TimeSpace
from genflow.solvers.alterations import Alteration
from genflow.solvers.schedules import SolverSchedule


@dataclass(frozen=True)
class Settings:
    """The settings of a published search.

    Attributes:
        population: The number of candidates of a generation.
        parents: The number of the best that children come from.
        mutants: Mutants in a generation.
        crossovers: Children of two parents in a generation.
        random: Candidates drawn afresh in a generation.
        gene: The probability that a mutant's time is drawn again.
        generations: The number of generations.
        images: The number of images that a candidate is scored with.
    """

    population: int = 50
    parents: int = 10
    mutants: int = 25
    crossovers: int = 10
    random: int = 15
    gene: float = 0.25
    generations: int = 10
    images: int = 1000

    @property
    def budget(self) -> int:
        """The number of candidates of the whole search."""

        return self.population * self.generations

    @property
    def law(self) -> dict[str, Any]:
        """The same shares as fields of `Evolution`, which knows no generations."""

        return {
            "parents": self.parents,
            "crossover": self.crossovers / (self.mutants + self.crossovers),
            "fresh": self.random / self.population,
        }


PUBLISHED = {
    "imagenet64-times": Settings(crossovers=15, random=10, images=5000),
    "imagenet64-blocks": Settings(generations=15),
    "lsun": Settings(images=3000),
    "sd-dpm": Settings(gene=0.1),
    "sd-plms": Settings(gene=0.1, crossovers=15, random=10, images=2000),
}
"""The settings of the released scripts, by model and by what is searched."""


@dataclass(frozen=True)
class Found:
    """What a search in stages has found.

    Attributes:
        archives: What was scored, by stage.
        spaces: The spaces, by stage.
    """

    archives: Mapping[str, Archive]
    spaces: Mapping[str, Space]

    @property
    def best(self) -> Entry:
        """The best entry of the last stage, which keeps its budget."""

        return list(self.archives.values())[-1].best

    @property
    def front(self) -> list[Entry]:
        """The Pareto front of score against cost over all stages, the cheapest first."""

        return front([e for archive in self.archives.values() for e in archive.kept])

    @property
    def saved(self) -> float:
        """The share of the full network's cost that the best entry saves."""

        space = list(self.spaces.values())[-1]
        return 1 - self.best.cost / space.full if isinstance(space, BlockSpace) else 0.0


def stages(
    times: TimeSpace, costs: Costs | None = None, budget: float | None = None, **genes: Any
) -> dict[str, Space]:
    """The spaces of the stages.

    Args:
        times: The space of times. Where its number of steps is a range, the first stage takes as
            many as the full network can make for the budget; blocks left out may buy more later.
        costs: The table of the network; None ends the search after the times.
        budget: What a sample may cost, in the unit of the table.
        genes: Further arguments of `BlockSpace`: ``modes``, ``passes``, ``guidance``, ``orders``,
            ``law``.

    Raises:
        UserError: If only one of costs and budget is given, or the budget is too small.
    """

    if (costs is None) != (budget is None):
        raise UserError("costs and budget go together: give both, or neither to search times.")
    if costs is None:
        return {"times": times}

    whole = copy.copy(times)
    whole.call = costs.full * genes.get("passes", 1)
    low, high = times.steps
    most = min(high, max(low, int(budget // whole.call)))
    whole.steps = (most, most)
    everything = {"all": tuple(costs.saving)}
    units = {**everything, **groups(costs.saving)}
    return {
        "times": whole,
        "steps": BlockSpace(times, costs, budget, units=everything, **genes),
        "groups": BlockSpace(times, costs, budget, units=units, **genes),
        "blocks": BlockSpace(times, costs, budget, **genes),
    }


def patterns(
    space: BlockSpace, schedule: SolverSchedule, rng: Random
) -> Iterator[tuple[str, SolverSchedule]]:
    """A schedule under regular patterns of what is left out.

    Args:
        space: The space; the patterns are brought under its budget.
        schedule: A schedule of its times.
        rng: The random numbers.

    Yields:
        Names and schedules: first with as little left out as the budget asks for; then for each
        mode every unit at every other step from the noisy end, from the clean end, or from both,
        at as few as the budget asks for; then every unit at all but every n-th step.
    """

    yield "at the budget", space.fitted(schedule, rng)
    N = len(schedule.steps)
    noisy, clean = list(range(1, N, 2)), list(range(N - 1, 0, -2))
    both = [i for pair in zip(noisy, clean, strict=True) for i in pair]
    both = [i for k, i in enumerate(both) if not {i - 1, i, i + 1} & set(both[:k])]
    ends = {"from the noisy end": noisy, "from the clean end": clean, "from both ends": both}
    every = {f"but for every {n}": [i for i in range(N) if i % n] for n in (2, 3, 4)}

    for mode in space.budget.modes:
        for unit, inside in space.budget.units.items():
            change = Alteration(**{mode: inside})
            for where, places in (ends | every).items():
                made = schedule
                for i in places:
                    if where in ends and space.cost(made) <= space.budget.bound:
                        break
                    step = replace(made.steps[i], change=change)
                    steps = (*made.steps[:i], step, *made.steps[i + 1 :])
                    made = SolverSchedule(made.times, steps)
                yield f"{mode} {unit} {where}", space.fitted(made, rng)


def autodiffusion(
    spaces: Mapping[str, Space],
    score: Score,
    *,
    budgets: Sequence[int],
    seeds: Iterable[Seed] = (),
    elite: int = 8,
    ledger: Callable[[str, Mapping[str, Any]], Ledger] = lambda stage, problem: Memory(),
    report: Callable[[str, Archive, int], None] | None = None,
    seed: int = 0,
    **law: Any,
) -> Found:
    """Searches in stages; each begins with the best of the one before.

    Args:
        spaces: The spaces by stage, as `stages` makes them.
        score: The score.
        budgets: How many schedules to score in each stage.
        seeds: Schedules to begin with; see [`begin`][genflow.search.autodiffusion.begin].
        elite: How many of the best go on to the next stage, 1 or more.
        ledger: Makes the ledger of a stage from its name and the record of its space.
        report: Called with the stage, its archive and its budget after every batch.
        seed: The seed of all random numbers.
        law: Fields of `Evolution`; ``select=spread`` breeds along the whole Pareto front, best in
            spaces whose law spends nothing.

    Returns:
        Everything that was scored.

    Raises:
        UserError: If there is not one budget a stage, or a number is out of its range.

    Example:
        >>> costs = flops(net, (3, 32, 32))
        >>> whole = TimeSpace(denoiser.path, 10)
        >>> spaces = stages(whole, costs, 0.7 * 10 * costs.full)
        >>> found = autodiffusion(spaces, score, budgets=(200, 100, 100, 200))
        >>> found.best.schedule.save("schedule.json", denoiser.path)
    """

    if len(budgets) != len(spaces) or elite < 1:
        raise UserError(
            f"budgets are {tuple(budgets)} for the stages {', '.join(spaces)} and elite is "
            f"{elite}: a number of schedules for each stage and an elite of 1 or more are needed."
        )

    archives: dict[str, Archive] = {}
    best: list[Seed] = list(seeds)

    for k, (stage, space) in enumerate(spaces.items()):
        archives[stage] = evolve(
            space,
            score,
            budget=budgets[k],
            seeds=begin(space, best, seed),
            ledger=ledger(stage, space.record()),
            report=None if report is None else partial(_tell, report, stage),
            seed=seed,
            **law,
        )
        best = [(f"of {stage}", e.schedule) for e in archives[stage].top(elite)]

    return Found(archives, dict(spaces))


def _tell(
    report: Callable[[str, Archive, int], None], stage: str, archive: Archive, budget: int
) -> None:
    report(stage, archive, budget)


def begin(space: Space, seeds: Iterable[Seed], seed: int = 0) -> list[Seed]:
    """Schedules to begin with, brought into a space.

    Args:
        space: The space. To one of blocks come the seeds under its budget, and the first of them
            that leaves nothing out under regular patterns.
        seeds: The schedules, with names or without, the best first.
        seed: The seed of what is left out at random.
    """

    if not isinstance(space, BlockSpace):
        return list(seeds)

    rng = np.random.default_rng([seed, 1])
    named = [s if isinstance(s, tuple) else ("", s) for s in seeds]
    found: list[Seed] = [(name, space.fitted(s, rng)) for name, s in named]
    whole = [s for _, s in named if not any(step.change for step in s.steps)]
    return [*found, *(patterns(space, whole[0], rng) if whole else ())]
