r"""Tuning a schedule by back-propagation through the solver.

A table is a differentiable function of the times and the relaxations of its schedule, and a
rollout is one of the table. So the error to a teacher's solution can be followed downhill,

.. math:: \min_{\theta} \; \mathrm{mean} \, \| x_\theta(z) - x^\star(z) \|^2,

with the network held fixed. Where a distance between clouds counts, as the Fréchet distance of a
feature to data, that can be followed instead: a differentiable function of samples may stand in
the place of the targets. What :math:`\theta` is can be chosen:

* ``"times"``: the inner times, as a softmax of their gaps, so that they never cross;
* ``"relax"``: the relaxations of slopes and correctors;
* ``"weights"``: every number of the table that is not zero, a solver that need not be consistent
  with any formula. It has no schedule; it is a `Tableau`, and is saved with
  [`save_table`][genflow.solvers.files.save_table].

Discrete decisions (orders, predictions, correctors) have no gradient: they are a search's. The
two meet: refine the best of a search, or the best preset.

What is *not* assumed: that the samples fit at once (they go by in batches), or that the
activations of all calls do: ``recompute`` keeps one state a call, for a third more work. Few
samples overfit, free weights most of all; the value to trust is that on noise which was not
trained on, and the state that is handed back is the best on ``check``, if there is one.

References:
    Learning to Discretize Denoising Diffusion ODEs (LD3)
    https://arxiv.org/abs/2405.15506

    Bespoke Non-Stationary Solvers for Fast Sampling of Diffusion and Flow Models
    https://arxiv.org/abs/2403.01329
"""

__all__ = ["Refined", "descend", "refine"]

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from genflow.errors import UserError, nearest
from genflow.models.paths import Path, broadcast
from genflow.search.population import Population
from genflow.search.score import Judge, Simulated, error
from genflow.solvers.rollout import Stage, rollout
from genflow.solvers.samplers import Sampler
from genflow.solvers.schedules import SolverSchedule, Step
from genflow.solvers.tableau import Tableau, tabulate

Free = Literal["times", "relax", "weights"]
"""What can be tuned."""

Target = Tensor | Callable[[Tensor], Tensor]
"""What is followed: a teacher's solutions, or a differentiable function of samples."""

LEAST = 1e-4
"""The smallest gap between times, as a share of all."""


@dataclass(frozen=True)
class Refined:
    """What refinement found.

    Attributes:
        solver: The schedule, or the table if its weights were free.
        before: The root-mean-square error, or the loss that was followed in its place, before, on
            ``check`` (on the training noise if there is none).
        after: That of the solver, likewise.
        losses: The mean squared error, or the loss, of every iteration, on its batch.
    """

    solver: SolverSchedule | Tableau
    before: float
    after: float
    losses: tuple[float, ...]


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
        self.weight: nn.Parameter | None = None

        if "weights" in free:
            with torch.no_grad():
                self.weight = nn.Parameter(self.table().weight.clone())

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
        return table if self.weight is None else replace(table, weight=self.weight)

    def solver(self) -> SolverSchedule | Tableau:
        """The schedule with the tuned numbers, or the table."""

        with torch.no_grad():
            if self.weight is not None:
                table = self.table()
                return replace(table, weight=self.weight.detach().clone())

            steps = []
            for step, (relax, mend) in zip(self.schedule.steps, self.relax.tolist(), strict=True):
                correct = step.correct and replace(step.correct, relax=mend)
                steps.append(replace(step, relax=relax, correct=correct))
            return SolverSchedule(tuple(self.times().tolist()), tuple(steps))


def refine(
    schedule: SolverSchedule,
    population: Population,
    target: Target,
    *,
    free: Sequence[Free] = ("times", "relax"),
    iterations: int = 300,
    rate: float = 0.02,
    batch_size: int = 256,
    check: tuple[Population, Target] | None = None,
    every: int = 25,
    recompute: bool = False,
    report: Callable[[int, float], None] | None = None,
) -> Refined:
    r"""Tunes a schedule on the error to a teacher's solutions, or on a loss of its samples.

    Args:
        schedule: The schedule to begin with: a preset's, or the best of a search.
        population: The noise to train on.
        target: The teacher's solutions from it, with shape (n, \*); or a loss, a differentiable
            function of samples with shape (b, \*).
        free: What is tuned.
        iterations: The number of Adam's steps, 1 or more.
        rate: The first learning rate, above 0; it falls to zero along a cosine.
        batch_size: How many samples a step sees, 1 or more.
        check: Noise and targets that are not trained on, by which the best state is chosen.
        every: The number of steps between two looks at ``check``.
        recompute: Whether activations are computed again in the backward pass instead of kept.
        report: Called with the number of steps done and the best error so far.

    Returns:
        The best solver found, never worse than the first on ``check``, and its errors.

    Raises:
        UserError: If a value is not allowed, or a step needs statistics or alters the network.

    Example:
        >>> tuned = refine(found.schedule, population, Teacher().solve(population))
        >>> tuned.solver.save("schedule.json", denoiser.path)
    """

    _allow(schedule, free, iterations, rate, batch_size)
    tuned = Tuned(schedule, population.denoiser.path, free)
    parameters = [p for p in tuned.parameters() if p.requires_grad]
    # Weights are sums that nearly cancel; gaps and relaxations are of order one.
    groups = [{"params": [p], "lr": rate / (10 if p is tuned.weight else 1)} for p in parameters]
    optimiser = torch.optim.Adam(groups, rate, betas=(0.9, 0.99))
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, iterations)
    watched = (population, target) if check is None else check

    frozen = [p for p in population.denoiser.parameters() if p.requires_grad]
    for p in frozen:
        p.requires_grad_(False)

    try:
        before = best = _error(tuned, *watched)
        found, losses = tuned.solver() if "weights" in free else schedule, []
        order = torch.Generator().manual_seed(0)

        for k in range(iterations):
            rows = torch.randperm(len(population), generator=order)[:batch_size]
            loss = _loss(tuned, population, target, rows, recompute)
            optimiser.zero_grad()
            loss.backward()
            if torch.isfinite(loss) and _finite(parameters):
                nn.utils.clip_grad_norm_(parameters, 1.0)
                optimiser.step()
            falling.step()
            losses.append(float(loss.detach()))

            if (k + 1) % every == 0 or k + 1 == iterations:
                now = _error(tuned, *watched)
                if now < best:
                    best, found = now, tuned.solver()
                if report is not None:
                    report(k + 1, best)
    finally:
        for p in frozen:
            p.requires_grad_(True)

    return Refined(found, before, best, tuple(losses))


def descend(
    schedules: Sequence[SolverSchedule],
    population: Population,
    target: Target,
    *,
    starts: int = 4,
    check: tuple[Population, Target] | None = None,
    report: Callable[[int, float], None] | None = None,
    **options: Any,
) -> list[Refined]:
    r"""Refines the best of several schedules.

    Args:
        schedules: The schedules; those that gradients cannot be taken through are left out.
        population: The noise to train on.
        target: The teacher's solutions from it, or a loss, as in
            [`refine`][genflow.search.refine.refine].
        starts: How many of them are refined, 1 or more.
        check: As in [`refine`][genflow.search.refine.refine].
        report: Called with the number of steps done in all, and the best error so far.
        options: The other arguments of [`refine`][genflow.search.refine.refine].

    Returns:
        What was found from each, the best first.

    Raises:
        UserError: If there is no schedule to begin with, or a value is not allowed.
    """

    plain = [s for s in schedules if not any(map(_obstacle, s.steps))]

    if not plain or starts < 1:
        raise UserError(
            f"starts is {starts}, and there are {len(plain)} schedules that gradients can be "
            "taken through: both must be 1 or more."
        )

    errors = Simulated(population, _judge(target))(plain)
    first = sorted(zip(errors, range(len(plain)), strict=True))[:starts]
    found: list[Refined] = []

    for _, i in first:
        done = sum(len(r.losses) for r in found)
        best = min((r.after for r in found), default=math.inf)

        def told(k: int, now: float, done: int = done, best: float = best) -> None:
            if report is not None:
                report(done + k, min(best, now))

        found.append(refine(plain[i], population, target, check=check, report=told, **options))

    return sorted(found, key=lambda r: r.after)


def _obstacle(step: Step) -> bool:
    """Whether gradients cannot be taken through a step."""

    return (
        step.predict == "empirical" or bool(step.change) or step.eta > 0 or step.source == "mean"
    )


def _allow(
    schedule: SolverSchedule, free: Sequence[str], iterations: int, rate: float, batch_size: int
) -> None:
    for name in free:
        if name not in get_args(Free):
            raise UserError(f"free is '{name}'{nearest(name, get_args(Free))}")

    if not free or iterations < 1 or batch_size < 1 or not rate > 0:
        raise UserError(
            f"free is {tuple(free)}, iterations {iterations}, batch_size {batch_size} and rate "
            f"{rate}: something must be free, and all numbers above 0."
        )

    for i, step in enumerate(schedule.steps):
        if _obstacle(step):
            raise UserError(
                f"step {i} is empirical, random, from the mean, or alters the network: gradients "
                "are taken through plain deterministic steps only."
            )


def _finite(parameters: Sequence[Tensor]) -> bool:
    return all(math.isfinite(float(p.grad.abs().sum())) for p in parameters if p.grad is not None)


def _loss(
    tuned: Tuned, population: Population, target: Target, rows: Tensor, recompute: bool
) -> Tensor:
    """The mean squared error, or the loss, of some samples."""

    table = tuned.table()
    z = population.z[rows]
    cond = {
        k: v[rows] if isinstance(v, Tensor) else [v[i] for i in rows]
        for k, v in population.cond.items()
    }
    stages = Sampler(population.denoiser, table, "direct").stages(**cond)
    stages = [_recomputed(s) for s in stages] if recompute else stages
    x = broadcast(tuned.path(table.time[0])[1].to(z), z) * z
    x = rollout(stages, x, table)
    return (x - target[rows]).square().mean() if isinstance(target, Tensor) else target(x)


def _recomputed(stage: Stage) -> Stage:
    return lambda x, t: checkpoint(stage, x, t, use_reentrant=False)


def _error(tuned: Tuned, population: Population, target: Target) -> float:
    """The error, or the loss, of the solver as it would be saved."""

    with torch.no_grad():
        ((_, samples),) = population([tuned.solver()])
        return _judge(target)(samples)


def _judge(target: Target) -> Judge:
    return error(target) if isinstance(target, Tensor) else lambda x: float(target(x))
