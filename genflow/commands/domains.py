"""From one data set to another: translate, encode into latents, pack into shards."""

__all__ = ["encode", "pack", "translate"]

from pathlib import Path
import shlex
import sys
from typing import Any, Literal

from genflow.commands.choices import Value, device_named, labels_of, pipeline_named
from genflow.console import Bar
from genflow.errors import UserError


def translate(
    pipeline: str,
    source: str,
    output: str = "out",
    n: int | None = None,
    seed: int = 0,
    classes: str | None = None,
    changes: str | None = None,
    size: int | None = None,
    channels: Literal[1, 3] = 3,
    reverse: bool = False,
    label: str | None = None,
    sampler: str | None = None,
    steps: int | None = None,
    guidance: float = 1.0,
    options: dict[str, Value] | None = None,
    batch_size: int = 256,
    device: str | None = None,
    overwrite: bool = False,
    resume: bool = False,
) -> None:
    """Lead data of one kind to another: numbered images, a grid of before and after, meta.json.

    Args:
        pipeline: A saved pipeline, best one that was trained between two data sets.
        source: What to translate: digits, a torchvision set as in FashionMNIST:ROOT, a folder, a
            zip, or a .npy file.
        output: The folder to write to.
        n: The number of examples, drawn without repetition; all by default.
        seed: Names the examples that are drawn.
        classes: The classes to take, as in 0,1,2; all by default.
        changes: What is done to the images first, as in rotate-90,invert.
        size: The side to which images are brought.
        channels: The channels of images of a folder or zip.
        reverse: Whether to go the other way round: from the target back to the source.
        label: Classes of the target to go round in, for pipelines with classes.
        sampler: A name that "genflow samplers" lists; the pipeline's own by default.
        steps: The number of steps.
        guidance: The weight of classifier-free guidance; 1 is none.
        options: Options of the sampler and its grid.
        batch_size: How many are carried at a time.
        device: cpu, cuda, ...; a GPU if there is one.
        overwrite: Whether an older job in the folder is thrown away.
        resume: Whether the same job, begun before, is gone on with.
    """

    from genflow.data.domains import Domain
    from genflow.data.named import named
    from genflow.pipelines.translations import translate as job

    pipe = pipeline_named(pipeline, device)
    files = Path(source).exists() and Path(source).suffix != ".npy"  # resized as they are read
    data = Domain(
        named(source, size=size, channels=channels, labels=classes is not None),
        classes=None if classes is None else _numbers(classes),
        changes=[] if changes is None else [c.strip() for c in changes.split(",")],  # type: ignore
        size=None if files else size,
    )
    x, numbers = _chosen(data, n, seed)
    asked = {"sampler": sampler, "steps": steps, "guidance": guidance, **(options or {})}

    with Bar("examples") as report:
        meta = job(
            pipe,
            Path(output),
            x,
            numbers=numbers,
            reverse=reverse,
            label=labels_of(pipe, label, len(x)),
            batch_size=batch_size,
            overwrite=overwrite,
            resume=resume,
            record={
                "pipeline": str(pipeline),
                "data": data.title,
                "command": shlex.join(sys.argv),
            },
            report=report,
            **asked,
        )

    print(f"{output}: {len(x)} translations, NFE {meta['nfe'] or 0}")


def encode(
    data: str,
    codec: str,
    output: str,
    size: int | None = None,
    channels: Literal[1, 3] = 3,
    dtype: Literal["float16", "float32"] = "float16",
    shard_size: int = 4096,
    shard: str = "0/1",
    batch_size: int = 64,
    device: str | None = None,
) -> None:
    """Encode images into a store of latents, for training on them; a killed job goes on.

    Args:
        data: digits, a torchvision set as in CIFAR10:ROOT, a folder with a sub-folder a class, or
            a zip.
        codec: The folder of an autoencoder of diffusers: AutoencoderKL or AutoencoderDC.
        output: The folder of the store.
        size: The side to which images are brought.
        channels: The channels of images of a folder or zip.
        dtype: How latents are kept.
        shard_size: The number of latents in a file.
        shard: The part i/n of the files to make, counted from 0.
        batch_size: How many are encoded at a time.
        device: cpu, cuda, ...; a GPU if there is one.
    """

    from genflow.data.domains import Domain
    from genflow.data.named import named
    from genflow.pipelines.folders import load_codec
    from genflow.pipelines.jobs import parse_shard
    from genflow.pipelines.latents import encode as job

    images = named(data, size=size, channels=channels, labels=True)

    with Bar("latents") as report:
        made = job(
            images if Path(data).exists() else Domain(images, size=size),
            load_codec(Path(codec)).to(device_named(device)),
            Path(output),
            dtype=dtype,
            shard_size=shard_size,
            shard=parse_shard(shard),
            batch_size=batch_size,
            report=report,
        )

    print(f"{output}: {made.n} latents with shape {made.shape} in {made.shards} shards")


def pack(
    data: str,
    output: str,
    size: int | None = None,
    channels: Literal[1, 3] = 3,
    shard_size: int = 4096,
    shard: str = "0/1",
) -> None:
    """Decode images once, into shards of bytes that training maps; a killed job goes on.

    Args:
        data: digits, a torchvision set as in CIFAR10:ROOT, a folder with a sub-folder a class, or
            a zip. Files are read a few at a time, so there may be more of them than fit in memory.
        output: The folder of the store, which a config reads as Packed.
        size: The side to which images are brought; needed if they differ.
        channels: The channels of images of a folder or zip.
        shard_size: The number of images in a file.
        shard: The part i/n of the files to make, counted from 0.
    """

    from genflow.data.domains import Domain
    from genflow.data.images import StoredImages
    from genflow.data.named import named
    from genflow.data.packed import pack as job
    from genflow.pipelines.jobs import parse_shard

    images = named(data, size=size, channels=channels, labels=True)

    if isinstance(images, StoredImages):
        images.in_memory = False
    elif size is not None:
        images = Domain(images, size=size)

    with Bar("images") as report:
        made = job(images, output, shard_size=shard_size, shard=parse_shard(shard), report=report)

    print(f"{output}: {made.n} images with shape {made.shape} in {made.shards} shards")


def _numbers(text: str) -> list[int]:
    """Classes from text."""

    parts = [part.strip() for part in text.split(",")]

    if not all(part.isdigit() for part in parts):
        raise UserError(f"classes is '{text}': write numbers, as in 0,1,2.")

    return [int(part) for part in parts]


def _chosen(data: Any, n: int | None, seed: int) -> tuple[Any, list[int]]:
    """Examples, and their numbers in the set."""

    import torch

    from genflow.data.stream import seeded

    size = len(data.train_set)

    if n is not None and not 1 <= n <= size:
        raise UserError(f"n is {n}, and there are {size} examples: ask for 1 to {size} of them.")

    order = torch.randperm(size, generator=seeded("translate", seed))[:n].sort().values
    return data.train_set[order]["x"], order.tolist()
