r"""Gradient policies: how a loss on samples finds its way back through a rollout.

A rollout is an ordinary function of everything that goes in: the initial states, the conditions,
the parameters of the networks, the times and the weights of the table. What differs between
policies is what is kept until the loss is known, and which function is differentiated. A policy is
a frozen record with one method, which does the rollout; its result is an ordinary tensor, so that
losses, optimisers and parallel training need to know nothing of it.
"""

__all__ = ["Direct", "Gradient", "NoGradient", "Run", "reached"]

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from genflow.errors import UserError
from genflow.models.denoisers import Denoiser
from genflow.models.noise import Generators
from genflow.solvers.rollout import Fresh, Observe, Stage, rollout
from genflow.solvers.schedules import SolverSchedule
from genflow.solvers.tableau import Tableau


@dataclass(frozen=True)
class Run:
    r"""One call of a sampler.

    Attributes:
        bind: Binds conditions, by name, to the functions that the stages call.
        denoiser: The denoiser.
        module: The sampler: all that stages may read tensors from, besides the conditions.
        tableau: The table.
        x: The initial states, with shape (B, \*).
        cond: The named conditions, each with B rows.
        generator: What fresh noise is drawn from: None, one generator, or one for each sample.
        noise: Draws it; None for the global generator.
        observe: What looks on.
    """

    bind: Callable[..., list[Stage]]
    denoiser: Denoiser
    module: nn.Module
    tableau: Tableau
    x: Tensor
    cond: Mapping[str, Any]
    generator: Generators = None
    noise: Fresh | None = None
    observe: Observe | None = None

    def stages(self) -> list[Stage]:
        """The function that each stage calls."""

        return self.bind(**self.cond)

    def plain(self) -> Tensor:
        r"""The rollout as it stands, with shape (B, \*); autograd records it if it is on."""

        return rollout(self.stages(), self.x, self.tableau, noise=self.noise, observe=self.observe)


class Gradient(ABC):
    """How gradients pass through a rollout."""

    def check(self, denoiser: Denoiser, tableau: Tableau, schedule: SolverSchedule | None) -> None:
        """Looks at what will be differentiated, when the sampler is built.

        Args:
            denoiser: The denoiser.
            tableau: The table.
            schedule: What it was compiled from, if that is known.

        Raises:
            UserError: If the policy cannot serve it.
        """

        return None

    @abstractmethod
    def run(self, run: Run) -> Tensor:
        r"""Does a rollout.

        Args:
            run: The call of the sampler; autograd is on.

        Returns:
            The samples, with shape (B, \*), and with a ``grad_fn`` unless the policy is none.

        Raises:
            UserError: If nothing that the samples depend on requires gradients.
        """


@dataclass(frozen=True)
class NoGradient(Gradient):
    """No gradients: nothing is recorded."""

    def run(self, run: Run) -> Tensor:
        """See [`Gradient.run`][genflow.solvers.policies.Gradient.run]."""

        with torch.no_grad():
            return run.plain()


@dataclass(frozen=True)
class Direct(Gradient):
    """Autograd through every step.

    The activations of all N calls of the network are kept until the loss is known. It is the one
    policy under which gradients can be differentiated again.
    """

    def run(self, run: Run) -> Tensor:
        """See [`Gradient.run`][genflow.solvers.policies.Gradient.run]."""

        return run.plain()


def reached(x: Tensor, policy: str) -> Tensor:
    """Samples that a gradient can come back from.

    Raises:
        UserError: If it cannot.
    """

    if not x.requires_grad:
        raise UserError(
            f"gradient is '{policy}', but nothing that the samples depend on requires gradients: "
            "call requires_grad_() on the initial states, a condition or a parameter, or sample "
            "with gradient='none' or under torch.no_grad()."
        )

    return x
