"""Two data sets, one at each end of a flow.

A batch holds "x", examples of the target, and "z", as many of the source, in the place of noise;
each side is a stream of its own (see `genflow.data.stream`), so both are pure functions of the
seed and the place in the stream, and a resumed run repeats an unbroken one. The streams know
nothing of each other: which source goes with which target is the coupling's business, unless the
sets come paired. Labels are the target's.
"""

__all__ = ["Translation"]

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from genflow.data.base import DataModule
from genflow.data.checks import plain, wrong_ends
from genflow.data.examples import Batch, Examples
from genflow.data.pixels import mirrored, to_float
from genflow.data.stream import StreamSampler, coins, seed_words, seeded
from genflow.errors import UserError

Pair = tuple[int, int]


class _Ends(torch.utils.data.Dataset[Batch]):
    """Both sides, read by pairs of numbers."""

    def __init__(self, target: Examples, source: Examples) -> None:
        self.target, self.source = target, source

    def __getitems__(self, pairs: list[Pair]) -> Batch:
        """What a `DataLoader` calls, once a batch."""
        i, j = torch.tensor(pairs).unbind(1)
        return self.target.batch(i) | {"z": self.source.batch(j)["x"]}


class _Both(Sampler[list[Pair]]):
    """Two streams side by side."""

    def __init__(self, target: StreamSampler, source: StreamSampler) -> None:
        self.target, self.source = target, source

    def __iter__(self) -> Iterator[list[Pair]]:
        for i, j in zip(self.target, self.source, strict=True):
            yield list(zip(i, j, strict=True))


class Translation(DataModule):
    """Two data sets: a flow learns to lead from the source to the target.

    Args:
        source: the set in the place of noise.
        target: the set in the place of data; shape, classes and `reference` are its.
        paired: example i of one side belongs to example i of the other, and they stay together.
        **options: batch_size, workers, seed, validation and flip, as in `DataModule`; those of
            the two sets are not used. Each side is split and flipped on its own.

    Raises:
        UserError: if a side is told to split or flip, or pairs are to be flipped; on loading, if
            the two sides differ in shape, or pairs in number.

    Example:
        >>> data = Translation(Domain(Digits(), range(5)), Domain(Digits(), range(5, 10)))
    """

    def __init__(
        self, source: DataModule, target: DataModule, paired: bool = False, **options: Any
    ) -> None:
        super().__init__(**options)
        self.source, self.target = plain("source", source), plain("target", target)
        self.paired = paired
        self._starts: tuple[Examples, Examples | None] | None = None
        if paired and self.flip:
            raise UserError(
                "flip is True and paired is True, but a mirrored example no longer belongs to its "
                "partner: set one of the two to false."
            )

    @property
    def title(self) -> str:
        """See `DataModule.title`."""
        return self.target.title

    @property
    def origin(self) -> str:
        """See `DataModule.origin`."""
        return self.source.title

    def prepare_data(self) -> None:
        """Prepares both sides."""
        self.source.prepare_data()
        self.target.prepare_data()

    def load(self) -> Examples:
        """See `DataModule.load`; the target."""
        return self.target.load()

    def setup(self, stage: str | None = None) -> None:
        """Loads and splits both sides, the first time.

        Raises:
            UserError: if their shapes differ, or pairs are not as many.
        """
        if self._starts is not None:
            return
        super().setup(stage)
        target, source = self.train_set, self.source.load()
        count = len(target) + len(self.val_set or ())
        if source.shape != target.shape:
            raise wrong_ends(source.shape, target.shape)
        if self.paired and len(source) != count:
            raise UserError(
                f"paired is True, but the source has {len(source)} examples and the target "
                f"{count}: give one of each for every pair."
            )
        self._starts = self._split(source)

    @property
    def source_set(self) -> Examples:
        """The examples of the source to train on."""
        self._loaded()
        assert self._starts is not None
        return self._starts[0]

    def starts(self, n: int) -> Tensor:
        r"""Examples of the source to look at, the same for the same seed, gone round in.

        Args:
            n: how many.

        Returns:
            images in [-1, 1] or vectors, in float with shape (n, \*).
        """
        size = len(self.source_set)
        order = torch.randperm(size, generator=seeded("starts", self.seed))
        x = self.source_set[order[torch.arange(n) % size]]["x"]
        return to_float(x) if x.dtype == torch.uint8 else x

    # How it reaches the model -------------------------------------------------------------------

    def _ends(self, held_out: bool = False) -> _Ends:
        self._loaded()
        assert self._sets is not None and self._starts is not None
        target, source = self._sets[held_out], self._starts[held_out]
        assert target is not None and source is not None
        return _Ends(target, source)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Both streams from the trainer's step on; without a trainer, from the start."""
        other = int(seed_words("source", self.seed).generate_state(1)[0])
        streams = [
            StreamSampler(
                len(examples),
                self.batch_size,
                seed=seed,
                rank=self.trainer.global_rank if self.trainer else 0,
                world=self.trainer.world_size if self.trainer else 1,
                start=self._step,
            )
            for examples, seed in (
                (self.train_set, self.seed),
                (self.source_set, self.seed if self.paired else other),
            )
        ]
        return self._loader(self._ends(), batch_sampler=_Both(*streams))

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """The held-out examples of the target in stored order, and the source's gone round in."""
        if self.val_set is None:
            return []
        ends = self._ends(held_out=True)
        pairs = [(i, i % len(ends.source)) for i in range(len(ends.target))]
        size = self.batch_size
        batches = [pairs[k : k + size] for k in range(0, len(pairs), size)]
        return self._loader(ends, batch_sampler=batches)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Makes both ends float, on the device, and flips each on its own in training."""
        done = super().on_after_batch_transfer(batch, dataloader_idx)
        z = done["z"]
        if z.dtype != torch.uint8:
            return done
        if self._flips():
            z = mirrored(z, coins("flip source", self.seed, self._place(), len(z)))
        return done | {"z": to_float(z)}
