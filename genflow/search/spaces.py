r"""What a search is made of: a space to look in, a score to go by, and perhaps a surrogate.

A *space* is a set of schedules with a law for drawing one, a law for changing one a little, and a
law for mixing two. A *score* maps schedules to numbers, lower is better; it takes many at once,
because schedules of one size share batches of the network. A *surrogate* guesses the order of the
scores without calling the network. Nothing here knows an evolutionary algorithm, and
`genflow.search.evolve` knows nothing of what a schedule holds.

What is *not* assumed: that a score is smooth, finite (NaN and infinity reject a schedule), or the
same number in different units; that all schedules of a space have the same cost.
"""

__all__ = ["Random", "Score", "Space", "Surrogate", "Trial", "expect_budget"]

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from genflow.errors import UserError
from genflow.solvers.schedules import SolverSchedule

Random = np.random.Generator
"""Where the laws of a space take their random numbers from."""

Score = Callable[[Sequence[SolverSchedule]], Sequence[float]]
"""Schedules → a number each, lower is better; NaN or infinity rejects."""


class Trial(Protocol):
    """The part of Optuna's trial that a space asks for decisions."""

    def suggest_float(self, name: str, low: float, high: float) -> float:
        """A number in [low, high]."""
        ...

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of the choices."""
        ...


class Space(Protocol):
    """A set of schedules, and the laws of moving in it.

    Every schedule that a law returns is legal: it lies in the space, compiles on the space's path,
    and keeps the space's budget. Laws read their random numbers from ``rng`` alone, so that a
    search is a function of its seed.
    """

    def sample(self, rng: Random) -> SolverSchedule:
        """Draws a schedule."""
        ...

    def mutate(self, schedule: SolverSchedule, rng: Random) -> SolverSchedule:
        """Changes a schedule a little; it may come back unchanged."""
        ...

    def cross(self, a: SolverSchedule, b: SolverSchedule, rng: Random) -> SolverSchedule:
        """Mixes two schedules."""
        ...

    def suggest(self, trial: Trial) -> SolverSchedule:
        """Asks a trial of Optuna for every decision, and repairs the answer."""
        ...

    def legal(self, schedule: SolverSchedule) -> bool:
        """Whether a schedule lies in the space; seeds that do not are left out."""
        ...

    def cost(self, schedule: SolverSchedule) -> float:
        """What a sample costs: calls of the network, or FLOPs."""
        ...

    def record(self) -> dict[str, Any]:
        """The space as JSON values: two searches share a ledger only if these are the same."""
        ...


class Surrogate(Protocol):
    """A cheap guess at the order of schedules."""

    def fit(self, schedules: Sequence[SolverSchedule], values: Sequence[float]) -> None:
        """Learns from all scores so far."""
        ...

    def __call__(self, schedules: Sequence[SolverSchedule]) -> Sequence[float]:
        """Guesses whose order is meant, lower is better."""
        ...


def expect_budget(budget: float, cheapest: float, unit: str) -> None:
    """Refuses a budget that not even the cheapest schedule keeps.

    Args:
        budget: What a sample may cost.
        cheapest: What the cheapest schedule costs.
        unit: The unit of both, in words.

    Raises:
        UserError: If the budget is below the cheapest schedule.
    """

    if not budget >= cheapest:
        raise UserError(
            f"the budget is {budget:g} {unit}, and the cheapest schedule costs {cheapest:g}: give "
            f"{cheapest:g} or more."
        )
