"""How a search goes about it: the methods by name, each from a problem to an archive."""

__all__ = ["METHODS", "Outcome", "Run", "outcome"]

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from genflow.commands.search_problem import Problem
from genflow.errors import UserError
from genflow.search import recipes
from genflow.search.archive import Archive, Entry
from genflow.search.autodiffusion import autodiffusion, stages
from genflow.search.population import Solver
from genflow.search.refine import descend, refine
from genflow.search.score import finalists, ranked
from genflow.search.seeds import seeds_for
from genflow.search.study import StudyLedger
from genflow.search.times import TimeSpace
from genflow.search.usf import SolverSpace
from genflow.solvers.schedules import SolverSchedule
from genflow.solvers.tableau import Tableau

METHODS = ("s3", "evolve", "random", "gradient", "autodiffusion", "tpe", "nsga2", "cma-es")
"""The names of the methods."""


@dataclass
class Run:
    """A search under way.

    Attributes:
        problem: The problem.
        nfe: The number of calls.
        method: A name in ``METHODS``.
        budget: The number of schedules to score, or of gradient steps.
        share: The share of the full network's FLOPs that a sample may cost; for autodiffusion.
        refine: The number of gradient steps at the end.
        free: What they tune: names in `genflow.search.tuned.Free`.
        seed: The seed.
        worker: A number that differs between workers.
        ledger: Where the ledger lies: a journal file or the address of a storage.
        patience: The seconds after which a claim from another machine lapses.
        report: Called with the archive and the budget.
        known: Schedules of earlier results, with names, to begin with.
    """

    problem: Problem
    nfe: int
    method: str
    budget: int
    share: float = 1.0
    refine: int = 0
    free: tuple[str, ...] = ("times", "relax")
    seed: int = 0
    worker: int = 0
    ledger: str = "ledger.journal"
    patience: float = 3600.0
    report: Callable[[Archive, int], None] = lambda archive, budget: None
    known: list[tuple[str, Solver]] = field(default_factory=list)

    @cached_property
    def begin(self) -> list[tuple[str, Solver]]:
        """Everything to begin with, tables included."""

        population = self.problem.population(self.problem.seeds.search)
        few = slice(0, 64)
        cond = {k: v[few] for k, v in population.cond.items()}
        found = seeds_for(self.problem.denoiser, self.nfe, population.z[few], cond)
        return [*self.known, *found]

    def search(self) -> Archive:
        """Runs the method."""

        score = self.problem.scored(self.problem.seeds.search)

        if self.method == "gradient":
            return self._descend()
        if self.method == "autodiffusion":
            return self._staged(score)

        space = SolverSpace(self.problem.denoiser.path, self.nfe)
        options: dict[str, Any] = {"budget": self.budget, "seed": self.seed, "report": self.report}

        if self.method in ("tpe", "nsga2", "cma-es"):
            return recipes.by_optuna(space, score, sampler=self.method, **options)

        options |= {"ledger": self._ledger("search", space.record()), "worker": self.worker}
        legal = [] if self.method == "random" else self._schedules(space)
        options["seeds"] = legal[: max(1, self.budget // 3)]
        name = {"evolve": "plain"}.get(self.method, self.method)
        return getattr(recipes, name)(space, score, **options)

    @cached_property
    def ranked(self) -> list[tuple[str, Solver]]:
        """Everything to begin with that is finite, the best on an eighth of the samples first."""

        few = self.problem.seeds.search
        few = few[: min(len(few), max(16, len(few) // 8))]
        found = ranked(self.begin, [(len(self.begin), self.problem.scored(few))])
        return [(name, solver) for name, solver, _ in found]

    def _schedules(self, space: SolverSpace) -> list[tuple[str, SolverSchedule]]:
        """Those of them that are schedules of a space, the best first."""

        plain = [(n, s) for n, s in self.ranked if isinstance(s, SolverSchedule)]
        return [(n, s) for n, s in plain if space.legal(s)]

    def _descend(self) -> Archive:
        """Gradient steps from the best of what there is to begin with."""

        seeds, starts = self.problem.seeds, min(4, max(1, self.budget // 50))
        space = SolverSpace(self.problem.denoiser.path, self.nfe)
        first = [s for _, s in self._schedules(space)][: 4 * starts]

        def told(k: int, best: float) -> None:
            self.report(Archive([Entry(k, first[0], best, "gradient")] * k), self.budget)

        found = descend(
            first,
            self.problem.population(seeds.search),
            self.problem.aim(seeds.search),
            starts=starts,
            free=[name for name in self.free if name != "weights"] or ("times", "relax"),
            iterations=max(1, self.budget // starts),
            report=told,
            **_gradient(self.problem),
        )
        return Archive(
            [Entry(i, r.solver, r.after, "gradient", self.nfe) for i, r in enumerate(found)]
        )

    def _staged(self, score: Any) -> Archive:
        """AutoDiffusion: times; then whole steps, groups of blocks, and blocks left out."""

        from genflow.nn import flops

        path, net = self.problem.denoiser.path, self.problem.pipe.denoiser.net
        population = self.problem.population(self.problem.seeds.search)
        costs = budget = None
        genes: dict[str, Any] = {}

        if self.share < 1:
            cond = {k: v[:1] for k, v in population.cond.items()}
            costs = flops(net, self.problem.pipe.shape, **cond)
            genes["passes"] = 1 if self.problem.guidance == 1 else 2
            budget = self.share * self.nfe * costs.full * genes["passes"]

        spaces = stages(TimeSpace(path, self.nfe), costs, budget, **genes)
        each = [self.budget // len(spaces)] * len(spaces)
        found = autodiffusion(
            spaces,
            score,
            budgets=[max(1, n) for n in each],
            seeds=[(n, s) for n, s in self.ranked if isinstance(s, SolverSchedule)][
                : each[0] // 3
            ],
            ledger=self._ledger,
            report=lambda stage, archive, budget: self.report(archive, budget),
            seed=self.seed,
            worker=self.worker,
        )
        return list(found.archives.values())[-1]

    def _ledger(self, name: str, space: Any) -> StudyLedger:
        problem = {**self.problem.record(), "method": self.method, "nfe": self.nfe, **space}
        return StudyLedger(self.ledger, problem, name=name, patience=self.patience)


@dataclass(frozen=True)
class Outcome:
    """What a search has found.

    Attributes:
        schedule: The schedule.
        archive: Everything that was scored.
        final: The finalists, by their score on seeds that the search has not seen.
        refined: The error, or what the gradient followed, before and after the gradient steps at
            the end, or None.
        baselines: The best presets, by the same seeds as the finalists, with their names.
        held_out: The score of the schedule on each group of the report's seeds.
        held_out_baseline: The score of the best preset, likewise.
        table: The schedule's table with tuned weights, if those were free.
        held_out_table: The score of the table, likewise.
    """

    schedule: SolverSchedule
    archive: Archive
    final: list[Entry]
    refined: tuple[float, float] | None
    baselines: list[tuple[str, Solver, float]]
    held_out: list[float]
    held_out_baseline: list[float]
    table: Tableau | None = None
    held_out_table: list[float] = field(default_factory=list)


def outcome(run: Run, archive: Archive) -> Outcome:
    """Ranks the finalists again, refines the winner, and measures on seeds that nobody has seen.

    Args:
        run: The search.
        archive: What it scored.
    """

    problem, seeds = run.problem, run.problem.seeds
    more = problem.scored(seeds.final)
    final = finalists(archive.top(8), [(8, more)])

    if not final:
        raise UserError("no schedule has a finite score: look at the network or at the score.")

    schedule, table, refined = final[0].schedule, None, None

    if run.refine:
        tuned = refine(
            schedule,
            problem.population(seeds.search),
            problem.aim(seeds.search),
            free=run.free,
            iterations=run.refine,
            **_gradient(problem),
        )
        refined = (tuned.before, tuned.after)
        if isinstance(tuned.solver, Tableau):
            table = tuned.solver
        else:
            # The score has the last word: it may not be what the gradient followed.
            old, new = more([schedule, tuned.solver])
            schedule = tuned.solver if new < old else schedule

    baselines = ranked(run.ranked, [(24, problem.scored(seeds.search)), (8, more)])
    solvers = [schedule, baselines[0][1], *([] if table is None else [table])]
    held = zip(*(problem.scored(group)(solvers) for group in seeds.report), strict=True)
    ours, theirs, *rest = map(list, held)
    return Outcome(schedule, archive, final, refined, baselines, ours, theirs, table, *rest)


def _gradient(problem: Problem) -> dict[str, Any]:
    """How gradients are taken: a distance needs a cloud in every step, and memory for it."""

    seeds = problem.seeds
    shared = {"check": (problem.population(seeds.final), problem.aim(seeds.final))}

    if problem.score == "error" or not problem.sloped:
        return shared

    cloud = {"batch_size": min(len(seeds.search), 1024), "every": 6, "recompute": True}
    return {**shared, **cloud, "optimiser": "lbfgs"}
