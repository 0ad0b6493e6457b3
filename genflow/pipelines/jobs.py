"""Jobs on a pipeline: many samples to a folder.

A generating job writes numbered images, a grid, and a record of how each image was made. Image i
has seed i of the job, whatever the batch, the shard, or the machine; a killed job goes on where it
stood. While images are written, the next ones are drawn already.
"""

__all__ = [
    "carry_out",
    "generate",
    "parse_seeds",
    "parse_shard",
    "save_picture",
    "tiles",
]

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
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
from genflow.pipelines.claims import described, prepare
from genflow.pipelines.overlap import Writer, check_stream
from genflow.pipelines.pipeline import Pipeline
from genflow.pipelines.samples import Samples
from genflow.version import __version__

Report = Callable[[int, int], None]

TEXTS = ("prompt", "negative")
"""The options that may hold a text for each image."""


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
    capture: bool = False,
    overlap: bool = False,
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
        report: Called, in the thread that writes, with the numbers of images done and to do.
        capture: As in `Pipeline.batches`; the images do not depend on it.
        overlap: Likewise.
        options: The sampler, as in `Pipeline.build`.

    Returns:
        The record.

    Raises:
        UserError: If the folder is taken, or cannot be written.
    """

    # What cannot be sampled is refused before anything is written; prompts are not the sampler's.
    pipeline.check_noise()
    sampler = pipeline.build(
        **{k: v for k, v in options.items() if k not in ("prompt", "conditions")}
    )
    if capture:
        sampler.capture()
    if overlap:
        check_stream(pipeline.device)
    each = {k: options.pop(k) for k in TEXTS if isinstance(options.get(k), list | tuple)}
    made = [
        {
            "seed": int(seed),
            "label": None if label is None else int(label[k]),
            **{name: texts[k] for name, texts in each.items()},
        }
        for k, seed in enumerate(seeds)
    ]

    def draw(todo: list[int]) -> Iterator[Samples]:
        part = None if label is None else label[todo]
        texts = {name: [given[k] for k in todo] for name, given in each.items()}
        own = [seeds[k] for k in todo]
        how = {"batch_size": batch_size, "capture": capture, "overlap": overlap}
        yield from pipeline.batches(own, part, **how, **options, **texts)

    return carry_out(
        pipeline,
        output,
        made,
        draw,
        described(pipeline, options),
        shard=shard,
        overwrite=overwrite,
        resume=resume,
        record=record,
        report=report,
        picture=lambda suffix, indices, x: _picture(output, suffix, indices, x, label),
    )


def carry_out(
    pipeline: Pipeline,
    output: Path,
    made: Sequence[dict[str, Any]],
    draw: Callable[[list[int]], Iterator[Samples]],
    sampler: dict[str, Any],
    *,
    shard: tuple[int, int],
    overwrite: bool,
    resume: bool,
    record: dict[str, Any] | None,
    report: Report | None,
    picture: Callable[[str, list[int], Tensor | None], None],
) -> dict[str, Any]:
    """Does what every job does: claims a folder, leaves out what is there, writes, records.

    Args:
        pipeline: The pipeline.
        output: The folder.
        made: What the record says about each sample.
        draw: Makes the samples of some numbers, batch by batch.
        sampler: What the record says about the sampler.
        shard: The part of the work to do, and the number of parts.
        overwrite: Whether a job that is there already is thrown away.
        resume: Whether a job with the same settings that is there already is gone on with.
        record: What else the record should say.
        report: Called, in the thread that writes, with the numbers of samples done and to do.
        picture: Draws the end: called with the suffix of the files, the numbers, and the vectors
            if samples are vectors.

    Returns:
        The record.

    Raises:
        UserError: If the folder is taken, or cannot be written.
    """

    i, n = shard
    suffix = "" if n == 1 else f"-{i}-of-{n}"
    file = output / f"meta{suffix}.json"
    indices = list(range(i, len(made), n))
    images = len(pipeline.shape) == 3
    settings = {
        "sampler": sampler,
        "shard": [i, n],
        "images" if images else "vectors": [
            {**({"file": _name(k)} if images else {}), **made[k]} for k in indices
        ],
        "dtype": str(pipeline.dtype).removeprefix("torch."),
        **(record or {}),
    }
    command = settings.pop("command", None)
    prepare(output, file, settings, shard, overwrite, resume)

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

    def store(batch: Samples) -> None:
        kept.append(_store(output, batch, todo[sum(map(len, kept)) :], images))
        if report is not None:
            report(len(done) + sum(map(len, kept)), len(indices))

    with Writer(store) as write:
        for batch in draw(todo):
            nfe = batch.nfe
            write(batch)

    seconds = time.perf_counter() - clock
    vectors = None if images else (torch.cat(kept) if kept else torch.empty(0, 2))

    if vectors is not None:
        with writing(output / f"samples{suffix}.npy") as part, part.open("wb") as stream:
            np.save(stream, vectors.numpy())

    picture(suffix, indices, vectors)
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


def _store(output: Path, batch: Samples, numbers: list[int], images: bool) -> Tensor:
    """Writes images under the first of some numbers; returns what need be kept of a batch."""

    if not images:
        return batch.x

    for k, image in zip(numbers, batch.images, strict=False):
        with writing(output / _name(k)) as part:
            image.save(part, format="png")

    return batch.x[:, :0]


def tiles(output: Path, indices: Sequence[int]) -> Tensor:
    """The images of a job with these numbers, in uint8 with shape (n, C, H, W)."""

    read = [np.atleast_3d(np.asarray(Image.open(output / _name(k)))) for k in indices]
    return torch.from_numpy(np.stack(read)).permute(0, 3, 1, 2)


def save_picture(file: Path, picture: Image.Image) -> None:
    """Writes a picture, whole or not at all."""

    with writing(file) as part:
        picture.save(part, format="png")


def _picture(
    output: Path, suffix: str, indices: list[int], x: Tensor | None, label: Tensor | None
) -> None:
    """The grid of the first images, or the cloud of the vectors."""

    if x is None and indices:
        save_picture(output / f"grid{suffix}.png", viz.grid_of(tiles(output, indices[:100])))
    elif x is not None and x.shape[1] > 1 and len(x):
        colours = None if label is None else label[indices]
        save_picture(output / f"cloud{suffix}.png", viz.cloud(x, colours))
