"""What is measured on a model of the zoo: distances at few calls, schedules, tuned tables."""

__all__ = ["Ruler", "distances", "searched", "tuned"]

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
import time
from typing import Any

from recipes import Budget, Data, Row
import torch
from torch import Tensor

from genflow.commands.search_problem import Problem
from genflow.metrics import compare
from genflow.metrics.features import extract, features
from genflow.metrics.frechet import frechet_from_features
from genflow.pipelines import Pipeline
from genflow.search.population import Solver
from genflow.search.recipes import plain
from genflow.search.refine import refine
from genflow.search.score import Cached, Seeds, ranked, split
from genflow.search.seeds import distinct, presets, seeds_for
from genflow.search.teachers import Teacher
from genflow.search.usf import SolverSpace
from genflow.solvers import SolverSchedule, Tableau

HELD_OUT = 10**6
"""The first seed of the samples that are reported."""

CHECK = 32
"""The samples on which the error to the teacher is told."""

TEACHER = ("heun", 24)

BRED, UNSEEN = "random-conv", "genflow-small"
"""The feature that searches minimise, and one that has no part in them: both are reported."""


class Ruler:
    """The distance of samples to data, on a fixed feature of which the data's part is kept.

    Args:
        data: The images in uint8, with shape (m, C, H, W).
        feature: The name of the feature.
    """

    def __init__(self, data: Tensor, feature: str = BRED) -> None:
        self.feature = features(feature, tuple(data.shape[1:]))
        self.data, self.points = data, extract(self.feature, data)

    def __call__(self, samples: Tensor) -> dict[str, float]:
        """The distance at as many points as the floor has, that floor, and their ratio."""

        points = extract(self.feature, samples)
        report = compare(points, self.points, features("identity", points.shape[1:]))
        own, floor = report["distance_at_floor_n"], report["floor"]
        return {
            "distance": own["mean"],
            "floor": floor["mean"],
            "over_floor": own["mean"] / floor["mean"],
            "spread": own["std"] / floor["mean"],
            "points": report["counts"]["floor"],
        }

    def noise(self, n: int) -> float:
        """The distance of uniform noise."""

        source = torch.Generator().manual_seed(0)
        shape = (n, *self.data.shape[1:])
        noise = torch.randint(0, 256, shape, dtype=torch.uint8, generator=source)
        return frechet_from_features(extract(self.feature, noise), self.points)


def distances(
    pipe: Pipeline, data: Data, rows: Sequence[Row], rulers: Sequence[Ruler]
) -> dict[str, Any]:
    """The table of distances of the samplers of a recipe, from the same seeds for all."""

    began, table, last = time.process_time(), [], {}

    for row in rows:
        for steps in row.steps:
            call = {"sampler": row.sampler, "steps": steps, **dict(row.options)}
            drawn = pipe(data.samples, seed=HELD_OUT, **call)
            last = {ruler.feature.name: ruler(drawn.uint8) for ruler in rulers}
            found = {name: _kept(cell) for name, cell in last.items()}
            table.append({"sampler": row.sampler, "steps": steps, "nfe": drawn.nfe, **found})

    return {
        "features": {
            ruler.feature.name: {
                "digest": ruler.feature.digest,
                "floor": last[ruler.feature.name]["floor"],
                "noise_over_floor": ruler.noise(data.samples) / last[ruler.feature.name]["floor"],
            }
            for ruler in rulers
        },
        "samples": data.samples,
        "reference": len(rulers[0].data),
        "points": last[rulers[0].feature.name]["points"],
        "first_seed": HELD_OUT,
        "table": table,
        "cpu_seconds": round(time.process_time() - began, 1),
    }


def _kept(cell: dict[str, Any]) -> dict[str, Any]:
    """A measurement without what all of them share."""

    return {k: v for k, v in cell.items() if k not in ("floor", "points")}


# ----------------------------------------------------------------------------------- the search


def searched(
    pipe: Pipeline, nfe: int, data: Data, budget: Budget, rulers: Sequence[Ruler], cache: Path
) -> tuple[SolverSchedule, dict[str, Any]]:
    """A schedule with a number of calls, and how it was found and measured.

    Everything that is known, presets and others, is ranked by the distance to the data on few
    samples, the better part on more, and the best again on more. An evolution goes on from the
    best by that distance. The best of ours and of the presets are compared on seeds of their own,
    and one of each is measured on the seeds of the report. What is found may be a preset.
    """

    began = time.process_time()
    most = max(budget.samples, *(samples for _, samples in budget.rungs))
    seeds = split(most, budget.final, data.samples, 1)
    near, far = (_problem(pipe, seeds, s, budget, rulers, cache) for s in ("error", "frechet"))
    space = SolverSpace(pipe.denoiser.path, nfe)

    known = list(seeds_for(pipe.denoiser, nfe, *_few(near, 8)))
    count = len(list(presets(pipe.denoiser.path, nfe)))
    apart = near.scored(seeds.search[:2])
    rungs = [(most, far.scored(seeds.search[:samples])) for most, samples in budget.rungs]
    theirs = ranked(distinct(known[:count], apart), rungs)
    others = ranked(distinct(known[count:], apart), rungs[:-1])

    def legal(named: Sequence[tuple[str, Solver, float]]) -> list[tuple[str, SolverSchedule]]:
        return [(n, s) for n, s, _ in named if isinstance(s, SolverSchedule) and space.legal(s)]

    aim = Cached(far.scored(seeds.search[: budget.samples]))
    first = [*legal(theirs)[: budget.parents], *legal(others)[: budget.parents]]
    first = legal(ranked(first, [(len(first), aim)]))[: budget.parents]
    archive = plain(
        space, aim, budget=len(first) + budget.children, seeds=first, seed=0, fresh=0.0
    )

    score = Cached(far.scored(seeds.final))
    theirs = theirs[: budget.finalists]
    ours = [(e.origin, e.schedule) for e in archive.top(budget.finalists)] + legal(theirs)
    origin, schedule, _ = ranked(ours, [(len(ours), score)])[0]
    name, preset, _ = ranked([pair[:2] for pair in theirs], [(len(theirs), score)])[0]
    check = seeds.final[:CHECK]
    on_check = near.scored(check)([schedule, preset])
    who = {"searched": schedule, "preset": preset}
    return schedule, {
        "nfe": nfe,
        "origin": origin,
        "preset": name,
        "measured": _held(far, who, data, rulers),
        "error": on_check[0],
        "preset_error": on_check[1],
        "teacher": list(TEACHER),
        "budget": asdict(budget),
        "presets": count,
        "seed": 0,
        "cpu_seconds": round(time.process_time() - began, 1),
    }


def tuned(
    pipe: Pipeline,
    schedule: SolverSchedule,
    data: Data,
    budget: Budget,
    rulers: Sequence[Ruler],
    cache: Path,
) -> tuple[Tableau, dict[str, Any]]:
    """The table of a schedule with its numbers tuned, and how that was done and measured.

    Times and weights follow the slope of the distance to the data. The samples of the gradient,
    those that choose among its states, and those of the report are three sets.
    """

    began = time.process_time()
    seeds = split(budget.cloud, budget.final, data.samples, 1)
    problem = _problem(pipe, seeds, "frechet", budget, rulers, cache)
    found = refine(
        schedule,
        problem.population(seeds.search),
        problem.aim(seeds.search),
        free=("times", "relax", "weights"),
        iterations=budget.steps,
        optimiser="lbfgs",
        batch_size=budget.cloud,
        check=(problem.population(seeds.final), problem.aim(seeds.final)),
        every=6,
        recompute=True,
    )
    return found.solver, {
        "measured": _held(problem, {"tuned": found.solver}, data, rulers),
        "before": found.before,
        "after": found.after,
        "steps": budget.steps,
        "cloud": budget.cloud,
        "cpu_seconds": round(time.process_time() - began, 1),
    }


def _problem(
    pipe: Pipeline, seeds: Seeds, score: str, budget: Budget, rulers: Sequence[Ruler], cache: Path
) -> Problem:
    """A problem of a search, on the feature that searches minimise."""

    teacher = Teacher(*TEACHER, batch_size=budget.batch_size)
    own = {"data": rulers[0].data, "feature": BRED} if score == "frechet" else {}
    return Problem(pipe, seeds, score, teacher, cache, batch_size=budget.batch_size, **own)


def _held(
    problem: Problem, solvers: dict[str, Solver], data: Data, rulers: Sequence[Ruler]
) -> dict[str, Any]:
    """The distances of solvers on the seeds of the report."""

    population = problem.population(range(HELD_OUT, HELD_OUT + data.samples))
    drawn = dict(population(list(solvers.values())))
    pictures = {who: problem.decoded(drawn[i]) for i, who in enumerate(solvers)}
    return {
        ruler.feature.name: {who: _kept(ruler(x)) for who, x in pictures.items()}
        for ruler in rulers
    }


def _few(problem: Problem, n: int) -> tuple[Tensor, dict[str, Any]]:
    """The noise and the conditions of a few samples of the search."""

    population = problem.population(problem.seeds.search)
    return population.z[:n], {k: v[:n] for k, v in population.cond.items()}
