"""What the predictor of S³ is worth: the same evolution without one, and random search beside it.

On the mixture in the plane, or with ``--pipeline`` on a network of digits; the score is the error
to a teacher, from common noise.
"""

from measure import write_results
from search_mixture import drawn, judged, truth
import torch

from genflow.pipelines import Pipeline
from genflow.search.population import Population
from genflow.search.recipes import plain, random, s3
from genflow.search.score import Simulated, error
from genflow.search.teachers import Teacher
from genflow.search.usf import SolverSpace


def main(options):
    name, path, score, held = _network(options) if options.pipeline else _mixture()
    budget, results = options.budget or 400, {}

    for calls in options.calls or (5,):
        space = SolverSpace(path, calls)
        for seed in range(options.seeds):
            aim, law = score(seed), {"budget": budget, "seed": seed}
            runs = {
                "random": random(space, aim, **law),
                "evolution": plain(space, aim, **law),
                "S³": s3(space, aim, **law),
            }
            results[f"{calls}/{seed}"] = _compared(runs, held)
            print(calls, seed, *(f"{a.best.value:.4f}" for a in runs.values()), flush=True)

    write_results(name, {"budget": budget, "cases": results}, options)


def _compared(runs, held):
    """The curves of three searches, their ends on fresh noise, and when S³ had caught up."""

    goal, curve = runs["evolution"].best.value, runs["S³"].curve()
    ends = held([a.best.schedule for a in runs.values()])
    return {
        "curves": {name: a.curve() for name, a in runs.items()},
        "held": dict(zip(runs, ends, strict=True)),
        "reached": next((k + 1 for k, v in enumerate(curve) if v <= goal), None),
        "taus": [s.tau for s in runs["S³"].stages],
    }


def _mixture():
    denoiser, _, _ = truth()
    held = Simulated(*judged(drawn(denoiser, range(10**6, 10**6 + 4096))))

    def score(seed):
        return Simulated(*judged(drawn(denoiser, range(10_000 * seed, 10_000 * seed + 256))))

    return "search-guided", denoiser.path, score, held


def _network(options):
    pipe = Pipeline.from_pretrained(options.pipeline, device=options.device)

    def judge(first, n):
        label = torch.arange(n, device=options.device) % 10
        seeds = range(first, first + n)
        population = Population.draw(
            pipe.denoiser, pipe.shape, seeds, {"label": label}, device=options.device
        )
        return Simulated(population, error(Teacher("heun", 24).solve(population)))

    def score(seed):
        return judge(10_000 * seed, 16)

    return "search-guided-digits", pipe.denoiser.path, score, judge(10**6, 256)
