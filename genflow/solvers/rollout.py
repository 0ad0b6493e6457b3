r"""The one loop.

At every stage the denoiser is called once, and the next state is the table's combination of the
window. A plain row costs two kernels (gather the window, one matrix-vector product), a row per
sample or per element three; nothing in the loop depends on data, so there is no synchronisation
with the host, and the loop can be traced whole.
"""

__all__ = ["Observe", "Stage", "rollout"]

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from genflow.solvers.tableau import Tableau

Stage = Callable[[Tensor, Tensor], Tensor]
"""What runs at a stage: (x, t) → the data estimate or the velocity, with the shape of x."""

Observe = Callable[[int, Tensor, Tensor], None]
"""What may look on: called with the stage, the state there, and what the stage returned."""


def _floats(x: Tensor) -> torch.dtype:
    """The dtype of times and noise: at least float32."""

    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _combine(weight: Tensor, window: list[Tensor]) -> Tensor:
    """The weighted sum of a window of tensors with shape (B, *)."""

    x = window[0]

    if weight.ndim == 1:
        if len(window) == 1:
            return weight[0] * x
        return (weight @ torch.stack(window).flatten(1)).view(x.shape)

    if weight.ndim < x.ndim + 1:
        weight = weight.reshape(*weight.shape, *(1,) * (x.ndim + 1 - weight.ndim))

    return (weight * torch.stack(window)).sum(0)


def _columns(tableau: Tableau) -> list[list[int]]:
    """The slots that each stage really uses, read on the host."""

    used = tableau.weight.detach().ne(0)
    used = used.flatten(2).any(2) if used.ndim > 2 else used
    return [[k for k, u in enumerate(row) if u] or [0] for row in used.tolist()]


class Plan:
    """A table made ready for states of one device and dtype.

    Args:
        tableau: The table.
        x: A state; only its device and dtype matter.
    """

    def __init__(self, tableau: Tableau, x: Tensor) -> None:
        self.columns = _columns(tableau)
        self.keep = tableau.window
        self.constant = 2 * tableau.window
        self.noisy = (
            tableau.noise.detach().ne(0).flatten(1).any(1).tolist()
            if (tableau.noise.ndim > 1)
            else tableau.noise.detach().ne(0).tolist()
        )
        self.time = tableau.time.to(device=x.device, dtype=_floats(x)).unbind(0)
        weight = tableau.weight.to(device=x.device, dtype=x.dtype)
        self.weight = [
            w if len(c) == len(w) else w[c]
            for w, c in zip(weight.unbind(0), self.columns, strict=True)
        ]
        self.noise = tableau.noise.to(device=x.device, dtype=x.dtype).unbind(0)


def rollout(
    stages: Sequence[Stage],
    x: Tensor,
    tableau: Tableau,
    *,
    noise: Callable[[int, Tensor], Tensor] | None = None,
    observe: Observe | None = None,
) -> Tensor:
    r"""Runs a table.

    .. math:: x_{i+1} = \sum_k w_{i,k} \, \mathrm{window}_k + c_{i+1} n_{i+1}

    Args:
        stages: The N functions that the stages call.
        x: The initial state, with shape (B, \*).
        tableau: The table, of N stages.
        noise: Draws the fresh noise: called with the stage's index (−1 before the first) and the
            state, returns a tensor shaped like it; the global generator's normal draws if None.
        observe: Called as ``observe(i, x, output)`` after every stage.

    Returns:
        The final state, with shape (B, \*).
    """

    plan = Plan(tableau, x)
    fresh = noise or (lambda i, x: torch.randn_like(x))

    def shaken(i: int, x: Tensor) -> Tensor:
        if not plan.noisy[i + 1]:
            return x
        c = plan.noise[i + 1]
        c = c.reshape(*c.shape, *(1,) * (x.ndim - 1)) if c.ndim else c
        return torch.addcmul(x, c, fresh(i, x))

    one = x.new_ones(()).expand_as(x)
    x = shaken(-1, x)
    window: list[Tensor] = []

    for i, stage in enumerate(stages):
        window = [x, stage(x, plan.time[i]), *window][: 2 * plan.keep]
        if observe is not None:
            observe(i, x, window[1])
        parts = [one if k == plan.constant else window[k] for k in plan.columns[i]]
        x = shaken(i, _combine(plan.weight[i], parts))

    return x
