r"""Budgets: what a trajectory costs, and how it is brought under a bound.

Costs come from a table that is additive over blocks and calls (`genflow.nn.costs`), so the cost of
a trajectory is a sum,

.. math:: C = \sum_i p_i \Big( c_{full} - \sum_{b \text{ left out at } i} s_b \Big),

with :math:`p_i` the passes of a call: 2 where classifier-free guidance acts, else 1. A trajectory
over its budget leaves more out, unit by unit, at random steps, the first step last. What is left
out stays possible: a block is reused only where it ran before, under the same guidance.
"""

__all__ = ["MODES", "Budget", "Own", "priced"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
import math

import numpy as np

from genflow.nn import Costs
from genflow.search.spaces import Random
from genflow.solvers.schedules import SolverSchedule
from genflow.solvers.tableau import stage_changes

MODES = ("reuse", "drop")
"""How a block is left out."""


def priced(schedule: SolverSchedule, costs: Costs, passes: int = 1) -> float:
    """What a sample costs: the sum over the calls of the network.

    Args:
        schedule: The schedule.
        costs: The table of the network.
        passes: How often a guided call runs the network, 2 for classifier-free guidance.

    Raises:
        UserError: If the schedule leaves out a block that is not in the table.
    """

    called = [change for change in stage_changes(schedule) if change is not None]
    return math.fsum(
        (passes if change.guidance else 1) * costs((*change.drop, *change.reuse))
        for change in called
    )


@dataclass(frozen=True)
class Own:
    """What a step decides beside its time.

    Attributes:
        left: The blocks that are left out, and how.
        guidance: Whether guidance acts.
        order: The order of the step; that of the sampler if None.
    """

    left: Mapping[str, str]
    guidance: bool = True
    order: int | None = None


@dataclass(frozen=True)
class Budget:
    """A bound on the cost of a sample, and what may be left out to keep it.

    Attributes:
        costs: The table of the network.
        bound: What a sample may cost, in the unit of the table.
        units: Blocks that are left out together.
        modes: How blocks may be left out.
        passes: How often a guided call runs the network; 1 if it is not guided.
        guidance: Whether guidance may be switched off.
        extra: The calls of a trajectory beyond one a step.
    """

    costs: Costs
    bound: float
    units: Mapping[str, tuple[str, ...]]
    modes: tuple[str, ...] = MODES
    passes: int = 1
    guidance: bool = False
    extra: int = 0

    @property
    def blocks(self) -> set[str]:
        """The blocks of all units."""

        return {name for inside in self.units.values() for name in inside}

    def total(self, owns: Sequence[Own]) -> float:
        """The cost of a trajectory; calls beyond the last step cost as much as its own."""

        calls = [*owns, *[owns[-1]] * self.extra]
        return math.fsum(
            (self.passes if own.guidance else 1) * self.costs(own.left) for own in calls
        )

    def cheapest(self, steps: int) -> list[Own]:
        """As much left out as can be, for a number of steps."""

        mode = "drop" if "drop" in self.modes else "reuse"
        everything = dict.fromkeys(sorted(self.blocks), mode)
        first = everything if mode == "drop" else {}
        return [
            Own(left, guidance=not self.guidance) for left in (first, *[everything] * (steps - 1))
        ]

    def least(self, steps: int) -> float:
        """The cost of the cheapest trajectory."""

        return self.total(self.cheapest(steps))

    def possible(self, owns: Sequence[Own]) -> list[Own]:
        """The same, where no block is reused that did not run before under the same guidance.

        A block that never ran is kept instead; one that ran otherwise is dropped if it may be.
        """

        out: list[Own] = []
        ran: dict[str, bool] = {}
        blocks = self.blocks

        for own in owns:
            left: dict[str, str] = {}
            for name, mode in own.left.items():
                if mode == "drop" or ran.get(name) is own.guidance:
                    left[name] = mode
                elif "drop" in self.modes and name in ran:
                    left[name] = "drop"
            ran |= dict.fromkeys(blocks - left.keys(), own.guidance)
            out.append(replace(own, left=left))

        return out

    def kept(self, owns: Sequence[Own], rng: Random, target: float = math.inf) -> list[Own]:
        """The same, with more left out until the bound is kept.

        Args:
            owns: What each step decides; there must be few enough for the bound.
            rng: The random numbers.
            target: A lower bound to keep instead.
        """

        bound = min(self.bound, target)
        owns = self.possible(owns)

        for i, unit in sorted(self._places(owns, rng, 1.0), key=lambda place: place[0] == 0):
            if self.total(owns) <= bound:
                return owns
            mode = self.modes[rng.integers(len(self.modes))]
            if i == 0 and "drop" in self.modes:
                mode = "drop"
            new = {n: mode for n in self.units[unit] if n not in owns[i].left}
            owns[i] = replace(owns[i], left={**owns[i].left, **new})
            owns = self.possible(owns)

        if self.total(owns) <= bound:
            return owns

        pairs = zip(owns, self.cheapest(len(owns)), strict=True)
        return [replace(own, left=c.left, guidance=c.guidance) for own, c in pairs]

    def spent(self, owns: Sequence[Own], rng: Random) -> list[Own]:
        """The same, with units taken back at random steps while the bound is kept.

        Args:
            owns: What each step decides, within the bound.
            rng: The random numbers.
        """

        owns = list(owns)

        for i, unit in self._places(owns, rng, -1.0):
            left = {n: m for n, m in owns[i].left.items() if n not in self.units[unit]}
            if len(left) < len(owns[i].left):
                fuller = [*owns[:i], replace(owns[i], left=left), *owns[i + 1 :]]
                fuller = self.possible(fuller)
                owns = fuller if self.total(fuller) <= self.bound else owns

        return owns

    def _places(self, owns: Sequence[Own], rng: Random, sign: float) -> list[tuple[int, str]]:
        """All steps and units in a random order, steps that leave much out early, or late.

        Harms are coherent: a step that is spared already can lose more at little harm, and one
        that runs in full is worth most if nothing at all is missing.
        """

        share = np.array([len(own.left) for own in owns]) / max(1, len(self.blocks))
        weight = np.repeat(0.1 + (share if sign > 0 else 1 - share), len(self.units))
        order = np.argsort(-(rng.random(len(weight)) ** (1 / weight)))
        places = [(i, unit) for i in range(len(owns)) for unit in self.units]
        return [places[k] for k in order]
