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
        points: The points to learn from, shuffled, with shape (n, d).
        held: Points to look at, with shape (m, d); the others if none are held out.

    Raises:
        UserError: If there are no finite points.
    """

    def __init__(self, name: str, law: Law, held_out: float, generator: Generator) -> None:
        self.name = name
        self.generator = generator
        self.draw: Callable[..., Tensor] | None = law if callable(law) else None
        self.place, self.scale, self.dtype = torch.zeros(()), torch.ones(()), torch.float64
        self._next = 0

        x = self._drawn(DRAWN + HELD) if self.draw else self._read(law)

        if self.draw:
            self.held, self.points = x[:HELD], x[HELD:]
            return

        x = x[torch.randperm(len(x), generator=generator).to(x.device)]
        held = min(HELD, round(held_out * len(x)))
        self.points = x[held:]
        self.held = x[:held] if held else self.points

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
        """Moves the points, and all batches to come, into a frame."""

        self.place, self.scale, self.dtype = place, scale, dtype
        self.points, self.held = self._seen(self.points), self._seen(self.held)

    def _seen(self, x: Tensor) -> Tensor:
        return x.sub(self.place.to(x)).div_(float(self.scale)).to(self.dtype)

    def batch(self, n: int) -> Tensor:
        """The next n points, with shape (n, d): fresh ones, or each once before any again."""

        if self.draw:
            return self._seen(self._drawn(n))

        if self._next + n > len(self.points):
            order = torch.randperm(len(self.points), generator=self.generator)
            self.points, self._next = self.points[order.to(self.points.device)], 0

        self._next += n
        return self.points[self._next - n : self._next]


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

    flat = (target.points == target.points[0]).all(0)

    if bool(flat.any()):
        columns = flat.nonzero()[:, 0].tolist()
        raise UserError(
            f"target is constant in column {', '.join(map(str, columns[:5]))}"
            f"{' …' if len(columns) > 5 else ''}, where no Gaussian fits: leave such columns out."
        )

    for cloud in (source, target):
        if components > len(cloud.points):
            raise UserError(
                f"components is {components} and {cloud.name} has {len(cloud.points)} points to "
                f"learn from: {len(cloud.points)} or fewer are needed."
            )
