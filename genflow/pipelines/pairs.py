r"""Makes pairs of noise and samples: what reflow and distillation learn from.

Pair i starts from the noise of seed :math:`s + i` and ends where a sampler takes it, by default a
solution of the ODE to a tolerance. Work is cut into shards; each is a file that is whole or
absent, so a killed job goes on where it stood, and several processes share it by taking every
n-th shard. Of a flow on latents the pairs are latents.
"""

__all__ = ["fingerprint", "make_pairs"]

from collections.abc import Callable
from dataclasses import replace
import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from genflow.data.pairs import Manifest
from genflow.data.pixels import to_uint8
from genflow.data.shards import claim, save_shard, shard_file
from genflow.errors import UserError
from genflow.models import path_to_dict
from genflow.pipelines.pipeline import Pipeline
from genflow.solvers.files import solver_record


def fingerprint(pipe: Pipeline) -> str:
    """The SHA-256 of a pipeline's weights and of what its denoiser makes of them.

    Two pipelines with the same fingerprint draw the same samples from the same calls.
    """

    d, digest = pipe.denoiser, hashlib.sha256()
    record = {
        "path": path_to_dict(d.path),
        "prediction": d.prediction,
        "clock": d.clock,
        "sigma_data": d.sigma_data,
        "shape": list(pipe.shape),
    }
    digest.update(json.dumps(record, sort_keys=True).encode())

    for name, value in sorted(d.net.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())

    return digest.hexdigest()


def make_pairs(
    pipe: Pipeline,
    folder: Path,
    n: int,
    *,
    seed: int = 0,
    dtype: Literal["float16", "float32", "uint8"] | None = None,
    shard_size: int = 4096,
    shard: tuple[int, int] = (0, 1),
    batch_size: int = 256,
    resume: bool = True,
    report: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Manifest:
    """Writes a store of pairs, or the part of it that is not there yet.

    Args:
        pipe: The teacher.
        folder: The folder of the store.
        n: The number of pairs, 1 or more.
        seed: The seed of the first.
        dtype: How data are kept; float16 for images and float32 for vectors if None. ``"uint8"``
            halves the space and rounds to the 256 levels.
        shard_size: The number of pairs in a file, 1 or more.
        shard: The part of the files to make, and the number of parts.
        batch_size: How many are drawn at a time.
        resume: Whether a store of the same settings is gone on with.
        report: Called with the numbers of pairs done and to do.
        options: The sampler, as in `Pipeline.build`; dopri5 by default.

    Returns:
        The manifest.

    Raises:
        UserError: If a value is out of range, or the folder holds another store.
    """

    for name, value in (("n", n), ("shard_size", shard_size)):
        if value < 1:
            raise UserError(f"{name} is {value}: it must be 1 or more.")
    if pipe.condition is not None:
        raise UserError(
            "pairs are made from pipelines of genflow's own networks: this one draws from text."
        )

    latents, pipe = pipe.codec is not None, replace(pipe, codec=None)
    images = len(pipe.shape) == 3
    dtype = dtype or ("float16" if images else "float32")

    if dtype == "uint8" and (latents or not images):
        raise UserError(
            f"dtype is 'uint8', but samples are {'latents' if latents else 'vectors'}: take "
            f"{'float16' if latents else 'float32'}."
        )
    if options.get("sampler") is None and options.get("schedule") is None:
        options["sampler"] = "dopri5"

    pipe.check_noise()
    pipe.build(**options)  # what cannot be sampled is refused before anything is written
    manifest = Manifest(
        n=n,
        seed=seed,
        shape=tuple(pipe.shape),
        shard_size=shard_size,
        dtype=dtype,
        noise=str(pipe.denoiser.path.noise),
        classes=pipe.classes,
        class_names=pipe.class_names,
        teacher={"fingerprint": fingerprint(pipe), **_plain(options)},
    )
    claim(folder, manifest, resume=resume, cure="teacher and settings")

    mine = range(shard[0], manifest.shards, shard[1])
    total = sum(len(manifest.rows(k)) for k in mine)
    done = 0

    for k in mine:
        rows = manifest.rows(k)
        if not shard_file(folder, k).exists():
            _write(pipe, folder, manifest, k, batch_size, done, total, report, options)
        done += len(rows)
        if report is not None:
            report(done, total)

    return manifest


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    """The options of the sampler as values of JSON."""

    kept = {k: v for k, v in options.items() if v is not None and k != "schedule"}
    if options.get("schedule") is not None:
        kept["schedule"] = solver_record(options["schedule"])
    return json.loads(json.dumps(kept))


def _write(
    pipe: Pipeline,
    folder: Path,
    manifest: Manifest,
    k: int,
    batch_size: int,
    done: int,
    total: int,
    report: Callable[[int, int], None] | None,
    options: dict[str, Any],
) -> None:
    """Draws one shard and writes it."""

    rows = manifest.rows(k)
    seeds = [manifest.seed + i for i in rows]
    every = pipe.labels(None, manifest.n)
    label = None if every is None else every[rows.start : rows.stop]
    parts: list[np.ndarray] = []

    for batch in pipe.batches(seeds, label, batch_size=batch_size, **options):
        x = to_uint8(batch.x) if manifest.dtype == "uint8" else batch.x
        if not bool(torch.isfinite(batch.x).all()):
            raise UserError(
                f"the teacher's samples of shard {k} are not finite: check the pipeline and its "
                "sampler."
            )
        parts.append(x.to(getattr(torch, manifest.dtype)).numpy())
        if report is not None:
            report(done + sum(map(len, parts)), total)

    save_shard(folder, k, np.concatenate(parts), label)
