"""Two clouds of points that are not paired: where a bridge starts, and where it ends.

A cloud is named by a text:

    normal           standard normal points, as wide as the other cloud
    swiss-roll, …    a toy set of the plane; see `genflow.data.toy`
    digits, digits:3 the pixels of scikit-learn's digits in [−1, 1], all or of one class
    x0.npy           an array (n, ...) in a file
    cells.npz:day2   an array of a file that holds several

Batches are {"x": target, "source": source}. The two come from streams of their own, so rows of a
batch are independent even where files hold rows in the same order; both streams are pure functions
of the seed and the step, and resuming goes on with them.

With ``latent`` both clouds are seen along the principal components of their union: the linear
autoencoder with the least squared error, whose way back is `decode`. Constant columns vanish.
"""

from collections.abc import Iterator
import math
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from genflow.data.base import DataModule
from genflow.data.checks import at_least, between
from genflow.data.examples import Batch, Examples, Tensors
from genflow.data.stream import StreamSampler, seeded
from genflow.data.toy import LAWS, draw_toy
from genflow.errors import UserError, nearest

__all__ = ["Clouds", "cloud_named"]

APART = 1 << 20  # between the seeds of the two streams


def cloud_named(text: str, size: int, *, noise: float = 0.05, seed: int = 0) -> Tensor | None:
    """The points that a text names.

    Args:
        text: as in the table above.
        size: the number of points that are drawn, where they are drawn.
        noise: the standard deviation of the noise of a toy set.
        seed: names the draw.

    Returns:
        points with shape (n, d) in float32; None for ``normal``, which has no width of its own.

    Raises:
        UserError: if the text names nothing, or a file cannot be read.
    """
    name, _, key = text.partition(":")
    if text == "normal":
        return None
    if text in LAWS:
        return draw_toy(text, size, noise=noise, seed=seed).x
    if name == "digits":
        stored = load_digits()
        x = torch.from_numpy(stored.data / 8 - 1).float()
        if key not in ("", *"0123456789"):
            raise UserError(f"'{text}' names no class of digits: write digits:0 to digits:9.")
        return x[torch.from_numpy(stored.target) == int(key)] if key else x
    if name.endswith((".npy", ".npz")):
        return _array(Path(name), key)
    known = ["normal", "digits", *LAWS]
    raise UserError(f"cloud is '{text}', which is no .npy or .npz file{nearest(text, known)}")


def _array(file: Path, key: str) -> Tensor:
    try:
        held = np.load(file, allow_pickle=False)
        if isinstance(held, np.lib.npyio.NpzFile):
            key = key or ("x" if "x" in held.files else held.files[0])
            if key not in held.files:
                raise UserError(f"'{file}' holds no '{key}'{nearest(key, held.files)}")
            held = held[key]
    except FileNotFoundError:
        raise UserError(f"file '{file}' is not there: give the path of an array.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"file '{file}' cannot be read as an array ({error}).") from None
    x = torch.from_numpy(np.asarray(held, np.float32))
    if x.ndim < 2 or len(x) == 0 or not bool(x.isfinite().all()):
        raise UserError(
            f"file '{file}' holds an array with shape {tuple(x.shape)}: finite points with shape "
            f"(n, ...) are needed."
        )
    return x.flatten(1)


class Clouds(DataModule):
    """Two clouds; see the table above.

    Args:
        source: the cloud to start from.
        target: the cloud to arrive at.
        size: the number of points of a cloud that is drawn.
        noise: the standard deviation of the noise of toy sets.
        latent: the number of principal components to see both clouds along; None sees them as
            they are.
        validation: the fraction of each cloud that is held out, in [0, 1).
        **options: batch_size, workers and seed, as in `DataModule`.

    Raises:
        UserError: if a name is unknown or a number out of its range; on loading, if the clouds
            have no width in common.
    """

    def __init__(
        self,
        source: str = "normal",
        target: str = "swiss-roll",
        size: int = 100_000,
        noise: float = 0.05,
        latent: int | None = None,
        validation: float = 0.05,
        **options: Any,
    ) -> None:
        super().__init__(flip=False, validation=validation, **options)
        self.source = source
        self.target = target
        self.size = at_least("size", size, 2)
        self.noise = between("noise", noise, 0, math.inf)
        self.latent = None if latent is None else at_least("latent", latent, 1)
        self._sources: tuple[Examples, Examples | None] | None = None
        self._place, self._axes = torch.zeros(0), torch.zeros(0, 0)

    # What there is --------------------------------------------------------------------------

    def _clouds(self) -> tuple[Tensor, Tensor]:
        """Both clouds, (n, d) and (m, d)."""
        drawn = {"size": self.size, "noise": self.noise}
        x = cloud_named(self.source, **drawn, seed=self.seed + APART)
        y = cloud_named(self.target, **drawn, seed=self.seed)
        if x is None and y is None:
            raise UserError(
                "source and target are both 'normal': name a cloud that has a width for one."
            )
        wide = (y if y is not None else x).shape[1]
        x, y = (self._normal(i, wide) if c is None else c for i, c in enumerate((x, y)))
        if x.shape[1] != y.shape[1]:
            raise UserError(
                f"source has {x.shape[1]} columns and target {y.shape[1]}: both clouds must have "
                f"one dimension."
            )
        return x, y

    def _normal(self, end: int, width: int) -> Tensor:
        return torch.randn(self.size, width, generator=seeded("normal", self.seed, end))

    def _seen(self) -> tuple[Tensor, Tensor]:
        """Both clouds, along the principal components if there are any."""
        x, y = self._clouds()
        if self.latent is None:
            return x, y
        both = torch.cat((x, y)).double()
        if self.latent > both.shape[1]:
            raise UserError(
                f"latent is {self.latent}, but points have {both.shape[1]} columns: set it to "
                f"that or less."
            )
        self._place = both.mean(0)
        _, axes = torch.linalg.eigh((both - self._place).mT @ (both - self._place))
        self._axes = axes[:, -self.latent :].flip(1)
        return self._along(x), self._along(y)

    def _along(self, x: Tensor) -> Tensor:
        return ((x.double() - self._place) @ self._axes).to(x.dtype)

    def encode(self, x: Tensor) -> Tensor:
        """From points (n, D) to what the bridge sees, (n, d)."""
        self._loaded()
        return x if self.latent is None else self._along(x)

    def decode(self, z: Tensor) -> Tensor:
        """From what the bridge sees, (n, d), to points (n, D)."""
        self._loaded()
        if self.latent is None:
            return z
        return (z.double() @ self._axes.mT + self._place).to(z.dtype)

    def load(self) -> Examples:
        """See `DataModule.load`; the target, (m, d)."""
        return Tensors(self._seen()[1])

    def setup(self, stage: str | None = None) -> None:
        """Loads and splits both clouds, the first time."""
        if self._sets is None:
            x, y = self._seen()
            self._sources, self._sets = self._split(Tensors(x)), self._split(Tensors(y))

    @property
    def source_set(self) -> Examples:
        """The points of the source to train on."""
        self._loaded()
        return self._sources[0]

    @property
    def source_val_set(self) -> Examples | None:
        """The points of the source held out, or None."""
        self._loaded()
        return self._sources[1]

    # How it reaches the model ---------------------------------------------------------------

    def train_dataloader(self) -> DataLoader[Batch]:
        """Both training streams from the trainer's step on."""
        rank, world = (
            (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        )
        streams = [
            StreamSampler(
                len(examples), self.batch_size, seed=seed, rank=rank, world=world, start=self._step
            )
            for examples, seed in (
                (self.train_set, self.seed),
                (self.source_set, self.seed + APART),
            )
        ]
        both = _Both(self.train_set, self.source_set)
        return self._loader(both, batch_sampler=_Together(streams))

    def val_dataloader(self) -> list[DataLoader[Batch]]:
        """None: what is held out is looked at as a whole, by the module."""
        return []


class _Both(Dataset[Batch]):
    """Rows of the target and of the source, by two lists of indices."""

    def __init__(self, target: Examples, source: Examples) -> None:
        self.target, self.source = target, source

    def __getitems__(self, indices: list[list[int]]) -> Batch:
        y, x = (torch.tensor(i) for i in indices)
        return {"x": self.target.batch(y)["x"], "source": self.source.batch(x)["x"]}


class _Together(Sampler[list[list[int]]]):
    """Streams of indices side by side."""

    def __init__(self, streams: list[StreamSampler]) -> None:
        self.streams = streams

    def __iter__(self) -> Iterator[list[list[int]]]:
        yield from map(list, zip(*self.streams, strict=True))
