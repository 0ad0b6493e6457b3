r"""Whole searches: S³, and what it has to be compared with at equal evaluations.

`s3` is the loop of USF's search: evaluate, train the ranking predictor on everything seen, let it
choose the next children, again and again. `plain` is the same loop without a predictor, `random`
draws from the space and nothing else, and `by_optuna` lets a sampler of Optuna (TPE, NSGA-II,
CMA-ES) decide, on the same space. All return an `Archive`.

CMA-ES moves the numbers of a schedule alone: Optuna draws its other decisions at random.
"""

__all__ = ["by_optuna", "plain", "random", "s3"]

from collections.abc import Callable, Iterable
import math
from typing import Any

from genflow.errors import UserError, nearest
from genflow.search.archive import Archive, Entry
from genflow.search.evolve import Seed, evolve
from genflow.search.ledger import Ledger
from genflow.search.predictor import RankingPredictor
from genflow.search.spaces import Score, Space
from genflow.search.usf import SolverSpace

OPTUNA = {"tpe": "TPESampler", "nsga2": "NSGAIISampler", "cma-es": "CmaEsSampler"}
"""The samplers of Optuna by name."""


def s3(
    space: SolverSpace,
    score: Score,
    *,
    budget: int,
    seeds: Iterable[Seed] = (),
    stage: int = 20,
    predictor: RankingPredictor | None = None,
    ledger: Ledger | None = None,
    seed: int = 0,
    **law: Any,
) -> Archive:
    """S³: multi-stage search, guided by a ranking predictor.

    Args:
        space: The space.
        score: The score.
        budget: The number of schedules to score, 1 or more.
        seeds: Schedules to begin with.
        stage: The number of schedules scored between two trainings of the predictor.
        predictor: The predictor; one that has learned from other numbers of calls may be handed
            on. A new one if None.
        ledger: The ledger.
        seed: The seed.
        law: Other arguments of [`evolve`][genflow.search.evolve.evolve].

    Returns:
        All scores, and Kendall's τ of every stage.

    References:
        Unified Sampling Framework for Diffusion Probabilistic Models (USF)
        https://openreview.net/forum?id=W2d3LZbhhI
    """

    guide = RankingPredictor(space.path, seed=seed) if predictor is None else predictor
    first = min(stage, max(2, budget // 4))
    law = {"initial": first, "pool": 16, "rounds": 1, "explore": 0.3, **law}
    return evolve(
        space,
        score,
        budget=budget,
        seeds=seeds,
        batch=stage,
        surrogate=guide,
        ledger=ledger,
        seed=seed,
        **law,
    )


def plain(space: Space, score: Score, *, budget: int, **options: Any) -> Archive:
    """The evolutionary search without a predictor; options as in `evolve`."""

    return evolve(space, score, budget=budget, **options)


def random(space: Space, score: Score, *, budget: int, **options: Any) -> Archive:
    """Random search: every schedule is drawn afresh; options as in `evolve`."""

    return evolve(space, score, budget=budget, **{**options, "fresh": 1.0})


def by_optuna(
    space: Space,
    score: Score,
    *,
    sampler: str,
    budget: int,
    batch: int = 16,
    seed: int = 0,
    report: Callable[[Archive, int], None] | None = None,
) -> Archive:
    """A search by a sampler of Optuna on the decisions of a space.

    Args:
        space: The space, whose ``suggest`` asks for every decision and repairs the answer.
        score: The score.
        sampler: ``"tpe"``, ``"nsga2"`` or ``"cma-es"``; the last needs the package cmaes.
        budget: The number of schedules to score, 1 or more.
        batch: How many are scored at a time.
        seed: The seed.
        report: Called with the archive and the budget after every batch.

    Returns:
        All scores. A schedule that is proposed twice is scored once, and counts twice.

    Raises:
        UserError: If the sampler is unknown, or a package is missing.
    """

    if sampler not in OPTUNA:
        raise UserError(f"sampler is '{sampler}'{nearest(sampler, OPTUNA)}")
    if budget < 1 or batch < 1:
        raise UserError(f"budget is {budget} and batch is {batch}: both must be 1 or more.")

    try:
        import optuna

        chosen = getattr(optuna.samplers, OPTUNA[sampler])(seed=seed)
    except ImportError as missing:
        raise UserError(
            f"sampler '{sampler}' needs a package that is not installed ({missing}): pip install "
            "'genflow[search]'."
        ) from None

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=chosen)
    archive, known = Archive(), {}

    while len(archive) < budget:
        trials = [study.ask() for _ in range(min(batch, budget - len(archive)))]
        schedules = [space.suggest(t) for t in trials]
        new = [s for s in dict.fromkeys(schedules) if s not in known]
        known |= zip(new, map(float, score(new)), strict=True) if new else {}

        for trial, schedule in zip(trials, schedules, strict=True):
            value = known[schedule]
            if math.isfinite(value):
                study.tell(trial, value)
            else:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
                value = math.nan
            cost = space.cost(schedule)
            archive.entries.append(Entry(trial.number, schedule, value, sampler, cost))

        if report is not None:
            report(archive, budget)

    return archive
