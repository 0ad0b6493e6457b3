"""The digits: Fréchet distance to the data at a few calls, searched against every preset."""

import math
import time

from measure import write_results

from genflow.commands.search_problem import Problem
from genflow.data.named import named
from genflow.pipelines import Pipeline
from genflow.search.recipes import plain
from genflow.search.refine import descend
from genflow.search.score import finalists, split
from genflow.search.seeds import presets, seeds_for
from genflow.search.usf import SolverSpace
from genflow.solvers import SolverSchedule


def main(options):
    if options.pipeline is None:
        raise SystemExit("give --pipeline: train one with configs/rectified/digits.yaml")

    pipe = Pipeline.from_pretrained(options.pipeline, device=options.device)
    data, results = named("digits").reference(), {}

    for calls in options.calls or (3, 5, 10):
        ours, theirs, names, spent = [], [], [], []

        for seed in range(options.seeds):
            began = time.process_time()
            seeds = split(512, 1797, 1797, groups=1, first=100_000 * seed)
            problem = Problem(pipe, seeds, "frechet", data=data, batch_size=2048)
            schedule, preset, name = _searched(problem, calls, seed, options)
            spent.append(time.process_time() - began)
            a, b = problem.scored(seeds.report[0])([schedule, preset])
            ours.append(a)
            theirs.append(b)
            names.append(name)
            print(calls, seed, f"{a:.5f} {b:.5f} {a / b:.3f} {name}", flush=True)

        results[calls] = {"searched": ours, "preset": theirs, "names": names, "seconds": spent}

    write_results("search-digits", {"cases": results}, options)


def _searched(problem, calls, seed, options):
    """A schedule, and the best preset, both chosen on seeds other than those of the report."""

    seeds, path = problem.seeds, problem.denoiser.path
    population = problem.population(seeds.search)
    score, more = problem.scored(seeds.search), problem.scored(seeds.final)
    cond = {k: v[:64] for k, v in population.cond.items()}
    known = list(seeds_for(problem.denoiser, calls, population.z[:64], cond))
    count = len(list(presets(path, calls)))
    values = score([s for _, s in known])
    order = sorted(range(len(known)), key=lambda i: (math.isnan(values[i]), values[i]))
    few = [i for i in order if i < count][:8]
    preset = min(zip(more([known[i][1] for i in few]), few, strict=True))[1]

    space = SolverSpace(path, calls)
    legal = [known[i] for i in order if isinstance(known[i][1], SolverSchedule)]
    legal = [(n, s) for n, s in legal if space.legal(s)]
    refined = descend(
        [s for _, s in legal[:2]],
        population,
        problem.target(seeds.search),
        starts=2,
        iterations=options.steps // 4,
        batch_size=128,
        check=(population, problem.target(seeds.search)),
    )
    first = [("refined", r.solver) for r in refined] + legal[:30]
    budget = options.budget or 150
    archive = plain(space, score, budget=budget, seeds=first, seed=seed)
    best = finalists(archive.top(8), [(8, more)])[0].schedule
    return best, known[preset][1], known[preset][0]
