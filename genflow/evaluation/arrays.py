"""Images and vectors in NumPy's files, read a few rows at a time.

A ``.npz`` is a zip of arrays; its members are read as streams, compressed or not, so a file may
be larger than memory. Images are those of ``arr_0`` or ``images``, in uint8 with shape
(n, H, W, C) or (n, C, H, W) or (n, H, W); classes may stand in ``arr_1`` or ``labels``, as in
ADM's sample batches. Vectors are a table (n, d) of floats. Nothing is unpickled.
"""

__all__ = ["Rows"]

from collections.abc import Sequence
import os
from pathlib import Path
from typing import IO
import zipfile
import zlib

import numpy as np
import torch
from torch import Tensor

from genflow.errors import UserError

MEMBERS = ("arr_0", "images", "samples", "x")
LABELS = ("arr_1", "labels", "label")
HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class Rows:
    """The rows of an array in a ``.npy`` or ``.npz`` file.

    Args:
        file: The file.

    Attributes:
        shape: The shape of one row as a tensor: (C, H, W), or (d) for vectors.
        labels: The classes beside the images, with shape (n), or None.

    Raises:
        UserError: If the file cannot be read, or holds neither 8-bit images nor a table of floats.
    """

    def __init__(self, file: str | os.PathLike[str]) -> None:
        self.file = Path(file)
        self.labels: np.ndarray | None = None
        self._stream: IO[bytes] | None = None

        try:
            with self._open() as stream:
                version = np.lib.format.read_magic(stream)
                if version not in HEADERS:
                    raise ValueError(f"NumPy's format {version}")
                self._stored, fortran, self._dtype = HEADERS[version](stream)
                self._offset = stream.tell()
        except (OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(
                f"array '{self.file}' cannot be read ({error}): give a .npz or .npy file of "
                "numbers, as numpy.savez and numpy.save write it."
            ) from None

        if fortran:
            raise UserError(
                f"array '{self.file}' is stored by columns (Fortran order): save a copy made by "
                "numpy.ascontiguousarray."
            )
        self.shape = self._shape()

    # ------------------------------------------------------------------- what is in it

    def _open(self) -> IO[bytes]:
        """The stream of the array, at its beginning."""

        if self.file.suffix != ".npz":
            return self.file.open("rb")

        archive = zipfile.ZipFile(self.file)
        names = {n.removesuffix(".npy"): n for n in archive.namelist() if n.endswith(".npy")}
        member = next((m for m in MEMBERS if m in names), None)

        if member is None and len(names) == 1:
            (member,) = names
        if member is None:
            raise UserError(
                f"'{self.file}' holds the arrays {', '.join(sorted(names)) or '(none)'}: the "
                f"images must be one of {', '.join(MEMBERS)}."
            )

        beside = next((m for m in LABELS if m in names), None)
        if beside is not None and self.labels is None:
            with archive.open(names[beside]) as stream:
                self.labels = np.lib.format.read_array(stream, allow_pickle=False)

        return archive.open(names[member])

    def _shape(self) -> tuple[int, ...]:
        stored, dtype = self._stored, self._dtype

        if len(stored) == 2 and dtype.kind == "f" and stored[1]:
            return (stored[1],)
        if dtype != np.uint8 or len(stored) not in (3, 4):
            raise UserError(
                f"array '{self.file}' has shape {stored} and dtype {dtype}: 8-bit images "
                "(n, H, W, C) or (n, C, H, W) in uint8, or vectors (n, d) in a float dtype, are "
                "needed; round and convert first."
            )

        self._last = len(stored) == 4 and stored[3] in (1, 3)  # channels last

        if len(stored) == 4 and not self._last and stored[1] not in (1, 3):
            raise UserError(
                f"array '{self.file}' has shape {stored}: images need 1 or 3 channels, first or "
                "last."
            )
        if len(stored) == 3:
            return (1, *stored[1:])
        return (stored[3], *stored[1:3]) if self._last else tuple(stored[1:])

    def __len__(self) -> int:
        return self._stored[0]

    # -------------------------------------------------------------------------- reading

    def read(self, rows: Sequence[int]) -> Tensor:
        """Some rows.

        Args:
            rows: Their numbers, ascending; a compressed file is read on from where it stood.

        Returns:
            Images in uint8 with shape (b, C, H, W), or vectors in float32 with shape (b, d).

        Raises:
            UserError: If the file ends early, or is damaged.
        """

        part = np.stack([self._row(i) for i in rows]) if len(rows) else np.empty((0, *self.shape))

        if len(self.shape) == 1:
            return torch.from_numpy(part.astype(np.float32))
        if part.ndim == 3:
            part = part[:, None]
        elif self._last:
            part = part.transpose(0, 3, 1, 2)

        return torch.from_numpy(np.ascontiguousarray(part))

    def _row(self, i: int) -> np.ndarray:
        shape = self._stored[1:]
        size = int(np.prod(shape)) * self._dtype.itemsize

        try:
            if self._stream is None or self._stream.closed:
                self._stream = self._open()
            self._go_to(self._offset + i * size)
            data = self._stream.read(size)
        except (OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            raise self._damaged(i, str(error)) from None
        if len(data) != size:
            raise self._damaged(i, "the file ends early")

        return np.frombuffer(data, self._dtype).reshape(shape)

    def _go_to(self, place: int) -> None:
        """Reads on over a header, since a stream of a zip that seeks may give up its checksum."""

        gap = place - self._stream.tell()

        if 0 < gap <= self._offset:
            self._stream.read(gap)
        elif gap:
            self._stream.seek(place)

    def _damaged(self, i: int, why: str) -> UserError:
        return UserError(
            f"row {i} of array '{self.file}' cannot be read ({why}): the file is damaged, write "
            "it again."
        )
