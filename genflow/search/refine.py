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

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from genflow.errors import UserError, nearest
from genflow.search.population import Population
from genflow.search.score import Judge, Simulated, error
from genflow.search.tuned import Free, Tuned, run
from genflow.solvers.schedules import SolverSchedule, Step
from genflow.solvers.tableau import Tableau

Target = Tensor | Callable[[Tensor], Tensor]
"""What is followed: a teacher's solutions, or a differentiable function of samples."""


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
    optimiser: Literal["adam", "lbfgs"] = "adam",
    report: Callable[[int, float], None] | None = None,
) -> Refined:
    r"""Tunes a schedule on the error to a teacher's solutions, or on a loss of its samples.

    Args:
        schedule: The schedule to begin with: a preset's, or the best of a search.
        population: The noise to train on.
        target: The teacher's solutions from it, with shape (n, \*); or a loss, a differentiable
            function of samples with shape (b, \*).
        free: What is tuned.
        iterations: The number of gradients, 1 or more; a line search of L-BFGS may take some more.
        rate: Adam's first learning rate, above 0; it falls to zero along a cosine.
        batch_size: How many samples a gradient sees, 1 or more.
        check: Noise and targets that are not trained on, by which the best state is chosen.
        every: The number of gradients between two looks at ``check``.
        recompute: Whether activations are computed again in the backward pass instead of kept.
        optimiser: ``"adam"``, on another random batch at each step; or ``"lbfgs"``, which follows
            the curvature with a line search, needs no rate, and sees the same first samples
            always: the choice for a distance between clouds, which is one function then.
        report: Called with the number of steps done and the best error so far.

    Returns:
        The best solver found, never worse than the first on ``check``, and its errors.

    Raises:
        UserError: If a value is not allowed, or a step needs statistics or alters the network.

    Example:
        >>> tuned = refine(found.schedule, population, Teacher().solve(population))
        >>> tuned.solver.save("schedule.json", denoiser.path)
    """

    if optimiser not in DESCENTS:
        raise UserError(f"optimiser is '{optimiser}'{nearest(optimiser, DESCENTS)}")

    _allow(schedule, free, iterations, rate, batch_size)
    tuned = Tuned(schedule, population.denoiser.path, free)
    tuned.measure(population)
    watched = (population, target) if check is None else check
    losses: list[float] = []

    frozen = [p for p in population.denoiser.parameters() if p.requires_grad]
    for p in frozen:
        p.requires_grad_(False)

    try:
        before = best = _error(tuned, *watched)
        found = tuned.solver() if "weights" in free else schedule

        def slope(rows: Tensor) -> Tensor:
            loss = _loss(tuned, population, target, rows, recompute)
            if not loss.requires_grad:
                raise UserError(
                    f"free is {tuple(free)}, and nothing that is free acts on the samples: a "
                    "schedule of one step has weights only."
                )
            tuned.zero_grad()
            loss.backward()
            losses.append(float(loss.detach()))
            return loss.detach()

        settings = Settings(iterations, rate, min(batch_size, len(population)), every)
        for done in DESCENTS[optimiser](tuned, slope, len(population), settings):
            now = _error(tuned, *watched)
            if now < best:
                best, found = now, tuned.solver()
            if report is not None:
                report(done, best)
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


@dataclass(frozen=True)
class Settings:
    """How to descend.

    Attributes:
        iterations: The number of gradients.
        rate: The first learning rate.
        batch_size: How many samples a gradient sees.
        every: The number of gradients between two looks.
    """

    iterations: int
    rate: float
    batch_size: int
    every: int


FAR = 1e6
"""Counts as the loss, in units of the first, where it is not finite: a line search turns back."""

TINY = 1e-12
"""The smallest loss that others are measured in."""

Slope = Callable[[Tensor], Tensor]
"""Rows of the noise → the loss, with its gradients left on the parameters."""


def _adam(tuned: Tuned, slope: Slope, n: int, settings: Settings) -> Iterator[int]:
    """Adam's steps; says now and then how many there were."""

    parameters = [p for p in tuned.parameters() if p.requires_grad]
    rate, iterations = settings.rate, settings.iterations
    # Weights are sums that nearly cancel; gaps and relaxations are of order one.
    groups = [{"params": [p], "lr": rate / (10 if p is tuned.moves else 1)} for p in parameters]
    optimiser = torch.optim.Adam(groups, rate, betas=(0.9, 0.99))
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, iterations)
    order = torch.Generator().manual_seed(0)

    for k in range(iterations):
        loss = slope(torch.randperm(n, generator=order)[: settings.batch_size])
        if torch.isfinite(loss) and _finite(parameters):
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
        falling.step()

        if (k + 1) % settings.every == 0 or k + 1 == iterations:
            yield k + 1


def _lbfgs(tuned: Tuned, slope: Slope, n: int, settings: Settings) -> Iterator[int]:
    """Steps of L-BFGS; says now and then how many gradients there were."""

    parameters = [p for p in tuned.parameters() if p.requires_grad]
    rows, done, unit = torch.arange(settings.batch_size), 0, math.nan
    optimiser = torch.optim.LBFGS(
        parameters,
        max_iter=settings.every,
        history_size=20,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-10,
        tolerance_change=1e-12,
    )

    def closure() -> Tensor:
        nonlocal done, unit
        loss, done = slope(rows), done + 1
        unit = max(float(loss.abs()), TINY) if math.isnan(unit) else unit
        known = bool(torch.isfinite(loss)) and _finite(parameters)
        for p in [p for p in parameters if p.grad is not None]:
            p.grad = p.grad / unit if known else torch.zeros_like(p)
        return loss / unit if known else loss.new_tensor(FAR)

    while done < settings.iterations:
        begun = done
        optimiser.param_groups[0]["max_eval"] = min(settings.every, settings.iterations - done)
        optimiser.step(closure)
        yield min(done, settings.iterations)

        if done == begun + 1:  # it has converged
            return


DESCENTS: dict[str, Callable[[Tuned, Slope, int, Settings], Iterator[int]]] = {
    "adam": _adam,
    "lbfgs": _lbfgs,
}
"""The optimisers by name."""


def _finite(parameters: Sequence[Tensor]) -> bool:
    return all(math.isfinite(float(p.grad.abs().sum())) for p in parameters if p.grad is not None)


def _loss(
    tuned: Tuned, population: Population, target: Target, rows: Tensor, recompute: bool
) -> Tensor:
    """The mean squared error, or the loss, of some samples."""

    x = run(tuned, population, rows, recompute)
    return (x - target[rows]).square().mean() if isinstance(target, Tensor) else target(x)


def _error(tuned: Tuned, population: Population, target: Target) -> float:
    """The error, or the loss, of the solver as it would be saved."""

    with torch.no_grad():
        ((_, samples),) = population([tuned.solver()])
        return _judge(target)(samples)


def _judge(target: Target) -> Judge:
    return error(target) if isinstance(target, Tensor) else lambda x: float(target(x))
