r"""Pairs of noise and what a teacher made of it, on disk, for reflow and distillation.

A store is a folder::

    manifest.json    what the pairs are, and which teacher and sampler made them
    x-00000.npy      data of the first shard, float16 or uint8, with shape (m, *shape)
    label-00000.npy  their classes, if there are classes

The noise is not there: pair i was drawn with seed :math:`s + i`, and the seed is all that is kept;
the module that trains draws it again, by the law of its path. Four million pairs of CIFAR-10 are
12 GB of bytes instead of 98 GB of floats. Shards are read through a memory map, so a store may be
larger than memory. Pairs are never re-paired: which noise belongs to which datum *is* the
information.
"""

__all__ = ["Manifest", "PairStore", "Pairs", "label_file", "shard_file"]

from dataclasses import asdict, dataclass, field
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genflow.data.base import DataModule
from genflow.data.examples import Batch, Examples
from genflow.data.pixels import to_float
from genflow.errors import UserError

FORMAT = 1
DTYPES = ("float16", "float32", "uint8")


@dataclass(frozen=True)
class Manifest:
    r"""What a store of pairs says about itself.

    Attributes:
        n: The number of pairs.
        seed: The seed of pair 0; that of pair i is seed + i.
        shape: The shape of one end.
        shard_size: The number of pairs in a shard; the last may hold fewer.
        dtype: How data are stored: ``"float16"``, ``"float32"`` or ``"uint8"``.
        noise: The law of the noise, in words.
        classes: The number of classes, or None.
        class_names: Their names, or None.
        teacher: What made the pairs: the fingerprint of the pipeline, the sampler, the guidance.
        format: The version of this layout.
    """

    n: int
    seed: int
    shape: tuple[int, ...]
    shard_size: int
    dtype: str
    noise: str = "Gaussian()"
    classes: int | None = None
    class_names: tuple[str, ...] | None = None
    teacher: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def shards(self) -> int:
        """The number of shards."""

        return -(-self.n // self.shard_size)

    def rows(self, shard: int) -> range:
        """The numbers of the pairs in a shard."""

        first = shard * self.shard_size
        return range(first, min(first + self.shard_size, self.n))

    def to_json(self) -> str:
        """The manifest as text."""

        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "Manifest":
        """Reads the manifest of a store.

        Raises:
            UserError: If there is none, or it is damaged or of another version.
        """

        file = Path(folder) / "manifest.json"

        if not file.exists():
            raise UserError(f"'{folder}' is no store of pairs: it has no manifest.json.")

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
                f"manifest '{file}' is damaged ({error}): make the pairs again."
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


class PairStore(Examples):
    """The pairs of a folder, read when they are asked for.

    Batches have "x" with shape (B, *shape), "seed" with shape (B), the seeds of the noise, and
    "label" if there are classes.

    Args:
        folder: The folder.
        indices: The pairs to hand out, with shape (m) in int64; all if None.

    Raises:
        UserError: If the folder is no store, or shards are missing or damaged; the message says
            which.
    """

    def __init__(self, folder: str | os.PathLike[str], indices: Tensor | None = None) -> None:
        self.folder = Path(folder)
        self.manifest = m = Manifest.load(folder)
        self.indices = torch.arange(m.n) if indices is None else indices
        missing = [k for k in range(m.shards) if not shard_file(folder, k).exists()]

        if missing:
            named = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
            raise UserError(
                f"pairs '{folder}' are incomplete: {len(missing)} of {m.shards} shards are "
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
                f"shard {shard} of '{self.folder}' holds {len(array)} pairs instead of "
                f"{len(self.manifest.rows(shard))}: delete '{file.name}' and go on with the job "
                "that makes it."
            )

        return array

    def __len__(self) -> int:
        return len(self.indices)

    def batch(self, indices: Tensor) -> Batch:
        """See `Examples.batch`."""

        m, numbers = self.manifest, self.indices[indices]
        x = np.stack([self._maps[k // m.shard_size][k % m.shard_size] for k in numbers.tolist()])
        data = torch.from_numpy(x)
        data = to_float(data) if m.dtype == "uint8" else data.float()
        batch = {"x": data, "seed": numbers + m.seed}

        if self.label is not None:
            batch["label"] = self.label[indices]

        return batch

    def subset(self, indices: Tensor) -> "PairStore":
        """See `Examples.subset`; nothing is copied."""

        return PairStore(self.folder, self.indices[indices])


class Pairs(DataModule):
    """Pairs of noise and data, as `genflow reflow` makes them.

    Args:
        root: The folder of the store.
        **options: batch_size, workers, seed and validation, as in `DataModule`; flip is refused,
            since a mirrored datum no longer belongs to its noise.

    Raises:
        UserError: If flip is asked for; on loading, if the store cannot be used.
    """

    def __init__(self, root: str | os.PathLike[str], **options: Any) -> None:
        super().__init__(**options)
        self.root = root

        if self.flip:
            raise UserError(
                "flip is True, but a mirrored datum no longer belongs to its noise: set it to "
                "false (make pairs from a model that was trained with flips instead)."
            )

    def load(self) -> Examples:
        """See `DataModule.load`."""

        return PairStore(self.root)
