"""Every schedule that a law returns lies in the space, whatever it started from."""

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
from oracles import PATHS
import pytest
import torch

from genflow.errors import UserError
from genflow.search.repair import spaced
from genflow.search.seeds import presets
from genflow.search.usf import GAP, Law, SolverSpace
from genflow.solvers import SolverSchedule, Statistics, tabulate

NAMES = sorted(PATHS)
EMPIRICAL = Law(
    predictions={"data": 0.3, "noise": 0.3, "empirical": 0.4},
    first={"model": 0.4, "noise": 0.3, "mean": 0.3},
)


def statistics():
    lam = torch.linspace(-14, 14, 100, dtype=torch.float64)
    one = torch.ones(100, 1, dtype=torch.float64)
    return Statistics(lam, one, 0 * one, 0 * one)


def check(space, schedule, known=None):
    """It is legal, has the right number of calls, keeps its gaps, and compiles."""

    assert space.legal(schedule)
    assert schedule.nfe == space.nfe == space.cost(schedule)
    gaps = -np.diff(schedule.times)
    assert (gaps[:-1] >= GAP - 1e-12).all() and gaps[-1] > 0
    assert min(schedule.times[:-1]) >= space.path.t_min
    assert SolverSchedule.from_json(schedule.to_json()) == schedule
    assert bool(tabulate(schedule, space.path, known).weight.isfinite().all())


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(NAMES), st.integers(1, 10), st.integers(0, 10**6))
def test_laws_stay_in_the_space(name, nfe, seed):
    space, rng = SolverSpace(PATHS[name], nfe, skips=seed % 3), np.random.default_rng(seed)
    a, b = space.sample(rng), space.sample(rng)
    check(space, a)

    for _ in range(4):
        a, b = space.mutate(a, rng), space.cross(a, b, rng)
        check(space, a)
        check(space, b)


@settings(max_examples=12, deadline=None)
@given(st.integers(2, 8), st.integers(0, 10**6))
def test_laws_stay_in_the_space_with_every_decision(nfe, seed):
    space = SolverSpace(PATHS["vp"], nfe, law=EMPIRICAL, start=(0.9, 1.0), stop=(0.0005, 0.002))
    rng, known = np.random.default_rng(seed), statistics()
    a = space.sample(rng)

    for _ in range(5):
        check(space, a, known)
        a = space.mutate(space.cross(a, space.sample(rng), rng), rng)


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(NAMES), st.integers(1, 7), st.integers(0, 10**6))
def test_every_seed_breeds_legal_children(name, nfe, seed):
    space, rng = SolverSpace(PATHS[name], nfe), np.random.default_rng(seed)
    known = [s for _, s in presets(PATHS[name], nfe) if isinstance(s, SolverSchedule)]
    assert known and all(map(space.legal, known))  # also where λ is infinite at an end
    a, b = known[rng.integers(len(known))], known[rng.integers(len(known))]
    check(space, space.mutate(a, rng))
    check(space, space.mutate(space.cross(a, b, rng), rng))


class Dice:
    """A trial that answers anything allowed."""

    def __init__(self, rng):
        self.rng, self.asked = rng, []

    def suggest_float(self, name, low, high):
        self.asked.append(name)
        return float(self.rng.uniform(low, high))

    def suggest_categorical(self, name, choices):
        self.asked.append(name)
        return choices[self.rng.integers(len(choices))]


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(NAMES), st.integers(1, 8), st.integers(0, 10**6))
def test_a_trial_is_repaired(name, nfe, seed):
    dice = Dice(np.random.default_rng(seed))
    space = SolverSpace(PATHS[name], nfe, skips=2)
    check(space, space.suggest(dice))
    assert len(set(dice.asked)) == len(dice.asked)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-1, 2), min_size=1, max_size=12))
def test_spaced_keeps_the_rules_and_what_is_in_order(times):
    out = spaced(times, 0.1, 0.9, 0.05)
    assert len(out) == len(times)
    assert all(0.1 - 1e-9 <= t <= 0.9 + 1e-9 for t in out)
    assert all(a - b >= 0.05 - 1e-9 for a, b in zip(out, out[1:]))
    assert spaced(out, 0.1, 0.9, 0.05) == pytest.approx(out)


def test_mutation_moves_every_decision():
    """Over many children of one schedule, each field changes; no field changes always."""

    space, rng = SolverSpace(PATHS["vp"], 5), np.random.default_rng(0)
    parent = space.sample(rng)
    while parent.steps[0].source != "model":
        parent = space.sample(rng)
    children = [space.mutate(parent, rng) for _ in range(300)]
    alike = [c for c in children if len(c.steps) == len(parent.steps)]

    for name in ("order", "predict", "relax", "correct"):
        before = [getattr(s, name) for s in parent.steps]
        changed = [[getattr(s, name) for s in c.steps] != before for c in alike]
        assert 0.05 < np.mean(changed) < 0.995, name
    assert 0.5 < np.mean([c.times != parent.times for c in alike]) < 1
    assert {c.steps[0].source for c in children} == {"model", "noise"}


def test_crossing_mixes_two_schedules():
    space, rng = SolverSpace(PATHS["vp"], 6), np.random.default_rng(1)
    a, b = (space.sample(rng) for _ in range(2))
    while len(a.steps) != len(b.steps):
        b = space.sample(rng)
    children = [space.cross(a, b, rng) for _ in range(50)]
    inner = {*a.times, *b.times}
    assert all(set(c.times) <= inner or c.times != a.times for c in children)
    assert any(c not in (a, b) for c in children)
    first = [c.times == a.times for c in children]
    assert any(first) and not all(first)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"nfe": 0}, "budget is 0 calls of the network, and the cheapest schedule costs 1"),
        ({"nfe": 5000}, "room for fewer calls"),
        ({"nfe": 4, "start": 0.1, "stop": 0.2}, "0 <= stop < start"),
    ],
)
def test_bad_spaces(options, words):
    with pytest.raises(UserError, match=words):
        SolverSpace(PATHS["vp"], **options)


def test_the_record_tells_spaces_apart():
    one = SolverSpace(PATHS["vp"], 5).record()
    assert one == SolverSpace(PATHS["vp"], 5).record()
    assert one != SolverSpace(PATHS["vp"], 6).record()
    assert one != SolverSpace(PATHS["karras"], 5).record()
