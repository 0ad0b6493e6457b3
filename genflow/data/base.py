"""What every data module does: split, stream, move, scale and flip.

A subclass says only what its examples are, by `load`. Everything random that follows is a pure
function of numbers that a checkpoint knows:

    which examples     (seed, place in the stream)   `StreamSampler`
    which are flipped  (seed, place in the stream)   `coins`
    which are held out (seed)                        the validation split

where the places follow from the trainer's `global_step`. So a resumed run repeats an unbroken one,
bit for bit, and a data module has no state to save; and as long as the global batch (examples of a
batch × batches accumulated × ranks) is the same, a step sees the same examples, flipped alike,
whoever holds which of them. Three things follow that a trainer must be told,
since the training stream has no end: give it `max_steps`, count validation in steps
(`check_val_every_n_epoch=None` with `val_check_interval`), and keep its hands off the sampler
(`use_distributed_sampler=False`). The number of batches accumulated for a step is read from the
trainer and must not change half-way; nor is manual optimisation with several optimisers foreseen,
which counts its steps otherwise.
"""

from abc import ABC, abstractmethod
from typing import Any

from lightning.pytorch import LightningDataModule
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from genflow.data.checks import at_least, between
from genflow.data.examples import Batch, Examples
from genflow.data.pixels import mirrored, to_float
from genflow.data.stream import StreamSampler, coins, seeded
from genflow.errors import UserError

__all__ = ["DataModule"]


def _as_is(batch: Batch) -> Batch:
    return batch


class DataModule(LightningDataModule, ABC):
    """Examples, split and streamed. Subclasses write `load`, and may write `prepare_data`.

    Reading any of the properties loads the examples, if that has not happened yet; so a network's
    shape can be linked to its data before a trainer exists. Batches reach the model as
    dictionaries: "x" in float, images in [-1, 1], and "label" in int64 where there are labels.

    Args:
        batch_size: examples in a batch of one process.
        workers: processes that fetch batches; 0 fetches in the training process, which is best
            for everything that lies in memory.
        seed: names the stream, the flips and the split; a whole number of at least 0.
        validation: the fraction held out for validation, in [0, 1).
        flip: mirror half of the training images left to right, chosen anew at each step.

    Raises:
        UserError: if a number is out of its range.
    """

    def __init__(
        self,
        batch_size: int = 128,
        workers: int = 0,
        seed: int = 0,
        validation: float = 0.0,
        flip: bool = False,
    ) -> None:
        super().__init__()
        self.batch_size = at_least("batch_size", batch_size, 1)
        self.workers = at_least("workers", workers, 0)
        self.seed = at_least("seed", seed, 0)
        self.validation = between("validation", validation, 0, 1)
        self.flip = flip
        self._sets: tuple[Examples, Examples | None] | None = None

    @abstractmethod
    def load(self) -> Examples:
        """Reads every example, before any is held out."""

    # What there is ------------------------------------------------------------------------------

    @property
    def title(self) -> str:
        """What the data are, in a few words."""
        return type(self).__name__

    @property
    def origin(self) -> str | None:
        """What a flow on these data starts from, in a few words; None is noise."""
        return None

    def setup(self, stage: str | None = None) -> None:
        """Loads and splits, the first time; later calls find the work done.

        Raises:
            UserError: if the split leaves a side empty, or vectors are to be flipped.
        """
        if self._sets is None:
            examples = self.load()
            if self.flip and len(examples.shape) != 3:
                raise UserError(
                    f"flip is True, but the examples are vectors with shape {examples.shape} and "
                    f"only images can be mirrored: set flip to false."
                )
            self._sets = self._split(examples)

    def _split(self, examples: Examples) -> tuple[Examples, Examples | None]:
        if not self.validation:
            return examples, None
        size = len(examples)
        held = max(1, round(size * self.validation))
        if held >= size:
            raise UserError(
                f"validation is {self.validation}, which holds out {held} of {size} examples and "
                f"leaves none to train on: lower it, or add examples."
            )
        order = torch.randperm(size, generator=seeded("split", self.seed))
        kept, out = order[held:].sort().values, order[:held].sort().values
        return examples.subset(kept), examples.subset(out)

    def _loaded(self) -> tuple[Examples, Examples | None]:
        if self._sets is None:
            self.prepare_data()
            self.setup()
        assert self._sets is not None
        return self._sets

    @property
    def train_set(self) -> Examples:
        """The examples to train on."""
        return self._loaded()[0]

    @property
    def val_set(self) -> Examples | None:
        """The examples held out, or None."""
        return self._loaded()[1]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example: (C, H, W) or (d,)."""
        return self.train_set.shape

    @property
    def classes(self) -> int | None:
        """The number of classes, or None without labels."""
        return self.train_set.classes

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """One name a class, or None."""
        return self.train_set.class_names

    def reference(self, n: int | None = None) -> Tensor:
        """Training examples to compare generated ones with.

        Args:
            n: how many; they are drawn without repetition, the same for the same seed. By default
                all of them, in stored order.

        Returns:
            images with shape (n, C, H, W) in uint8, or vectors with shape (n, d) in float.

        Raises:
            UserError: if there are fewer than `n`.
        """
        size = len(self.train_set)
        if n is None:
            return self.train_set[:]["x"]
        if at_least("n", n, 1) > size:
            raise UserError(
                f"n is {n}, but there are {size} training examples: ask for at most {size}, or "
                f"leave n out for all of them."
            )
        order = torch.randperm(size, generator=seeded("reference", self.seed))
        return self.train_set[order[:n]]["x"]

    # How it reaches the model -------------------------------------------------------------------

    def _step(self) -> int:
        """The batch of the stream that the trainer's next step begins with."""
        trainer = self.trainer
        return trainer.global_step * trainer.accumulate_grad_batches if trainer else 0

    def _loader(self, examples: Examples, **options: Any) -> DataLoader[Batch]:
        return DataLoader(
            examples,
            num_workers=self.workers,
            collate_fn=_as_is,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.workers > 0,
            generator=seeded("loader", self.seed),  # else each loader draws from the global one
            **options,
        )

    def train_dataloader(self) -> DataLoader[Batch]:
        """The training stream from the trainer's step on; without a trainer, from the start."""
        sampler = StreamSampler(
            len(self.train_set),
            self.batch_size,
            seed=self.seed,
            rank=self.trainer.global_rank if self.trainer else 0,
            world=self.trainer.world_size if self.trainer else 1,
            start=self._step,
        )
        return self._loader(self.train_set, batch_sampler=sampler)

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """The held-out examples in stored order, on every rank alike; [] when there are none."""
        if self.val_set is None:
            return []
        return self._loader(self.val_set, batch_size=self.batch_size)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Makes images float, on the device, and flips them if a trainer is training.

        Args:
            batch: "x" in uint8 with shape (B, C, H, W), or in float with shape (B, d).
            dataloader_idx: not used.

        Returns:
            the same entries, with "x" in [-1, 1] if it was uint8.
        """
        x = batch["x"]
        if x.dtype != torch.uint8:
            return batch
        if self._flips():
            x = mirrored(x, coins("flip", self.seed, self._place(), len(x)))
        return batch | {"x": to_float(x)}

    def _flips(self) -> bool:
        """Whether a trainer is training, with flips."""
        return self.flip and self.trainer is not None and self.trainer.training

    def _place(self) -> int:
        """The place in the stream of the first example of the batch in hand."""
        trainer = self.trainer
        accumulated = trainer.accumulate_grad_batches
        ready = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        batch = trainer.global_step * accumulated + ready % accumulated
        return (batch * trainer.world_size + trainer.global_rank) * self.batch_size
