"""Another look at a data set: some of its classes, changed, or of another size.

Two looks at one set are two domains, which is all that translation and adaptation need to be tried
where nothing can be downloaded. Nothing here is random: flips are `DataModule`'s.

    invert       255 − x                          rotate-90    a quarter turn, counter-clockwise
    mirror       left to right                    rotate-180   half a turn
    blur         the mean of 3×3 pixels           fade         contrast halved about grey
"""

__all__ = ["CHANGES", "Domain"]

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from genflow.data.base import DataModule
from genflow.data.checks import at_least, one_of, plain
from genflow.data.examples import Batch, Examples
from genflow.errors import UserError

Change = Literal["invert", "mirror", "rotate-90", "rotate-180", "blur", "fade"]


def _bytes(x: Tensor) -> Tensor:
    return x.round_().clamp_(0, 255).to(torch.uint8)


def _blur(x: Tensor) -> Tensor:
    return _bytes(avg_pool2d(x.float(), 3, stride=1, padding=1, count_include_pad=False))


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "invert": lambda x: 255 - x,
    "mirror": lambda x: x.flip(-1),
    "rotate-90": lambda x: x.rot90(1, (-2, -1)),
    "rotate-180": lambda x: x.flip(-2, -1),
    "blur": _blur,
    "fade": lambda x: _bytes(x.float() * 0.5 + 63.75),
}
"""The changes by name: images in uint8 with shape (B, C, H, W) to images."""


class _Changed(Examples):
    """Examples with a change at the end, made when they are asked for."""

    def __init__(
        self,
        examples: Examples,
        change: Callable[[Tensor], Tensor],
        label: Tensor | None,
        names: Sequence[str] | None,
        classes: int | None,
    ) -> None:
        shape = change(examples[:1]["x"]).shape[1:]
        super().__init__(shape, label, classes=classes, class_names=names)
        self.examples, self.change = examples, change

    def __len__(self) -> int:
        return len(self.examples)

    def batch(self, indices: Tensor) -> Batch:
        """See `Examples.batch`."""
        batch = {"x": self.change(self.examples.batch(indices)["x"])}
        return batch if self.label is None else batch | {"label": self.label[indices]}

    def subset(self, indices: Tensor) -> "_Changed":
        """See `Examples.subset`."""
        label = None if self.label is None else self.label[indices]
        kept = self.examples.subset(indices)
        return _Changed(kept, self.change, label, self.class_names, self.classes)


class Domain(DataModule):
    """Another look at a data set.

    Args:
        data: the set; its batch size, workers and seed are not used.
        classes: the classes to keep, by number; they are counted anew from 0. All if None.
        changes: what is done to the images, in this order; see the table above.
        size: the side to which images are brought, bilinearly, after the changes; their own if
            None.
        **options: batch_size, workers, seed, validation and flip, as in `DataModule`.

    Raises:
        UserError: if a change is unknown or `data` is told to split or flip; on loading, if there
            are no such classes, or vectors are to be changed.

    Example:
        >>> Domain(Digits(), classes=[3, 8], changes=["rotate-90", "invert"])
    """

    def __init__(
        self,
        data: DataModule,
        classes: Sequence[int] | None = None,
        changes: Sequence[Change] = (),
        size: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.data = plain("data", data)
        self.kept = None if classes is None else tuple(classes)
        self.changes = tuple(one_of("changes", name, CHANGES) for name in changes)
        self.size = None if size is None else at_least("size", size, 1)

    @property
    def title(self) -> str:
        """See `DataModule.title`."""
        said = [] if self.kept is None else [f"classes {', '.join(map(str, self.kept))}"]
        said += [*self.changes, *([] if self.size is None else [f"size {self.size}"])]
        return f"{self.data.title} ({'; '.join(said)})" if said else self.data.title

    def prepare_data(self) -> None:
        """Prepares the set behind."""
        self.data.prepare_data()

    def load(self) -> Examples:
        """See `DataModule.load`."""
        examples = self.data.load()
        label, names, classes = examples.label, examples.class_names, examples.classes

        if (self.changes or self.size) and len(examples.shape) != 3:
            raise UserError(
                f"changes are {list(self.changes)} and size is {self.size}, but the examples are "
                f"vectors with shape {examples.shape}: only images can be changed."
            )
        if self.kept is not None:
            examples, label = self._of(examples, classes)
            names = None if names is None else [names[c] for c in self.kept]
            classes = len(self.kept)

        return _Changed(examples, self._change, label, names, classes)

    def _of(self, examples: Examples, classes: int | None) -> tuple[Examples, Tensor]:
        """The examples of the classes that are kept, and their new numbers."""
        assert self.kept is not None
        wrong = [c for c in self.kept if not 0 <= c < (classes or 0)]
        if wrong or not self.kept or len(set(self.kept)) < len(self.kept):
            raise UserError(
                f"classes are {list(self.kept)}, but the set has "
                f"{'no labels' if classes is None else f'the classes 0 to {classes - 1}'}: name "
                f"one or more of its classes, each once."
            )
        assert examples.label is not None
        number = torch.full((classes,), -1)  # type: ignore[arg-type]
        number[list(self.kept)] = torch.arange(len(self.kept))
        chosen = (number[examples.label] >= 0).nonzero().flatten()
        return examples.subset(chosen), number[examples.label[chosen]]

    def _change(self, x: Tensor) -> Tensor:
        for name in self.changes:
            x = CHANGES[name](x)
        if self.size is None:
            return x
        size = (self.size, self.size)
        return _bytes(interpolate(x.float(), size, mode="bilinear", antialias=True))
