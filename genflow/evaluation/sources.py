"""Where images come from, all read alike: by their numbers, a batch at a time.

==========  ==================================================================================
`Held`      a tensor in memory: a data set, or what was handed in from Python
`Files`     a folder or a zip, decoded when a batch is asked for
`Stored`    an array in a ``.npz`` or ``.npy`` file
`Drawn`     a pipeline, see `genflow.evaluation.drawn`: image i has seed first + i
==========  ==================================================================================

An image depends on its number alone, not on what else is read with it, nor on who reads it. What
is *not* assumed: that all images fit into memory.
"""

__all__ = ["BATCH", "Files", "Held", "Source", "Stored"]

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
import os
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genflow.data import decode
from genflow.errors import UserError
from genflow.evaluation.arrays import Rows
from genflow.evaluation.forms import Form
from genflow.metrics.references import DataHash

SHOWN = {3: 64, 1: 2000}  # pictures in a grid, points in a cloud, by the length of a shape
BATCH = 256  # images that are read at once where nobody says otherwise


class Source(ABC):
    """Images or vectors by number.

    Attributes:
        what: The source in words, as the user gave it.
        kind: What it is: "pipeline", "images", "array" or "data".
        shape: The shape of one image, (C, H, W), or of one vector, (d).
        unreadable: The names of files that were left out.
    """

    kind = "data"
    what: str
    shape: tuple[int, ...]
    unreadable: tuple[str, ...] = ()

    @abstractmethod
    def __len__(self) -> int:
        """How many there are."""

    @abstractmethod
    def read(self, rows: Sequence[int]) -> Tensor:
        """Some of them: uint8 with shape (b, C, H, W), or float32 with shape (b, d)."""

    def name_of(self, row: int) -> str:
        """What a person finds one of them by."""

        return f"row {row}"

    def batches(self, rows: Sequence[int], size: int) -> Iterator[Tensor]:
        """Some of them, so many at a time, in one layout of memory.

        The layout matters to the last bit: convolutions choose their kernels by it.
        """

        for i in range(0, len(rows), size):
            yield self.read(rows[i : i + size]).clone(memory_format=torch.contiguous_format)

    def __iter__(self) -> Iterator[Tensor]:
        yield from self.batches(range(len(self)), BATCH)

    @cached_property
    def sha256(self) -> str | None:
        """The digest of all images, whatever they are stored in; None if they are yet to be."""

        digest = DataHash()
        for batch in self:
            digest.update(batch)
        return digest.hexdigest()

    def shown(self, n: int) -> list[int]:
        """The numbers of the images of a grid: evenly spaced, for files are sorted by class."""

        few = min(SHOWN.get(len(self.shape), 0), n)
        return [i * n // few for i in range(few)]

    def record(self) -> dict[str, Any]:
        """What a report says about the source, as JSON values."""

        return {
            "what": self.what,
            "kind": self.kind,
            "count": len(self),
            "shape": list(self.shape),
            "sha256": self.sha256,
            "unreadable": list(self.unreadable),
        }


class Held(Source):
    """A tensor.

    Args:
        x: Images in uint8 with shape (n, C, H, W), or vectors with shape (n, d).
        what: The source in words.
        form: What images are converted to.

    Raises:
        UserError: If it is neither.
    """

    def __init__(self, x: Tensor, what: str = "a tensor", form: Form | None = None) -> None:
        images = x.ndim == 4 and x.dtype == torch.uint8
        if not images and not (x.ndim == 2 and x.is_floating_point()):
            raise UserError(
                f"{what} has shape {tuple(x.shape)} and dtype {x.dtype}: images in uint8 with "
                "shape (n, C, H, W), or vectors in float with shape (n, d), are needed."
            )
        self.what, self.form = what, form or Form()
        self.x = x if images else x.float()
        self.shape = self.form.shape(x.shape[1:])

    def __len__(self) -> int:
        return len(self.x)

    def read(self, rows: Sequence[int]) -> Tensor:
        """See `Source.read`."""

        return self.form(self.x[torch.as_tensor(rows, dtype=torch.int64)].cpu())


class Stored(Source):
    """An array in a file of NumPy.

    Args:
        file: The file.
        form: What images are converted to.
    """

    kind = "array"

    def __init__(self, file: str | os.PathLike[str], form: Form | None = None) -> None:
        self.what, self.form, self.rows = str(file), form or Form(), Rows(file)
        self.shape = self.form.shape(self.rows.shape)
        labels = self.rows.labels
        if labels is not None and labels.shape != (len(self.rows),):
            raise UserError(
                f"'{file}' holds classes of shape {labels.shape} for {len(self.rows)} images: "
                "there must be one each, or none."
            )

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, rows: Sequence[int]) -> Tensor:
        """See `Source.read`."""

        return self.form(self.rows.read(rows))

    def record(self) -> dict[str, Any]:
        """See `Source.record`; with how many images there are of each class."""

        known, labels = super().record(), self.rows.labels
        if labels is None:
            return known
        counts = Counter(labels.tolist())
        return known | {"classes": {str(k): counts[k] for k in sorted(counts)}}


class Files(Source):
    """Image files, each looked at once before anything else is done.

    Args:
        source: The folder or the zip.
        form: What images are converted to.
        skip: Whether images that cannot be decoded are left out; if not, they stop the job.

    Raises:
        UserError: If images cannot be decoded, or differ in size, or some are grey and some in
            colour.
    """

    kind = "images"

    def __init__(
        self, source: decode.Source, form: Form | None = None, skip: bool = False
    ) -> None:
        self.what, self.source, self.form = str(source.where), source, form or Form()
        self._survey(skip)

    def _survey(self, skip: bool) -> None:
        names, decoder = self.source.names, self.form.decoder
        kept: list[int] = []
        broken: list[str] = []
        waiting: list[np.ndarray] = []
        digest, shape = DataHash(), None

        for i, seen in enumerate(decode.look(self.source, decoder.pixels)):
            if isinstance(seen, Exception):
                broken.append(names[i])
                continue
            if shape is None:
                shape = seen.shape
            if seen.shape != shape:
                raise self._mixed(names[kept[0]], shape, names[i], seen.shape)
            kept.append(i)
            waiting.append(seen)
            if len(waiting) == BATCH:
                digest.update(torch.from_numpy(np.stack(waiting)))
                waiting = []

        if waiting:
            digest.update(torch.from_numpy(np.stack(waiting)))
        if broken and (not skip or shape is None):
            raise self._broken(broken, shape is None)

        self.rows, self.shape, self.unreadable = kept, shape, tuple(broken)
        self.sha256 = digest.hexdigest()

    def _mixed(
        self, one: str, shape: Sequence[int], other: str, found: Sequence[int]
    ) -> UserError:
        if shape[0] != found[0]:
            grey, colour = (one, other) if shape[0] == 1 else (other, one)
            return UserError(
                f"in '{self.what}' '{grey}' is grey and '{colour}' in colour: say --channels 1 "
                "or --channels 3 to convert all."
            )
        return UserError(
            f"in '{self.what}' '{one}' is {shape[2]}×{shape[1]} pixels and '{other}' "
            f"{found[2]}×{found[1]}: say --size {min(shape[1:])} to bring all to one size."
        )

    def _broken(self, broken: Sequence[str], all_of_them: bool) -> UserError:
        named = ", ".join(broken[:10]) + (", …" if len(broken) > 10 else "")
        cure = (
            "check that they are images"
            if all_of_them
            else "mend or remove them, or say --skip_unreadable true to leave them out"
        )
        return UserError(
            f"{len(broken)} of {len(self.source.names)} images in '{self.what}' cannot be decoded "
            f"({named}): {cure}."
        )

    def __len__(self) -> int:
        return len(self.rows)

    def name_of(self, row: int) -> str:
        """See `Source.name_of`; the file."""

        return self.source.names[self.rows[row]]

    def read(self, rows: Sequence[int]) -> Tensor:
        """See `Source.read`.

        Raises:
            UserError: If a file was changed since it was looked at.
        """

        decoder = self.form.decoder

        def decoded(i: int) -> np.ndarray:
            k = self.rows[i]
            try:
                pixels = decoder.pixels(self.source.read(k))
            except decode.BROKEN as error:
                pixels, why = None, str(error)
            if pixels is None or pixels.shape != self.shape:
                raise UserError(
                    f"'{self.source.names[k]}' in '{self.what}' has changed since the job began "
                    f"({why if pixels is None else 'another shape'}): start again."
                )
            return pixels

        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
            return torch.from_numpy(np.stack(list(pool.map(decoded, rows))))
