r"""A schedule whose numbers are parameters, and its run on common noise.

Times are a softmax of their gaps, so that they never cross. The weights of a table move in units
of their own: the size of the state that a row makes over the size of what a weight multiplies.
"""

__all__ = ["Free", "Tuned", "run"]

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from genflow.models.paths import Path, broadcast
from genflow.search.population import Population
from genflow.solvers.rollout import Observe, Stage, rollout
from genflow.solvers.samplers import Sampler
from genflow.solvers.schedules import SolverSchedule
from genflow.solvers.tableau import Tableau, tabulate

Free = Literal["times", "relax", "weights"]
"""What can be tuned."""

LEAST = 1e-4
"""The smallest gap between times, as a share of all."""


class Tuned(nn.Module):
    """A schedule whose numbers are parameters.

    Args:
        schedule: The schedule to begin with.
        path: The path.
        free: What is tuned.
    """

    def __init__(self, schedule: SolverSchedule, path: Path, free: Sequence[Free]) -> None:
        super().__init__()
        self.schedule, self.path = schedule, path
        times = torch.tensor(schedule.times, dtype=torch.float64)
        self.high, self.low = times[0], times[-1].clamp(min=path.t_min)
        # A last time below t_min is clean data: it stays, and the one before it may move.
        self.tail = times[-1:]
        inner = times[1:-1]
        ends = torch.stack([self.high, *inner, self.low]) if len(inner) else times
        gaps = -ends.diff()
        self.fixed = len(inner) == 0
        share = (gaps / gaps.sum() - LEAST) / (1 - LEAST * len(gaps))
        self.gaps = nn.Parameter(share.clamp(min=1e-6).log(), requires_grad="times" in free)
        relax = [(s.relax, s.correct.relax if s.correct else 0.0) for s in schedule.steps]
        self.relax = nn.Parameter(
            torch.tensor(relax, dtype=torch.float64), requires_grad="relax" in free
        )
        self.moves: nn.Parameter | None = None

        if "weights" in free:
            with torch.no_grad():
                self.weight = self.table().weight
            self.unit = self.weight.ne(0).double()
            self.moves = nn.Parameter(torch.zeros_like(self.weight))

    def times(self) -> Tensor:
        """The times, with shape (N + 1)."""

        if self.fixed:
            return torch.tensor(self.schedule.times, dtype=torch.float64)

        share = LEAST + (1 - LEAST * len(self.gaps)) * self.gaps.softmax(0)
        inner = self.high - (self.high - self.low) * share.cumsum(0)[:-1]
        return torch.cat([self.high[None], inner, self.tail])

    def table(self) -> Tableau:
        """The table, which depends on the parameters."""

        table = tabulate(self.schedule, self.path, times=self.times(), relax=self.relax)
        if self.moves is None:
            return table
        return replace(table, weight=self.weight + self.unit * self.moves)

    def measure(self, population: Population) -> None:
        """Sets the unit in which each weight moves, where weights are free.

        A unit is the size of the state that a row makes over the size of what the weight
        multiplies, so that moves of one length change states of any size by the same share: the
        noise that EDM begins with is a hundred times as large as the data.
        """

        if self.moves is None:
            return

        met: list[tuple[float, float]] = []
        few = torch.arange(min(len(population), 64))

        def look(i: int, x: Tensor, answer: Tensor) -> None:
            met.append((_rms(x), _rms(answer)))

        with torch.no_grad():
            end = run(self, population, few, observe=look)

        made = [size for size, _ in met[1:]] + [_rms(end)]
        window = self.weight.shape[1] // 2

        for i, size in enumerate(made):
            read = [s for k in range(min(window, i + 1)) for s in met[i - k]]
            sizes = torch.ones(self.weight.shape[1], dtype=torch.float64)
            sizes[: len(read)] = torch.tensor(read, dtype=torch.float64)
            moving = self.weight[i].ne(0).double()
            self.unit[i] = moving * size / sizes.clamp(min=1e-3 * size)

    def solver(self) -> SolverSchedule | Tableau:
        """The schedule with the tuned numbers, or the table."""

        with torch.no_grad():
            if self.moves is not None:
                return self.table()

            steps = []
            for step, (relax, mend) in zip(self.schedule.steps, self.relax.tolist(), strict=True):
                correct = step.correct and replace(step.correct, relax=mend)
                steps.append(replace(step, relax=relax, correct=correct))
            return SolverSchedule(tuple(self.times().tolist()), tuple(steps))


def run(
    tuned: Tuned,
    population: Population,
    rows: Tensor,
    recompute: bool = False,
    observe: Observe | None = None,
) -> Tensor:
    """Some samples of the solver as it is, with gradients.

    Args:
        tuned: The solver.
        population: The noise and the conditions.
        rows: Which of them.
        recompute: Whether activations are computed again in the backward pass instead of kept.
        observe: What may look on.
    """

    table = tuned.table()
    z = population.z[rows]
    cond = {
        k: v[rows] if isinstance(v, Tensor) else [v[i] for i in rows]
        for k, v in population.cond.items()
    }
    stages = Sampler(population.denoiser, table, "direct").stages(**cond)
    stages = [_recomputed(s) for s in stages] if recompute else stages
    x = broadcast(tuned.path(table.time[0])[1].to(z), z) * z
    return rollout(stages, x, table, observe=observe)


def _recomputed(stage: Stage) -> Stage:
    return lambda x, t: checkpoint(stage, x, t, use_reentrant=False)


def _rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())
