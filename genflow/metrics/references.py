r"""References: what is known of the real data, computed once.

The moments of the data's features, and the features themselves if they are wanted, lie in a
folder: ``reference.json``, ``moments.safetensors``, ``features.npy``. In the cache folder it is
called by a key,

.. math:: \text{key} = \mathrm{sha256}(\text{data}, \text{feature}, \text{resize})

of the sha256 of the images (type, shape of one, bytes in their order, count), the digest of the
feature's weights, and the words for its resizing: a reference is found again only for the very
same images seen by the very same net. What is *not* assumed: that images fit into memory, any
batches do; nor that a path or a name says what a data set holds. One process should make a
reference; others may read it then.
"""

__all__ = ["DataHash", "Reference"]

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genflow.errors import UserError
from genflow.files import cache_folder, replacing, write_text
from genflow.metrics.features import Features, extract
from genflow.metrics.frechet import Moments, MomentSum

FORMAT = "genflow-reference-1"
CARD, MOMENTS, POINTS = "reference.json", "moments.safetensors", "features.npy"

Images = Tensor | Iterable[Tensor]


class DataHash:
    r"""The sha256 of images in their order, batch by batch; how they are cut does not matter."""

    def __init__(self) -> None:
        self.count, self.kind = 0, ""
        self._digest = hashlib.sha256()

    def update(self, images: Tensor) -> None:
        r"""Adds a batch.

        Arguments:
            images: The images, with shape :math:`(n, *)`.

        Raises:
            UserError: If they differ in type or shape from those before.
        """
        kind = f"{str(images.dtype).removeprefix('torch.')} {tuple(images.shape[1:])}"
        if self.kind and kind != self.kind:
            raise UserError(
                f"images: {kind} after {self.kind}; all must be of one type and shape, "
                "resize or convert them."
            )
        if not self.kind:
            self.kind = kind
            self._digest.update(kind.encode())

        self.count += len(images)
        self._digest.update(images.detach().cpu().contiguous().numpy().tobytes())

    def hexdigest(self) -> str:
        """The sha256 of all so far, in hexadecimal."""
        digest = self._digest.copy()
        digest.update(str(self.count).encode())

        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Reference:
    r"""Moments of real data's features, perhaps with the features, and what they are of.

    Arguments:
        moments: The moments, which know the feature's name and digest.
        data: The sha256 of the images.
        shape: The shape of one image.
        resize: How the feature resizes, in words.
        prefix: How the Fréchet distance on the feature is called.
        points: The features, possibly a memory map, with shape :math:`(m, d)`; None if they were
            not kept.

    Example:
        >>> from genflow.metrics import Pixels
        >>> images = torch.randint(256, (20, 1, 4, 4), dtype=torch.uint8)
        >>> Reference.make(images, Pixels()).count
        20
    """

    moments: Moments
    data: str
    shape: tuple[int, ...]
    resize: str
    prefix: str
    points: Tensor | None = None

    @property
    def count(self) -> int:
        """The number of images."""
        return self.moments.count

    @property
    def feature(self) -> str:
        """The name of the feature."""
        return self.moments.feature

    @property
    def digest(self) -> str:
        """The sha256 of the feature's weights."""
        return self.moments.digest

    @property
    def key(self) -> str:
        """The name of the reference in the cache folder."""
        return _key(self.data, self.digest, self.resize)

    @classmethod
    def make(
        cls, images: Images, feature: Features, *, batch_size: int = 512, points: bool = False
    ) -> "Reference":
        r"""Computes a reference.

        Arguments:
            images: The images, with shape :math:`(m, C, H, W)` or :math:`(m, d)`, or batches.
            feature: The feature.
            batch_size: The number of images at once.
            points: Whether to keep the features, which all metrics but the Fréchet distance
                need.

        Raises:
            UserError: If there are fewer than two images, or they do not suit the feature.
        """
        total, data = MomentSum(feature.name, feature.digest), DataHash()
        kept, shape = [], ()

        for batch in _batches(images, batch_size):
            found = extract(feature, batch, batch_size)
            total.update(found)
            data.update(batch)
            shape = tuple(batch.shape[1:])
            if points:
                kept.append(found)

        return cls(
            moments=total.moments(),
            data=data.hexdigest(),
            shape=shape,
            resize=feature.resize,
            prefix=feature.prefix,
            points=torch.cat(kept) if kept else None,
        )

    @classmethod
    def cached(
        cls, images: Images, feature: Features, *, batch_size: int = 512, points: bool = False
    ) -> "Reference":
        r"""Looks a reference up in the cache folder; it is made and kept there if it is new.

        Arguments:
            images: The images, or batches that can be gone through twice.
            feature: The feature.
            batch_size: The number of images at once.
            points: Whether the features are needed.

        Raises:
            UserError: As :meth:`make`, or if the folder cannot be written.
        """
        if iter(images) is images:
            raise UserError(
                "images: can be gone through only once, and the cache needs a look first; give a "
                "tensor or a list of batches, or take Reference.make."
            )

        data = DataHash()
        for batch in _batches(images, batch_size):
            data.update(batch)
        folder = (
            cache_folder() / "references" / _key(data.hexdigest(), feature.digest, feature.resize)
        )

        if (folder / CARD).is_file():
            try:
                known = cls.load(folder).of(feature)
            except UserError:
                known = None  # damaged: made again
            if known is not None and (known.points is not None or not points):
                return known

        made = cls.make(images, feature, batch_size=batch_size, points=points)
        made.save(folder, overwrite=True)

        return cls.load(folder)

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        r"""Writes the reference; the folder appears whole or not at all.

        Arguments:
            folder: The folder.
            overwrite: Whether a reference of this name may be replaced.

        Raises:
            UserError: If the name is taken, or the folder cannot be written.
        """
        card = {
            "format": FORMAT,
            "count": self.count,
            "data": self.data,
            "shape": list(self.shape),
            "feature": self.feature,
            "sha256": self.digest,
            "width": len(self.moments.mean),
            "resize": self.resize,
            "prefix": self.prefix,
            "points": self.points is not None,
        }

        Path(folder).parent.mkdir(parents=True, exist_ok=True)
        with replacing(folder, overwrite=overwrite, mark=CARD) as part:
            self.moments.save(part / MOMENTS)
            if self.points is not None:
                np.save(part / POINTS, self.points.numpy())
            write_text(part / CARD, json.dumps(card, indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "Reference":
        r"""Reads what :meth:`save` wrote; features are mapped, not read.

        Arguments:
            folder: The folder.

        Raises:
            UserError: If it is absent, damaged or foreign.
        """
        folder = Path(folder)

        try:
            card = json.loads((folder / CARD).read_text(encoding="utf-8"))
            if not isinstance(card, dict) or card.get("format") != FORMAT:
                raise ValueError(f"{CARD} is not of the format {FORMAT}")
            moments = Moments.load(folder / MOMENTS)
            points = _points(folder / POINTS) if card["points"] else None
            _check(card, moments, points)
            shape, resize, prefix = tuple(card["shape"]), card["resize"], card["prefix"]
            return cls(moments, card["data"], shape, resize, prefix, points)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"folder: '{folder}' cannot be read as a reference ({error}); give a folder that "
                "Reference.save or 'genflow reference make' wrote."
            ) from None

    def of(self, feature: Features) -> "Reference":
        r"""Gives the reference itself, if it was made with a feature.

        Arguments:
            feature: The feature that samples are looked at with.

        Raises:
            UserError: If the reference was made with another net, or another resizing.
        """
        if (self.digest, self.resize) != (feature.digest, feature.resize):
            raise UserError(
                f"reference: made with feature '{self.feature}' (sha256 {self.digest[:12]}, "
                f"resize: {self.resize}), not with '{feature.name}' (sha256 "
                f"{feature.digest[:12]}, resize: {feature.resize}); make it again, or take its "
                "feature."
            )

        return self


def _key(data: str, digest: str, resize: str) -> str:
    return hashlib.sha256("\n".join((data, digest, resize)).encode()).hexdigest()[:32]


def _batches(images: Images, size: int) -> Iterator[Tensor]:
    """Batches of a size at most, whatever they come in."""
    for part in [images] if isinstance(images, Tensor) else images:
        yield from part.split(size)


def _points(file: Path) -> Tensor:
    """A memory map that writes nothing back to the file."""
    return torch.from_numpy(np.load(file, mmap_mode="c", allow_pickle=False))


def _check(card: dict[str, Any], moments: Moments, points: Tensor | None) -> None:
    wanted = (card["count"], card["width"])
    found = [(moments.count, len(moments.mean))]
    found += [] if points is None else [tuple(points.shape)]

    if any(shape != wanted for shape in found) or moments.digest != card["sha256"]:
        raise ValueError("its files are of different data or features")
