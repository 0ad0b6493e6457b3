"""A worker of a search in a process of its own: ``worker.py LEDGER BUDGET NUMBER SECONDS``."""

import sys
import time

import numpy as np

from genflow.models import VariancePreserving
from genflow.search.evolve import evolve
from genflow.search.study import StudyLedger
from genflow.search.usf import SolverSpace

SPACE = SolverSpace(VariancePreserving(), 4)


def score(schedules, seconds=0.0):
    """The sum of the inner times, slowly."""

    time.sleep(seconds * len(schedules))
    return [sum(s.times[1:-1]) + 0.1 * len(s.steps) for s in schedules]


def main(place, budget, number, seconds):
    evolve(
        SPACE,
        lambda schedules: score(schedules, float(seconds)),
        budget=int(budget),
        batch=3,
        seeds=[("a", SPACE.sample(np.random.default_rng(0)))],
        ledger=StudyLedger(place, SPACE.record()),
        worker=int(number),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
