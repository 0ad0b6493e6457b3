"""What is measured on a model of the zoo: distances at few calls, and searched schedules."""

__all__ = ["Ruler", "distances", "searched"]

from collections.abc import Callable, Sequence
from dataclasses import asdict
import math
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
from genflow.search.score import Cached, split
from genflow.search.seeds import presets, seeds_for
from genflow.search.teachers import Teacher
from genflow.search.usf import SolverSpace
from genflow.solvers import SolverSchedule

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
    teacher = Teacher(*TEACHER, batch_size=budget.batch_size)
    shared = {"teacher": teacher, "cache": cache, "batch_size": budget.batch_size}
    near = Problem(pipe, seeds, "error", **shared)
    far = Problem(pipe, seeds, "frechet", data=rulers[0].data, feature=BRED, **shared)
    space = SolverSpace(pipe.denoiser.path, nfe)

    known = list(seeds_for(pipe.denoiser, nfe, *_few(near, 8)))
    count = len(list(presets(pipe.denoiser.path, nfe)))
    theirs = _halved(_distinct(known[:count], near), far, budget.rungs)
    others = _halved(_distinct(known[count:], near), far, budget.rungs[:-1])

    def legal(pairs: Sequence[tuple[str, Solver]]) -> list[tuple[str, SolverSchedule]]:
        return [(n, s) for n, s in pairs if isinstance(s, SolverSchedule) and space.legal(s)]

    aim = Cached(far.scored(seeds.search[: budget.samples]))
    first = [*legal(theirs)[: budget.parents], *legal(others)[: budget.parents]]
    first = _ranked(first, aim)[: budget.parents]
    archive = plain(
        space, aim, budget=len(first) + budget.children, seeds=first, seed=0, fresh=0.0
    )
    ours = [(e.origin, e.schedule) for e in archive.top(budget.finalists)]

    score = Cached(far.scored(seeds.final))
    theirs = theirs[: budget.finalists]
    origin, schedule = _ranked([*ours, *legal(theirs)], score)[0]
    name, preset = _ranked(theirs, score)[0]
    check = seeds.final[:CHECK]
    on_check = near.scored(check)([schedule, preset])
    held = range(HELD_OUT, HELD_OUT + data.samples)
    population = far.population(held)
    drawn = dict(population([schedule, preset]))
    pictures = [far.decoded(drawn[i]) for i in (0, 1)]
    return schedule, {
        "nfe": nfe,
        "origin": origin,
        "preset": name,
        "measured": {
            ruler.feature.name: {
                who: _kept(ruler(x))
                for who, x in zip(("searched", "preset"), pictures, strict=True)
            }
            for ruler in rulers
        },
        "error": on_check[0],
        "preset_error": on_check[1],
        "teacher": list(TEACHER),
        "budget": asdict(budget),
        "presets": count,
        "seed": 0,
        "cpu_seconds": round(time.process_time() - began, 1),
    }


def _few(problem: Problem, n: int) -> tuple[Tensor, dict[str, Any]]:
    """The noise and the conditions of a few samples of the search."""

    population = problem.population(problem.seeds.search)
    return population.z[:n], {k: v[:n] for k, v in population.cond.items()}


def _distinct(known: Sequence[tuple[str, Solver]], problem: Problem) -> list[tuple[str, Solver]]:
    """Only the first of those that are one solver under several names, as at few calls."""

    errors = problem.scored(problem.seeds.search[:2])([s for _, s in known])
    first: dict[str, tuple[str, Solver]] = {}

    for pair, value in zip(known, errors, strict=True):
        if math.isfinite(value):
            first.setdefault(f"{value:.5g}", pair)

    return list(first.values())


def _halved(
    known: Sequence[tuple[str, Solver]], problem: Problem, rungs: Sequence[tuple[int, int]]
) -> list[tuple[str, Solver]]:
    """What is left after successive halving, the best first."""

    left = list(known)

    for count, samples in rungs:
        left = _ranked(left[:count], problem.scored(problem.seeds.search[:samples]))

    return left


def _ranked(
    candidates: Sequence[tuple[str, Solver]], score: Callable[[Sequence[Solver]], list[float]]
) -> list[tuple[str, Any]]:
    """Candidates by their score, the best first; those without a finite one are left out."""

    values = score([s for _, s in candidates])
    order = sorted((v, i) for i, v in enumerate(values) if math.isfinite(v))
    return [candidates[i] for _, i in order]
