"""Searching what to leave out: a pipeline of digits, ten steps, at most 70 % of the FLOPs.

Contestants, all on the same network:

    full            ten full calls on the pipeline's own grid, and on searched times
    fewer calls     seven full calls, which cost 70 % as well, on both kinds of grid
    random reuse    as much reused as the budget asks for, at random, on the searched times
    drop            a block search whose only gene is dropping, as published
    reuse           a block search whose only gene is reusing
    both            a block search with both genes
    more steps      a block search with both genes that may also trade: from seven full calls to
                    fourteen that leave something out, at the same FLOPs

Searches minimise the error to a teacher (Heun's method, 32 steps) on 32 samples, at equal numbers
of evaluations, and the best five are ranked again on 128 others. What is reported is measured on
seeds that no search has seen: the Fréchet distance to all 1,797 digits on random convolutions, and
the error to the teacher; with the spread over searches with different seeds. FLOPs are counted;
latency is CPU time, measured by turns.

    python benchmarks/search_blocks.py [--pipeline FOLDER] [--seeds 3] [--quick]

Without a folder the pipeline of configs/rectified/digits.yaml is trained first (3 minutes).
"""

import argparse
from pathlib import Path
from statistics import mean
import subprocess
import sys
import tempfile
import time

from measure import contest, write_results
import numpy as np
import torch

from genflow.data import Digits
from genflow.data.pixels import to_uint8
from genflow.metrics import MomentSum
from genflow.metrics.features import extract, features
from genflow.nn import flops, seconds
from genflow.pipelines import Pipeline
from genflow.search.autodiffusion import autodiffusion, stages
from genflow.search.blocks import BlockSpace
from genflow.search.budgets import priced
from genflow.search.population import Population
from genflow.search.score import Cached, Simulated, error, finalists, frechet, split
from genflow.search.seeds import seeds_for
from genflow.search.teachers import Teacher
from genflow.search.times import TimeSpace
from genflow.solvers import SolverSchedule, build

STEPS, SHARE, CLASSES = 10, 0.7, 10
TEACHER = Teacher("heun", 32)
ROOT = Path(__file__).parents[1]


def pipeline(folder):
    """The pipeline in a folder, or a new one."""

    if folder is None:
        folder = Path(tempfile.mkdtemp()) / "digits"
        config = ROOT / "configs/rectified/digits.yaml"
        line = [sys.executable, "train.py", "fit", "-c", str(config), "--run", str(folder)]
        subprocess.run(line, cwd=ROOT, check=True)
        folder = folder / "pipeline"

    return Pipeline.from_pretrained(folder)


class Judges:
    """Scores on seeds that are not shared between searching, ranking and reporting."""

    def __init__(self, pipe, sizes, first):
        self.pipe = pipe
        self.seeds = split(*sizes, first=first)

        self.feature = features("random-conv", pipe.shape)
        total = MomentSum(self.feature.name, self.feature.digest)
        total.update(extract(self.feature, Digits().load().x))
        self.data = total.moments()
        self.final = self.errors(self.seeds.final)
        self.held_out = [
            (self.population(seeds), TEACHER.solve(self.population(seeds[:128])))
            for seeds in self.seeds.report
        ]

    def population(self, seeds):
        """Common noise and classes, of seeds."""

        label = torch.tensor([s % CLASSES for s in seeds])
        return Population.draw(self.pipe.denoiser, self.pipe.shape, seeds, {"label": label})

    def errors(self, seeds):
        """The score of teacher errors."""

        people = self.population(seeds)
        return Cached(Simulated(people, error(TEACHER.solve(people))))

    def report(self, schedule):
        """The held-out numbers of a schedule: distance to data, and error to the teacher."""

        found = {"distance": [], "error": []}

        for people, target in self.held_out:
            ((_, samples),) = people([schedule])
            found["distance"].append(frechet(self.data, self.feature, to_uint8)(samples))
            found["error"].append(error(target)(samples[: len(target)]))

        return {name: mean(values) for name, values in found.items()}


def best_of(archive, judges):
    """The best of five finalists."""

    return finalists(archive.top(5), [(5, judges.final)])[0].schedule


def preset(pipe, steps):
    return build(pipe.sampler, pipe.denoiser, steps).schedule


def searched_times(pipe, score, steps, budget, seed):
    """The best times for a number of full calls."""

    space = TimeSpace(pipe.denoiser.path, steps, sampler=pipe.sampler)
    schedules = [
        (n, s) for n, s in seeds_for(pipe.denoiser, steps) if isinstance(s, SolverSchedule)
    ]
    found = autodiffusion({"times": space}, score, budgets=[budget], seeds=schedules, seed=seed)
    return space, found.archives["times"]


def one_seed(pipe, costs, options, seed):
    """All contestants, searched with one seed: name → schedule; and the Pareto fronts."""

    sizes = (32, 128, options.samples)
    judges = Judges(pipe, (*sizes, options.groups), first=100_000 * (seed + 1))
    score = judges.errors(judges.seeds.search)
    counts, few_calls = options.evaluations, round(SHARE * STEPS)
    space, times = searched_times(pipe, score, STEPS, counts[0], seed)
    _, few = searched_times(pipe, score, few_calls, counts[0], seed)
    budget = SHARE * STEPS * costs.full

    contestants = {
        f"full, {STEPS} calls": preset(pipe, STEPS),
        f"full, {STEPS} calls, searched times": best_of(times, judges),
        f"full, {few_calls} calls": preset(pipe, few_calls),
        f"full, {few_calls} calls, searched times": best_of(few, judges),
    }
    reuse = BlockSpace(space, costs, budget, modes=("reuse",))
    rng = np.random.default_rng(seed)
    contestants["random reuse"] = reuse.fitted(times.best.schedule, rng)
    fronts = {}

    free = TimeSpace(pipe.denoiser.path, (few_calls, 2 * few_calls), sampler=pipe.sampler)
    both = ("reuse", "drop")
    searches = {
        "drop": (space, times.top(8), ("drop",)),
        "reuse": (space, times.top(8), ("reuse",)),
        "both": (space, times.top(8), both),
        f"both, {few_calls} to {2 * few_calls} steps": (free, times.top(4) + few.top(4), both),
    }

    for name, (where, first, modes) in searches.items():
        spaces = stages(where, costs, budget, modes=modes)
        del spaces["times"]
        elite = [e.schedule for e in first]
        found = autodiffusion(spaces, score, budgets=counts[1:], seeds=elite, seed=seed)
        contestants[f"searched {name}"] = best_of(found.archives["blocks"], judges)
        fronts[name] = [(e.cost / (STEPS * costs.full), e.value) for e in found.front]

    reports = {name: judges.report(s) for name, s in contestants.items()}
    return contestants, reports, fronts


def latency(pipe, contestants, rounds):
    """CPU time of 32 samples ÷ that of ten full calls, by turns."""

    people = Population.draw(
        pipe.denoiser, pipe.shape, range(32), {"label": torch.arange(32) % CLASSES}
    )

    def run(schedule):
        people._first = {}  # each contestant makes its first call itself
        list(people([schedule]))

    runs = {name: (lambda _, s=s: run(s)) for name, s in contestants.items()}
    return {name: r["ratio"] for name, r in contest(runs, None, rounds).items()}


def main():
    """Searches, reports, and writes the results."""

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pipeline", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--groups", type=int, default=1)
    parser.add_argument("--evaluations", type=int, nargs=4, default=[30, 50, 30, 40])
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()

    if options.quick:
        options.seeds, options.samples, options.evaluations = 1, 256, [10, 20, 10, 10]

    torch.set_num_threads(1)
    began = time.process_time()
    pipe = pipeline(options.pipeline)
    costs = flops(pipe.denoiser.net, pipe.shape)
    found = [one_seed(pipe, costs, options, seed) for seed in range(options.seeds)]
    names, full = list(found[0][0]), STEPS * costs.full
    times = latency(pipe, found[0][0], rounds=3 if options.quick else 9)
    measured = seconds(pipe.denoiser.net, pipe.shape, batch=32, repeats=5)
    results = {}

    for name in names:
        distances = [reports[name]["distance"] for _, reports, _ in found]
        base = [reports[names[0]]["distance"] for _, reports, _ in found]
        better = [min(reports[n]["distance"] for n in names[:2]) for _, reports, _ in found]
        results[name] = {
            "flops": [priced(schedules[name], costs) / full for schedules, _, _ in found],
            "latency": times[name],
            "distance": distances,
            "ratio": [d / b for d, b in zip(distances, base, strict=True)],
            "ratio_to_better": [d / b for d, b in zip(distances, better, strict=True)],
            "error": [reports[name]["error"] for _, reports, _ in found],
        }
    print(f"{time.process_time() - began:.0f} s of CPU time")
    write_results(
        "search_blocks",
        {
            "contestants": results,
            "fronts": [fronts for _, _, fronts in found],
            "costs": {"flops": costs.full, "saving": dict(costs.saving)},
            "seconds": {"full": measured.full, "saving": dict(measured.saving)},
        },
        argparse.Namespace(**{k: v for k, v in vars(options).items() if k != "pipeline"}),
    )


if __name__ == "__main__":
    main()
