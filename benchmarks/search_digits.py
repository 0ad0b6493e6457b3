"""Images: Fréchet distance to the data at a few calls, searched against every preset.

The search is that of ``genflow search --method evolve --score frechet --refine N --free weights``:
a schedule, and then its table with weights that follow the distance downhill. The best preset is
found by successive halving on the same distance. All are measured on samples that nothing was
chosen by, also on a feature that has no part in the search. The floor, what two halves of the
data are apart, is told at equal numbers of images: no search can go below it.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
import time

from measure import write_results

from genflow.commands.search_methods import Run, outcome
from genflow.commands.search_problem import Problem
from genflow.data.named import named
from genflow.metrics import compare
from genflow.metrics.features import features
from genflow.pipelines import Pipeline
from genflow.search.score import ranked, split
from genflow.search.seeds import presets

FEATURES = ("random-conv", "genflow-small")
"""The feature of the search, and one that it never sees."""

SEARCH, FINAL, REPORT = 512, 1024, 1797
"""The samples of the search, of its finalists, and of the numbers in the table."""

MOST = 10_000
"""The images of the data that samples are compared with, at most."""

BUDGET, STEPS = 24, 24
"""The schedules that are scored, and the gradients of the refinement."""


def main(options):
    if options.pipeline is None:
        raise SystemExit("give --pipeline, such as zoo:digits-1rf")

    pipe = Pipeline.from_pretrained(options.pipeline, device=options.device)
    data, results = named(options.data).reference(MOST), {}

    for calls in options.calls or (3, 5, 8, 10):
        cells = [_cell(pipe, data, calls, seed, options) for seed in range(options.seeds)]
        results[calls] = {key: [cell[key] for cell in cells] for key in cells[0]}

    settings = {"samples": REPORT, "features": FEATURES}
    name = f"search-{options.data.partition(':')[0].lower()}"
    write_results(name, {**settings, "cases": results}, options)


def _cell(pipe, data, calls, seed, options):
    """A search: the distances of what it found and of the best preset, over the floor."""

    began = time.process_time()
    seeds = split(SEARCH, FINAL, REPORT, groups=1, first=100_000 * seed)
    problem = Problem(pipe, seeds, "frechet", data=data, feature=FEATURES[0], batch_size=2048)

    with TemporaryDirectory() as folder:
        run = Run(
            problem,
            calls,
            "evolve",
            options.budget or BUDGET,
            refine=options.steps or STEPS,
            free=("times", "relax", "weights"),
            seed=seed,
            ledger=str(Path(folder) / "ledger.journal"),
        )
        found = outcome(run, run.search())

    spent = time.process_time() - began
    name, preset = _preset(run)
    solvers = {"preset": preset, "searched": found.schedule, "table": found.table}
    solvers["table"] = solvers["table"] or found.schedule
    drawn = dict(problem.population(seeds.report[0])(list(solvers.values())))
    cell = {"names": name, "seconds": spent}

    for feature in (features(f, tuple(data.shape[1:])) for f in FEATURES):
        for i, who in enumerate(solvers):
            report = compare(problem.decoded(drawn[i]), data, feature)
            at_floor, floor = report["distance_at_floor_n"]["mean"], report["floor"]["mean"]
            cell[f"{who}, {feature.prefix}"] = at_floor / floor

    told = ", ".join(f"{k} {v:.2f}" for k, v in cell.items() if k != "names")
    print(f"{calls} calls, seed {seed}: {told}; {name}", flush=True)
    return cell


def _preset(run):
    """The best preset by seeds other than those of the report."""

    problem, seeds = run.problem, run.problem.seeds
    names = {name for name, _ in presets(problem.denoiser.path, run.nfe)}
    known = [(name, solver) for name, solver in run.ranked if name in names]
    rungs = [(24, problem.scored(seeds.search)), (8, problem.scored(seeds.final))]
    return ranked(known, rungs)[0][:2]
