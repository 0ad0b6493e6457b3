r"""Stores: arrays on disk in shards, for what is computed once and trained on often.

A store is a folder::

    manifest.json    what the examples are, and what made them
    x-00000.npy      the first shard, with shape (m, *shape)
    label-00000.npy  its classes, if there are classes

A shard is written whole or not at all, its labels first, so a job that was killed goes on where it
stood, and several processes share one by taking every n-th shard. Shards are read through a memory
map: a store may be larger than memory.
"""

__all__ = ["Manifest", "Store", "claim", "label_file", "save_shard", "shard_file"]

from dataclasses import asdict, dataclass
import json
import os
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from genflow.data.examples import Batch, Examples
from genflow.data.pixels import to_float
from genflow.errors import UserError
from genflow.files import write_text, writing

FORMAT = 1
DTYPES = ("float16", "float32", "uint8")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    r"""What a store says about itself.

    Attributes:
        n: The number of examples.
        shape: The shape of one.
        shard_size: The number of examples in a shard; the last may hold fewer.
        dtype: How they are stored: ``"float16"``, ``"float32"`` or ``"uint8"``.
        classes: The number of classes, or None.
        class_names: Their names, or None.
        format: The version of this layout.
    """

    NOUN: ClassVar[str] = "examples"

    n: int
    shape: tuple[int, ...]
    shard_size: int
    dtype: str
    classes: int | None = None
    class_names: tuple[str, ...] | None = None
    format: int = FORMAT

    @property
    def shards(self) -> int:
        """The number of shards."""

        return -(-self.n // self.shard_size)

    def rows(self, shard: int) -> range:
        """The numbers of the examples in a shard."""

        first = shard * self.shard_size
        return range(first, min(first + self.shard_size, self.n))

    def to_json(self) -> str:
        """The manifest as text."""

        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """Reads the manifest of a store.

        Raises:
            UserError: If there is none, or it is damaged or of another version.
        """

        file = Path(folder) / "manifest.json"

        if not file.exists():
            raise UserError(f"'{folder}' is no store of {cls.NOUN}: it has no manifest.json.")

        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            made = cls(
                **record
                | {
                    "shape": tuple(record["shape"]),
                    "class_names": record["class_names"] and tuple(record["class_names"]),
                }
            )
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"manifest '{file}' is damaged, or not of {cls.NOUN} ({error}): make the "
                f"{cls.NOUN} again."
            ) from None

        if made.format != FORMAT or made.dtype not in DTYPES:
            raise UserError(
                f"manifest '{file}' has format {made.format} and dtype '{made.dtype}': this "
                f"version reads format {FORMAT} with {', '.join(DTYPES)}."
            )

        return made


def shard_file(folder: str | os.PathLike[str], shard: int) -> Path:
    """The file with the data of a shard."""

    return Path(folder) / f"x-{shard:05d}.npy"


def label_file(folder: str | os.PathLike[str], shard: int) -> Path:
    """The file with the classes of a shard."""

    return Path(folder) / f"label-{shard:05d}.npy"


def save_shard(folder: Path, shard: int, x: np.ndarray, label: Tensor | None) -> None:
    """Writes a shard: the labels first, since the data are the mark that it is there."""

    if label is not None:
        _save(label_file(folder, shard), label.numpy().astype(np.int32))

    _save(shard_file(folder, shard), x)


def _save(file: Path, array: np.ndarray) -> None:
    with writing(file) as part, part.open("wb") as stream:
        np.save(stream, array, allow_pickle=False)


def claim(folder: Path, manifest: Manifest, *, resume: bool, cure: str) -> None:
    """Writes a manifest, or compares it with the one that is there.

    Args:
        folder: The folder of the store.
        manifest: What it is to hold.
        resume: Whether a store of the same settings may be gone on with.
        cure: What must be the same.

    Raises:
        UserError: If the folder is taken.
    """

    file, noun = folder / "manifest.json", manifest.NOUN

    if not file.exists():
        if folder.exists() and any(folder.iterdir()):
            raise UserError(
                f"'{folder}' is not empty and holds no store of {noun}: give another folder."
            )
        write_text(file, manifest.to_json())
        return

    before = json.loads(type(manifest).load(folder).to_json())
    after = json.loads(manifest.to_json())
    changed = [k for k, v in after.items() if before.get(k) != v]

    if changed:
        k = changed[0]
        old, new = (str(r.get(k))[:60] for r in (before, after))
        raise UserError(
            f"'{folder}' holds {noun} of another job ({k} is {old}, not {new}): give another "
            f"folder, or the same {cure}."
        )
    if not resume:
        raise UserError(
            f"'{folder}' holds these {noun} already: say resume, or give another folder."
        )


class Store(Examples):
    """The examples of a folder, read when they are asked for.

    Args:
        folder: The folder.
        indices: The examples to hand out, with shape (m) in int64; all if None.

    Raises:
        UserError: If the folder is no store, or shards are missing or damaged; the message says
            which.
    """

    RECORD: ClassVar[type[Manifest]] = Manifest

    def __init__(self, folder: str | os.PathLike[str], indices: Tensor | None = None) -> None:
        self.folder = Path(folder)
        self.manifest = m = self.RECORD.load(folder)
        self.indices = torch.arange(m.n) if indices is None else indices
        missing = [k for k in range(m.shards) if not shard_file(folder, k).exists()]

        if missing:
            named = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
            raise UserError(
                f"{m.NOUN} '{folder}' are incomplete: {len(missing)} of {m.shards} shards are "
                f"missing ({named}); go on with the job that makes them."
            )

        self._maps = [self._open(shard_file(folder, k), k) for k in range(m.shards)]
        label = None

        if m.classes is not None:
            parts = [self._open(label_file(folder, k), k) for k in range(m.shards)]
            label = torch.from_numpy(np.concatenate(parts).astype(np.int64))[self.indices]

        super().__init__(m.shape, label, classes=m.classes, class_names=m.class_names)

    def _open(self, file: Path, shard: int) -> np.ndarray:
        try:
            array = np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise UserError(
                f"shard {shard} of '{self.folder}' cannot be read ({error}): delete '{file.name}' "
                "and go on with the job that makes it."
            ) from None

        if len(array) != len(self.manifest.rows(shard)):
            raise UserError(
                f"shard {shard} of '{self.folder}' holds {len(array)} {self.manifest.NOUN} "
                f"instead of {len(self.manifest.rows(shard))}: delete '{file.name}' and go on "
                "with the job that makes it."
            )

        return array

    def __len__(self) -> int:
        return len(self.indices)

    def stored(self, indices: Tensor) -> Tensor:
        r"""The examples at ``indices`` with shape (B) as they are stored, with shape (B, \*)."""

        size, numbers = self.manifest.shard_size, self.indices[indices].tolist()
        return torch.from_numpy(np.stack([self._maps[k // size][k % size] for k in numbers]))

    def batch(self, indices: Tensor) -> Batch:
        """See `Examples.batch`."""

        x = self.stored(indices)
        batch = {"x": to_float(x) if x.dtype == torch.uint8 else x.float()}
        return batch if self.label is None else batch | {"label": self.label[indices]}

    def subset(self, indices: Tensor) -> Self:
        """See `Examples.subset`; nothing is copied."""

        return type(self)(self.folder, self.indices[indices])
