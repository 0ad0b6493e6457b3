r"""The one loop.

At every stage the denoiser is called once, and the next state is the table's combination of the
window, in three kernels at most: a scaling and an addition for each further slot if a row uses up
to three, else a gather, a product and a sum, which also serve rows that differ between samples or
elements. Nothing in the loop depends on data, so there is no synchronisation with the host, and
the loop can be traced whole.
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


def rollout(
    stages: Sequence[Stage],
    x: Tensor,
    tableau: Tableau,
    *,
    noise: Callable[[int, Tensor], Tensor] | None = None,
    observe: Observe | None = None,
) -> Tensor:
    r"""Runs a table.

    .. math:: x_{i+1} = \sum_k w_{i,k} \, \mathrm{window}_k + c_{i+1} \kappa_{i+1} n_{i+1}

    κ is 1 unless the table has a [`Kick`][genflow.solvers.tableau.Kick].

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

    time = tableau.time.to(device=x.device, dtype=_floats(x)).unbind(0)
    rows, slots, noisy = tableau.rows(x), tableau.slots, tableau.noisy
    keep = 2 * tableau.window
    level = tableau.noise.to(device=x.device, dtype=x.dtype)
    fresh, kick = noise or (lambda i, x: torch.randn_like(x)), tableau.kick

    def shaken(i: int, x: Tensor, data: Tensor | None) -> Tensor:
        if not noisy[i + 1]:
            return x
        c = level[i + 1]
        c = c.reshape(*c.shape, *(1,) * (x.ndim - 1)) if c.ndim else c
        n = fresh(i, x)
        return torch.addcmul(x, c, n if kick is None else n * kick.factor(i + 1, x, data))

    x = shaken(-1, x, None)
    one = torch.ones_like(x) if any(keep in used for used in slots) else x
    window: list[Tensor] = []

    for i, stage in enumerate(stages):
        window = [x, stage(x, time[i]), *window][:keep]
        if observe is not None:
            observe(i, x, window[1])
        parts = [window[k] if k < keep else one for k in slots[i]]
        x = shaken(i, _combine(rows[i], parts), window[1])

    return x
