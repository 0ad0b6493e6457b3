"""The loop: seeds, children, duplicates, rejected schedules, surrogates, and the archive."""

import math

import numpy as np
import pytest

from genflow.errors import UserError
from genflow.models import VariancePreserving
from genflow.search.archive import Archive, Entry, front
from genflow.search.evolve import Evolution, evolve
from genflow.search.ledger import Memory
from genflow.search.recipes import by_optuna, plain, random, s3
from genflow.search.spaces import expect_budget
from genflow.search.usf import SolverSpace
from genflow.solvers import SolverSchedule, Step

SPACE = SolverSpace(VariancePreserving(), 4)


def far(schedules):
    """How far the inner times are from 0.7, 0.4, 0.2, plus a price for each order above 1."""

    wanted = np.array([0.7, 0.4, 0.2, 0.1])
    return [
        float(np.abs(np.array(s.times[1:-1]) - wanted[: len(s.steps) - 1]).sum())
        + 0.05 * sum(step.order for step in s.steps)
        for s in schedules
    ]


class Counted:
    def __init__(self, score=far):
        self.seen, self.score = [], score

    def __call__(self, schedules):
        self.seen += schedules
        return self.score(schedules)


def test_a_search_is_a_function_of_its_seed():
    runs = [evolve(SPACE, far, budget=60, seed=s, batch=8) for s in (1, 1, 2)]
    one, again, other = ([e.schedule for e in a.entries] for a in runs)
    assert one == again and one != other


def test_nothing_is_scored_twice_and_everything_is_legal():
    score = Counted()
    archive = evolve(SPACE, score, budget=150, batch=7)
    assert len(score.seen) == len(set(score.seen)) == len(archive) == 150
    assert all(SPACE.legal(s) for s in score.seen)
    assert {e.origin for e in archive.entries} == {"random", "mutation", "crossover"}
    assert [e.number for e in archive.entries] == list(range(150))
    assert all(e.cost == 4 for e in archive.entries)


def test_evolution_beats_random_search():
    runs = range(3)
    found = [plain(SPACE, far, budget=250, batch=8, seed=s).best.value for s in runs]
    chance = [random(SPACE, far, budget=250, seed=s).best.value for s in runs]
    assert all(np.array(found) < np.array(chance)) and np.mean(found) < 0.75 * np.mean(chance)


def test_seeds_come_first_once_and_only_if_legal():
    rng = np.random.default_rng(0)
    a, b = SPACE.sample(rng), SPACE.sample(rng)
    foreign = SolverSpace(VariancePreserving(), 6).sample(rng)
    score = Counted()
    archive = evolve(SPACE, score, budget=5, batch=2, seeds=[("one", a), foreign, b, ("two", a)])
    assert score.seen[:2] == [a, b] and foreign not in score.seen
    assert [e.origin for e in archive.entries[:2]] == ["seed one", "seed"]


def test_scores_that_are_not_finite_reject_and_count():
    def some(schedules):
        values = far(schedules)
        return [
            math.nan if s.steps[0].predict == "noise" else v for s, v in zip(schedules, values)
        ]

    archive = evolve(SPACE, some, budget=80)
    assert 5 < archive.rejected < 75 and len(archive) == 80
    assert archive.best.schedule.steps[0].predict == "data"
    assert all(math.isfinite(e.value) for e in archive.kept)

    archive = evolve(SPACE, lambda schedules: [math.inf] * len(schedules), budget=20)
    assert archive.rejected == 20 and archive.curve() == [math.inf] * 20
    with pytest.raises(UserError, match="all 20 schedules were rejected"):
        archive.best


def test_a_search_goes_on_in_its_ledger():
    ledger = Memory()
    evolve(SPACE, far, budget=30, ledger=ledger)
    score = Counted()
    archive = evolve(SPACE, score, budget=50, ledger=ledger)
    assert len(score.seen) == 20 and len(archive) == 50
    assert evolve(SPACE, score, budget=50, ledger=ledger).best == archive.best
    assert len(score.seen) == 20


class Tiny:
    """Three schedules in all."""

    def __init__(self):
        times = [(1.0, t, 0.1) for t in (0.3, 0.5, 0.7)]
        self.all = [SolverSchedule(t, (Step(), Step())) for t in times]

    def sample(self, rng):
        return self.all[rng.integers(3)]

    def mutate(self, schedule, rng):
        return self.sample(rng)

    def cross(self, a, b, rng):
        return a

    def legal(self, schedule):
        return schedule in self.all

    def cost(self, schedule):
        return 1.0


def test_a_space_that_is_used_up_ends_the_search():
    archive = evolve(Tiny(), lambda s: [x.times[1] for x in s], budget=10)
    assert sorted(e.value for e in archive.entries) == [0.3, 0.5, 0.7]


class Oracle:
    """A surrogate that knows the truth."""

    def __init__(self):
        self.learned = []

    def fit(self, schedules, values):
        self.learned.append(len(schedules))
        assert len(schedules) == len(values)

    def __call__(self, schedules):
        return far(schedules)


def test_a_surrogate_chooses_the_children():
    oracle = Oracle()
    archive = evolve(SPACE, far, budget=120, batch=20, surrogate=oracle, initial=40)
    assert oracle.learned == [40, 60, 80, 100]
    assert [(s.seen, s.chosen) for s in archive.stages] == [(n, 20) for n in (40, 60, 80, 100)]
    assert all(s.tau == pytest.approx(1) for s in archive.stages)
    origins = [e.origin for e in archive.entries[40:]]
    assert origins.count("chosen") == 4 * 16 and len(set(origins)) > 1
    assert archive.best.value < 0.6 * evolve(SPACE, far, budget=120, batch=20).best.value


def test_s3_reports_its_stages():
    archive = s3(SPACE, far, budget=60, stage=20, seed=0)
    assert len(archive) == 60
    assert [s.seen for s in archive.stages] == [20, 40]
    assert all(-1 <= s.tau <= 1 for s in archive.stages)


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "cma-es"])
def test_samplers_of_optuna_search_the_same_space(sampler):
    pytest.importorskip("cmaes" if sampler == "cma-es" else "optuna")
    score = Counted()
    archive = by_optuna(SPACE, score, sampler=sampler, budget=60, seed=0)
    again = by_optuna(SPACE, far, sampler=sampler, budget=60, seed=0)
    assert len(archive) == 60 and all(SPACE.legal(e.schedule) for e in archive.entries)
    assert [e.value for e in archive.entries] == [e.value for e in again.entries]
    assert len(score.seen) == len(set(score.seen))
    assert archive.entries[0].origin == sampler

    nothing = by_optuna(SPACE, lambda s: [math.nan] * len(s), sampler=sampler, budget=4)
    assert nothing.rejected == 4


def test_reports_come_after_every_batch():
    told = []
    evolve(SPACE, far, budget=25, batch=10, report=lambda a, n: told.append((len(a), n)))
    assert told == [(10, 25), (20, 25), (25, 25)]


def test_fronts_and_curves():
    schedule = SPACE.sample(np.random.default_rng(0))
    points = [(3, 1.0), (2, 5.0), (1, 2.0), (3, 3.0), (4, math.nan), (2, 1.5), (5, 1.0)]
    entries = [Entry(i, schedule, v, cost=c) for i, (c, v) in enumerate(points)]
    archive = Archive(entries)
    assert [(e.cost, e.value) for e in archive.front()] == [(1, 2.0), (2, 1.5), (3, 1.0)]
    assert front([]) == []
    assert archive.curve() == [1.0] * 7
    assert [e.number for e in archive.top(3)] == [0, 6, 5]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: evolve(SPACE, far, budget=0), "budget is 0"),
        (lambda: evolve(SPACE, far, budget=1, batch=0), "batch is 0"),
        (lambda: Evolution(SPACE, parents=0), "parents is 0"),
        (lambda: Evolution(SPACE, crossover=1.5), "crossover is 1.5"),
        (lambda: by_optuna(SPACE, far, sampler="tpf", budget=1), "did you mean 'tpe'"),
        (lambda: by_optuna(SPACE, far, sampler="tpe", budget=0), "budget is 0"),
        (lambda: expect_budget(3, 5, "FLOPs"), "budget is 3 FLOPs, and the cheapest .* costs 5"),
        (lambda: expect_budget(math.nan, 5, "FLOPs"), "budget is nan"),
    ],
)
def test_bad_settings(call, words):
    with pytest.raises(UserError, match=words):
        call()
