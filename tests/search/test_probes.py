"""Probes: errors on problems in one dimension, by closed forms and by what more steps do."""

import math

import numpy as np
import pytest
import torch

from genflow.models import Karras, Rectified, VariancePreserving
from genflow.models.noise import StudentT
from genflow.search.probes import PROBLEMS, Probes
from genflow.search.usf import SolverSpace
from genflow.solvers import SolverSchedule, Step, schedule_for
from genflow.solvers.alterations import Alteration

PATHS = [Karras(), Rectified(), VariancePreserving()]
SINGLE = [i for i, (distance, _) in enumerate(PROBLEMS) if distance == 0]


@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
def test_one_step_to_a_single_gaussian_has_the_error_of_the_closed_form(path):
    r"""Data N(0, s²): the step gives α s²/(α² s² + σ²) σ z, the truth is s σ z / √(α² s² + σ²)."""

    probes = Probes(path)
    found = probes([SolverSchedule((path.t_max, 0.0), (Step(),))])[0].exp()
    alpha, sigma = map(float, path(torch.tensor(path.t_max, dtype=torch.float64)))
    size = float(probes.population.z[:, 0].square().mean().sqrt())

    for i in SINGLE:
        s = PROBLEMS[i][1]
        v = (alpha * s) ** 2 + sigma**2
        expected = size * abs(alpha * s**2 * sigma / v - s * sigma / math.sqrt(v))
        assert float(found[i]) == pytest.approx(expected, rel=6e-3)


@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
def test_more_steps_have_smaller_errors(path):
    found = Probes(path)([schedule_for("dpmpp-2m", path, n) for n in (16, 64)])
    assert bool((found[0] - found[1] > 1.0).all())  # a second-order method gains about 2.8


def test_errors_are_those_of_the_schedule_alone():
    path = Rectified()
    probes, space = Probes(path), SolverSpace(path, 5)
    some = [space.sample(np.random.default_rng(i)) for i in range(12)]
    together, apart = probes(some), torch.cat([probes([s]) for s in some])
    torch.testing.assert_close(together, apart, rtol=1e-9, atol=1e-9)


def test_what_only_a_trained_network_has_is_left_out():
    path, times = Karras(noise=StudentT(128)), (1.0, 0.5, 0.2, 0.0)
    plain = SolverSchedule(times, (Step(), Step(order=2), Step()))
    gaussian = Probes(Karras())([plain])
    probes = Probes(path)
    torch.testing.assert_close(probes([plain]), gaussian)
    changed = Step(change=Alteration((0.5,)))
    odd = SolverSchedule(times, (changed, Step(order=2, predict="empirical"), changed))
    torch.testing.assert_close(probes([odd]), gaussian)


def test_a_schedule_that_explodes_has_a_finite_error():
    wild = SolverSchedule((1.0, 0.9, 0.01, 0.0), (Step(), Step(order=2, relax=1e6), Step()))
    found = Probes(Karras())([wild])
    assert bool(torch.isfinite(found).all()) and float(found.max()) <= math.log(1e3) + 1e-9
