"""What a job claims: its folder, and the settings under which it may be gone on with."""

__all__ = ["described", "prepare"]

from collections.abc import Mapping
import hashlib
import json
from pathlib import Path
import re
from typing import Any

import torch

from genflow.errors import UserError
from genflow.pipelines.pipeline import Pipeline
from genflow.solvers.files import solver_record


def _digest(value: Any) -> str:
    """The sha256 of a condition's numbers, in hexadecimal."""

    numbers = torch.as_tensor(value).detach().cpu().to(torch.float64).contiguous()
    return hashlib.sha256(numbers.numpy().tobytes()).hexdigest()


def described(pipeline: Pipeline, options: dict[str, Any]) -> dict[str, Any]:
    """The sampler's options as JSON values."""

    known = {k: v for k, v in options.items() if v is not None and k != "schedule"}

    if known.get("conditions"):
        known["conditions"] = {k: _digest(v) for k, v in known["conditions"].items()}

    schedule = options.get("schedule")

    if schedule is None and not {"sampler", "steps"} & set(known):
        schedule = pipeline.schedule
    if schedule is not None:
        return {**known, "schedule": solver_record(schedule)}

    return {"sampler": pipeline.sampler, "steps": pipeline.steps, **known}


def prepare(
    output: Path,
    file: Path,
    settings: Mapping[str, Any],
    part: tuple[int, int] = (0, 1),
    overwrite: bool = False,
    resume: bool = False,
) -> None:
    """Refuses a folder that is taken; empties it of an older job when told to.

    Args:
        output: The folder.
        file: The record of the job in it.
        settings: What must be the same for a job to be gone on with, as JSON values.
        part: The part of the job, and the number of parts that share the folder.
        overwrite: Whether a job that is there already is thrown away.
        resume: Whether the same job, begun before, is gone on with.

    Raises:
        UserError: If the folder is taken, or holds another job.
    """

    if output.exists() and not output.is_dir():
        raise UserError(f"output '{output}' is a file: give a folder.")

    n = part[1]
    taken = sorted(output.iterdir()) if output.exists() else []
    others = [p for p in taken if n > 1 and p.name.startswith("meta-")]

    if not taken or (n > 1 and others and not file.exists() and not overwrite):
        return

    if resume and file.exists():
        before = json.loads(file.read_text(encoding="utf-8"))
        asked = json.loads(json.dumps(settings))
        changed = [k for k, v in asked.items() if before.get(k) != v]
        if changed:
            raise UserError(
                f"output '{output}' holds a job with another {changed[0]}: resume needs the same "
                "settings, give another folder or say overwrite."
            )
        return

    if not overwrite:
        raise UserError(
            f"output '{output}' is not empty: give another folder, or say --overwrite true, or "
            "--resume true to go on with the same job."
        )

    for p in [*taken, *output.glob("images/*.png")]:
        kind = p.suffix in (".png", ".json", ".npy", ".safetensors", ".part")
        if kind and p.is_file() and _mine(p, *part):
            p.unlink(missing_ok=True)


def _mine(file: Path, i: int, n: int) -> bool:
    """Whether part i of n, rather than another one, removes a file of an older job.

    Parts may run at the same time, and one must not remove what another has just written: an
    image is removed by the part that will write it, a part's record and picture by that part, and
    everything else by part 0.
    """

    if file.parent.name == "images" and file.stem.isdigit():
        return int(file.stem) % n == i

    own = re.fullmatch(rf".*-(\d+)-of-{n}\..*", file.name)
    return int(own[1]) == i if own else i == 0
