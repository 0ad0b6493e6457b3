"""From image files, in a folder or in a zip, to uint8 tensors.

A `Source` knows names and bytes, a `Decoder` knows pixels, and `decode_all` brings them together:
it looks at every file once, in a few threads (Pillow lets go of the interpreter's lock while it
decodes), checks that all have one shape, and counts the files that cannot be read. With
`in_memory` the look is a full decoding and its pixels are kept. Without, only the headers are
read, and `OnDisk` decodes a batch when asked; a file whose header was sound and whose body is not
shows up only then, and the next readable file takes its place, always the same.

A picture is turned upright as its EXIF data say, 16-bit grey is brought to 8 bits, and an alpha
channel is dropped, not blended.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
import os
from pathlib import Path
import struct
from threading import Lock
from typing import Literal
import zipfile
import zlib

from lightning.pytorch.utilities import rank_zero_warn
import numpy as np
from PIL import Image, ImageOps
import torch
from torch import Tensor

from genflow.data.examples import Batch, Examples, Tensors
from genflow.errors import UserError

__all__ = [
    "BROKEN",
    "Decoder",
    "Folder",
    "OnDisk",
    "Source",
    "Zip",
    "decode_all",
    "is_image",
    "look",
]

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
BROKEN = (  # what Pillow and zipfile are seen to raise on a damaged file
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    RuntimeError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
    Image.DecompressionBombError,
)
GREY = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "F")  # Pillow's modes of one channel


def is_image(name: str) -> bool:
    """Whether a file's name is that of an image that we read, and not hidden."""
    return name.lower().endswith(EXTENSIONS) and not os.path.basename(name).startswith(".")


class Source(ABC):
    """Named files whose bytes can be read from several threads at once.

    Attributes:
        where: the folder or the zip file.
        names: of the images, sorted.
    """

    where: Path
    names: list[str]

    @abstractmethod
    def read(self, index: int) -> bytes:
        """The bytes of the file `names[index]`."""


class Folder(Source):
    """The images below a folder, links to folders followed.

    Args:
        where: the folder.

    Raises:
        UserError: if it is no folder, or holds no image, or cannot be listed.
    """

    def __init__(self, where: str | os.PathLike[str]) -> None:
        self.where = Path(where)
        if not self.where.is_dir():
            fault = "is a file, not a folder" if self.where.exists() else "does not exist"
            raise UserError(f"root is {str(where)!r}, which {fault}: name a folder of images.")
        self.names = sorted(filter(is_image, self._walk()))
        if not self.names:
            raise UserError(
                f"root is {str(where)!r}, which holds no image ({', '.join(EXTENSIONS)}): "
                f"put images there, or name another folder."
            )

    def _walk(self) -> Iterator[str]:
        def stop(error: OSError) -> None:
            raise UserError(
                f"root is {str(self.where)!r}, but {error.filename!r} cannot be listed "
                f"({error.strerror}): mend its permissions, or name another folder."
            )

        for folder, _, files in os.walk(self.where, onerror=stop, followlinks=True):
            for file in files:
                yield Path(folder, file).relative_to(self.where).as_posix()

    def read(self, index: int) -> bytes:
        """See `Source.read`."""
        return (self.where / self.names[index]).read_bytes()


class Zip(Source):
    """The images in a zip file.

    The file is opened once in every process, since a forked one would share its position.

    Args:
        where: the zip file.

    Raises:
        UserError: if it cannot be read as a zip file, or holds no image.
    """

    def __init__(self, where: str | os.PathLike[str]) -> None:
        self.where = Path(where)
        self._forget()
        try:
            members = self._open().namelist()
        except (OSError, zipfile.BadZipFile) as error:
            fault = getattr(error, "strerror", None) or "not a zip file"
            raise UserError(
                f"root is {str(where)!r}, which cannot be read ({fault}): name a zip of images."
            ) from error
        self.names = sorted(n for n in members if is_image(n) and not n.startswith("__MACOSX/"))
        if not self.names:
            raise UserError(
                f"root is {str(where)!r}, which holds no image ({', '.join(EXTENSIONS)}): "
                f"name another zip."
            )

    def _forget(self) -> None:
        self._lock = Lock()
        self._opened: tuple[int, zipfile.ZipFile] | None = None

    def _open(self) -> zipfile.ZipFile:
        with self._lock:
            if self._opened is None or self._opened[0] != os.getpid():
                self._opened = (os.getpid(), zipfile.ZipFile(self.where))
            return self._opened[1]

    def __getstate__(self) -> dict[str, object]:
        return {"where": self.where, "names": self.names}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._forget()

    def read(self, index: int) -> bytes:
        """See `Source.read`."""
        return self._open().read(self.names[index])

    def text(self, name: str) -> bytes | None:
        """The bytes of any member, or None if there is none of that name."""
        try:
            return self._open().read(name)
        except KeyError:
            return None


def _orientation(image: Image.Image) -> int:
    exif = Image.Exif()  # not image.getexif(), which decodes the whole of a PNG to look behind it
    try:
        exif.load(image.info.get("exif", b""))
    except BROKEN:
        return 1
    return exif.get(0x0112, 1)


@dataclass(frozen=True)
class Decoder:
    """How bytes become pixels.

    Attributes:
        channels: 1 for grey, 3 for colour, None for what a picture is stored as.
        size: the shorter side is resized (Lanczos) to it and the centre cut out; None leaves
            pictures as they are.
    """

    channels: Literal[1, 3] | None = 3
    size: int | None = None

    def shape(self, data: bytes) -> tuple[int, int, int]:
        """The shape (C, H, W) that `pixels` would return, from the header alone."""
        with Image.open(BytesIO(data)) as image:
            channels = self._channels(image)
            width, height = image.size
            if _orientation(image) >= 5:  # lying on its side
                width, height = height, width
        if self.size is not None:
            width = height = self.size
        return channels, height, width

    def pixels(self, data: bytes) -> np.ndarray:
        """Decodes a picture, with shape (C, H, W) in uint8."""
        with Image.open(BytesIO(data)) as opened:
            turned = _orientation(opened) != 1
            channels = self._channels(opened)
            image = ImageOps.exif_transpose(opened) if turned else opened
            if image.mode.startswith("I;16"):
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            return self.formed(image, channels)

    def formed(self, image: Image.Image, channels: int) -> np.ndarray:
        """A picture of 8 bits with some channels and the decoder's size, with shape (C, H, W)."""
        image = image.convert("L" if channels == 1 else "RGB")
        if self.size is not None and image.size != (self.size, self.size):
            image = self._square(image, self.size)
        array = np.asarray(image)
        return array[None] if channels == 1 else array.transpose(2, 0, 1)

    def _channels(self, image: Image.Image) -> int:
        return self.channels or (1 if image.mode in GREY else 3)

    @staticmethod
    def _square(image: Image.Image, size: int) -> Image.Image:
        short = min(image.size)
        width, height = (max(size, round(side * size / short)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
        left, top = (width - size) // 2, (height - size) // 2
        return image.crop((left, top, left + size, top + size))


def _unreadable(source: Source, index: int, error: Exception) -> UserError:
    return UserError(
        f"{str(source.where / source.names[index])!r} cannot be decoded ({error}): mend or remove "
        f"it, or set corrupt to 'skip'."
    )


class OnDisk(Examples):
    """Pictures that are decoded when a batch is asked for.

    Args:
        source: the files.
        decoder: how they are decoded.
        rows: which of the files are examples, with shape (n,) in int64.
        shape: of one example, (C, H, W).
        label: classes with shape (n,) in int64, or None.
        classes: their number.
        class_names: one name a class, or None.
        skip: whether the next readable picture takes the place of a broken one; if not, it stops
            the run.
    """

    def __init__(
        self,
        source: Source,
        decoder: Decoder,
        rows: Tensor,
        shape: Sequence[int],
        label: Tensor | None = None,
        *,
        classes: int | None = None,
        class_names: Sequence[str] | None = None,
        skip: bool = True,
    ) -> None:
        super().__init__(shape, label, classes=classes, class_names=class_names)
        self.source, self.decoder, self.rows, self.skip = source, decoder, rows, skip

    def __len__(self) -> int:
        return len(self.rows)

    def _readable(self, index: int) -> tuple[int, np.ndarray]:
        for ahead in range(len(self)):
            place = (index + ahead) % len(self)
            row = int(self.rows[place])
            try:
                return place, self.decoder.pixels(self.source.read(row))
            except BROKEN as error:
                fault = _unreadable(self.source, row, error)
                if not self.skip:
                    raise fault from error
                rank_zero_warn(f"{fault} Until then, the next picture takes its place.")
        raise UserError(
            f"root is {str(self.source.where)!r}, in which no picture can be decoded any more: "
            f"check that the disk is still there."
        )

    def batch(self, indices: Tensor) -> Batch:
        """See `Examples.batch`."""
        places, pictures = zip(*map(self._readable, indices.tolist()), strict=True)
        batch = {"x": torch.from_numpy(np.stack(pictures))}
        if self.label is not None:
            batch["label"] = self.label[list(places)]
        return batch

    def subset(self, indices: Tensor) -> "OnDisk":
        """See `Examples.subset`; nothing is read."""
        label = None if self.label is None else self.label[indices]
        names = {"classes": self.classes, "class_names": self.class_names}
        rows = self.rows[indices]
        return OnDisk(self.source, self.decoder, rows, self.shape, label, skip=self.skip, **names)


Seen = np.ndarray | tuple[int, int, int] | Exception


def look(source: Source, task: Callable[[bytes], Seen]) -> Iterator[Seen]:
    """Yields what `task` makes of each file, in order; an error in place of a broken one's."""

    def attempt(index: int) -> Seen:
        try:
            return task(source.read(index))
        except BROKEN as error:
            return error

    chunk = 1024  # bounds what waits decoded, and what is in vain when the caller stops
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        for first in range(0, len(source.names), chunk):
            yield from pool.map(attempt, range(first, min(first + chunk, len(source.names))))


def decode_all(
    source: Source,
    decoder: Decoder,
    label: Sequence[int] | None = None,
    *,
    classes: int | None = None,
    class_names: Sequence[str] | None = None,
    corrupt: Literal["skip", "stop"] = "skip",
    in_memory: bool = True,
) -> tuple[Examples, list[str]]:
    """Looks at every file and makes a set of the readable ones.

    Args:
        source: the files.
        decoder: how they are decoded.
        label: one class a file, or None.
        classes: their number.
        class_names: one name a class, or None.
        corrupt: leave out what cannot be decoded, with one warning, or stop at the first.
        in_memory: keep the pixels; otherwise only check headers, and decode when asked.

    Returns:
        the examples, with shape (n, C, H, W), and the names of the files left out.

    Raises:
        UserError: if pictures differ in size, or none can be decoded, or one cannot and `corrupt`
            is "stop".
    """
    shape: tuple[int, ...] | None = None
    x, kept, broken = torch.empty(0), [], []
    for index, seen in enumerate(look(source, decoder.pixels if in_memory else decoder.shape)):
        if isinstance(seen, Exception):
            if corrupt == "stop":
                raise _unreadable(source, index, seen) from seen
            broken.append(source.names[index])
            continue
        found = seen.shape if isinstance(seen, np.ndarray) else seen
        if shape is None:
            shape = found
            if in_memory:
                x = torch.empty((len(source.names), *shape), dtype=torch.uint8)
        if found != shape:
            one, other = (f"{w}×{h}" for _, h, w in (shape, found))
            raise UserError(
                f"root is {str(source.where)!r}, where {source.names[kept[0]]!r} is {one} pixels "
                f"and {source.names[index]!r} is {other}: set size to bring all to one size."
            )
        if isinstance(seen, np.ndarray):
            x[len(kept)] = torch.tensor(seen)
        kept.append(index)
    if shape is None:
        raise UserError(
            f"root is {str(source.where)!r}, in which none of {len(broken)} images can be "
            f"decoded, {broken[0]!r} first: check that they are images."
        )
    if broken:
        rank_zero_warn(
            f"{len(broken)} of {len(source.names)} images in {str(source.where)!r} cannot be "
            f"decoded and are left out: {', '.join(broken[:3])}{', …' * (len(broken) > 3)}."
        )
    rows = torch.tensor(kept)
    labels = None if label is None else torch.tensor(label)[rows]
    names = {"classes": classes, "class_names": class_names}
    if in_memory:
        return Tensors(x[: len(kept)], labels, **names), broken
    skip = corrupt == "skip"
    return OnDisk(source, decoder, rows, shape, labels, skip=skip, **names), broken
