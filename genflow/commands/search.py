"""Searching for a schedule, from the command line."""

__all__ = ["search"]

from collections.abc import Callable
from pathlib import Path
import sys
import time
from typing import Any, get_args

from genflow.commands.choices import device_named
from genflow.errors import UserError, nearest


def search(
    pipeline: str,
    nfe: int = 5,
    method: str = "s3",
    budget: int = 300,
    output: str = "searched",
    score: str = "error",
    data: str | None = None,
    samples: int = 256,
    report_samples: int = 1024,
    share: float = 1.0,
    refine: int = 0,
    free: str = "times,relax",
    teacher: str = "rk4",
    teacher_steps: int = 64,
    label: str | None = None,
    prompt: str | None = None,
    guidance: float = 1.0,
    known: str | None = None,
    storage: str | None = None,
    patience: float = 3600.0,
    seed: int = 0,
    batch_size: int = 1024,
    device: str | None = None,
    resume: bool = False,
    join: bool = False,
) -> None:
    """Search a solver schedule for a pipeline: schedule.json, and a report.

    Args:
        pipeline: A saved pipeline, zoo:NAME, or the id of a repository of the Hugging Face hub.
        nfe: The number of calls of the network for a sample.
        method: s3, evolve, random, gradient, autodiffusion, tpe, nsga2, or cma-es.
        budget: The number of schedules to score; of gradient steps, for the method gradient.
        output: The folder to write to.
        score: error (to a teacher), rfid (to its cloud), frechet or kernel (to data).
        data: The data, for frechet and kernel: digits, CIFAR10:ROOT, a folder, a zip, ...
        samples: How many samples a schedule is scored with.
        report_samples: How many fresh samples each of three measurements for the report takes.
        share: The share of the full network's FLOPs a sample may cost, for autodiffusion.
        refine: The number of gradient steps on the winner at the end.
        free: What gradients tune: times, relax, or weights, which makes a table.json as well.
        teacher: The sampler that solves the same noise with many steps: rk4, heun, dopri5, ...
        teacher_steps: Its number of steps.
        label: Classes to go round in, as in 3 or 0,1,2 or names; every class by default.
        prompt: What to draw, for pipelines that draw from text.
        guidance: The weight of classifier-free guidance; 1 is none.
        known: Schedules of earlier searches to begin with, files with commas in between.
        storage: The address of a database for the ledger, instead of a file in the folder.
        patience: The seconds after which what another machine claimed is taken up by others.
        seed: The seed of the search.
        batch_size: How many samples are drawn at a time.
        device: cpu, cuda, ...; a GPU if there is one.
        resume: Whether the same search, begun before, is gone on with.
        join: Whether to work on a search that others are at.
    """

    from genflow.commands.search_methods import METHODS, Run, outcome
    from genflow.commands.search_problem import Problem
    from genflow.commands.search_report import write
    from genflow.data.named import named
    from genflow.pipelines import Pipeline
    from genflow.search.score import split
    from genflow.search.teachers import Teacher

    if method not in METHODS:
        raise UserError(f"method is '{method}'{nearest(method, METHODS)}")
    if nfe < 1 or budget < 1 or refine < 0:
        raise UserError(
            f"nfe is {nfe}, budget {budget} and refine {refine}: nfe and budget must be 1 "
            "or more, refine 0 or more."
        )

    folder = Path(output)
    kept = method in ("s3", "evolve", "random", "autodiffusion")
    _place(folder, kept, resume, join)
    pipe = Pipeline.from_pretrained(pipeline, device=device_named(device))
    problem = Problem(
        pipe,
        split(samples, max(samples, min(4 * samples, report_samples)), report_samples),
        score,
        Teacher(teacher, teacher_steps, batch_size=batch_size),
        folder / "cache",
        label,
        prompt,
        guidance,
        batch_size,
        data=None if data is None else named(data).reference(),
    )
    run = Run(
        problem,
        nfe,
        method,
        budget,
        share,
        refine,
        _free(free, refine),
        seed,
        worker=_worker() if join else 0,
        ledger=storage or str(folder / "ledger.journal"),
        patience=patience,
        report=_watch(budget),
        known=_known(known, pipe.denoiser.path),
    )
    began = time.perf_counter()
    archive = run.search()
    found = outcome(run, archive)
    settings = {"pipeline": str(pipeline), "seconds": round(time.perf_counter() - began, 1)}
    print(write(folder, run, found, settings))


def _free(text: str, refine: int) -> tuple[Any, ...]:
    """What gradient steps tune, as text."""

    from genflow.search.tuned import Free

    names = tuple(name.strip() for name in text.split(",") if name.strip())
    known = get_args(Free)

    for name in names or ("",):
        if name not in known:
            raise UserError(f"free is '{name}'{nearest(name, known)}")
    if "weights" in names and not refine:
        raise UserError(
            f"free is '{text}' and refine is 0: weights are tuned at the end of a search, give "
            "the number of gradients by --refine."
        )

    return names


def _place(folder: Path, kept: bool, resume: bool, join: bool) -> None:
    """Refuses a folder that is taken, or a search that is not there to go on with."""

    begun = (folder / "ledger.journal").exists()

    if (resume or join) and not kept:
        raise UserError(
            "resume and join need a ledger, which s3, evolve, random and autodiffusion keep: this "
            "method starts anew, leave them out."
        )
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output '{folder}' is a file: give a folder.")
    if not (resume or join) and folder.exists() and any(folder.iterdir()):
        raise UserError(
            f"output '{folder}' is not empty: give another folder, or say --resume true to go on "
            "with the same search, or --join true to work on it beside others."
        )
    if resume and not begun:
        raise UserError(f"output '{folder}' holds no search to go on with: leave resume out.")


def _worker() -> int:
    """A number that differs between workers."""

    import os
    import secrets

    return os.getpid() * 2**20 + secrets.randbelow(2**20)


def _known(text: str | None, path: Any) -> list[Any]:
    from genflow.solvers.files import read_solver

    files = [part.strip() for part in (text or "").split(",") if part.strip()]
    return [(Path(f).name, read_solver(f, path)) for f in files]


def _watch(budget: int) -> Callable[[Any, int], None]:
    """Prints how far a search is: the best so far, and the time left."""

    began = time.perf_counter()
    first: list[int] = []
    shown = [0.0]

    def told(archive: Any, budget: int) -> None:
        now, done = time.perf_counter(), len(archive)
        first.append(done)
        live = sys.stderr.isatty()

        if done < budget and now - shown[0] < (0.2 if live else 10):
            return

        shown[0] = now
        new = done - first[0]
        left = "" if new <= 0 else f", {_clock((now - began) / done * (budget - done))} left"
        best = f"best {archive.best.value:.5g} ({archive.best.origin})" if archive.kept else "none"
        bad = f", {archive.rejected} rejected" if archive.rejected else ""
        tau = f", τ {archive.stages[-1].tau:.2f}" if archive.stages else ""
        line = f"{done}/{budget}: {best}{tau}{bad}{left}"
        end = "\n" if not live or done >= budget else ""
        print(f"\r{line:<100}" if live else line, end=end, file=sys.stderr, flush=True)

    return told


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
