"""Regenerates every table of ``benchmarks/README.md``: runs the benchmarks, then makes the page.

    python benchmarks/run.py                 the full set where there is a GPU, else the CPU subset
    python benchmarks/run.py --cpu           the CPU subset: reduced options, under 20 minutes
    python benchmarks/run.py --full          everything as published in the page, on this machine
    python benchmarks/run.py --only sampling solvers --full
    python benchmarks/run.py --render        no runs: tables from the results that are there
    python benchmarks/run.py --list

Each benchmark is a process of its own, one after the other, and writes ``results/NAME.json``.
What ran with reduced options goes to ``results/quick``, with a page of its own, and never into
``README.md``, unless ``--keep`` says that it takes the place of the full results. A benchmark that
fails, or lacks what it needs, is told of at the end, and the others go on. Pipelines are those of
the zoo.
"""

import argparse
from dataclasses import dataclass
import os
from pathlib import Path
import subprocess
import sys
import time

from tables import plain, stale, written
import torch

from genflow.errors import UserError, nearest
from genflow.shelves import models

HERE = Path(__file__).resolve().parent
RESULTS, PAGE = HERE / "results", HERE / "README.md"
QUICK = RESULTS / "quick"
EDM = "zoo:digits-edm"
DIGITS = "zoo:digits-1rf"
FASHION = "zoo:fashion-1rf"
FLOWS = "1-RF=zoo:digits-1rf,2-RF=zoo:digits-2rf,distilled=zoo:digits-distilled"


@dataclass(frozen=True)
class Job:
    """A benchmark, and how it is run.

    Attributes:
        script: The file and its first arguments.
        reduced: The further arguments of the CPU subset; None leaves it out.
        minutes: About what the full run and the reduced one take on one CPU core.
        gpu: The further arguments where there is a GPU; None for what is of the CPU.
        needs: The models of the zoo that it asks for.
        files: The files or folders that it asks for, from the working directory.
    """

    script: tuple[str, ...]
    reduced: tuple[str, ...] | None
    minutes: tuple[float, float]
    gpu: tuple[str, ...] | None = None
    needs: tuple[str, ...] = ()
    files: tuple[str, ...] = ()


CUDA = ("--device", "cuda")
JOBS = {
    "sampling": Job(("sampling.py", "--rounds", "41"), ("--rounds", "9"), (3, 1.5), CUDA),
    "training": Job(("training.py",), ("--quick",), (5, 1.5)),
    "solvers": Job(
        ("solvers.py", "--pipeline", DIGITS), ("--quick",), (5, 1.2), needs=("digits-1rf",)
    ),
    "robustness": Job(
        ("robustness.py",),
        (
            *("--models", "runs/robustness-quick", "--D", "16", "inf", "--seeds", "1"),
            *("--train-steps", "200", "--n", "200", "--alpha", "0", "0.4", "--bits", "8", "4"),
            *("--steps", "7", "10"),
        ),
        (20, 1),
    ),
    "gradients": Job(
        ("gradients.py",),
        ("--quick",),
        (8, 2),
        CUDA,
    ),
    "flows": Job(
        ("flows.py", FLOWS),
        ("--n", "400", "--trajectories", "128"),
        (8, 2),
        CUDA,
        ("digits-1rf", "digits-2rf", "digits-distilled"),
    ),
    "search-mixture": Job(
        ("search.py", "mixture"), ("--seeds", "1", "--calls", "5", "--steps", "50"), (6, 0.5)
    ),
    "search-guided": Job(("search.py", "guided"), ("--seeds", "1", "--budget", "120"), (8, 0.5)),
    "search-guided-digits": Job(
        ("search.py", "guided", "--pipeline", EDM),
        ("--seeds", "1", "--budget", "60"),
        (15, 1),
        CUDA,
        ("digits-edm",),
    ),
    "search-digits": Job(
        ("search.py", "digits", "--pipeline", DIGITS), None, (80, 0), CUDA, ("digits-1rf",)
    ),
    "search-fashionmnist": Job(
        ("search.py", "digits", "--pipeline", FASHION, "--data", "FashionMNIST:data"),
        None,
        (290, 0),
        CUDA,
        ("fashion-1rf",),
        ("data/FashionMNIST",),
    ),
    "search-population": Job(("search.py", "population"), (), (2, 1.2), CUDA),
    "search-workers": Job(("search.py", "workers"), ("--seeds", "1", "--budget", "60"), (2, 0.4)),
    "search_blocks": Job(
        ("search_blocks.py", "--pipeline", DIGITS), None, (15, 0), None, ("digits-1rf",)
    ),
    "bridges": Job(("bridges.py",), ("--quick", "--only", "A-16-1"), (30, 0.5)),
    "metrics": Job(("metrics.py",), ("--quick",), (3, 0.3)),
    "loading": Job(("loading.py",), ("--quick",), (3, 0.4), CUDA),
    "digits": Job(("digits.py",), (), (0.5, 0.4), CUDA, ("digits-1rf",)),
    "zoo": Job(("zoo.py",), (), (0.2, 0.2), needs=("digits-1rf",)),
    "capture": Job(("capture.py",), None, (3, 0), ()),
}
"""The benchmarks by the name of their results. What a reduced run leaves out is said here only."""


def chosen(options: argparse.Namespace) -> dict[str, Job]:
    """The jobs that were asked for, and whose files are there.

    Raises:
        UserError: If a name is unknown.
    """

    for name in options.only or ():
        if name not in JOBS:
            raise UserError(f"only has '{name}'{nearest(name, JOBS)}")

    here = {n: j for n, j in JOBS.items() if (HERE / j.script[0]).exists()}
    return {n: j for n, j in here.items() if not options.only or n in options.only}


def command(job: Job, mode: str) -> list[str] | None:
    """The arguments of a job in a mode, ``full``, ``cpu`` or ``gpu``; None if it has none."""

    more = {"full": (), "cpu": job.reduced, "gpu": job.gpu}[mode]
    return None if more is None else [*job.script, *more]


def run(name: str, job: Job, mode: str, keep: bool) -> str:
    """Runs a benchmark in a process of its own; says in a few words what came of it."""

    line = command(job, mode)
    missing = [n for n in job.needs if n not in models()]

    if line is None:
        return {"gpu": "left out: it measures the CPU", "cpu": "left out of the CPU subset"}[mode]
    if missing:
        return f"left out: the zoo lacks {', '.join(missing)}"
    if absent := [f for f in job.files if not Path(f).exists()]:
        return f"left out: {', '.join(absent)} is not here"

    target = QUICK if mode == "cpu" and job.reduced and not keep else RESULTS
    environment = {**os.environ, "GENFLOW_RESULTS": str(target), "PYTHONUNBUFFERED": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, (str(HERE.parent), os.environ.get("PYTHONPATH")))
    )
    print(f"\n=== {name}: {' '.join(line)}", flush=True)
    began = time.perf_counter()
    code = subprocess.run(
        [sys.executable, str(HERE / line[0]), *line[1:]], env=environment, check=False
    ).returncode
    minutes = (time.perf_counter() - began) / 60
    return f"{minutes:.1f} minutes" if code == 0 else f"FAILED with exit code {code}"


def listed(jobs: dict[str, Job]) -> None:
    """Prints what would be run."""

    for name, job in jobs.items():
        for mode, minutes in zip(("full", "cpu", "gpu"), (*job.minutes, None), strict=True):
            line = command(job, mode)
            if line is not None:
                told = "" if minutes is None else f"  ({minutes:g} minutes)"
                print(f"{name:<22}{mode:<6}{' '.join(line)}{told}")

    total = sum(job.minutes[1] for job in jobs.values() if job.reduced is not None)
    print(f"\nThe CPU subset takes about {total:g} minutes on one core.")


def main() -> int:
    """Runs what is asked for, and makes the page."""

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--cpu", dest="mode", action="store_const", const="cpu")
    modes.add_argument("--gpu", dest="mode", action="store_const", const="gpu")
    modes.add_argument("--full", dest="mode", action="store_const", const="full")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these benchmarks alone")
    parser.add_argument("--keep", action="store_true", help="reduced results count as full ones")
    parser.add_argument("--render", action="store_true", help="make the page, run nothing")
    parser.add_argument("--list", action="store_true", help="list the benchmarks, run nothing")
    options = parser.parse_args()

    try:
        jobs = chosen(options)
    except UserError as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 2

    if options.list:
        listed(jobs)
        return 0

    mode = options.mode or ("gpu" if torch.cuda.is_available() else "cpu")
    began = time.perf_counter()
    told = {} if options.render else {n: run(n, j, mode, options.keep) for n, j in jobs.items()}

    if told:
        minutes = (time.perf_counter() - began) / 60
        print("\n" + "\n".join(f"{name:<22}{what}" for name, what in told.items()))
        print(f"{'together':<22}{minutes:.1f} minutes\n")
        if QUICK.exists():
            (QUICK / PAGE.name).write_text(plain(QUICK), encoding="utf-8")
            print(f"results/quick/{PAGE.name}: what ran with reduced options")

    print(f"{PAGE.name}: {'changed' if written(PAGE, RESULTS) else 'as it was'}")

    for name in stale(PAGE.read_text(encoding="utf-8"), RESULTS):
        print(f"results/{name}.json is in no table of {PAGE.name}: give it a mark.")

    return int(any("FAILED" in what for what in told.values()))


if __name__ == "__main__":
    sys.exit(main())
