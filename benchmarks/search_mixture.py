"""Searches on a mixture of five Gaussians in the plane, on EDM's path: the truth is known."""

import math
from pathlib import Path
import time

from measure import write_results
import numpy as np
import torch

from genflow.models import Exact, Karras, Mixture
from genflow.search.population import Population
from genflow.search.recipes import plain
from genflow.search.refine import descend, refine
from genflow.search.score import Simulated, error
from genflow.search.seeds import presets, seeds_for
from genflow.search.teachers import Teacher
from genflow.search.usf import SolverSpace
from genflow.solvers import SolverSchedule

GOLDEN = Path(__file__).parents[1] / "tests" / "golden"


def truth():
    with np.load(GOLDEN / "usf.npz") as arrays:
        parts = [torch.from_numpy(arrays[f"mixture/{k}"]) for k in ("weights", "means", "covs")]
        noise = torch.from_numpy(arrays["xT"])
    with np.load(GOLDEN / "search.npz") as arrays:
        solution = torch.from_numpy(arrays["solution"])
    return Exact(Karras(), Mixture(*parts)), noise, solution


def drawn(denoiser, seeds):
    population = Population.draw(denoiser, (2,), seeds, dtype=torch.float64)
    return population, Teacher().solve(population)


def best(options):
    """The best preset, the best of all seeds, and what search and gradient find."""

    denoiser, noise, solution = truth()
    golden = Simulated(Population(denoiser, noise), error(solution))
    held = Simulated(*judged(drawn(denoiser, range(10**6, 10**6 + 4096))))
    check = drawn(denoiser, range(10**5, 10**5 + 1024))
    results = {}

    for calls in options.calls or (3, 5, 8, 10):
        known = list(presets(denoiser.path, calls))
        more = list(seeds_for(denoiser, calls, check[0].z[:64]))
        at_held, at_golden = held([s for _, s in known]), golden([s for _, s in known])
        seeds_held = held([s for _, s in more])
        k = int(np.nanargmin(at_held))
        found, tables, on_golden, seconds = [], [], [], []

        for seed in range(options.seeds):
            began = time.process_time()
            schedule, table = _found(denoiser, calls, seed, check, more, options)
            seconds.append(time.process_time() - began)
            found += held([schedule])
            tables += held([table])
            on_golden += golden([schedule])
            told_now = f"{found[-1]:.4f} {tables[-1]:.4f} {on_golden[-1]:.4f}"
            print(calls, seed, told_now, flush=True)

        results[calls] = {
            "preset": [known[k][0], at_held[k]],
            "seed": float(np.nanmin(seeds_held)),
            "found": found,
            "tables": tables,
            "golden": on_golden,
            "preset_golden": float(np.nanmin(at_golden)),
            "seconds": seconds,
        }

    write_results("search-mixture", {"cases": results}, options)


def judged(pair):
    return pair[0], error(pair[1])


def _found(denoiser, calls, seed, check, more, options):
    """A short evolutionary search, gradient steps from the best, and then a free table."""

    train = drawn(denoiser, range(10_000 * seed, 10_000 * seed + 512))
    score, space = Simulated(*judged(train)), SolverSpace(denoiser.path, calls)
    known = [(n, s) for n, s in more if isinstance(s, SolverSchedule) and space.legal(s)]
    values = score([s for _, s in known])
    order = sorted(range(len(known)), key=lambda i: (math.isnan(values[i]), values[i]))
    budget = options.budget or 120
    archive = plain(
        space, score, budget=budget, seeds=[known[i] for i in order[: budget // 4]], seed=seed
    )
    firsts = [e.schedule for e in archive.top(2)] + [known[order[0]][1]]
    options = {"iterations": options.steps or 200, "batch_size": 256, "check": check}
    first = descend(list(dict.fromkeys(firsts)), *train, starts=2, rate=0.03, **options)
    schedule = first[0].solver
    free = ("times", "relax", "weights")
    return schedule, refine(schedule, *train, free=free, rate=0.01, **options).solver
