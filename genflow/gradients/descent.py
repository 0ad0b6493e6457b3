r"""Descent: an optimiser, and what can go wrong around it.

One step computes the loss and its gradient, in as many parts as memory asks for, and moves the
variables:

.. math:: g = \sum_{parts} \nabla \ell_{part}, \qquad
    g \leftarrow g \, \min(1, c / \|g\|), \qquad v \leftarrow \mathrm{optimiser}(v, g).

A step whose loss or gradient is not finite is *skipped* and counted: neither the variables nor the
optimiser's memory change. There is no weight decay: it would pull noise, embeddings and weights
towards zero, which is no place that anybody asked for; a pull towards the *start* is a part of
the loss, and the applications offer it.
"""

__all__ = ["OPTIMIZERS", "Descent"]

from collections.abc import Callable, Mapping
import math
from typing import Any

import torch
from torch import Tensor

from genflow.errors import UserError, nearest

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
    "lbfgs": lambda variables, lr: torch.optim.LBFGS(
        variables, lr, max_iter=5, line_search_fn="strong_wolfe"
    ),
}
"""The optimisers by name. One step of L-BFGS is up to five of its inner ones."""

PATIENCE = 10


class _NotFinite(Exception):
    """A loss or a gradient that is not finite."""


class Descent:
    r"""Moves variables down a loss.

    Args:
        variables: The leaves to move, by name; those that are not float32 or wider are refused.
        optimizer: A name in `OPTIMIZERS`.
        lr: The learning rate, above 0.
        clip: c, the largest norm of the gradient over all variables, above 0; None for no limit.
        average: The decay d of an average :math:`\bar v \leftarrow d \bar v + (1 - d) v` of the
            variables, in [0, 1); 0 keeps none.

    Attributes:
        skipped: The number of steps that were skipped.
        averages: The averages by name; the variables themselves if none are kept.

    Raises:
        UserError: If a value is out of its range, or a variable is in half precision.
    """

    def __init__(
        self,
        variables: Mapping[str, Tensor],
        *,
        optimizer: str = "adam",
        lr: float = 0.05,
        clip: float | None = None,
        average: float = 0.0,
    ) -> None:
        if optimizer not in OPTIMIZERS:
            raise UserError(f"optimizer is '{optimizer}'{nearest(optimizer, OPTIMIZERS)}")
        if not lr > 0:
            raise UserError(f"lr is {lr}: it must be above 0.")
        if clip is not None and not clip > 0:
            raise UserError(f"clip is {clip}: it must be above 0, or None for no limit.")
        if not 0 <= average < 1:
            raise UserError(f"average is {average}: it must lie in [0, 1), and 0 keeps none.")
        if not variables:
            raise UserError("there is nothing to optimise: no variable was chosen.")

        for name, v in variables.items():
            if v.dtype not in (torch.float32, torch.float64):
                raise UserError(
                    f"variable '{name}' is in {v.dtype}, where small steps vanish: convert the "
                    "pipeline to float32."
                )

        self.variables = dict(variables)
        self.name, self.lr, self.clip, self.average = optimizer, lr, clip, average
        self.skipped = self.row = 0
        self._kept = {k: v.detach().clone() for k, v in variables.items()} if average else None
        self._renew()

    def _renew(self) -> None:
        self.optimizer = OPTIMIZERS[self.name](list(self.variables.values()), lr=self.lr)

    @property
    def averages(self) -> dict[str, Tensor]:
        """The averages by name, or the variables themselves."""

        return self.variables if self._kept is None else self._kept

    def step(self, evaluate: Callable[[], float]) -> dict[str, float]:
        """One step.

        Args:
            evaluate: Computes the loss and calls ``backward``; returns the loss. L-BFGS calls it
                several times.

        Returns:
            The loss where the step began, the norm of the gradient there, and whether the step was
            skipped (0 or 1).

        Raises:
            UserError: If no variable has a gradient, or ten steps in a row were skipped.
        """

        first: dict[str, float] = {}

        def closure() -> float:
            self.optimizer.zero_grad()
            loss = evaluate()
            norm = self._clipped()
            first.setdefault("loss", loss)
            first.setdefault("gradient", norm)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise _NotFinite
            return loss

        inner = self.name == "lbfgs"  # which moves before all is known
        before = [v.detach().clone() for v in self.variables.values()] if inner else []

        try:
            self.optimizer.step(closure)
            self.row = 0
            self._averaged()
        except _NotFinite:
            self._undo(before)

        return {**first, "skipped": float(self.row > 0)}

    def _clipped(self) -> float:
        """The norm of the gradient, before it is limited."""

        grads = [v.grad for v in self.variables.values() if v.grad is not None]

        if not grads:
            raise UserError(
                f"the loss has no gradient with respect to {_some(self.variables)}: it does not "
                "depend on them, or something on the way cuts the gradient."
            )

        norm = torch.nn.utils.get_total_norm(grads)

        if self.clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self.variables.values(), self.clip, norm)

        return float(norm)

    @torch.no_grad()
    def _undo(self, before: list[Tensor]) -> None:
        """Forgets a step; L-BFGS, whose memory may be spoilt, begins anew."""

        if before:
            for v, kept in zip(self.variables.values(), before, strict=True):
                v.copy_(kept)
            self._renew()

        self.skipped += 1
        self.row += 1

        if self.row == PATIENCE:
            raise UserError(
                f"{PATIENCE} steps in a row had a loss or gradient that is not finite: lower lr "
                f"({self.lr}), give clip, or use a pipeline in float32."
            )

    @torch.no_grad()
    def _averaged(self) -> None:
        if self._kept is not None:
            current = [v.detach() for v in self.variables.values()]
            torch._foreach_lerp_(list(self._kept.values()), current, 1 - self.average)

    def unreached(self) -> list[str]:
        """The variables that the last loss did not depend on."""

        return [name for name, v in self.variables.items() if v.grad is None]

    def state(self) -> dict[str, Any]:
        """Variables, averages, and the memory of the optimiser."""

        return {
            "variables": self.variables,
            "averages": self._kept,
            "optimizer": self.optimizer.state_dict(),
            "skipped": self.skipped,
            "row": self.row,
        }

    @torch.no_grad()
    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes back to a state."""

        for name, v in self.variables.items():
            v.copy_(state["variables"][name])
        for name, v in (self._kept or {}).items():
            v.copy_(state["averages"][name])

        self.optimizer.load_state_dict(state["optimizer"])
        self.skipped, self.row = state["skipped"], state["row"]


def _some(names: Mapping[str, Any]) -> str:
    """The first names, for a message."""

    shown = [f"'{n}'" for n in list(names)[:3]]
    return ", ".join(shown) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
