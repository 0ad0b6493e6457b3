r"""Lots: the portions in which the random numbers of a step are drawn.

A step of the optimiser is fed with A batches of B examples on each of W ranks. The batch that is
the m-th of rank r has the *place* p = m W + r among them, and laid end to end by their places they
are the global batch, the same stretch of the stream however it is shared out
(`genflow.data.stream`). Cut the global batch into lots of L examples: what is random about lot j
of step k is a pure function of (seed, k, j), and depends on nothing else. So

* a lot is a batch, L = B, unless a module is told otherwise: then ranks and accumulation may be
  traded for each other. Two ranks with one batch each draw what one rank with two batches draws.
* with a smaller lot, which must divide B, batches may be cut otherwise, too: two ranks with 32
  examples draw, with lots of 32, what one rank with 64 examples draws.

What is drawn for a lot together must be the lot's alone: stratified times are spread evenly over a
lot, and a coupling by optimal transport pairs the two ends of a lot. Not covered: the masks of
dropout, which are drawn for a batch as a whole, and differ where batches are cut otherwise.
"""

__all__ = ["Drawn", "cut", "joined", "recounted"]

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from genflow.errors import UserError

Drawn = tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]
"""Data and noise with shape (B, *), times with shape (B), and the conditions with B rows."""


def cut(batch: Mapping[str, Tensor], lot: int | None) -> list[Mapping[str, Tensor]]:
    """Cuts a batch into lots.

    Args:
        batch: Tensors with B rows by name.
        lot: The number of rows of a lot; all of them if None.

    Raises:
        UserError: If it does not divide B.
    """

    n = len(batch["x"])

    if lot is None or lot == n:
        return [batch]
    if n % lot:
        raise UserError(
            f"lot is {lot} and a batch holds {n} examples: lots must fill it, choose a divisor of "
            "the batch size."
        )

    parts = {name: value.split(lot) for name, value in batch.items()}
    return [{name: split[k] for name, split in parts.items()} for k in range(n // lot)]


def joined(parts: Sequence[Drawn]) -> Drawn:
    """What was drawn for lots, as if it were for their batch."""

    if len(parts) == 1:
        return parts[0]

    x, z, t = (torch.cat([part[i] for part in parts]) for i in range(3))
    return x, z, t, {k: torch.cat([part[3][k] for part in parts]) for k in parts[0][3]}


def recounted(checkpoint: Mapping[str, Any], accumulated: int) -> None:
    """Counts the batches behind a checkpoint as a run with its own accumulation would have.

    A trainer takes the place m of a batch in its step from the number of batches before it, which
    is k A after k steps: the A of the run that goes on, not of the one that was killed, or its
    first step would end early, on less than a global batch. A step that was cut short begins anew.

    Args:
        checkpoint: What Lightning read; changed in place.
        accumulated: A, the number of batches that the run accumulates.
    """

    progress = checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_loop.batch_progress")

    if progress is None:
        return

    for counts in (progress["total"], progress["current"]):
        behind = checkpoint["global_step"] * accumulated - counts["processed"]
        counts |= {name: number + behind for name, number in counts.items()}
