"""Makes the models of the zoo: trains, measures, searches, and writes folders with cards.

    python assets/zoo/make.py --list
    python assets/zoo/make.py digits-1rf digits-2rf
    python assets/zoo/make.py --fashion data                     # all of them
    python assets/zoo/make.py digits-1rf --from digits-1rf=runs/digits/pipeline
    python assets/zoo/make.py --quick digits-1rf                 # minutes become seconds

Every stage leaves a file in ``runs/zoo/NAME``, and is skipped where it is there already, so that a
run that was stopped goes on: ``pipeline/`` (trained, or copied from where ``--from`` says),
``distances.json``, ``schedules/N.json`` with ``searches/N.json``, ``tables/N.json`` with
``tunings/N.json``, and at the end the folder of the model in ``assets/zoo``. Reflow and
distillation need the model that they start from, made or given.
``--stages`` does only some of them, ``--counts`` only some numbers of calls, and
``--again`` writes finished folders anew from what there is.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
import json
import os
from pathlib import Path
import shutil
import subprocess
import sys
import warnings

from cards import assemble
from measuring import BRED, UNSEEN, Ruler, distances, searched, tuned
from recipes import RECIPES, Recipe

from genflow.cli import main as genflow
from genflow.errors import UserError, nearest
from genflow.files import replacing, write_text
from genflow.pipelines import Pipeline
from genflow.solvers import SolverSchedule
from genflow.solvers.files import save_table

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
STAGES = ("train", "distances", "search", "tune", "card")


def trained(recipe: Recipe, options: argparse.Namespace) -> None:
    """The stage that leaves ``pipeline``."""

    work, given = options.work / recipe.name, options.given.get(recipe.name)

    if given is not None:
        with replacing(work / "pipeline", overwrite=True, mark="model_index.json") as part:
            shutil.copytree(given, part, dirs_exist_ok=True)
        if recipe.kind == "bridge":  # measured when it was fitted
            shutil.copy(given.parent / "distances.json", work)
        return

    words = [_word(w, recipe, options) for w in recipe.command]

    if recipe.kind == "bridge":
        line = [sys.executable, str(ROOT / words[0]), *words[1:]]
        subprocess.run(line, cwd=ROOT, check=True)
    else:
        words += ["--resume"] if words[0] == "fit" else []
        if genflow(words):
            raise UserError(f"model '{recipe.name}' was not trained: see above.")


def _word(word: str, recipe: Recipe, options: argparse.Namespace) -> str:
    """A word of a command with its folders filled in."""

    if word == "OUTPUT":
        return str(options.work / recipe.name)
    if word == "ROOT":
        return str(options.fashion)
    if word.startswith("configs/"):
        return str(ROOT / word)
    if word.startswith("zoo:"):
        teacher = options.work / word[4:] / "pipeline"
        if not teacher.exists():
            raise UserError(
                f"model '{recipe.name}' starts from '{word[4:]}', which is not in "
                f"'{options.work}': make it first, or give it by --from."
            )
        return str(teacher)
    return word


def measured(recipe: Recipe, options: argparse.Namespace, stages: Sequence[str]) -> None:
    """The stages that leave ``distances.json``, ``schedules`` and ``tables``, with reports."""

    work = options.work / recipe.name
    table = work / "distances.json"
    counts = recipe.search.counts if recipe.search is not None else ()
    counts = [n for n in counts if options.counts is None or n in options.counts]
    plain = "distances" in stages and not table.exists()

    def left(stage: str, reports: str) -> list[int]:
        made = {n for n in counts if (work / reports / f"{n}.json").exists()}
        return [n for n in counts if n not in made] if stage in stages else []

    search, tune = left("search", "searches"), left("tune", "tunings")
    tune = [n for n in tune if n in search or (work / f"schedules/{n}.json").exists()]

    if recipe.kind == "bridge" or not (search or tune or plain):
        return

    pipe = Pipeline.from_pretrained(work / "pipeline")
    data = recipe.data.reference(options.fashion)
    rulers = [Ruler(data, feature) for feature in (BRED, UNSEEN)]

    def rows() -> None:
        _save(table, distances(pipe, recipe.data, recipe.rows, rulers))

    def schedule(nfe: int) -> None:
        found, report = searched(pipe, nfe, recipe.data, recipe.search, rulers, work / "cache")
        found.save(work / f"schedules/{nfe}.json", pipe.denoiser.path)
        _save(work / f"searches/{nfe}.json", report)

    def weights(nfe: int) -> None:
        begun = SolverSchedule.load(work / f"schedules/{nfe}.json", pipe.denoiser.path)
        found, report = tuned(pipe, begun, recipe.data, recipe.search, rulers, work / "cache")
        save_table(found, work / f"tables/{nfe}.json", pipe.denoiser.path)
        _save(work / f"tunings/{nfe}.json", report)

    if plain:
        _told(recipe, "distances", rows)
    for nfe in search:
        _told(recipe, f"search with {nfe} calls", partial(schedule, nfe))
    for nfe in tune:
        _told(recipe, f"tuning with {nfe} calls", partial(weights, nfe))


def _save(file: Path, record: dict) -> None:
    write_text(file, json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _told(recipe: Recipe, stage: str, run: Callable[[], None]) -> None:
    """Runs a stage and says how long it took."""

    began = sum(os.times()[:4])  # with that of children
    print(f"{recipe.name}: {stage} ...", flush=True)
    run()
    print(f"{recipe.name}: {stage}, {sum(os.times()[:4]) - began:.0f} CPU s", flush=True)


def made(recipe: Recipe, options: argparse.Namespace) -> None:
    """All stages of a model that are asked for and not done."""

    work, target = options.work / recipe.name, options.output / recipe.name

    if "train" in options.stages and not (work / "pipeline" / "model_index.json").exists():
        _told(recipe, "train", lambda: trained(recipe, options))

    measured(recipe, options, options.stages)

    if "card" in options.stages and (options.again or not (target / "card.json").exists()):
        _told(recipe, "card", lambda: assemble(recipe, work, target))


def main() -> int:
    """Reads the command line, and makes models one after the other."""

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="models; all by default")
    parser.add_argument("--from", dest="given", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--fashion", type=Path, help="the torchvision root of Fashion-MNIST")
    parser.add_argument("--work", type=Path, help="runs/zoo by default")
    parser.add_argument("--output", type=Path, help="assets/zoo by default")
    parser.add_argument("--stages", nargs="+", default=STAGES, choices=STAGES)
    parser.add_argument(
        "--counts", nargs="+", type=int, help="search and tune these numbers of calls only"
    )
    parser.add_argument("--again", action="store_true", help="write finished folders anew")
    parser.add_argument("--quick", action="store_true", help="tiny numbers, in runs/zoo-quick")
    parser.add_argument("--list", action="store_true", help="list the models, and stop")
    options = parser.parse_args()

    if options.list:
        for recipe in RECIPES.values():
            print(f"{recipe.name:<22}{recipe.about}")
        return 0

    options.work = options.work or ROOT / "runs" / ("zoo-quick" if options.quick else "zoo")
    options.output = options.output or (options.work / "made" if options.quick else HERE)
    warnings.filterwarnings("ignore")

    try:
        options.given = {n: Path(f) for n, _, f in (g.partition("=") for g in options.given)}
        for name in (*options.names, *options.given):
            if name not in RECIPES:
                raise UserError(f"model is '{name}'{nearest(name, RECIPES)}")
        asked = [r for r in RECIPES.values() if not options.names or r.name in options.names]
        for recipe in asked:
            if "ROOT" in recipe.data.text and options.fashion is None:
                raise UserError(
                    f"fashion is missing: '{recipe.name}' is of Fashion-MNIST, give the folder "
                    "that holds FashionMNIST/raw."
                )
        for recipe in asked:
            made(recipe.smaller() if options.quick else recipe, options)
    except UserError as error:
        print(f"make.py: {error}", file=sys.stderr)
        return 2

    return 0


if __name__ == "__main__":
    sys.exit(main())
