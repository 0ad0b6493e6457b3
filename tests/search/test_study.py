"""The ledger in an Optuna study: shared, resumed, and what a killed worker leaves behind."""

import math
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

pytest.importorskip("optuna")

from worker import SPACE, score

from genflow.errors import UserError
from genflow.search.evolve import evolve
from genflow.search.study import StudyLedger
from genflow.search.usf import SolverSpace

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).parent / "worker.py"


@pytest.fixture(params=["journal", "database"])
def place(request, tmp_path):
    file = tmp_path / "ledger"
    return str(file) if request.param == "journal" else f"sqlite:///{file}.db"


def opened(place, **problem):
    return StudyLedger(place, SPACE.record() | problem)


def drawn(count, seed=0):
    rng = np.random.default_rng(seed)
    return [SPACE.sample(rng) for _ in range(count)]


def test_queue_and_record(place):
    a, b, c = drawn(3)
    ledger = opened(place)
    assert ledger.claim() is None and ledger.finished() == 0 and not ledger.known()

    ledger.propose(a, "seed one")
    ledger.propose(b, "random")
    ledger.propose(c, "mutation")
    first = ledger.claim()
    assert (first.schedule, first.origin) == (a, "seed one")
    assert ledger.running() == 1 and ledger.known() == {a, b, c}
    second = ledger.claim()
    ledger.close(second, math.nan, cost=4, seconds=0.5)
    ledger.close(first, 2.5, cost=4)

    other = opened(place)  # another view of the same ledger
    assert [e.schedule for e in other.entries()] == [b, a]
    rejected, kept = other.entries()
    assert rejected.rejected and rejected.seconds == 0.5 and rejected.cost == 4
    assert kept.value == 2.5 and kept.origin == "seed one" and not kept.rejected
    assert other.finished() == 2 and other.running() == 0
    assert other.claim().schedule == c


def test_a_schedule_that_two_workers_propose_is_scored_once(place):
    (a,) = drawn(1)
    one, two = opened(place), opened(place)
    one.propose(a, "random")
    two.propose(a, "random")
    claimed = one.claim()
    assert claimed.schedule == a and two.claim() is None
    one.close(claimed, 1.0)
    two.propose(a, "random")
    assert two.claim() is None and one.finished() == 1


def test_a_search_is_the_same_with_or_without_a_file(tmp_path):
    with_file = evolve(SPACE, score, budget=30, ledger=opened(str(tmp_path / "l")), seed=3)
    without = evolve(SPACE, score, budget=30, seed=3)
    assert [e.schedule for e in with_file.entries] == [e.schedule for e in without.entries]
    assert [e.value for e in with_file.entries] == [e.value for e in without.entries]


def test_a_ledger_of_another_problem_says_what_differs(place):
    opened(place, score="error")
    opened(place, score="error")
    with pytest.raises(UserError) as told:
        StudyLedger(place, SolverSpace(SPACE.path, 5).record() | {"score": "rfid"})
    text = str(told.value)
    assert 'score ("error" there, "rfid" here)' in text and "nfe (4 there, 5 here)" in text
    assert "path" not in text.split("differs in")[1]


def test_ledgers_that_cannot_be_opened(tmp_path):
    with pytest.raises(UserError, match="patience is 0"):
        StudyLedger(tmp_path / "l", {}, patience=0)
    with pytest.raises(UserError, match="cannot be opened"):
        StudyLedger("nonsense://nowhere", {})


def test_a_claim_of_another_machine_lapses_after_a_while(tmp_path):
    a, b = drawn(2)
    there, here = (StudyLedger(tmp_path / "l", {}, patience=p) for p in (3600, 0.2))
    there._me = {"host": "elsewhere", "pid": 1, "born": "1"}
    there.propose(a, "random")
    claimed = there.claim()
    assert here.claim() is None and here.running() == 1
    time.sleep(0.25)
    again = here.claim()
    assert again.schedule == a and here.running() == 1
    there.close(claimed, 1.0)  # too late, and without harm
    assert here.finished() == 0
    here.close(again, 2.0)
    assert [e.value for e in here.entries()] == [2.0] and here.known() == {a}
    assert b not in here.known()


def started(place, budget, number, seconds):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    arguments = [place, str(budget), str(number), str(seconds)]
    return subprocess.Popen([sys.executable, str(WORKER), *arguments], env=environment)


@pytest.mark.slow
def test_two_workers_of_whom_one_is_killed(tmp_path):
    """Whatever is lost of a worker's claims is scored by the other; nothing twice, all legal."""

    place, budget = str(tmp_path / "ledger"), 60
    victim, other = started(place, budget, 0, 0.05), started(place, budget, 7, 0.05)

    try:
        ledger = opened(place)
        deadline = time.monotonic() + 120
        while ledger.finished() < 8 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert ledger.finished() >= 8
        os.kill(victim.pid, signal.SIGKILL)
        victim.wait()
        before = {e.schedule for e in ledger.entries()}
        assert other.wait(timeout=120) == 0
    finally:
        for process in (victim, other):
            if process.poll() is None:
                process.kill()

    entries = opened(place).entries()
    schedules = [e.schedule for e in entries]
    assert len(entries) == budget and len(set(schedules)) == budget
    assert before <= set(schedules)
    assert all(SPACE.legal(s) for s in schedules)
    assert all(e.value == pytest.approx(score([e.schedule])[0]) for e in entries)
    assert ledger.running() == 0


def test_the_orphans_of_a_killed_worker_are_queued_again(tmp_path):
    """A worker that is killed while it scores: its claims come back at once, then it goes on."""

    place = str(tmp_path / "ledger")
    victim = started(place, 12, 0, 100)

    try:
        deadline = time.monotonic() + 60
        ledger = None
        while time.monotonic() < deadline:
            time.sleep(0.1)
            if Path(place).exists():
                ledger = ledger or opened(place)
                if ledger.running() == 3:
                    break
        assert ledger.running() == 3 and ledger.claim() is None
        claimed = ledger.known()
    finally:
        victim.kill()
        victim.wait()

    assert ledger.running() == 0
    archive = evolve(SPACE, score, budget=12, batch=3, ledger=ledger)
    schedules = [e.schedule for e in archive.entries]
    assert len(set(schedules)) == 12 and set(schedules[:3]) == claimed
    assert archive.entries[0].origin == "seed a"
