"""Real images: the digits that ship with scikit-learn, torchvision's sets, folders and zips.

Each class says where bytes come from and what the labels are; everything after that, from the
split to the flips, is `DataModule`'s. All become uint8 with shape (n, C, H, W) and stay in memory,
except where `in_memory=False` asks for files to be read when they are needed.

    Digits        1,797 handwritten digits, 8×8, grey; no file and no internet
    Torchvision   the training halves of MNIST, FashionMNIST (28×28, grey), CIFAR10 (32×32)
    ImageFolder   any folder; sub-folders may be classes
    ImageZip      any zip; dataset.json in it may hold classes, as in EDM's and StyleGAN's sets
"""

from abc import abstractmethod
from collections.abc import Sequence
import json
import os
from typing import Any, Literal

import numpy as np
from sklearn.datasets import load_digits
import torch
import torchvision

from genflow.data.base import DataModule
from genflow.data.checks import at_least, one_of
from genflow.data.decode import Decoder, Folder, Source, Zip, decode_all
from genflow.data.examples import Examples, Tensors
from genflow.errors import UserError

__all__ = ["Digits", "ImageFolder", "ImageZip", "StoredImages", "Torchvision"]


class Digits(DataModule):
    """The 1,797 digits of scikit-learn, 8×8, grey: real images on every machine.

    Their 17 levels v = 0 .. 16 become round(255 v / 16). Ten classes, about 180 of each.

    Args:
        **options: batch_size, workers, seed, validation and flip, as in `DataModule`.

    References:
        E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits,
        https://doi.org/10.24432/C50P49
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)

    def load(self) -> Examples:
        """See `DataModule.load`; (1797, 1, 8, 8)."""
        stored = load_digits()
        x = np.rint(stored.images * 255 / 16).astype(np.uint8)
        label = torch.from_numpy(stored.target.astype(np.int64))
        names = [str(name) for name in stored.target_names]
        return Tensors(torch.from_numpy(x)[:, None], label, class_names=names)


class Torchvision(DataModule):
    """The training half of a set that torchvision knows.

    Args:
        name: which set.
        root: the folder that torchvision keeps its sets in.
        download: fetch the set if it is not there.
        **options: batch_size, workers, seed, validation and flip, as in `DataModule`.

    Raises:
        UserError: if the name is unknown; on loading, if the set is neither there nor to be had.
    """

    PLACES = {
        "MNIST": "MNIST/raw",
        "FashionMNIST": "FashionMNIST/raw",
        "CIFAR10": "cifar-10-batches-py",
    }

    def __init__(
        self,
        name: Literal["MNIST", "FashionMNIST", "CIFAR10"],
        root: str | os.PathLike[str] = "data",
        download: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.name = one_of("name", name, self.PLACES)
        self.root = root
        self.download = download

    @property
    def title(self) -> str:
        """See `DataModule.title`."""
        return self.name

    def _open(self, download: bool) -> Any:
        place = os.path.join(self.root, self.PLACES[self.name])
        try:
            return getattr(torchvision.datasets, self.name)(str(self.root), download=download)
        except (OSError, RuntimeError) as error:
            if download:
                raise UserError(
                    f"download is True, but {self.name} cannot be fetched ({error}): check the "
                    f"connection, or put its unpacked files into {place!r} by hand."
                ) from error
            raise UserError(
                f"root is {str(self.root)!r}, where {self.name} is missing or damaged: put its "
                f"unpacked files into {place!r}, or set download to true."
            ) from error

    def prepare_data(self) -> None:
        """Downloads if asked to; a trainer calls this on one process only."""
        if self.download:
            self._open(download=True)

    def load(self) -> Examples:
        """See `DataModule.load`; (n, 1, 28, 28) or (50000, 3, 32, 32)."""
        stored = self._open(download=False)
        x = torch.as_tensor(stored.data)
        x = x[:, None] if x.ndim == 3 else x.permute(0, 3, 1, 2).contiguous()
        return Tensors(x, torch.as_tensor(stored.targets), class_names=stored.classes)


class StoredImages(DataModule):
    """Images in files; subclasses say which files, and which classes.

    Args:
        root: where the images lie.
        size: resize the shorter side to it and cut out the centre; None takes images as they
            are, if they have one size.
        channels: 1 for grey, 3 for colour; every image is converted.
        labels: read classes where there are any.
        corrupt: leave out images that cannot be decoded, with one warning, or stop at the first.
        in_memory: decode everything once, to bytes in memory; otherwise decode each batch when
            it is needed, which wants `workers`.
        **options: batch_size, workers, seed, validation and flip, as in `DataModule`.

    Attributes:
        skipped: after loading, the names of the images left out.

    Raises:
        UserError: if an argument is out of its range; on loading, if the files are not as said.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        size: int | None = None,
        channels: Literal[1, 3] = 3,
        labels: bool = True,
        corrupt: Literal["skip", "stop"] = "skip",
        in_memory: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.root = root
        self.decoder = Decoder(
            channels=one_of("channels", channels, (1, 3)),
            size=None if size is None else at_least("size", size, 1),
        )
        self.labels = labels
        self.corrupt: Literal["skip", "stop"] = one_of("corrupt", corrupt, ("skip", "stop"))
        self.in_memory = in_memory
        self.skipped: list[str] = []

    @abstractmethod
    def source(self) -> Source:
        """Opens the files."""

    @abstractmethod
    def classify(self, source: Any) -> tuple[Sequence[int] | None, Sequence[str] | None]:
        """The class of each file, and the name of each class; None where there are none."""

    def load(self) -> Examples:
        """See `DataModule.load`; (n, C, H, W)."""
        source = self.source()
        label, names = self.classify(source) if self.labels else (None, None)
        examples, self.skipped = decode_all(
            source,
            self.decoder,
            label,
            classes=None if label is None else len(names) if names else max(label) + 1,
            class_names=names,
            corrupt=self.corrupt,
            in_memory=self.in_memory,
        )
        return examples


class ImageFolder(StoredImages):
    """Every png, jpg, jpeg, webp and bmp below a folder, sorted by name.

    If all of them lie in sub-folders, the sub-folders of `root`, sorted, are the classes.
    Arguments, attributes and errors are those of `StoredImages`.
    """

    def source(self) -> Source:
        """See `StoredImages.source`."""
        return Folder(self.root)

    def classify(self, source: Source) -> tuple[list[int] | None, list[str] | None]:
        """See `StoredImages.classify`."""
        if not all("/" in name for name in source.names):
            return None, None
        folders = [name.split("/", 1)[0] for name in source.names]
        names = sorted(set(folders))
        number = {name: index for index, name in enumerate(names)}
        return [number[folder] for folder in folders], names


class ImageZip(StoredImages):
    """Every png, jpg, jpeg, webp and bmp in a zip file, sorted by name.

    Classes are read from `dataset.json` at the top of the zip: {"labels": [[name, class], ...]},
    with classes numbered from 0, as the tools of EDM and StyleGAN write it. Without that file, or
    where "labels" is null, there are none. Arguments, attributes and errors are those of
    `StoredImages`.

    References:
        https://github.com/NVlabs/edm
    """

    def source(self) -> Source:
        """See `StoredImages.source`."""
        return Zip(self.root)

    def classify(self, source: Zip) -> tuple[list[int] | None, None]:
        """See `StoredImages.classify`."""
        text = source.text("dataset.json")
        if text is None:
            return None, None
        try:
            pairs = json.loads(text)["labels"]
            if pairs is None:
                return None, None
            known = {str(name).replace("\\", "/"): label for name, label in pairs}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"dataset.json in {str(self.root)!r} cannot be read ({error!r}): it must be "
                f'{{"labels": [["name.png", 0], ...]}}; mend it, or set labels to false.'
            ) from error
        for name in source.names:
            label = known.get(name)
            if not isinstance(label, int) or label < 0:
                raise UserError(
                    f"dataset.json in {str(self.root)!r} gives {name!r} the class {label!r}, but "
                    f"it must be a whole number from 0: mend it, or set labels to false."
                )
        return [known[name] for name in source.names], None
