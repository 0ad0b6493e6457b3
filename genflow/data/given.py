"""Examples that are there already: tensors in memory, and arrays in a file of NumPy."""

__all__ = ["Arrays", "Given"]

import os
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genflow.data.base import DataModule
from genflow.data.examples import Examples, Tensors
from genflow.errors import UserError


class Given(DataModule):
    """Tensors as a data module.

    Args:
        x: images with shape (n, C, H, W) in uint8, or vectors with shape (n, d) in float.
        label: classes with shape (n,), or None.
        **options: batch_size, workers, seed, validation and flip, as in `DataModule`.

    Raises:
        UserError: on loading, if shapes or dtypes are others.
    """

    def __init__(self, x: Tensor, label: Tensor | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.x, self.label = x, label

    def load(self) -> Examples:
        """See `DataModule.load`."""
        return Tensors(self.x, self.label)


class Arrays(DataModule):
    """The array in a ``.npy`` file, read without unpickling.

    Args:
        file: images with shape (n, C, H, W) in uint8, or vectors with shape (n, d) in a float
            dtype, which become float32.
        labels: a file with their classes, with shape (n,), or None.
        **options: batch_size, workers, seed, validation and flip, as in `DataModule`.

    Raises:
        UserError: on loading, if a file is missing, damaged, or holds something else.
    """

    def __init__(
        self,
        file: str | os.PathLike[str],
        labels: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.file, self.labels = file, labels

    def load(self) -> Examples:
        """See `DataModule.load`."""
        x = _array(self.file)
        x = x.float() if x.is_floating_point() else x
        return Tensors(x, None if self.labels is None else _array(self.labels))


def _array(file: str | os.PathLike[str]) -> Tensor:
    try:
        return torch.from_numpy(np.load(file, allow_pickle=False))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"array '{file}' cannot be read ({str(error).splitlines()[0]}): give a .npy file of "
            f"numbers, as numpy.save writes it."
        ) from None
