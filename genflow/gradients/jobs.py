"""Jobs: an application in a folder of its own, which a killed run can be gone on with.

A folder holds ``report.json`` (the settings, the numbers before and after, every iteration),
``grid.png`` (before and after), the result, and ``state.safetensors`` while it is worked on.
"""

__all__ = ["Application", "run"]

from collections.abc import Mapping
from datetime import UTC, datetime
import json
import math
from pathlib import Path
import time
from typing import Any, Protocol

import torch

from genflow.errors import UserError
from genflow.files import write_text, writing
from genflow.gradients.loop import Report, Task, iterate
from genflow.pipelines.claims import prepare
from genflow.version import __version__


class Application(Protocol):
    """A [`Task`][genflow.gradients.loop.Task] with something to show for it."""

    def save(self, folder: Path) -> dict[str, Any]:
        """Writes the result; returns the report, with a ``picture``."""
        ...


def run(
    task: Task,
    output: Path,
    settings: Mapping[str, Any],
    *,
    command: str | None = None,
    every: int = 10,
    overwrite: bool = False,
    resume: bool = False,
    report: Report | None = None,
) -> dict[str, Any]:
    """Does a task in a folder.

    Args:
        task: An [`Application`][genflow.gradients.jobs.Application].
        output: The folder.
        settings: What must be the same for a job to be gone on with, as JSON values.
        command: The command, for the record.
        every: The number of iterations between two states.
        overwrite: Whether a job that is there already is thrown away.
        resume: Whether the same job, begun before, is gone on with.
        report: Looks on.

    Returns:
        The record; the one that is there if the job was done before.

    Raises:
        UserError: If the folder is taken or cannot be written.
    """

    if every < 1:
        raise UserError(f"every is {every}: it must be 1 or more.")

    file, state = output / "report.json", output / "state.safetensors"
    prepare(output, file, settings, overwrite=overwrite, resume=resume)

    if resume and file.exists():
        before = json.loads(file.read_text(encoding="utf-8"))
        if before["status"] == "done":
            return before

    record = {
        **settings,
        "genflow": __version__,
        "torch": torch.__version__,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "status": "running",
    }
    write_text(file, _json(record))

    clock, cpu = time.perf_counter(), time.process_time()
    history = iterate(task, state, every=every, report=report)
    found = task.save(output)

    with writing(output / "grid.png") as part:
        found.pop("picture").save(part, format="png")

    record |= {
        **found,
        "iterations_done": len(history),
        "seconds": round(time.perf_counter() - clock, 3),
        "cpu_seconds": round(time.process_time() - cpu, 3),
        "status": "done",
        "history": history,
    }
    write_text(file, _json(record))
    state.unlink(missing_ok=True)

    return record


def _json(record: Mapping[str, Any]) -> str:
    """JSON with a line for each iteration and each sample."""

    lines = {k: v for k, v in record.items() if k in ("history", "each")}
    head = {k: v for k, v in record.items() if k not in lines}
    text = json.dumps(_plain(head), indent=1, ensure_ascii=False)[:-2]

    for name, entries in lines.items():
        body = ",\n  ".join(json.dumps(_plain(e)) for e in entries)
        text += f',\n "{name}": [\n  {body}\n ]'

    return text + "\n}\n"


def _plain(value: Any) -> Any:
    """Numbers that JSON does not know become None."""

    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
