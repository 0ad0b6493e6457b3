"""The folder of an evaluation: who may work in it, and what is left in it at the end.

::

    meta.json                     what was asked for; with shards one each, as meta-0-of-4.json
    chunks/ features/ pictures/   see `genflow.evaluation.chunks`
    manifest.json                 the records of all chunks, once they are done
    report.json report.md         the report
    grid.png closest.png          samples beside data; samples above their nearest data
"""

__all__ = ["agreeing", "claim", "finish", "settings_of", "turn", "working"]

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from hashlib import sha256
import json
import os
from pathlib import Path
import shutil
import tempfile
from typing import TYPE_CHECKING, Any

from PIL import Image

from genflow.errors import UserError
from genflow.evaluation.pages import page
from genflow.evaluation.ranks import Ranks
from genflow.files import write_text, writing
from genflow.pipelines.claims import prepare
from genflow.version import __version__

if TYPE_CHECKING:
    from genflow.evaluation.jobs import Job

PARTS = ("chunks", "features", "pictures")


def _is_folder(output: str | os.PathLike[str] | None) -> bool:
    return output is not None and Path(output).suffix != ".json"


@contextmanager
def working(output: str | os.PathLike[str] | None, ranks: Ranks) -> Iterator[Path]:
    """The folder to work in: the output, or one that is gone when the job ends."""

    if _is_folder(output):
        yield Path(output)
        return

    made = ranks.agree(lambda: tempfile.mkdtemp(prefix="genflow-evaluation-"))
    try:
        yield Path(made)
    finally:
        if ranks.leads:
            shutil.rmtree(made, ignore_errors=True)


def settings_of(job: "Job") -> dict[str, Any]:
    """What must be the same for a job to be gone on with, as JSON values."""

    label = getattr(job.source, "label", None)
    told = {
        "n": job.n,
        "repeats": job.repeats,
        "seed": job.seed,
        "chunks": len(job.chunks),
        "nets": {name: net.digest for name, net in job.plan.nets.items()},
        "data": job.data.record(),
        "samples": job.source.record(),
        "labels": None if label is None else sha256(label.cpu().numpy().tobytes()).hexdigest(),
    }
    return json.loads(json.dumps(told))


def claim(
    folder: Path,
    settings: Mapping[str, Any],
    shard: tuple[int, int],
    *,
    resume: bool,
    overwrite: bool,
    command: str | None,
) -> None:
    """Takes a folder, and writes down what for.

    Raises:
        UserError: If it is taken, or holds another job.
    """

    i, n = shard
    file = folder / ("meta.json" if n == 1 else f"meta-{i}-of-{n}.json")

    if overwrite:
        _check_older(folder)

    prepare(folder, file, settings, shard, overwrite, resume)

    if n > 1 and _records(folder):
        agreeing(folder, settings)  # with the shards that were here before, ere work is in vain
    if overwrite:  # of a job without shards: no other process works in the folder
        for part in PARTS:
            shutil.rmtree(folder / part, ignore_errors=True)

    started = datetime.now(UTC).isoformat(timespec="seconds")
    about = {"shard": list(shard), "genflow": __version__, "started": started, "command": command}
    write_text(file, _text({**settings, **about}))


def _records(folder: Path) -> list[Path]:
    return sorted(folder.glob("meta*.json"))


def _check_older(folder: Path) -> None:
    """Refuses to empty a folder that was never an evaluation's."""

    taken = folder.is_dir() and any(folder.iterdir())
    ours = (json.loads(f.read_text(encoding="utf-8")) for f in _records(folder))

    if taken and not any("nets" in record for record in ours):
        raise UserError(
            f"output '{folder}' is not empty, and holds no evaluation that could be overwritten: "
            "give another folder."
        )


def agreeing(folder: Path, settings: Mapping[str, Any]) -> None:
    """Compares a job with what every shard in the folder was told.

    Raises:
        UserError: If a shard was told something else, or there is none.
    """

    files = _records(folder)

    if not files:
        raise UserError(f"'{folder}' holds no evaluation: meta.json is missing.")

    for file in files:
        before = json.loads(file.read_text(encoding="utf-8"))
        changed = [k for k, v in settings.items() if before.get(k) != v]
        if changed:
            raise UserError(
                f"'{file}' is of a job with another {changed[0]}: all shards and the reduction "
                "need the same settings."
            )


@contextmanager
def turn(folder: Path, shard: tuple[int, int], alone: bool) -> Iterator[bool]:
    """Whether it falls to this process to reduce, where two shards may end at the same time.

    A mark that a killed process has left is nothing to one that was asked to reduce alone.
    """

    if shard[1] == 1 and not alone:
        yield True
        return

    mark = folder / "reducing"
    try:
        mark.open("x").close()
    except FileExistsError:
        if not alone:
            yield False
            return

    try:
        yield True
    finally:
        with suppress(OSError):
            mark.unlink()


def finish(
    folder: Path,
    output: str | os.PathLike[str] | None,
    report: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
    pictures: Mapping[str, Image.Image | None],
) -> None:
    """Writes what a job leaves: the report, its page, pictures by name, the manifest.

    Raises:
        UserError: If a file cannot be written.
    """

    if output is None:
        return
    if not _is_folder(output):
        write_text(output, _text(report))
        return

    write_text(folder / "manifest.json", _text({"chunks": list(records)}))
    drawn = {name: picture for name, picture in pictures.items() if picture is not None}
    for name, picture in drawn.items():
        with writing(folder / f"{name}.png") as part:
            picture.save(part, format="png")
    write_text(folder / "report.md", page(report, list(drawn)))
    write_text(folder / "report.json", _text(report))


def _text(record: Mapping[str, Any]) -> str:
    return json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
