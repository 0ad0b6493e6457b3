"""Schedules: refused at birth with messages that quote the step; JSON; the count of calls."""

import json
import re

import pytest
import torch

from genflow.errors import UserError
from genflow.models import Karras, Rectified, VariancePreserving
from genflow.solvers import Corrector, SolverSchedule, Statistics, Step, tabulate

THIRD = (1.0, 0.6, 0.3, 0.1)


def three(*steps):
    return SolverSchedule(THIRD, steps + (Step(),) * (3 - len(steps)))


def at(i, **fields):
    """Three steps, the i-th with these fields."""

    return lambda: three(*(Step() for _ in range(i)), Step(**fields))


BAD = {
    "no steps": (lambda: SolverSchedule((1.0,), ()), "times holds 1 values for 0 steps"),
    "counts": (lambda: SolverSchedule(THIRD, (Step(),)), "times holds 4 values for 1 steps"),
    "order of times": (
        lambda: SolverSchedule((1.0, 0.5, 0.5), (Step(),) * 2),
        "step 1 goes from time 0.5 to 0.5",
    ),
    "negative": (lambda: SolverSchedule((1.0, -0.5), (Step(),)), "-0.5"),
    "nan": (lambda: SolverSchedule((1.0, float("nan")), (Step(),)), "nan"),
    "predict": (at(1, predict="epsilon"), "step 1 has predict 'epsilon'.*'noise'"),
    "source": (at(0, source="zeros"), "step 0 has source 'zeros'.*'mean'"),
    "late source": (at(1, source="noise"), "step 1 has source 'noise': only step 0"),
    "start": (at(1, start=2), "step 1 has start 2: 0 … 1 stages back"),
    "negative start": (at(1, start=-1), "step 1 has start -1"),
    "eta": (at(0, eta=1.5), r"step 0 has eta 1.5: it must lie in \[0, 1\]"),
    "eta, order": (at(1, eta=0.5, order=2), "step 1 has eta 0.5: fresh noise needs order 1"),
    "eta, corrector": (at(0, eta=0.5, correct=Corrector()), "step 0 has eta 0.5"),
    "eta, start": (at(1, eta=0.5, start=1), "step 1 has eta 0.5"),
    "relax": (at(1, order=2, relax=float("inf")), "step 1 has relax inf"),
    "order": (at(1, order=3), "step 1 has order 3: with 2 calls so far, 1 … 2"),
    "order 0": (at(0, order=0), "step 0 has order 0"),
    "points too few": (at(2, order=3, points=(1,)), r"step 2 .*derivative 2 .*points \(1,\)"),
    "points twice": (at(2, order=3, points=(1, 1)), r"step 2 .*points \(1, 1\)"),
    "points too far": (at(1, order=2, points=(2,)), r"step 1 .*points \(2,\).*0 … 1"),
    "points at start": (at(1, order=2, points=(0,)), "step 1 .*other than the start 0"),
    "points per derivative": (
        at(2, order=3, points=((1,),)),
        "step 2 has points .*2 derivatives",
    ),
    "corrector order": (at(0, correct=Corrector(order=4)), "step 0 has corrector order 4"),
    "corrector points": (
        at(0, correct=Corrector(points=(5,))),
        r"step 0 estimates derivative 1 from corrector points \(5,\)",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_impossible_schedules_are_refused(name):
    make, message = BAD[name]
    with pytest.raises(UserError) as caught:
        make()
    text = str(caught.value)
    assert re.search(message, text, re.S), text
    assert "\n" not in text


def test_what_only_the_path_can_refuse():
    with pytest.raises(UserError, match="step 1 has predict 'empirical' and there are no"):
        tabulate(three(Step(), Step(predict="empirical")), Rectified())
    with pytest.raises(UserError, match="step 1 ends at clean data and has a corrector"):
        steps = (Step(), Step(correct=Corrector()))
        tabulate(SolverSchedule((1.0, 0.5, 0.0), steps), Rectified())
    with pytest.raises(UserError, match="step 0 .*not finite on VariancePreserving .*1.0"):
        tabulate(SolverSchedule((1.0, 0.9), (Step(eta=1.0),)), VariancePreserving(0.1, 1e6))


def test_statistics_are_checked():
    lam, values = torch.linspace(-1, 1, 4), torch.zeros(4, 2)
    with pytest.raises(UserError, match="increasing"):
        Statistics(lam.flip(0), values, values, values)
    with pytest.raises(UserError, match=r"\(4, 2\), \(3, 2\)"):
        Statistics(lam, values, values[:3], values)


@pytest.mark.parametrize(
    ("steps", "nfe"),
    [
        ((Step(),) * 3, 3),
        ((Step(source="noise"), Step(), Step()), 2),
        ((Step(), Step(), Step(correct=Corrector())), 4),
        ((Step(correct=Corrector()), Step(), Step()), 3),
        ((Step(source="mean"), Step(), Step(correct=Corrector())), 3),
    ],
)
def test_number_of_calls(steps, nfe):
    schedule = SolverSchedule(THIRD, steps)
    assert schedule.nfe == nfe == tabulate(schedule, Karras()).nfe


# ---------------------------------------------------------------------------------- JSON


FULL = SolverSchedule(
    (1.0, 0.61, 1 / 3, 0.1, 0.0),
    (
        Step(source="noise", correct=Corrector(relax=0.25)),
        Step(order=2, predict="noise", points=(1,), relax=-1 / 6),
        Step(order=3, points=((0,), (0, 2)), start=1, correct=Corrector(2, ((1, 0),))),
        Step(predict="empirical"),
    ),
)


def test_json_is_sparse():
    record = json.loads(FULL.to_json())
    assert record["format"] == "genflow-schedule"
    assert record["steps"][3] == {"predict": "empirical"}
    assert record["steps"][0] == {"source": "noise", "correct": {"relax": 0.25}}
    assert json.loads(three().to_json())["steps"] == [{}, {}, {}]


def test_json_round_trip_by_file(tmp_path):
    FULL.save(tmp_path / "schedule.json")
    again = SolverSchedule.load(tmp_path / "schedule.json")
    assert again == FULL and hash(again) == hash(FULL)
    assert [f.name for f in tmp_path.iterdir()] == ["schedule.json"]


def test_schedules_are_keys():
    assert {FULL: 1}[SolverSchedule.from_json(FULL.to_json())] == 1
    assert three() != FULL
    assert three(Step(order=1, points=[])) == three(Step(order=1, points=()))


def edited(change):
    record = json.loads(FULL.to_json())
    change(record)
    return json.dumps(record)


REFUSED = {
    "a step's field": (
        lambda: edited(lambda r: r["steps"][1].update(oder=2)),
        "step 1 has the field 'oder': did you mean 'order'",
    ),
    "a corrector's field": (
        lambda: edited(lambda r: r["steps"][0]["correct"].update(relaxx=2)),
        "step 0 has the field 'correct.relaxx': did you mean 'relax'",
    ),
    "a newer version": (lambda: edited(lambda r: r.update(version=99)), "version 99.*newer"),
    "another format": (lambda: edited(lambda r: r.update(format="x")), "genflow-schedule"),
    "a list": (lambda: "[1, 2]", "genflow-schedule"),
    "no JSON": (lambda: "{times: 3", "is not JSON"),
    "no times": (lambda: edited(lambda r: r.pop("times")), "'times'"),
    "no steps": (lambda: edited(lambda r: r.pop("steps")), "'steps'"),
    "a wrong type": (lambda: edited(lambda r: r.update(times=3)), "wrong type"),
    "a bad step": (
        lambda: edited(lambda r: r["steps"][1].update(order=7)),
        "step 1 has order 7",
    ),
    "a step that is no record": (lambda: edited(lambda r: r.update(steps=[1, 2])), "wrong type"),
    "an order that is no number": (
        lambda: edited(lambda r: r["steps"][1].update(order="2")),
        "wrong type",
    ),
    "times that are words": (
        lambda: edited(lambda r: r.update(times=["a", "b", "c", "d", "e"])),
        "wrong type",
    ),
    "a corrector that is no record": (
        lambda: edited(lambda r: r["steps"][0].update(correct=3)),
        "step 0 has correct 3: a Corrector",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_foreign_json_is_refused(name):
    text, message = REFUSED[name]
    with pytest.raises(UserError) as caught:
        SolverSchedule.from_json(text())
    assert re.search(message, str(caught.value), re.S), str(caught.value)


def test_unreadable_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="missing.json' cannot be read"):
        SolverSchedule.load(tmp_path / "missing.json")
    (tmp_path / "image.json").write_bytes(bytes(range(128, 256)))
    with pytest.raises(UserError, match="cannot be read"):
        SolverSchedule.load(tmp_path / "image.json")
