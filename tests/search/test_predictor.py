"""The ranking predictor learns an order, for several numbers of calls at once."""

import numpy as np
import pytest
from scipy.stats import kendalltau
import torch

from genflow.errors import UserError
from genflow.models import VariancePreserving
from genflow.search.predictor import RankingPredictor, _ranks, embed
from genflow.search.usf import SolverSpace
from genflow.solvers import SolverSchedule, Step
from genflow.solvers.tableau import tabulate

PATH = VariancePreserving()


def drawn(count, nfe, seed=0):
    space = SolverSpace(PATH, nfe)
    return [space.sample(np.random.default_rng([seed, nfe, i])) for i in range(count)]


def price(schedule):
    """A made-up score, of a size that depends on the number of calls."""

    gaps = -np.diff(schedule.times)
    orders = sum(s.order == 2 for s in schedule.steps)
    return schedule.nfe**3 * (np.square(gaps).sum() - 0.05 * orders + 2)


def effect(schedule):
    """What the predictor reads of the table."""

    return embed(schedule, PATH, tabulate(schedule, PATH))[:, -8:]


def test_it_learns_a_ranking_for_all_numbers_of_calls():
    train = drawn(200, 3) + drawn(200, 6)
    predictor = RankingPredictor(PATH, iterations=250)
    predictor.fit(train, [price(s) for s in train])
    for nfe in (3, 6):
        test = drawn(100, nfe, seed=1)
        tau = kendalltau(predictor(test), [price(s) for s in test]).statistic
        assert tau > 0.8, nfe


def test_guesses_are_those_of_the_schedule_alone():
    """Not of the others in the batch, nor of their lengths; and fits are functions of a seed."""

    train = drawn(30, 3) + drawn(30, 5)
    values = [price(s) for s in train]
    one, two = RankingPredictor(PATH, iterations=5), RankingPredictor(PATH, iterations=5)
    state = torch.get_rng_state()
    one.fit(train, values)
    two.fit(train, values)
    assert torch.equal(torch.get_rng_state(), state)
    assert one(train) == two(train)
    assert one(train[:3]) == pytest.approx(one(train)[:3], abs=1e-5)


def test_units_do_not_matter():
    train = drawn(40, 4)
    values = np.array([price(s) for s in train])
    one, two = RankingPredictor(PATH, iterations=10), RankingPredictor(PATH, iterations=10)
    one.fit(train, values)
    two.fit(train, np.exp(values / 10) - 7)
    assert one(train) == two(train)


def test_ranks_are_within_a_number_of_calls():
    schedules = [*drawn(3, 3), *drawn(2, 5)]
    ranks, groups = _ranks(schedules, [30.0, 10.0, 20.0, -1.0, 5.0])
    assert ranks.tolist() == [1.0, 0.0, 0.5, 0.0, 1.0]
    assert groups.tolist() == [3, 3, 3, 5, 5]


def test_decisions_that_differ_in_name_only_have_one_row():
    """At order 1, data and noise are one step: their effects agree."""

    times = (1.0, 0.5, 0.2, 0.001)
    one, two = (effect(SolverSchedule(times, (Step(predict=p),) * 3)) for p in ("data", "noise"))
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)
    three = effect(SolverSchedule(times, (Step(), Step(2), Step())))
    assert (three[1] - one[1]).abs().max() > 0.05


def test_bad_predictors():
    with pytest.raises(UserError, match="members is 0"):
        RankingPredictor(PATH, members=0)
    with pytest.raises(UserError, match="call fit first"):
        RankingPredictor(PATH)(drawn(1, 3))
