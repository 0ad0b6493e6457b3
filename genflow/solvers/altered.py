r"""Calls that find the network altered.

A table says at which stages the network is altered (`genflow.solvers.alterations`); here the
stages are carried out so. What a trajectory remembers for the reuse of blocks is made when its
stages are made, and is gone with them: two trajectories share nothing, and nothing stays in the
network.

This room knows no network. A network whose skip connections can be faded has a method
``faded(skips)``, one whose blocks can be left out a method ``altered(modes, memory)``; both return
a context that lasts for one call, see `genflow.nn`.
"""

__all__ = ["Altered"]

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from genflow.errors import UserError
from genflow.models.denoisers import Denoiser
from genflow.solvers.alterations import block_plan
from genflow.solvers.rollout import Stage
from genflow.solvers.tableau import Tableau

Memories = dict[nn.Module, dict[Any, Any]]

_NEEDS = {
    "faded": ("skip connections to fade", "a U-Net"),
    "altered": ("blocks to drop or reuse", "a U-Net or a transformer"),
}


class Altered:
    """The networks of a denoiser, altered stage by stage as a table says.

    Args:
        denoiser: The denoiser; all networks that it calls are altered alike.
        tableau: The table.
        gradients: Whether the stages run with gradients.

    Raises:
        UserError: If a network cannot be altered as the table says, or a block is reused that was
            not run before.
    """

    def __init__(self, denoiser: Denoiser, tableau: Tableau, *, gradients: bool) -> None:
        self.changes = tableau.changes
        called = [*self.changes]

        if called and tableau.source != "model":
            called[0] = None

        self.plans = block_plan(called)
        used = {
            "faded": any(change.fades for change in self.changes),
            "altered": any(self.plans),
        }
        methods = [name for name, needed in used.items() if needed]
        self.networks = [
            m for m in denoiser.modules() if methods and all(hasattr(m, n) for n in methods)
        ]

        if methods and not self.networks:
            what, cure = _NEEDS[methods[0]]
            raise UserError(
                f"a step changes the network, and a {type(denoiser).__name__} has none with "
                f"{what}: leave change out, or use {cure}."
            )

        with torch.set_grad_enabled(gradients):
            for i in filter(self.alters, range(len(self.changes))):
                with self.context(i, self.memories()):
                    pass

    def alters(self, i: int) -> bool:
        """Whether stage i finds the network altered, or has to remember something of it."""

        return bool(self.changes) and (self.changes[i].fades or bool(self.plans[i]))

    def memories(self) -> Memories:
        """What a new trajectory remembers of each network: nothing."""

        return {net: {} for net in self.networks}

    def context(self, i: int, memories: Memories) -> ExitStack:
        """A context for the call of stage i."""

        with ExitStack() as stack:
            for net in self.networks:
                if self.changes[i].fades:
                    stack.enter_context(net.faded(self.changes[i].skips))
                if self.plans[i]:
                    stack.enter_context(net.altered(self.plans[i], memories[net]))
            return stack.pop_all()

    def __call__(self, stages: Sequence[Stage]) -> list[Stage]:
        """The stages of one trajectory.

        Args:
            stages: What each stage calls.
        """

        memories = self.memories()
        return [
            partial(self._call, i, memories, stage) if self.alters(i) else stage
            for i, stage in enumerate(stages)
        ]

    def _call(self, i: int, memories: Memories, stage: Stage, x: Tensor, t: Tensor) -> Tensor:
        with self.context(i, memories):
            return stage(x, t)
