"""Latents of a data set, made once by an autoencoder and cached for training."""

__all__ = ["encode"]

from collections.abc import Callable
import hashlib
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from genflow.data.base import DataModule
from genflow.data.latents import LatentManifest
from genflow.data.pixels import to_float
from genflow.data.shards import claim, save_shard, shard_file
from genflow.errors import UserError
from genflow.files import replacing
from genflow.pipelines.codecs import Codec


@torch.no_grad()
def encode(
    data: DataModule,
    codec: Codec,
    folder: Path,
    *,
    dtype: Literal["float16", "float32"] = "float16",
    shard_size: int = 4096,
    shard: tuple[int, int] = (0, 1),
    batch_size: int = 64,
    report: Callable[[int, int], None] | None = None,
) -> LatentManifest:
    """Writes the latents of images, or the part of them that is not there yet.

    Args:
        data: The images.
        codec: The autoencoder.
        folder: The folder of the store; the first part copies the autoencoder into it.
        dtype: How latents are kept.
        shard_size: The number of latents in a file, 1 or more.
        shard: The part of the files to make, and the number of parts.
        batch_size: How many are encoded at a time, 1 or more.
        report: Called with the numbers of images done and to do.

    Returns:
        The manifest.

    Raises:
        UserError: If a value is out of range, the images do not suit the autoencoder, or the
            folder holds another store.
    """

    for name, value in (("shard_size", shard_size), ("batch_size", batch_size)):
        if value < 1:
            raise UserError(f"{name} is {value}: it must be 1 or more.")

    images, device = data.train_set, next(codec.parameters()).device
    manifest = LatentManifest(
        n=len(images),
        shape=codec.latent(images.shape),
        shard_size=shard_size,
        dtype=dtype,
        classes=images.classes,
        class_names=images.class_names,
        codec={"fingerprint": _fingerprint(codec), "event": list(images.shape)},
        data=data.title,
    )
    claim(folder, manifest, resume=True, cure="data, autoencoder and settings")

    if shard[0] == 0 and not (folder / "vae").exists():
        with replacing(folder / "vae", overwrite=False, mark="config.json") as part:
            codec.vae.save_pretrained(part)

    done, mine = 0, range(shard[0], manifest.shards, shard[1])
    total = sum(len(manifest.rows(k)) for k in mine)

    for k in mine:
        rows = torch.tensor(manifest.rows(k))
        if not shard_file(folder, k).exists():
            parts = [
                codec.encode(to_float(images.batch(some)["x"].to(device))).cpu()
                for some in rows.split(batch_size)
            ]
            x = torch.cat(parts).to(getattr(torch, dtype)).numpy()
            if not np.isfinite(x).all():
                raise UserError(
                    f"the latents of shard {k} are not finite as {dtype}: take float32, or check "
                    "the autoencoder."
                )
            save_shard(folder, k, x, None if images.label is None else images.label[rows])
        done += len(rows)
        if report is not None:
            report(done, total)

    return manifest


def _fingerprint(codec: Codec) -> str:
    """The SHA-256 of an autoencoder's weights and of the scale of its latents."""

    digest = hashlib.sha256(str((codec.scale, codec.mean.tolist(), codec.std.tolist())).encode())

    for name, value in sorted(codec.vae.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())

    return digest.hexdigest()
