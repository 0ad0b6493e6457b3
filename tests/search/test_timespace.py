"""The space of times: every child is legal, whatever the law, the path and the list of times."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from genflow.errors import UserError
from genflow.models import Cosine, Discrete, Karras, Rectified, VariancePreserving
from genflow.search.times import TimeLaw, TimeSpace
from genflow.solvers import SolverSchedule, schedule_for

BETAS = np.linspace(1e-4, 0.02, 1000)
LEVELS = tuple((i + 1) / 1000 for i in range(1000))
PATHS = {
    "rectified": Rectified(),
    "karras": Karras(),
    "vp": VariancePreserving(),
    "cosine": Cosine(),
    "discrete": Discrete(tuple(np.cumprod(1 - BETAS).tolist())),
}


def space_of(name, steps, listed):
    path = PATHS[name]
    levels = [t for t in LEVELS if t >= path.t_min] if listed else None
    return TimeSpace(path, steps, allowed=levels, law=TimeLaw(time=0.6, count=0.5))


def check(space, s):
    low, high = space.steps
    assert low <= len(s.steps) <= high and space.legal(s)
    assert all(b < a for a, b in zip(s.times, s.times[1:], strict=False))
    assert space.start[0] - 1e-12 <= s.times[0] <= space.start[1] + 1e-12
    assert space.stop[0] <= s.times[-1] <= space.stop[1]
    assert all(t >= space.path.t_min for t in s.times[:-1])
    assert not space.allowed or set(s.times[:-1]) <= set(space.allowed)
    assert space.legal(SolverSchedule.from_json(s.to_json()))


@settings(deadline=None, max_examples=25)
@given(
    name=st.sampled_from(sorted(PATHS)),
    steps=st.one_of(st.integers(1, 12), st.just((3, 7))),
    listed=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_child_is_legal(name, steps, listed, seed):
    space, rng = space_of(name, steps, listed), np.random.default_rng(seed)
    a, b = space.sample(rng), space.sample(rng)
    for s in (a, b, space.mutate(a, rng), space.mutate(b, rng), space.cross(a, b, rng)):
        check(space, s)


def test_the_law_is_a_function_of_the_seed():
    space = space_of("rectified", 6, False)
    runs = [[space.sample(np.random.default_rng(5)) for _ in range(2)] for _ in range(2)]
    assert runs[0] == runs[1]


def test_children_of_one_length_take_each_time_from_a_parent_in_its_place():
    space = TimeSpace(Rectified(), 8, start=1.0, stop=0.0)
    a = space.of((1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.0))
    b = space.of((1.0, 0.85, 0.75, 0.65, 0.55, 0.45, 0.35, 0.25, 0.0))
    seen = set()
    for seed in range(30):
        child = space.cross(a, b, np.random.default_rng(seed))
        assert all(t in pair for t, *pair in zip(child.times, a.times, b.times, strict=True))
        seen.add(child.times)
    assert len(seen) > 20
    assert space.cross(a, a, np.random.default_rng(0)) == a


def test_children_of_other_lengths_take_times_of_the_union():
    space = TimeSpace(Rectified(), (2, 8), start=1.0, stop=0.0)
    a, b = space.of((1.0, 0.5, 0.0)), space.of((1.0, 0.9, 0.7, 0.3, 0.1, 0.0))
    lengths = set()
    for seed in range(30):
        child = space.cross(a, b, np.random.default_rng(seed))
        assert set(child.times) <= {*a.times, *b.times, 0.999}
        lengths.add(len(child.steps))
    assert lengths == {2, 5}


def test_a_gene_is_drawn_with_its_probability():
    still = TimeSpace(Rectified(), 10, law=TimeLaw(time=0.0))
    s = still.sample(np.random.default_rng(0))
    assert still.mutate(s, np.random.default_rng(1)) == s

    space = TimeSpace(Rectified(), 10, start=1.0, stop=0.0, law=TimeLaw(time=0.25, local=0.0))
    times = space.of(np.linspace(1, 0, 11))
    rng = np.random.default_rng(2)
    changed = [len(set(times.times) - set(space.mutate(times, rng).times)) for _ in range(200)]
    assert np.mean(changed) == pytest.approx(9 * 0.25, rel=0.15)


def test_steps_follow_their_times():
    """A method whose decisions depend on the times is made anew."""

    space = TimeSpace(VariancePreserving(), 5, sampler="unipc")
    s = space.sample(np.random.default_rng(0))
    assert s == schedule_for("unipc", space.path, times=s.times)
    assert space.legal(schedule_for("unipc", space.path, 5))
    assert not space.legal(schedule_for("unipc", space.path, 6))
    assert not space.legal(schedule_for("ddim", space.path, 5))
    assert space.cost(s) == s.nfe == 5
    assert TimeSpace(VariancePreserving(), 5, call=3.0).cost(s) == 15.0


def test_optuna_is_asked_for_every_time():
    optuna = pytest.importorskip("optuna")
    for space in (space_of("cosine", (2, 5), True), space_of("karras", 4, False)):
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        for _ in range(10):
            check(space, space.suggest(study.ask()))


def test_the_record_tells_spaces_apart():
    records = [
        json.dumps(TimeSpace(Rectified(), **more).record())
        for more in ({"steps": 5}, {"steps": 6}, {"steps": 5, "sampler": "ddim"})
    ]
    assert len(set(records)) == 3


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"steps": 0}, "the budget is 0 steps"),
        ({"steps": (4, 3)}, r"steps is \(4, 3\): a range goes from low to high"),
        ({"steps": 2000}, "steps is 2000: between 0.001 and 1 there is room for 899"),
        ({"steps": 3, "start": 0.2, "stop": 0.3}, "start is 0.2 and stop is 0.3"),
        ({"steps": 3, "allowed": (0.1, 0.5, 0.8)}, "allowed has no time between 0.9 and 1"),
        ({"steps": 4, "allowed": (0.1, 0.5, 1.0)}, "steps is 4: .* room for 3"),
        ({"steps": 3, "sampler": "ipndm"}, "sampler 'ipndm' makes tables"),
        ({"steps": 3, "sampler": "dimm"}, "did you mean 'ddim'"),
        ({"steps": 3, "sampler": "dopri5"}, "chooses its own steps"),
    ],
)
def test_refusals(more, words):
    with pytest.raises(UserError, match=words):
        TimeSpace(Rectified(), **more)
