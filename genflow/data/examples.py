"""Stored examples, read a batch at a time.

A batch is a dictionary: "x" with shape (B, C, H, W) in uint8 for images or (B, d) in float for
vectors, and "label" with shape (B,) in int64 where there are labels. It is cut from the store
with one indexing operation; no Python loop runs over the examples, and nothing is collated. For
images of 32×32 that loop would cost more than a small network does.

Images stay uint8 until they have arrived on the device: a quarter of the memory, and a quarter of
the traffic. `DataModule.on_after_batch_transfer` makes them float.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from genflow.errors import UserError

__all__ = ["Examples", "Tensors"]

Batch = dict[str, Tensor]


class Examples(Dataset[Batch], ABC):
    """A finite set of examples that hands out whole batches.

    `examples[i]` is one example, `examples[[i, j, ...]]` and `examples[a:b]` are batches.

    Attributes:
        shape: of one example, (C, H, W) or (d,).
        label: the classes with shape (n,) in int64, or None.
        classes: the number of classes, or None when there are no labels.
        class_names: one name a class, or None.

    Args:
        shape: as above.
        label: as above.
        classes: by default the number of names, else the largest label + 1.
        class_names: as above.

    Raises:
        UserError: if a label lies outside 0 .. classes - 1.
    """

    def __init__(
        self,
        shape: Sequence[int],
        label: Tensor | None = None,
        *,
        classes: int | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.shape = tuple(shape)
        self.label = label
        self.class_names = tuple(class_names) if class_names and label is not None else None
        self.classes = None
        if label is not None:
            low, high = int(label.min()), int(label.max())
            count = len(self.class_names) if self.class_names else high + 1
            self.classes = count if classes is None else classes
            if low < 0 or high >= self.classes:
                raise UserError(
                    f"label holds {low if low < 0 else high}, but with {self.classes} classes "
                    f"labels must be from 0 to {self.classes - 1}: number the classes from 0."
                )

    @abstractmethod
    def __len__(self) -> int:
        """The number of examples."""

    @abstractmethod
    def batch(self, indices: Tensor) -> Batch:
        """The examples at `indices` with shape (B,) in int64, in that order."""

    @abstractmethod
    def subset(self, indices: Tensor) -> "Examples":
        """The same store, restricted to `indices` with shape (m,)."""

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> Batch:
        """One example for a number; a batch for a list, a tensor or a slice of numbers."""
        if isinstance(index, int):
            if not -len(self) <= index < len(self):
                raise IndexError(f"example {index} of {len(self)}")
            return {k: v[0] for k, v in self.batch(torch.tensor([index % len(self)])).items()}
        if isinstance(index, slice):
            return self.batch(torch.arange(len(self))[index])
        return self.batch(torch.as_tensor(index, dtype=torch.int64))

    def __getitems__(self, indices: list[int]) -> Batch:
        """What a `DataLoader` calls, once a batch."""
        return self.batch(torch.tensor(indices))


class Tensors(Examples):
    """Examples that lie in memory.

    Args:
        x: images with shape (n, C, H, W) in uint8, or vectors with shape (n, d) in float.
        label: classes with shape (n,), or None.
        classes: the number of classes; by default the number of names, else the largest label
            + 1.
        class_names: one name a class, or None.

    Raises:
        UserError: if shapes or dtypes are others, or there is no example.
    """

    def __init__(
        self,
        x: Tensor,
        label: Tensor | None = None,
        *,
        classes: int | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        images = x.ndim == 4 and x.dtype == torch.uint8
        vectors = x.ndim == 2 and x.is_floating_point()
        if not (images or vectors) or len(x) == 0:
            raise UserError(
                f"x has shape {tuple(x.shape)} and dtype {x.dtype}, but it must hold at least "
                f"one image with shape (n, C, H, W) in uint8 or one vector with shape (n, d) in "
                f"float: convert it first."
            )
        if label is not None:
            if label.shape != x.shape[:1] or label.is_floating_point():
                raise UserError(
                    f"label has shape {tuple(label.shape)} and dtype {label.dtype}, but it must "
                    f"be whole numbers with shape ({len(x)},): give one class an example."
                )
            label = label.to(torch.int64)
        super().__init__(x.shape[1:], label, classes=classes, class_names=class_names)
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, indices: Tensor) -> Batch:
        """See `Examples.batch`."""
        batch = {"x": self.x[indices]}
        if self.label is not None:
            batch["label"] = self.label[indices]
        return batch

    def subset(self, indices: Tensor) -> "Tensors":
        """See `Examples.subset`; the rows are copied."""
        label = None if self.label is None else self.label[indices]
        return Tensors(self.x[indices], label, classes=self.classes, class_names=self.class_names)
