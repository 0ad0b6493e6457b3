r"""An evaluation: images in chunks, features in shards, one reduction.

The job goes through three doors. *Before* any image is drawn it opens both sides, compares their
form, makes the feature nets and claims its folder; whatever can go wrong for want of a file goes
wrong here. *Then* chunks of images are looked at, by any number of processes that need not know
of each other: image i has seed first + i, and a chunk is the same work whoever does it. *At last*
one process joins the features in the order of the images and measures. So distances do not depend
on ranks, shards, or on how often the job was killed, and no more than one batch of images is held
at any time.

What is *not* promised: that two kinds of machine, or two batch sizes, agree to the last bit.
"""

__all__ = ["evaluate"]

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
import os
from pathlib import Path
import time
from typing import Any

from torch import Tensor

from genflow.data.base import DataModule
from genflow.errors import UserError
from genflow.evaluation.chunks import Chunk, Shards, cut, look_at
from genflow.evaluation.folders import agreeing, claim, finish, settings_of, turn, working
from genflow.evaluation.forms import Form, check_alike
from genflow.evaluation.opening import Named, opened_data, opened_samples
from genflow.evaluation.pictures import copies, picture
from genflow.evaluation.plans import METRICS, Plan, planned
from genflow.evaluation.ranks import Ranks, gathered
from genflow.evaluation.reduction import measured
from genflow.evaluation.references import References, reference_of
from genflow.evaluation.reports import assembled
from genflow.evaluation.sources import Source
from genflow.metrics.references import Reference
from genflow.pipelines import Pipeline

Say = Callable[[str], None]
Report = Callable[[int, int], None]


@dataclass
class Job:
    """What an evaluation has opened before it begins.

    Attributes:
        source: The samples.
        rows: The number in the source of each image of the job.
        data: What they are compared with.
        plan: The feature nets and the metrics.
        n: The number of images of a range of seeds.
        repeats: The number of ranges.
        seed: The seed of everything random in the metrics.
        chunks: All images, in chunks.
        shards: The files.
        shard: The part of the chunks that is done here, and the number of parts.
        batch_size: How many images are held at once.
        halvings: How often the data are halved for the floors.
        ranks: The processes that share this part.
        say: Told what a person should know.
        references: The references by the names of the nets, once they were found.
    """

    source: Source
    rows: list[int]
    data: Source | References
    plan: Plan
    n: int
    repeats: int
    seed: int
    chunks: list[Chunk]
    shards: Shards
    shard: tuple[int, int]
    batch_size: int
    halvings: int
    ranks: Ranks
    say: Say
    references: dict[str, Reference] = field(default_factory=dict)

    def look(self, gaps: Iterable[Chunk], report: Report | None) -> int:
        """Looks at this rank's part of some chunks; returns the number of images."""

        todo = list(gaps)[self.ranks.rank :: self.ranks.world]
        total, seen = sum(map(len, todo)), 0
        shown = self.source.shown(self.n)

        def passed(count: int) -> None:
            nonlocal seen
            seen += count
            if report is not None and self.ranks.leads:
                report(seen, total)

        for chunk in todo:
            found = look_at(
                self.source, self.plan.nets, chunk, self.rows, self.batch_size, shown, passed
            )
            self.shards.write(chunk, found, {"nfe": getattr(self.source, "nfe", None)})

        return total

    def compare(self) -> dict[str, Any]:
        """The references, where they are still to be found."""

        for name, net in self.plan.nets.items():
            if name not in self.references:
                points = self.plan.points(name) or self.halvings > 0  # floors need them, too
                self.references[name] = reference_of(self.data, net, points=points, say=self.say)
        return self.references


def evaluate(
    samples: Named | Tensor | Pipeline | DataModule | Source,
    data: Named | Tensor | DataModule | Source,
    *,
    output: str | os.PathLike[str] | None = None,
    n: int | None = None,
    seed: int = 0,
    repeats: int = 1,
    label: str | None = None,
    feature: str | None = None,
    metrics: str = METRICS,
    inception_weights: str | os.PathLike[str] | None = None,
    channels: int | None = None,
    size: int | None = None,
    skip_unreadable: bool = False,
    batch_size: int = 256,
    chunk: int = 1000,
    halvings: int = 5,
    device: str | None = None,
    dtype: str | None = None,
    shard: tuple[int, int] = (0, 1),
    reduce: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    command: str | None = None,
    say: Say = print,
    report: Report | None = None,
    **sampler: Any,
) -> dict[str, Any] | None:
    """Measures how far samples are from data.

    Args:
        samples: A pipeline, its folder or hub id; a folder or zip of images; a ``.npz`` or
            ``.npy`` file; the folder of a generating job; a tensor.
        data: The same but for pipelines; or a data set by name; or a stored reference.
        output: A folder for the job and its report, or a ``.json`` file for the report alone;
            nothing is kept if None.
        n: The number of samples; as many as there are, or as there are data, if None.
        seed: The first seed of a pipeline's samples; the seed of everything that is random in the
            metrics.
        repeats: The number of ranges of seeds that a pipeline is drawn from, each of n samples.
        label: Classes to go round in, with commas; every class if None.
        feature: Feature nets, with commas; see `genflow.evaluation.plans.planned`.
        metrics: Metrics, with commas; likewise.
        inception_weights: The file of the Inception network.
        channels: 1 or 3, to convert both sides to grey or to colour.
        size: The side to which both are brought.
        skip_unreadable: Whether image files that cannot be decoded are left out and counted.
        batch_size: How many images are held at once.
        chunk: The number of images that are drawn and stored together.
        halvings: How often the data are halved at random for the floors; 0 for no floors.
        device: Where pipelines and feature nets live; if None the CPU, or where they are.
        dtype: What the network of a pipeline that is loaded computes in, such as ``"bfloat16"``;
            what it was saved in if None. Features are computed in float32.
        shard: The part of the chunks to do, and the number of parts.
        reduce: Whether only the last step is done: what all shards have seen is measured.
        resume: Whether the same job, begun before in the folder, is gone on with.
        overwrite: Whether an older job in the folder is thrown away.
        command: What the report says that was called.
        say: Told what a person should know.
        report: Called with the numbers of images done and to do.
        sampler: The sampler of a pipeline, as in `Model.build`: sampler, steps, guidance, …

    Returns:
        The report as JSON values, on the process that made it; None on others.

    Raises:
        UserError: If anything cannot be used; before any image is drawn where that can be known.

    Example:
        >>> report = evaluate("runs/digits/pipeline", "digits", n=500, output="out/report")
        >>> report["measures"]["random-conv"]["metrics"]["frechet"]["ratio"]
    """

    began = time.perf_counter()
    form = Form(channels, size)
    _check(output, shard, resume, overwrite, batch_size, halvings)

    with gathered() as ranks:
        opening = {"skip_unreadable": skip_unreadable, "ranks": ranks}
        against = opened_data(data, form, **opening)
        source, rows = opened_samples(
            samples,
            form,
            n=n,
            count=len(against),
            seed=seed,
            repeats=repeats,
            label=label,
            device=device,
            dtype=dtype,
            sampler=sampler,
            **opening,
        )
        check_alike(source.shape, against.shape)
        for side, count in (("samples", len(rows) // repeats), ("data", len(against))):
            if count < 2:
                raise UserError(f"there are {count} {side}: a distance needs 2 or more.")
        told = say if ranks.leads else (lambda text: None)
        plan = _plan(feature, metrics, against, inception_weights, told).to(device)
        n = len(rows) // repeats

        with working(output, ranks) as folder:
            digests = {name: net.digest for name, net in plan.nets.items()}
            job = Job(
                source=source,
                rows=rows,
                data=against,
                plan=plan,
                n=n,
                repeats=repeats,
                seed=seed,
                chunks=cut(n, chunk, repeats),
                shards=Shards(folder, digests),
                shard=shard,
                batch_size=batch_size,
                halvings=halvings,
                ranks=ranks,
                say=told,
            )
            if not reduce:
                taken = {"resume": resume, "overwrite": overwrite, "command": command}
                _look(job, folder, report, taken)
            if not ranks.leads:
                return None
            return _reduced(job, folder, output, command, began, reduce)


def _look(job: Job, folder: Path, report: Report | None, taken: dict[str, Any]) -> None:
    """The first half of a job: claims the folder, finds the gaps, fills them."""

    ranks, (i, n) = job.ranks, job.shard
    ranks.agree(lambda: claim(folder, settings_of(job), job.shard, **taken))
    gaps = ranks.agree(lambda: [c for c in job.chunks[i::n] if not job.shards.done(c)])
    kept = sum(map(len, job.chunks[i::n])) - sum(map(len, gaps))

    if kept:
        job.say(f"resumed: {kept} images were seen before, {sum(map(len, gaps))} are left")

    def work() -> int:
        if ranks.leads and n == 1:
            job.compare()  # what can go wrong with the data goes wrong before hours of sampling
        return job.look(gaps, report)

    ranks.together(work)


def _reduced(
    job: Job,
    folder: Path,
    output: str | os.PathLike[str] | None,
    command: str | None,
    began: float,
    alone: bool,
) -> dict[str, Any] | None:
    """The second half: joins, measures and reports, once every chunk is there."""

    agreeing(folder, settings_of(job))
    missing = [c for c in job.chunks if not job.shards.done(c)]

    if missing and alone:
        raise UserError(
            f"{len(missing)} of {len(job.chunks)} chunks in '{folder}' are missing or damaged: "
            "run their shards again with --resume true."
        )
    if missing:
        job.say(f"{folder}: {len(missing)} of {len(job.chunks)} chunks are left to other shards")
        return None

    with turn(folder, job.shard, alone) as mine:
        if not mine:
            job.say(
                f"{folder}: another shard measures; should it have been stopped, say --reduce true"
            )
            return None

        records = [job.shards.record(c) for c in job.chunks]
        clock = time.perf_counter()
        measures = measured(job, job.compare())
        seconds = {"measuring": time.perf_counter() - clock, "total": time.perf_counter() - began}
        made = assembled(job, measures, records, seconds, command)
        pictures = {"grid": picture(job), "closest": copies(job, measures)}
        finish(folder, output, made, records, pictures)
        return made


def _check(
    output: str | os.PathLike[str] | None,
    shard: tuple[int, int],
    resume: bool,
    overwrite: bool,
    batch_size: int,
    halvings: int,
) -> None:
    if halvings < 0 or halvings == 1:
        raise UserError(
            f"halvings is {halvings}: 2 or more are needed for a spread, or 0 for no floors."
        )
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}: it must be 1 or more.")
    if output is None or Path(output).suffix == ".json":
        told = "resume" if resume else "shard" if shard[1] > 1 else None
        if told is not None:
            raise UserError(f"{told} is given, but output is no folder: give a folder to work in.")
    if overwrite and shard[1] > 1:
        raise UserError(
            f"overwrite is true for shard {shard[0]}/{shard[1]}, and would throw away the work of "
            "the others: remove the folder first."
        )


def _plan(
    feature: str | None,
    metrics: str,
    data: Source | References,
    weights: str | os.PathLike[str] | None,
    say: Say,
) -> Plan:
    """The nets and metrics; with stored references those of the references."""

    stored = isinstance(data, References)
    names = data.features if stored and feature is None else feature
    plan = planned(names, metrics, data.shape, inception_weights=weights, say=say)

    if stored:
        for net in plan.nets.values():
            data.of(net)
    return plan
