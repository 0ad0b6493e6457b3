"""Jobs on a pipeline: many samples to a folder, and how far a folder is from the data.

A generating job writes numbered images, a grid, and a record of how each image was made. Image i
has seed i of the job, whatever the batch, the shard, or the machine; a killed job goes on where it
stood.
"""

__all__ = ["evaluate", "generate", "parse_seeds", "parse_shard", "prepare"]

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
import hashlib
import json
from pathlib import Path
import time
from typing import Any

import numpy as np
from PIL import Image
import torch
from torch import Tensor

from genflow import viz
from genflow.errors import UserError
from genflow.files import write_text, writing
from genflow.pipelines.pipeline import Pipeline
from genflow.pipelines.samples import Samples
from genflow.version import __version__

Report = Callable[[int, int], None]


def parse_seeds(text: str) -> list[int]:
    """Seeds from text such as ``"0-63,100"``.

    Raises:
        UserError: If the text is not of this form.
    """

    seeds: list[int] = []

    try:
        for part in text.split(","):
            low, _, high = part.strip().partition("-")
            seeds += range(int(low), int(high or low) + 1)
    except ValueError:
        raise UserError(f"seeds is '{text}': write numbers and ranges, as in 0-63,100.") from None

    return seeds


def parse_shard(text: str) -> tuple[int, int]:
    """The part i of n in text such as ``"0/4"``; parts count from 0.

    Raises:
        UserError: If the text is not of this form.
    """

    i, _, n = text.partition("/")

    if not (i.isdigit() and n.isdigit() and int(i) < int(n)):
        raise UserError(f"shard is '{text}': write i/n with 0 <= i < n, as in 0/4.")

    return int(i), int(n)


def generate(
    pipeline: Pipeline,
    output: Path,
    seeds: Sequence[int],
    *,
    label: Tensor | None = None,
    shard: tuple[int, int] = (0, 1),
    batch_size: int = 256,
    overwrite: bool = False,
    resume: bool = False,
    record: dict[str, Any] | None = None,
    report: Report | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Writes samples into a folder.

    Images become ``images/000000.png`` and so on, with ``grid.png`` and ``meta.json`` beside
    them; vectors become ``samples.npy`` with ``cloud.png``. With more than one shard, part i
    writes the images i, i + n and so on, and its own grid and record.

    Args:
        pipeline: The pipeline.
        output: The folder.
        seeds: One seed an image.
        label: The class of each image, with shape (n), or None.
        shard: The part of the work to do, and the number of parts.
        batch_size: How many are drawn at a time.
        overwrite: Whether a job that is there already is thrown away.
        resume: Whether a job with the same settings that is there already is gone on with.
        record: What else the record should say: the command, the name of the pipeline.
        report: Called with the numbers of images done and to do.
        options: The sampler, as in `Pipeline.build`.

    Returns:
        The record.

    Raises:
        UserError: If the folder is taken, or cannot be written.
    """

    # What cannot be sampled is refused before anything is written; prompts are not the sampler's.
    pipeline.build(**{k: v for k, v in options.items() if k not in ("prompt", "conditions")})
    i, n = shard
    suffix = "" if n == 1 else f"-{i}-of-{n}"
    file = output / f"meta{suffix}.json"
    indices = list(range(i, len(seeds), n))
    images = len(pipeline.shape) == 3
    made = [
        {
            **({"file": _name(k)} if images else {}),
            "seed": int(seeds[k]),
            "label": None if label is None else int(label[k]),
        }
        for k in indices
    ]
    settings = {
        "sampler": _described(pipeline, options),
        "shard": [i, n],
        "images" if images else "vectors": made,
        **(record or {}),
    }
    command = settings.pop("command", None)
    prepare(output, file, settings, n, overwrite, resume)

    done = [k for k in indices if images and (output / _name(k)).exists()]
    todo = sorted(set(indices) - set(done))
    meta = {
        **settings,
        "genflow": __version__,
        "torch": torch.__version__,
        "device": str(pipeline.device),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "status": "running",
    }
    write_text(file, _json(meta))

    clock = time.perf_counter()
    kept: list[Tensor] = []
    nfe = None
    part = None if label is None else label[todo]

    for batch in pipeline.batches(
        [seeds[k] for k in todo], part, batch_size=batch_size, **options
    ):
        nfe = batch.nfe
        kept = _store(output, batch, todo, kept, images)
        if report is not None:
            report(len(done) + sum(map(len, kept)), len(indices))

    seconds = time.perf_counter() - clock
    _picture(output, suffix, indices, kept, images, label)
    meta |= {
        "nfe": nfe,
        "seconds": round(seconds, 3),
        "per_second": round(len(todo) / seconds, 2) if seconds > 0 and todo else None,
        "status": "done",
    }
    write_text(file, _json(meta))

    return meta


def _name(index: int) -> str:
    return f"images/{index:06d}.png"


def _json(record: dict[str, Any]) -> str:
    """JSON with a line for each sample."""

    lines = {k: v for k, v in record.items() if k in ("images", "vectors")}
    head = {k: v for k, v in record.items() if k not in lines}
    text = json.dumps(head, indent=1, ensure_ascii=False)[:-2]

    for name, entries in lines.items():
        body = ",\n  ".join(json.dumps(e, ensure_ascii=False) for e in entries)
        text += f',\n "{name}": [\n  {body}\n ]'

    return text + "\n}\n"


def _digest(value: Any) -> str:
    """The sha256 of a condition's numbers, in hexadecimal."""

    numbers = torch.as_tensor(value).detach().cpu().to(torch.float64).contiguous()
    return hashlib.sha256(numbers.numpy().tobytes()).hexdigest()


def _described(pipeline: Pipeline, options: dict[str, Any]) -> dict[str, Any]:
    """The sampler's options as JSON values."""

    known = {k: v for k, v in options.items() if v is not None and k != "schedule"}

    if known.get("conditions"):
        known["conditions"] = {k: _digest(v) for k, v in known["conditions"].items()}

    schedule = options.get("schedule")

    if schedule is None and not {"sampler", "steps"} & set(known):
        schedule = pipeline.schedule
    if schedule is not None:
        return {**known, "schedule": json.loads(schedule.to_json())}

    return {"sampler": pipeline.sampler, "steps": pipeline.steps, **known}


def prepare(
    output: Path,
    file: Path,
    settings: Mapping[str, Any],
    n: int = 1,
    overwrite: bool = False,
    resume: bool = False,
) -> None:
    """Refuses a folder that is taken; empties it of an older job when told to.

    Args:
        output: The folder.
        file: The record of the job in it.
        settings: What must be the same for a job to be gone on with, as JSON values.
        n: The number of parts that share the folder.
        overwrite: Whether a job that is there already is thrown away.
        resume: Whether the same job, begun before, is gone on with.

    Raises:
        UserError: If the folder is taken, or holds another job.
    """

    if output.exists() and not output.is_dir():
        raise UserError(f"output '{output}' is a file: give a folder.")

    taken = sorted(output.iterdir()) if output.exists() else []
    others = [p for p in taken if n > 1 and p.name.startswith("meta-")]

    if not taken or (n > 1 and others and not file.exists() and not overwrite):
        return

    if resume and file.exists():
        before = json.loads(file.read_text(encoding="utf-8"))
        changed = [k for k, v in settings.items() if before.get(k) != v]
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
        if p.suffix in (".png", ".json", ".npy", ".safetensors", ".part") and p.is_file():
            p.unlink()


def _store(
    output: Path, batch: Samples, todo: list[int], kept: list[Tensor], images: bool
) -> list[Tensor]:
    """Writes a batch of images, or keeps a batch of vectors."""

    first = sum(map(len, kept))

    if not images:
        return [*kept, batch.x]

    for k, image in zip(todo[first : first + len(batch.x)], batch.images, strict=True):
        with writing(output / _name(k)) as part:
            image.save(part, format="png")

    return [*kept, batch.x[:, :0]]


def _picture(
    output: Path,
    suffix: str,
    indices: list[int],
    kept: list[Tensor],
    images: bool,
    label: Tensor | None,
) -> None:
    """The grid of the first images, or the vectors and their cloud."""

    if images:
        tiles = [np.atleast_3d(np.asarray(Image.open(output / _name(k)))) for k in indices[:100]]
        picture = (
            viz.grid_of(torch.from_numpy(np.stack(tiles)).permute(0, 3, 1, 2)) if tiles else None
        )
        name = f"grid{suffix}.png"
    else:
        x = torch.cat(kept) if kept else torch.empty(0, 2)
        with writing(output / f"samples{suffix}.npy") as part, part.open("wb") as stream:
            np.save(stream, x.numpy())
        colours = None if label is None else label[indices]
        picture = viz.cloud(x, colours) if x.shape[1] > 1 and len(x) else None
        name = f"cloud{suffix}.png"

    if picture is not None:
        with writing(output / name) as part:
            picture.save(part, format="png")


def evaluate(
    samples: Tensor,
    reference: Tensor,
    *,
    feature: str = "random-conv",
    seed: int = 0,
    device: str | None = None,
) -> dict[str, Any]:
    """How far samples are from the data, beside the data's own spread and beside noise.

    Args:
        samples: Images in uint8 with shape (n, C, H, W), or vectors with shape (n, d).
        reference: The data, likewise.
        feature: The name of the feature net, as `genflow.metrics.features` knows it.
        seed: The seed of the splits of the data.
        device: Where features are computed.

    Returns:
        The report of `genflow.metrics.compare`.

    Raises:
        UserError: If the shapes of samples and data differ.
    """

    from genflow.metrics import compare
    from genflow.metrics.features import features

    if samples.shape[1:] != reference.shape[1:]:
        raise UserError(
            f"the samples have shape {tuple(samples.shape[1:])} and the data "
            f"{tuple(reference.shape[1:])}: both must be alike, resize or convert one of them."
        )

    name = feature if samples.ndim == 4 else "identity"
    net = features(name, tuple(samples.shape[1:]))

    if device is not None and isinstance(net, torch.nn.Module):
        net.to(device)

    return compare(samples, reference, net, seed=seed)
