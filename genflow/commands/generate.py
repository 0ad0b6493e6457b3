"""Sampling into a folder."""

__all__ = ["generate"]

import os
from pathlib import Path
import shlex
import sys
from typing import Any

from genflow.commands.choices import Value, labels_of, pipeline_named
from genflow.console import Bar
from genflow.errors import UserError


def generate(
    pipeline: str,
    output: str = "out",
    n: int | None = None,
    seed: int = 0,
    seeds: str | None = None,
    label: str | None = None,
    prompt: str | None = None,
    negative: str | None = None,
    size: tuple[int, int] | None = None,
    sampler: str | None = None,
    steps: int | None = None,
    schedule: str | None = None,
    guidance: float | None = None,
    interval: tuple[float, float] = (0.0, 1.0),
    clip: bool = False,
    embedding: str | None = None,
    options: dict[str, Value] | None = None,
    batch_size: int = 256,
    device: str | None = None,
    dtype: str | None = None,
    shard: str | None = None,
    compile: bool = False,
    capture: bool = False,
    overlap: bool = False,
    overwrite: bool = False,
    resume: bool = False,
) -> None:
    """Draw samples from a pipeline into a folder: numbered images, a grid, meta.json.

    Args:
        pipeline: A saved pipeline, zoo:NAME, or the id of a repository of the Hugging Face hub.
        output: The folder to write to.
        n: The number of samples; 64, or the number of seeds.
        seed: The first of n consecutive seeds, one a sample.
        seeds: The seeds themselves, as in 0-63,100; instead of n and seed.
        label: Classes to go round in, as in 3 or 0,1,2 or names; every class by default.
        prompt: What to draw, for pipelines that draw from text; @FILE takes a prompt a line from a
            file, gone round in.
        negative: What guidance leads away from, likewise.
        size: Height and width in pixels, for stock pipelines that draw in several sizes.
        sampler: A name that "genflow samplers" lists; the pipeline's own by default.
        steps: The number of steps.
        schedule: A schedule.json, table.json or zoo:NAME/schedules/5.json, instead of sampler
            and steps.
        guidance: The weight of classifier-free guidance; 1, which is none, or the embedding's own.
        interval: The times, from 0 (data) to 1 (noise), inside which guidance acts.
        clip: Whether the data estimate is kept in [-1, 1].
        embedding: An embedding.safetensors that "genflow invert" found, instead of a label.
        options: Options of the sampler and its grid, as in --options.order 3.
        batch_size: How many are drawn at a time; the samples do not depend on it.
        device: cpu, cuda, ...; a GPU if there is one.
        dtype: What the network computes in: float16, bfloat16, float32 or float64; what it was
            saved in by default. The solver computes in float32 or wider.
        shard: The part i/n of the work to do, counted from 0; under torchrun each process takes
            its own.
        compile: Whether the network is compiled first, which pays off for many samples.
        capture: Whether whole solves are recorded as CUDA graphs, on a GPU.
        overlap: Whether a batch is decoded while the next one is drawn, on a GPU.
        overwrite: Whether an older job in the folder is thrown away.
        resume: Whether the same job, begun before, is gone on with.
    """

    from genflow.pipelines.conditions import load_conditions
    from genflow.pipelines.jobs import generate as job
    from genflow.pipelines.jobs import parse_seeds
    from genflow.pipelines.shares import share
    from genflow.solvers.files import read_solver

    if seeds is not None and n is not None:
        raise UserError("n and seeds are both given: give one of the two.")
    if label is not None and embedding is not None:
        raise UserError("label and embedding are both given: give one of the two.")

    pipe = pipeline_named(pipeline, device, dtype=dtype, size=size)
    numbers = parse_seeds(seeds) if seeds else list(range(seed, seed + (64 if n is None else n)))
    labels = labels_of(pipe, label, len(numbers)) if embedding is None else None
    call: dict[str, Any] = {"interval": interval, "clip": clip}
    call |= {"sampler": sampler, "steps": steps, **(options or {})}

    texts = {"prompt": prompt, "negative": negative}
    call |= {k: _texts(k, v, len(numbers)) for k, v in texts.items() if v is not None}

    if embedding is not None:
        call["conditions"] = load_conditions(embedding)
        own = call["conditions"].pop("guidance", None)
        guidance = float(own) if guidance is None and own is not None else guidance

    call["guidance"] = 1.0 if guidance is None else guidance

    if schedule is not None:
        call["schedule"] = read_solver(schedule, pipe.denoiser.path)

    if compile:
        pipe.compile()

    with Bar("samples") as report:
        meta = job(
            pipe,
            Path(output),
            numbers,
            label=labels,
            shard=share(shard, os.environ),
            capture=capture,
            overlap=overlap,
            batch_size=batch_size,
            overwrite=overwrite,
            resume=resume,
            record={"pipeline": str(pipeline), "command": shlex.join(sys.argv)},
            report=report,
            **call,
        )

    speed = "" if meta["per_second"] is None else f", {meta['per_second']} a second"
    count = len(meta.get("images") or meta.get("vectors") or ())
    print(f"{output}: {count} samples, NFE {meta['nfe'] or 0}{speed}")


def _texts(name: str, text: str, n: int) -> str | list[str]:
    """A text for all samples, or those of a file, gone round in for n samples."""

    if not text.startswith("@"):
        return text

    file = Path(text[1:])

    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise UserError(f"{name} '{text}' cannot be read: {error.strerror}.") from None

    lines = [line for line in lines if line]

    if not lines:
        raise UserError(f"{name} '{text}' is an empty file: write a prompt a line.")

    return [lines[i % len(lines)] for i in range(n)]
