r"""Pairs of noise and what a teacher made of it, on disk, for reflow and distillation.

The store (see `genflow.data.shards`) holds the data alone: pair i was drawn with seed
:math:`s + i`, and the seed is all that is kept of the noise; the module that trains draws it
again, by the law of its path. Four million pairs of CIFAR-10 are 12 GB of bytes instead of 98 GB
of floats. Pairs are never re-paired: which noise belongs to which datum *is* the information.
"""

__all__ = ["Manifest", "PairStore", "Pairs"]

from dataclasses import dataclass, field
import os
from typing import Any, ClassVar

from torch import Tensor

from genflow.data.base import DataModule
from genflow.data.examples import Batch, Examples
from genflow.data.shards import Manifest as Shards
from genflow.data.shards import Store
from genflow.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Manifest(Shards):
    r"""What a store of pairs says about itself.

    Attributes:
        seed: The seed of pair 0; that of pair i is seed + i.
        noise: The law of the noise, in words.
        teacher: What made the pairs: the fingerprint of the pipeline, the sampler, the guidance.
    """

    NOUN: ClassVar[str] = "pairs"

    seed: int
    noise: str = "Gaussian()"
    teacher: dict[str, Any] = field(default_factory=dict)


class PairStore(Store):
    """The pairs of a folder, read when they are asked for.

    Batches have "x" with shape (B, *shape), "seed" with shape (B), the seeds of the noise, and
    "label" if there are classes.

    Args:
        folder: The folder.
        indices: The pairs to hand out, with shape (m) in int64; all if None.

    Raises:
        UserError: If the folder is no store, or shards are missing or damaged; the message says
            which.
    """

    RECORD = Manifest

    def batch(self, indices: Tensor) -> Batch:
        """See `Examples.batch`."""

        return super().batch(indices) | {"seed": self.indices[indices] + self.manifest.seed}


class Pairs(DataModule):
    """Pairs of noise and data, as `genflow reflow` makes them.

    Args:
        root: The folder of the store.
        **options: batch_size, workers, seed and validation, as in `DataModule`; flip is refused,
            since a mirrored datum no longer belongs to its noise.

    Raises:
        UserError: If flip is asked for; on loading, if the store cannot be used.
    """

    def __init__(self, root: str | os.PathLike[str], **options: Any) -> None:
        super().__init__(**options)
        self.root = root

        if self.flip:
            raise UserError(
                "flip is True, but a mirrored datum no longer belongs to its noise: set it to "
                "false (make pairs from a model that was trained with flips instead)."
            )

    def load(self) -> Examples:
        """See `DataModule.load`."""

        return PairStore(self.root)
