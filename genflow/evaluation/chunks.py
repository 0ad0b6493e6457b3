r"""Work in chunks: which images belong together, and the files that say what was done.

A chunk is a run of image numbers, fixed by the job alone and not by how many processes share it.
The features of chunk c on each net are one file, written whole or not at all, and beside them
stands a record::

    features/random-conv/00000.npy    float32, with shape (rows, d)
    pictures/00000.npy                the images of the chunk that the grid shows
    chunks/00000.json                 rows, files, sha256, seconds

A chunk is done if its record is there and its files are as the record says; so a job that was
killed fills the gaps, and a file that was damaged is a gap. Whoever fills it, the numbers are the
same, because the batches in a chunk are the same: the join of all chunks, in the order of their
images, does not depend on ranks, shards or interruptions. (To the bit on one kind of machine with
one number of threads; otherwise to the rounding of float32.)
"""

__all__ = ["Chunk", "Shards", "cut", "look_at"]

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
import hashlib
import json
from pathlib import Path
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genflow.errors import UserError
from genflow.evaluation.sources import Source
from genflow.files import sha256_of, write_text, writing
from genflow.metrics.features import Features, extract


@dataclass(frozen=True)
class Chunk:
    """A run of images.

    Attributes:
        index: Its number.
        start: The first image.
        stop: One past the last image.
    """

    index: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


def cut(n: int, size: int, repeats: int = 1) -> list[Chunk]:
    """Cuts repeats of n images into chunks; none spans two repeats.

    Raises:
        UserError: If the size is below 1.
    """

    if size < 1:
        raise UserError(f"chunk is {size}: it must be 1 or more.")

    starts = [r * n + i for r in range(repeats) for i in range(0, n, size)]
    stops = [min(s + size, (s // n + 1) * n) for s in starts]
    return [Chunk(k, *ends) for k, ends in enumerate(zip(starts, stops, strict=True))]


@dataclass(frozen=True)
class Seen:
    """What became of a chunk.

    Attributes:
        features: By the names of the nets, in float32 with shape (rows, d).
        pictures: The images that a grid shows.
        sha256: The digest of the images.
        seconds: The time spent on images and on features.
    """

    features: dict[str, np.ndarray]
    pictures: np.ndarray
    sha256: str
    seconds: dict[str, float]


def look_at(
    source: Source,
    nets: Mapping[str, Features],
    chunk: Chunk,
    rows: Sequence[int],
    batch_size: int,
    shown: Sequence[int] = (),
    report: Callable[[int], None] = lambda done: None,
) -> Seen:
    """Reads or draws the images of a chunk, a batch at a time, and takes their features.

    Args:
        source: The images.
        nets: The feature nets by name.
        chunk: The chunk.
        rows: The number in the source of each image of the job.
        batch_size: How many images are held at once.
        shown: The images of the job that a grid shows.
        report: Called after each batch with the number of images that it held.
    """

    found: dict[str, list[Tensor]] = {name: [] for name in nets}
    pictures, digest = [], hashlib.sha256()
    wanted, at = set(shown), chunk.start
    spent = {"images": 0.0, "features": 0.0}
    clock = time.perf_counter()

    for x in source.batches(rows[chunk.start : chunk.stop], batch_size):
        clock = _lap(spent, "images", clock)
        for name, net in nets.items():
            found[name].append(extract(net, x, batch_size))
        clock = _lap(spent, "features", clock)
        digest.update(x.numpy().tobytes())
        pictures += [x[i : i + 1] for i in range(len(x)) if at + i in wanted]
        at += len(x)
        report(len(x))

    features = {name: torch.cat(parts).numpy() for name, parts in found.items()}
    kept = torch.cat(pictures) if pictures else torch.empty(0, *source.shape)
    return Seen(features, kept.numpy(), digest.hexdigest(), spent)


def _lap(spent: dict[str, float], what: str, since: float) -> float:
    now = time.perf_counter()
    spent[what] += now - since
    return now


class Shards:
    """The files of a job.

    Args:
        folder: The folder of the job.
        digests: The digest of each feature net, by name; a chunk that was seen by others is a gap.
    """

    def __init__(self, folder: Path, digests: Mapping[str, str]) -> None:
        self.folder, self.digests = folder, dict(digests)

    def _file(self, part: str, chunk: Chunk, suffix: str = "npy") -> Path:
        return self.folder / part / f"{chunk.index:05d}.{suffix}"

    def write(self, chunk: Chunk, seen: Seen, about: Mapping[str, Any]) -> None:
        """Writes a chunk, its record last.

        Args:
            chunk: The chunk.
            seen: What became of it.
            about: What else its record says.

        Raises:
            UserError: If a file cannot be written.
        """

        files = {}
        for name, x in seen.features.items():
            file = self._file(f"features/{name}", chunk)
            _save(file, x)
            files[name] = {
                "rows": len(x),
                "width": x.shape[1],
                "sha256": sha256_of(file),
                "net": self.digests[name],
            }

        _save(self._file("pictures", chunk), seen.pictures)
        record = asdict(chunk) | {
            "features": files,
            "images": seen.sha256,
            "seconds": {k: round(v, 3) for k, v in seen.seconds.items()},
            **about,
        }
        write_text(self._file("chunks", chunk, "json"), json.dumps(record, indent=1) + "\n")

    def record(self, chunk: Chunk) -> dict[str, Any] | None:
        """The record of a chunk that is done, or None."""

        try:
            record = json.loads(self._file("chunks", chunk, "json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

        if any(record.get(k) != v for k, v in asdict(chunk).items()):
            return None
        return record

    def done(self, chunk: Chunk) -> bool:
        """Whether a chunk is done: its files are there, and are what its record says."""

        record = self.record(chunk)
        if record is None or not self._file("pictures", chunk).exists():
            return False

        for name, digest in self.digests.items():
            entry, file = record["features"].get(name), self._file(f"features/{name}", chunk)
            if entry is None or entry["net"] != digest or not file.exists():
                return False
            if entry["sha256"] != sha256_of(file):
                return False
        return True

    def join(self, name: str, chunks: Sequence[Chunk]) -> Tensor:
        """The features of all chunks in the order of the images, through a memory map.

        Returns:
            The features in float32, with shape (n, d).
        """

        parts = [np.load(self._file(f"features/{name}", c), mmap_mode="r") for c in chunks]
        shape = (sum(map(len, parts)), parts[0].shape[1])

        with writing(self.joined(name)) as file:
            whole = np.lib.format.open_memmap(file, "w+", dtype=np.float32, shape=shape)
            at = 0
            for part in parts:
                whole[at : at + len(part)] = part
                at += len(part)
            whole.flush()
            del whole

        return torch.from_numpy(np.load(self.joined(name), mmap_mode="c"))

    def joined(self, name: str) -> Path:
        """The file of the join, which the job removes when it is done."""

        return self.folder / f"features/{name}.npy"

    def pictures(self, chunks: Sequence[Chunk]) -> Tensor:
        """The images that a grid shows."""

        kept = [np.load(self._file("pictures", c)) for c in chunks]
        kept = [x for x in kept if len(x)]
        return torch.from_numpy(np.concatenate(kept)) if kept else torch.empty(0)


def _save(file: Path, array: np.ndarray) -> None:
    with writing(file) as part, part.open("wb") as stream:
        np.save(stream, array, allow_pickle=False)
