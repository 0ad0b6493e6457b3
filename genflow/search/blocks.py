r"""The space of times and blocks: what each call of the network leaves out, under a budget.

AutoDiffusion's second stage. A gene is a time and what its step decides: which blocks are dropped
and which reuse their branch, whether guidance acts, and the order of the step, each if it is
searched. The genes of a step travel with its time through every mutation and crossover.

The budget is a constraint of the space, not a term of the score: whatever a law makes is brought
under it (`genflow.search.budgets`), and nothing illegal is left: no block is reused before it ran,
or across a change of guidance.

Genes of single blocks are many, so a search begins with *units* of several blocks that are left
out together, such as the stages of a U-Net, and goes on with single ones.

References:
    AutoDiffusion: Training-Free Optimization of Time Steps and Architectures for Automated
    Diffusion Model Acceleration
    https://arxiv.org/abs/2309.10438
"""

__all__ = ["BlockLaw", "BlockSpace", "groups"]

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
import math
from typing import Any

import numpy as np

from genflow.errors import UserError, nearest
from genflow.nn import Costs
from genflow.search.budgets import MODES, Budget, Own, priced
from genflow.search.repair import possible
from genflow.search.spaces import Random, Trial, expect_budget
from genflow.search.times import Gene, TimeSpace
from genflow.solvers.alterations import Alteration, block_plan
from genflow.solvers.schedules import SolverSchedule, Step
from genflow.solvers.tableau import stage_changes


def groups(names: Iterable[str], parts: int = 4) -> dict[str, tuple[str, ...]]:
    """Blocks by the part of the network that they stand in.

    Args:
        names: The names of the blocks, in the order in which they run.
        parts: How many runs of neighbours a list of transformer blocks is cut into, 1 or more.

    Returns:
        For a U-Net its stages, ``"down_blocks.0"`` to ``"up_blocks.3"``; for a transformer runs of
        neighbours, under the name of the first.
    """

    lists: dict[str, list[str]] = {}

    for name in names:
        first, *rest = name.split(".")
        alone = len(rest) == 1 or not rest[0].isdigit()  # a transformer block, the middle
        lists.setdefault(first if alone else f"{first}.{rest[0]}", []).append(name)

    out: dict[str, tuple[str, ...]] = {}

    for stage, inside in lists.items():
        flat = inside[0].count(".") == 1
        runs = np.array_split(np.array(inside, dtype=object), parts if flat else 1)
        for run in (tuple(r) for r in runs if len(r)):
            out[run[0] if flat else stage] = run

    return out


@dataclass(frozen=True)
class BlockLaw:
    """Probabilities of the law of mutation.

    Attributes:
        times: The probability that the law of times acts, in [0, 1].
        blocks: The mean number of changes to the blocks, beside one.
        run: The probability that such a change goes on to the next step, in [0, 1).
        spend: The probability that a mutant takes blocks back until its budget is spent; 0 to
            breed along a whole Pareto front.
        guidance: The probability that guidance is switched at a step.
        order: The probability that the order of a step is drawn again.
    """

    times: float = 0.2
    blocks: float = 1.0
    run: float = 0.3
    spend: float = 0.7
    guidance: float = 0.1
    order: float = 0.1


class BlockSpace:
    """Times, and what the calls leave out, as a `Space`.

    Args:
        times: The space of times.
        costs: The table of the network.
        budget: What a sample may cost, in the unit of the table.
        units: Blocks that are left out together, by any names; each block for itself if None.
        modes: How blocks may be left out: ``"reuse"``, ``"drop"``, or both.
        passes: How often a guided call runs the network; 1 if it is not guided.
        guidance: Whether guidance on and off is searched; needs passes above 1.
        orders: The highest order, if the order of each step is searched, else 0.
        law: The law of mutation.

    Raises:
        UserError: If a value is not allowed, a unit names an unknown block, or the budget is below
            the cheapest schedule.
    """

    def __init__(
        self,
        times: TimeSpace,
        costs: Costs,
        budget: float,
        *,
        units: Mapping[str, Sequence[str]] | None = None,
        modes: Sequence[str] = MODES,
        passes: int = 1,
        guidance: bool = False,
        orders: int = 0,
        law: BlockLaw | None = None,
    ) -> None:
        for mode in modes:
            if mode not in MODES:
                raise UserError(f"a mode is '{mode}'{nearest(mode, MODES)}")
        if not modes or passes < 1 or orders < 0 or (guidance and passes < 2):
            raise UserError(
                f"modes are {tuple(modes)}, passes {passes}, orders {orders} and guidance "
                f"{guidance}: one mode or more, passes of 1 or more (2 or more if guidance is "
                "searched) and orders of 0 or more are needed."
            )

        known = costs.saving
        units = {name: (name,) for name in known} if units is None else units
        units = {name: tuple(inside) for name, inside in units.items()}

        if not all(units.values()) or not units:
            raise UserError("units hold no block, or one of them holds none: name blocks in each.")

        for name in (name for inside in units.values() for name in inside):
            if name not in known:
                raise UserError(f"a unit names the block '{name}'{nearest(name, known)}")

        span = np.linspace(times.start[1], times.stop[0], times.steps[0] + 1)
        extra = times.of(span).nfe - times.steps[0]
        self.times, self.orders = times, orders
        self.law = BlockLaw() if law is None else law
        self.budget = Budget(costs, budget, units, tuple(modes), passes, guidance, extra)
        self._blocks, self._names = self.budget.blocks, list(units)
        expect_budget(budget, self.budget.least(times.steps[0]), f"{costs.unit} a sample")

    @property
    def full(self) -> float:
        """What a sample costs with the most steps and nothing left out."""

        whole = [Own({})] * self.times.steps[1]
        return self.budget.total(whole)

    # -------------------------------------------------------------------------- the laws

    def sample(self, rng: Random) -> SolverSchedule:
        """See [`Space.sample`][genflow.search.spaces.Space.sample]."""

        genes = [(t, Own({})) for t, _ in self.times.drawn(rng)]
        most = min(self.budget.bound, self.budget.total([Own({})] * len(genes)))
        least = min(most, self.budget.least(len(genes)))
        target = least + (most - least) * math.sqrt(rng.random())
        return self._made(genes, self.times.ending(rng), rng, target)

    def mutate(self, schedule: SolverSchedule, rng: Random) -> SolverSchedule:
        """See [`Space.mutate`][genflow.search.spaces.Space.mutate]."""

        genes, stop = self._read(schedule)

        if rng.random() < self.law.times:
            genes = self.times.moved(genes, rng, lambda: Own({}))
            stop = self.times.ended(stop, rng)

        genes = sorted(genes, key=lambda gene: -gene[0])

        for _ in range(1 + rng.poisson(self.law.blocks)):
            genes = self._changed(genes, rng)

        genes = [(t, self._decided(own, rng)) for t, own in genes]
        return self._made(genes, stop, rng, spend=rng.random() < self.law.spend)

    def cross(self, a: SolverSchedule, b: SolverSchedule, rng: Random) -> SolverSchedule:
        """See [`Space.cross`][genflow.search.spaces.Space.cross]."""

        one, other = self._read(a), self._read(b)
        genes = self.times.mixed(one[0], other[0], rng)
        return self._made(genes, (one, other)[rng.integers(2)][1], rng)

    def suggest(self, trial: Trial) -> SolverSchedule:
        """See [`Space.suggest`][genflow.search.spaces.Space.suggest]."""

        genes, stop = self._read(self.times.suggest(trial))
        out = []

        for i, (t, own) in enumerate(genes):
            left: dict[str, str] = {}
            for unit in self._names if i else ():
                mode = trial.suggest_categorical(f"{unit} {i}", ["keep", *self.budget.modes])
                left |= {} if mode == "keep" else dict.fromkeys(self.budget.units[unit], mode)
            on = not self.budget.guidance or trial.suggest_categorical(
                f"guidance {i}", [True, False]
            )
            order = own.order
            if self.orders:
                order = trial.suggest_categorical(f"order {i}", [*range(1, self.orders + 1)])
            out.append((t, Own(left, on, order)))

        return self._made(out, stop, np.random.default_rng(0))

    def legal(self, schedule: SolverSchedule) -> bool:
        """See [`Space.legal`][genflow.search.spaces.Space.legal]."""

        low, high = self.times.steps

        if not low <= len(schedule.steps) <= high:
            return False

        try:
            block_plan(stage_changes(schedule))
        except UserError:
            return False

        genes, stop = self._read(schedule)
        same = self._schedule(genes, stop) == schedule
        return same and self.cost(schedule) <= self.budget.bound

    def cost(self, schedule: SolverSchedule) -> float:
        """What a sample costs, in the unit of the table."""

        return priced(schedule, self.budget.costs, self.budget.passes)

    def record(self) -> dict[str, Any]:
        """See [`Space.record`][genflow.search.spaces.Space.record].

        Measured costs differ from run to run: to go on with a search, keep the table.
        """

        own, costs = self.budget, self.budget.costs
        return {
            "space": "blocks",
            "times": self.times.record(),
            "costs": {"full": costs.full, "unit": costs.unit, "saving": dict(costs.saving)},
            "budget": own.bound,
            "units": {name: list(inside) for name, inside in own.units.items()},
            "modes": list(own.modes),
            "passes": own.passes,
            "guidance": own.guidance,
            "orders": self.orders,
            "law": asdict(self.law),
        }

    def fitted(self, schedule: SolverSchedule, rng: Random) -> SolverSchedule:
        """A schedule brought into the space: its times kept, and more left out where it must be.

        Args:
            schedule: A schedule, of a space of times or of blocks.
            rng: The random numbers.
        """

        genes, stop = self._read(schedule)
        return self._made(genes, stop, rng)

    # ------------------------------------------------------------------------- the genes

    def _read(self, schedule: SolverSchedule) -> tuple[list[Gene], float]:
        """The genes of a schedule: what this space does not search is not among them."""

        genes = []

        for t, step in zip(schedule.times, schedule.steps, strict=False):
            change = step.change
            left = dict.fromkeys(change.drop, "drop") | dict.fromkeys(change.reuse, "reuse")
            left = {n: m for n, m in left.items() if n in self._blocks and m in self.budget.modes}
            on = change.guidance or not self.budget.guidance
            genes.append((t, Own(left, on, step.order if self.orders else None)))

        return genes, schedule.times[-1]

    def _changed(self, genes: Sequence[Gene], rng: Random) -> list[Gene]:
        """One unit is kept or left out, at a step and perhaps at some that follow."""

        out, unit = list(genes), self._names[rng.integers(len(self._names))]
        mode = ("keep", *self.budget.modes)[rng.integers(1 + len(self.budget.modes))]
        inside = self.budget.units[unit]
        i = int(rng.integers(len(out)))
        last = i + int(rng.geometric(1 - self.law.run))

        for k in range(i, min(last, len(out))):
            t, own = out[k]
            left = {n: m for n, m in own.left.items() if n not in inside}
            left |= {} if mode == "keep" else dict.fromkeys(inside, mode)
            out[k] = (t, replace(own, left=left))

        return out

    def _decided(self, own: Own, rng: Random) -> Own:
        if self.budget.guidance and rng.random() < self.law.guidance:
            own = replace(own, guidance=not own.guidance)
        if self.orders and rng.random() < self.law.order:
            own = replace(own, order=int(rng.integers(1, self.orders + 1)))
        return own

    # -------------------------------------------------------------------------- legality

    def _made(
        self,
        genes: Sequence[Gene],
        stop: float,
        rng: Random,
        target: float = math.inf,
        *,
        spend: bool = False,
    ) -> SolverSchedule:
        """The schedule of genes, brought under the budget, and perhaps up to it."""

        genes = self.times.counted(genes, rng, lambda: Own({}))

        while len(genes) > self.times.steps[0] and self._over(len(genes)):
            del genes[int(rng.integers(1, len(genes)))]

        genes = sorted(genes, key=lambda gene: -gene[0])
        owns = self.budget.kept([own for _, own in genes], rng, target)
        owns = self.budget.spent(owns, rng) if spend else owns
        kept = [(t, own) for (t, _), own in zip(genes, owns, strict=True)]
        return self._schedule(kept, stop)

    def _over(self, steps: int) -> bool:
        """Whether not even the cheapest trajectory of so many steps keeps the budget."""

        return self.budget.least(steps) > self.budget.bound

    def _schedule(self, genes: Sequence[Gene], stop: float) -> SolverSchedule:
        """The schedule of genes, as they are."""

        times, owns = self.times.settled(genes)
        low, high = self.times.stop
        base = self.times.of((*times, min(max(stop, low), high)))
        steps = [_step(i, s, own) for i, (s, own) in enumerate(zip(base.steps, owns, strict=True))]
        return SolverSchedule(base.times, tuple(steps))


def _step(i: int, base: Step, own: Own) -> Step:
    """The sampler's step with a step's genes."""

    sides = {mode: tuple(n for n, m in own.left.items() if m == mode) for mode in MODES}
    change = Alteration(**sides, guidance=own.guidance)

    order = base.order if own.order is None else min(own.order, i + 1)

    if order == base.order:
        return replace(base, change=change)

    return possible(i, Step(order=order, predict=base.predict, change=change))
