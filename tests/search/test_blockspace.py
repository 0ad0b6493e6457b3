"""The space of blocks: every child keeps the budget and can be carried out."""

from dataclasses import replace
import json

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from genflow.errors import UserError
from genflow.models import Rectified
from genflow.nn import Costs
from genflow.search.blocks import BlockLaw, BlockSpace, groups
from genflow.search.budgets import Budget, Own, priced
from genflow.search.times import TimeSpace
from genflow.solvers import Alteration, Corrector, SolverSchedule, Step
from genflow.solvers.alterations import block_plan

NAMES = (
    *(f"down_blocks.{i}.{p}.0" for i in (0, 1) for p in ("resnets", "attentions")),
    *("mid_block.resnets.0", "mid_block.attentions.0", "up_blocks.0.resnets.0"),
)
COSTS = Costs(100.0, dict(zip(NAMES, (5.0, 1.0, 20.0, 2.0, 30.0, 4.0, 25.0), strict=True)))
PATH = Rectified()


def space_of(share=0.6, steps=6, **more):
    times = TimeSpace(PATH, steps)
    most = steps[1] if isinstance(steps, tuple) else steps
    budget = share * most * COSTS.full * more.get("passes", 1)
    return BlockSpace(times, COSTS, budget, law=BlockLaw(guidance=0.3, order=0.3), **more)


def check(space, s):
    """Legal, by rules written out a second time."""

    low, high = space.times.steps
    assert low <= len(s.steps) <= high
    assert all(b < a for a, b in zip(s.times, s.times[1:], strict=False))
    cost, ran = 0.0, {}

    for step in s.steps:
        change = step.change
        left = {*change.drop, *change.reuse}
        assert all(ran.get(n) == ("ran", change.guidance) for n in change.reuse)
        ran |= {n: ("ran", change.guidance) for n in NAMES if n not in left}
        passes = space.budget.passes if change.guidance else 1
        cost += passes * (COSTS.full - sum(COSTS.saving[n] for n in left))
        for mode in ("drop", "reuse"):
            assert mode in space.budget.modes or not getattr(change, mode)

    assert not s.steps[0].change.reuse
    assert cost <= space.budget.bound * (1 + 1e-12)
    assert cost == pytest.approx(space.cost(s)) and space.legal(s)
    assert space.legal(SolverSchedule.from_json(s.to_json()))
    block_plan([step.change for step in s.steps])
    assert s.nfe == len(s.steps)


@settings(deadline=None, max_examples=40)
@given(
    share=st.sampled_from([0.6, 0.75, 0.9, 1.0]),
    steps=st.sampled_from([1, 5, (3, 7)]),
    modes=st.sampled_from([("reuse",), ("drop",), ("reuse", "drop")]),
    grouped=st.booleans(),
    guided=st.booleans(),
    orders=st.sampled_from([0, 3]),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_child_keeps_the_budget(share, steps, modes, grouped, guided, orders, seed):
    units = groups(NAMES) if grouped else None
    share = 1.0 if steps == 1 and modes == ("reuse",) and not guided else share
    more = {"passes": 2, "guidance": True} if guided else {}
    space = space_of(share, steps, modes=modes, units=units, orders=orders, **more)
    rng = np.random.default_rng(seed)
    a, b = space.sample(rng), space.sample(rng)
    plain = TimeSpace(PATH, steps).sample(rng)
    children = [space.mutate(a, rng), space.mutate(b, rng), space.cross(a, b, rng)]
    for s in (a, b, *children, space.fitted(plain, rng)):
        check(space, s)
    if grouped:
        single = space_of(share, steps, modes=modes, orders=orders, **more)
        assert all(single.legal(s) for s in (a, b, *children))


def test_masks_stay_with_their_times():
    space = space_of(1.0, modes=("drop",))
    times = (1.0, 0.8, 0.6, 0.4, 0.2, 0.1, 0.0)
    own = [Alteration(drop=(n,)) for n in NAMES[:6]]
    base = space.times.of(times)
    a = SolverSchedule(
        times, tuple(replace(s, change=c) for s, c in zip(base.steps, own, strict=True))
    )
    known = dict(zip(times, own, strict=False))
    assert space.cross(a, a, np.random.default_rng(0)) == a
    b = space.times.of((0.95, 0.85, 0.65, 0.45, 0.25, 0.15, 0.0))
    for seed in range(20):
        child = space.cross(a, b, np.random.default_rng(seed))
        pairs = zip(child.times, child.steps, strict=False)
        assert all(step.change == known.get(t, Alteration()) for t, step in pairs)


def test_what_keeps_the_budget_is_left_as_it_is():
    space = space_of(1.0)
    rng = np.random.default_rng(0)
    plain = space.times.sample(rng)
    assert space.fitted(plain, rng) == plain and space.full == 600.0
    tight = space_of(0.6)
    assert not tight.legal(plain) and tight.legal(tight.fitted(plain, rng))
    assert tight.fitted(plain, rng).times == plain.times


def test_a_repair_leaves_out_no_more_than_it_must():
    """Taking back any one thing breaks the budget by less than that thing saves."""

    space, rng = space_of(0.6, modes=("drop",)), np.random.default_rng(1)
    for _ in range(20):
        s = space.fitted(space.times.sample(rng), rng)
        assert space.budget.bound - space.cost(s) < max(COSTS.saving.values())
        assert not s.steps[0].change  # the first step is the last to lose anything


def test_impossible_reuse_is_kept_or_dropped():
    reuse = {NAMES[0]: "reuse"}
    budget = Budget(COSTS, 1e9, {n: (n,) for n in NAMES}, guidance=True, passes=2)
    owns = [Own(reuse), Own(reuse), Own(reuse, guidance=False), Own(reuse)]
    assert [o.left for o in budget.possible(owns)] == [{}, reuse, {NAMES[0]: "drop"}, reuse]
    strict = Budget(COSTS, 1e9, budget.units, ("reuse",), guidance=True, passes=2)
    assert [o.left for o in strict.possible(owns)] == [{}, reuse, {}, {}]


def test_blocks_left_out_buy_steps():
    space = BlockSpace(TimeSpace(PATH, (4, 8)), COSTS, 400.0)
    rng = np.random.default_rng(0)
    counts = {len(space.sample(rng).steps) for _ in range(60)}
    assert max(counts) > 4
    tight = BlockSpace(TimeSpace(PATH, (4, 30)), COSTS, 100.0, modes=("drop",))
    assert max(len(tight.sample(rng).steps) for _ in range(20)) <= 100 / COSTS.least


def test_guidance_and_orders_are_searched_only_if_asked_for():
    rng = np.random.default_rng(0)
    plain = [space_of().sample(rng) for _ in range(5)]
    assert all(s.change.guidance for x in plain for s in x.steps)
    space = space_of(passes=2, guidance=True, orders=3)
    s = space.sample(rng)
    for _ in range(40):
        s = space.mutate(s, rng)
        check(space, s)
    assert {step.change.guidance for step in s.steps} == {True, False}
    assert {step.order for step in s.steps} >= {1, 3}


def test_the_price_of_a_schedule():
    made = SolverSchedule(
        (1.0, 0.6, 0.3, 0.0),
        (
            Step(source="noise", change=Alteration(drop=NAMES)),
            Step(change=Alteration(drop=NAMES[:1], guidance=False)),
            Step(change=Alteration(reuse=NAMES[:1]), correct=Corrector()),
        ),
    )
    assert priced(made, COSTS, passes=2) == 95.0 + 2 * 95.0 + 2 * 95.0
    assert made.nfe == 3
    with pytest.raises(UserError, match="the block is 'x'"):
        priced(SolverSchedule((1.0, 0.0), (Step(change=Alteration(drop=("x",))),)), COSTS)


def test_groups():
    assert list(groups(NAMES)) == ["down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0"]
    assert groups(NAMES)["mid_block"] == NAMES[4:6]
    layers = [f"transformer_blocks.{i}" for i in range(10)]
    assert [len(g) for g in groups(layers).values()] == [3, 3, 2, 2]
    assert next(iter(groups(layers))) == layers[0]
    few = groups([*layers[:2], "single_transformer_blocks.0"])
    assert [n for inside in few.values() for n in inside][:2] == layers[:2] and len(few) == 3


def test_optuna_is_asked_for_every_gene():
    optuna = pytest.importorskip("optuna")
    space = space_of(passes=2, guidance=True, orders=2, units=groups(NAMES))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(10):
        check(space, space.suggest(study.ask()))


def test_other_schedules_are_not_legal():
    space = space_of(1.0, modes=("drop",))
    plain = space.times.sample(np.random.default_rng(0))

    def with_change(change):
        return SolverSchedule(plain.times, (*plain.steps[:-1], Step(change=change)))

    last = plain.steps[-1].order
    assert last == 1 and space.legal(with_change(Alteration(drop=NAMES[:1])))
    for change in (
        Alteration(drop=("x",)),
        Alteration(reuse=NAMES[:1]),
        Alteration((0.5,)),
        Alteration(guidance=False),
    ):
        assert not space.legal(with_change(change))
    first = SolverSchedule(
        plain.times, (Step(change=Alteration(reuse=NAMES[:1])), *plain.steps[1:])
    )
    assert not space_of(1.0).legal(first)


def test_the_record_is_json_and_tells_spaces_apart():
    records = [
        json.dumps(space_of(x, modes=m).record())
        for x in (0.7, 0.8)
        for m in (("drop",), ("reuse",))
    ]
    assert len(set(records)) == 4


@pytest.mark.parametrize(
    ("budget", "more", "words"),
    [
        (77.0, {}, "budget is 77 FLOPs a sample, and the cheapest schedule costs 78"),
        (163.0, {"modes": ("reuse",)}, "the cheapest schedule costs 165"),
        (600.0, {"modes": ()}, r"modes are \(\)"),
        (600.0, {"modes": ("skip",)}, "a mode is 'skip'"),
        (600.0, {"guidance": True}, "passes 1"),
        (600.0, {"orders": -1}, "orders -1"),
        (600.0, {"units": {}}, "units hold no block"),
        (600.0, {"units": {"a": ()}}, "units hold no block, or one of them"),
        (600.0, {"units": {"a": ("mid_block.resnet.0",)}}, "names the block 'mid_block.resnet.0'"),
    ],
)
def test_refusals(budget, more, words):
    with pytest.raises(UserError, match=words):
        BlockSpace(TimeSpace(PATH, 6), COSTS, budget, **more)
