"""Clouds of points as a fit sees them: checked, shuffled, some held out, the rest in batches.

A cloud is given as points, or as a function ``draw(n, generator=...)`` that returns new ones; then
every batch is fresh, and what must be known before the first one (where the cloud lies, where its
clusters are) is learned from a draw of 20,000.
"""

__all__ = ["Cloud", "Law", "check_pair"]

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

from genflow.errors import UserError
from genflow.models.frames import seen

Law = Any
r"""Points with shape (n, \*), a tensor or an array, or a function that draws them."""

DRAWN = 20_000  # points that a function is asked for to begin with
HELD = 5000  # points held out at most


class Cloud:
    r"""One of the two clouds of a fit.

    Args:
        name: What messages call it.
        law: Points with shape (n, \*), or a function.
        held_out: The fraction of points held out, in [0, 1).
        generator: The source of order and draws, on the CPU.

    Attributes:
        points: The points as they were given or drawn, with shape (n, d).

    Raises:
        UserError: If there are no finite points.
    """

    def __init__(self, name: str, law: Law, held_out: float, generator: Generator) -> None:
        self.name = name
        self.generator = generator
        self.draw: Callable[..., Tensor] | None = law if callable(law) else None
        self.place, self.scale, self.dtype = torch.zeros(()), 1.0, torch.float64

        self.points = self._drawn(DRAWN + HELD) if self.draw else self._read(law)
        n = len(self.points)
        order = torch.randperm(n, generator=generator)
        held = HELD if self.draw else min(HELD, round(held_out * n))
        self._held, self._rows, self._next = order[:held], order[held:], 0

    def __len__(self) -> int:
        """The number of points to learn from."""

        return len(self._rows)

    def _read(self, points: Any) -> Tensor:
        """Points as a table (n, d) of finite floats."""

        x = torch.as_tensor(points)
        x = (x if x.is_floating_point() else x.float()).detach()

        if x.ndim < 2 or x[:1].numel() == 0:
            raise UserError(
                f"{self.name} has shape {tuple(x.shape)}: points with shape (n, d), n and d of 1 "
                "or more, are needed."
            )

        x = x.flatten(1)

        if not bool(x.sum().isfinite()) and (bad := int((~x.isfinite()).any(1).sum())):
            raise UserError(
                f"{self.name} has {bad} of {len(x)} points with NaN or infinite values: leave "
                "them out."
            )

        return x

    def _drawn(self, n: int) -> Tensor:
        return self._read(self.draw(n, generator=self.generator))

    def enter(self, place: Tensor, scale: Tensor, dtype: torch.dtype) -> None:
        """Says in which frame points are wanted from now on."""

        self.place, self.scale, self.dtype = place.to(self.points), float(scale), dtype

    def seen(self, x: Tensor) -> Tensor:
        """Points as they are seen in the frame."""

        return seen(x, self.place, self.scale, self.dtype)

    def _at(self, rows: Tensor) -> Tensor:
        return self.seen(self.points.index_select(0, rows.to(self.points.device)))

    def known(self, n: int) -> Tensor:
        """Up to n points to learn from, in random order, with shape (n, d)."""

        return self._at(self._rows[:n])

    def held(self) -> Tensor:
        """The points to look at, with shape (m, d); those to learn from if none are held out."""

        return self._at(self._held) if len(self._held) else self.known(HELD)

    def batch(self, n: int) -> Tensor:
        """The next n points, with shape (n, d): fresh ones, or each once before any again."""

        if self.draw:
            return self.seen(self._drawn(n))

        n = min(n, len(self._rows))

        if self._next + n > len(self._rows):
            order = torch.randperm(len(self._rows), generator=self.generator)
            self._rows, self._next = self._rows[order], 0

        self._next += n
        return self._at(self._rows[self._next - n : self._next])


def check_pair(source: Cloud, target: Cloud, components: int) -> None:
    """Checks that two clouds can be joined.

    Raises:
        UserError: If their dimensions differ, a column of the target is constant, or there are
            more components than points.
    """

    d = [cloud.points.shape[1] for cloud in (source, target)]

    if d[0] != d[1]:
        raise UserError(
            f"source has {d[0]} columns and target {d[1]}: both clouds must have one dimension."
        )

    some = target.points[: 1 + len(target.points) // 100]
    flat = (some == some[0]).all(0)

    if bool(flat.any()) and bool((flat := (target.points == some[0]).all(0)).any()):
        columns = flat.nonzero()[:, 0].tolist()
        raise UserError(
            f"target is constant in column {', '.join(map(str, columns[:5]))}"
            f"{' …' if len(columns) > 5 else ''}, where no Gaussian fits: leave such columns out."
        )

    for cloud in (source, target):
        if components > len(cloud):
            raise UserError(
                f"components is {components} and {cloud.name} has {len(cloud)} points to learn "
                f"from: {len(cloud)} or fewer are needed."
            )
