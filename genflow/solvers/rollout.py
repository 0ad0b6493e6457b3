r"""The one loop.

At every stage the denoiser is called once, and the next state is the table's combination of the
window, in three kernels at most: a scaling and an addition for each further slot if a row uses up
to three, else a gather, a product and a sum, which also serve rows that differ between samples or
elements. Nothing in the loop depends on data, so there is no synchronisation with the host, and
the loop can be traced whole.
"""

__all__ = ["Fresh", "Moves", "Observe", "Stage", "rollout"]

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from genflow.solvers.tableau import Kick, Tableau

Stage = Callable[[Tensor, Tensor], Tensor]
"""What runs at a stage: (x, t) → the data estimate or the velocity, with the shape of x."""

Observe = Callable[[int, Tensor, Tensor], None]
"""What may look on: called with the stage, the state there, and what the stage returned."""

Fresh = Callable[[int, Tensor], Tensor]
"""What draws fresh noise: (stage, or −1 before the first, state) → a tensor shaped like it."""


Window = Sequence[Tensor] | Mapping[int, Tensor]


def _floats(x: Tensor) -> torch.dtype:
    """The dtype of times and noise: at least float32."""

    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _combine(weight: list[float] | Tensor, window: list[Tensor]) -> Tensor:
    """The weighted sum of a window of tensors with shape (B, *), in three kernels at most."""

    x = window[0]

    if isinstance(weight, list):
        total = x if weight[0] == 1.0 else weight[0] * x
        for w, v in zip(weight[1:], window[1:], strict=True):
            total = torch.add(total, v, alpha=w)
        return total

    if weight.ndim < x.ndim + 1:
        weight = weight.reshape(*weight.shape, *(1,) * (x.ndim + 1 - weight.ndim))

    return (weight * torch.stack(window)).sum(0)


@dataclass(frozen=True)
class Moves:
    r"""The moves of a table, for states of one device and dtype.

    Attributes:
        time: The time of each stage.
        rows: The weights of each stage's slots.
        slots: The slots that each stage uses, of :math:`x_i, D_i, x_{i-1}, D_{i-1}, \dots, 1`.
        level: The deviation of the fresh noise before the first stage and after each.
        noisy: Whether there is any.
        keep: The number of tensors of a window.
        kick: How fresh noise is scaled; None if it is Gaussian. No gradient passes through it: it
            is part of the noise.
    """

    time: Sequence[Tensor]
    rows: list[list[float] | Tensor]
    slots: list[list[int]]
    level: Sequence[Tensor]
    noisy: list[bool]
    keep: int
    kick: Kick | None = None

    @classmethod
    def of(cls, tableau: Tableau, x: Tensor) -> "Moves":
        r"""The moves of a table, for states like x, with shape (B, \*)."""

        kick = tableau.kick
        return cls(
            tableau.time.to(device=x.device, dtype=_floats(x)).unbind(0),
            tableau.rows(x),
            tableau.slots,
            tableau.noise.to(device=x.device, dtype=x.dtype).unbind(0),
            tableau.noisy,
            2 * tableau.window,
            kick and replace(kick, sigma=kick.sigma.to(x.device)),
        )

    def __len__(self) -> int:
        return len(self.rows)

    def shaken(self, i: int, x: Tensor, fresh: Fresh, data: Tensor | None = None) -> Tensor:
        """The state before stage i + 1 with its fresh noise, if there is any.

        Args:
            i: The stage, or −1 before the first.
            x: The state without the noise, with shape (B, *).
            fresh: What draws the noise.
            data: The last estimate of the data, with shape (B, *); None before the first.
        """

        if not self.noisy[i + 1]:
            return x
        c = self.level[i + 1]
        c = c.reshape(*c.shape, *(1,) * (x.ndim - 1)) if c.ndim else c
        n = fresh(i, x)
        if self.kick is not None:
            n = n * self.kick.factor(i + 1, x.detach(), None if data is None else data.detach())
        return torch.addcmul(x, c, n)

    def after(self, i: int, window: Window, one: Tensor) -> Tensor:
        """The state after stage i, before fresh noise, from a window and a constant 1."""

        parts = [window[k] if k < self.keep else one for k in self.slots[i]]
        return _combine(self.rows[i], parts)

    def constant(self, x: Tensor) -> Tensor:
        """The constant 1 of a row, if any row uses it."""

        return torch.ones_like(x) if any(self.keep in used for used in self.slots) else x


def rollout(
    stages: Sequence[Stage],
    x: Tensor,
    tableau: Tableau | Moves,
    *,
    noise: Fresh | None = None,
    observe: Observe | None = None,
) -> Tensor:
    r"""Runs a table.

    .. math:: x_{i+1} = \sum_k w_{i,k} \, \mathrm{window}_k + c_{i+1} \kappa_{i+1} n_{i+1}

    κ is 1 unless the table has a [`Kick`][genflow.solvers.tableau.Kick].

    Args:
        stages: The N functions that the stages call.
        x: The initial state, with shape (B, \*).
        tableau: The table, of N stages, or its moves.
        noise: Draws the fresh noise: called with the stage's index (−1 before the first) and the
            state, returns a tensor shaped like it; the global generator's normal draws if None.
        observe: Called as ``observe(i, x, output)`` after every stage.

    Returns:
        The final state, with shape (B, \*).
    """

    moves = tableau if isinstance(tableau, Moves) else Moves.of(tableau, x)
    fresh = noise or (lambda i, x: torch.randn_like(x))
    x = moves.shaken(-1, x, fresh)
    one = moves.constant(x)
    window: list[Tensor] = []

    for i, stage in enumerate(stages):
        window = [x, stage(x, moves.time[i]), *window][: moves.keep]
        if observe is not None:
            observe(i, x, window[1])
        x = moves.shaken(i, moves.after(i, window, one), fresh, window[1])

    return x
