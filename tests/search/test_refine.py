"""Refinement by gradients: what it gains, and that its gradients are right."""

import dataclasses
import math

from oracles import mixture
import pytest
import torch
from torch import nn

from genflow.errors import UserError
from genflow.metrics import MomentSum, frechet_loss
from genflow.models import Exact, Karras, Preconditioned, Rectified, VariancePreserving
from genflow.search.population import Population
from genflow.search.refine import _loss, descend, refine
from genflow.search.score import Simulated, error
from genflow.search.teachers import Teacher
from genflow.search.tuned import Tuned
from genflow.solvers import (
    Corrector,
    Sampler,
    SolverSchedule,
    Step,
    Tableau,
    schedule_for,
    tabulate,
)
from genflow.solvers.rollout import rollout

KARRAS = Karras()


def drawn(seeds, path=KARRAS):
    population = Population.draw(Exact(path, mixture()), (2,), seeds, dtype=torch.float64)
    return population, Teacher().solve(population)


def moments(x):
    total = MomentSum()
    total.update(x)
    return total.moments()


@pytest.fixture(scope="module")
def train():
    return drawn(range(128))


@pytest.fixture(scope="module")
def check():
    return drawn(range(500, 756))


MENDED = SolverSchedule(
    (1.0, 0.7, 0.5, 0.3, KARRAS.t_min),
    (
        Step(correct=Corrector(relax=0.1)),
        Step(2, relax=0.05, correct=Corrector()),
        Step(2, predict="noise", relax=-0.1),
        Step(1),
    ),
)


def test_refinement_halves_the_error(train, check):
    schedule = schedule_for("dpmpp-2m", KARRAS, 5, grid="karras", final="min")
    found = refine(schedule, *train, iterations=120, rate=0.03, check=check)
    assert found.after < 0.5 * found.before
    held = drawn(range(5000, 5512))
    before, after = Simulated(held[0], error(held[1]))([schedule, found.solver])
    assert after < 0.6 * before
    assert found.solver.nfe == 5 and len(found.losses) == 120
    assert SolverSchedule.from_json(found.solver.to_json()) == found.solver
    assert found.solver.times[0] == 1.0 and found.solver.times[-1] == schedule.times[-1]
    assert [s.order for s in found.solver.steps] == [s.order for s in schedule.steps]


@pytest.mark.parametrize("name", ["gaps", "relax", "moves"])
def test_gradients_equal_finite_differences(train, name):
    population, target = train
    free = ("weights",) if name == "moves" else ("times", "relax")
    tuned = Tuned(MENDED, KARRAS, free)
    tuned.measure(population)
    rows = torch.arange(20)
    parameter = getattr(tuned, name)
    (gradient,) = torch.autograd.grad(_loss(tuned, population, target, rows, False), parameter)
    assert gradient.abs().max() > 1e-4

    fixed = tuned.weight.flatten() == 0 if name == "moves" else torch.zeros(parameter.numel())
    used = [k for k, still in enumerate(fixed.tolist()) if not still]

    for k in used[:: max(1, len(used) // 8)]:
        moved = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                parameter.view(-1)[k] += step
                moved.append(float(_loss(tuned, population, target, rows, False)))
                parameter.view(-1)[k] -= step
        slope = (moved[0] - moved[1]) / 2e-6
        assert slope == pytest.approx(float(gradient.view(-1)[k]), rel=1e-4, abs=1e-6)


def test_recomputing_gives_the_same_gradients(train):
    population, target = train
    tuned, rows = Tuned(MENDED, KARRAS, ("times", "relax")), torch.arange(16)
    parameters = [tuned.gaps, tuned.relax]
    plain, again = (
        torch.autograd.grad(_loss(tuned, population, target, rows, r), parameters)
        for r in (False, True)
    )
    for a, b in zip(plain, again):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("path", "times"),
    [
        (KARRAS, (1.0, 0.7, 0.5, KARRAS.t_min + 0.02, 0.0)),
        (KARRAS, (1.0, 0.7, 0.5, KARRAS.t_min)),
        (Rectified(), (1.0, 0.6, 0.3, 0.0)),
        (VariancePreserving(), (1.0, 0.001)),
    ],
)
def test_parameters_stand_for_the_schedule(path, times):
    """Before any step the numbers are those of the schedule, whatever its ends."""

    schedule = SolverSchedule(times, (Step(),) * (len(times) - 1))
    tuned = Tuned(schedule, path, ("times", "relax"))
    assert tuned.solver().times == pytest.approx(times, abs=1e-9)
    torch.testing.assert_close(tuned.table().weight, tabulate(schedule, path).weight)
    with torch.no_grad():
        tuned.gaps += torch.randn_like(tuned.gaps)
    moved = tuned.solver().times
    assert all(a > b for a, b in zip(moved, moved[1:]))
    assert (moved[0], moved[-1]) == (times[0], times[-1])
    assert min(moved[:-1]) >= path.t_min


def test_free_weights_give_a_table(train, check):
    schedule = schedule_for("dpmpp-2m", KARRAS, 4, grid="logsnr", final="min")
    found = refine(schedule, *train, free=("weights",), iterations=60, check=check)
    assert isinstance(found.solver, Tableau) and not found.solver.weight.requires_grad
    assert found.after < 0.9 * found.before


def test_it_is_never_worse_than_where_it_began(train, check):
    schedule = schedule_for("dpmpp-2m", KARRAS, 4, grid="logsnr", final="min")
    found = refine(schedule, *train, iterations=4, rate=30.0, check=check, every=1)
    assert found.after <= found.before
    again = refine(schedule, *train, iterations=4, rate=30.0, check=check, every=1)
    assert again == found


def test_a_network_is_left_as_it_was():
    net = nn.Linear(2, 2)

    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x, time):
            return self.net(x)

    denoiser = Preconditioned(Flat(), Rectified())
    population = Population.draw(denoiser, (2,), range(8))
    target = Teacher("heun", 16).solve(population)
    before = [p.clone() for p in net.parameters()]
    schedule = schedule_for("dpmpp-2m", Rectified(), 3)
    told = []
    found = refine(
        schedule, population, target, iterations=6, every=2, report=lambda *a: told.append(a)
    )
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters()))
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert [k for k, _ in told] == [2, 4, 6] and found.after <= found.before


def test_a_unit_of_weight_moves_every_state_by_the_same_share(train):
    """By the states and answers of the plain loop; the noise at first is 80 times the data."""

    population, _ = train
    schedule = schedule_for("dpmpp-2m", KARRAS, 4, grid="karras", final="min")
    tuned = Tuned(schedule, KARRAS, ("weights",))
    tuned.measure(population)
    table, states, answers = tuned.solver(), [], []
    z = population.z[:64]

    def look(i, x, answer):
        states.append(x)
        answers.append(answer)

    denoiser = population.denoiser
    stages = Sampler(denoiser, table).stages()
    end = rollout(stages, denoiser.path(table.time[0])[1] * z, table, observe=look)
    states.append(end)
    assert float(states[0].std()) > 20 * float(end.std())

    for i, row in enumerate(tuned.weight):
        for slot in row.nonzero().flatten().tolist():
            read = (states, answers)[slot % 2][i - slot // 2]
            moved = tuned.unit[i, slot] * read
            share = moved.norm() / states[i + 1].norm()
            assert float(share) == pytest.approx(1.0, rel=1e-9)
        assert not bool(tuned.unit[i][row == 0].any())


def test_a_distance_between_clouds_can_be_followed(train):
    """Free weights bring the moments of three calls to those of the teacher, on fresh noise."""

    population, solutions = train
    held, truth = drawn(range(9000, 10024))
    loss, wanted = (frechet_loss(moments(x)) for x in (solutions, truth))
    schedule = schedule_for("ddim", KARRAS, 3, grid="karras", final="min")
    options = {"free": ("weights",), "iterations": 60, "rate": 0.1, "batch_size": 128}
    found = refine(schedule, population, loss, every=10, **options)
    assert isinstance(found.solver, Tableau) and found.solver.nfe == 3
    assert found.before == pytest.approx(found.losses[0], rel=1e-9)
    before, after = Simulated(held, lambda x: float(wanted(x)))([schedule, found.solver])
    assert found.after < 0.3 * found.before and after < 0.3 * before

    again = refine(schedule, population, loss, every=10, recompute=True, **options)
    assert again.after == pytest.approx(found.after, rel=1e-6)


def test_curvature_needs_fewer_gradients(train):
    """On the noise that begins 80 times as large as the data, without a rate to choose."""

    population, solutions = train
    loss = frechet_loss(moments(solutions))
    schedule = schedule_for("dpmpp-2m", KARRAS, 3, grid="karras", final="min")
    options = {"free": ("times", "relax", "weights"), "iterations": 24, "batch_size": 128}
    fast = refine(schedule, population, loss, optimiser="lbfgs", every=6, **options)
    slow = refine(schedule, population, loss, every=6, rate=0.05, **options)
    assert fast.before == slow.before and fast.after < 0.5 * slow.after
    assert fast.after < 0.02 * fast.before and 24 <= len(fast.losses) < 24 + 25
    assert fast.after == pytest.approx(min(fast.losses), rel=0.5)
    again = refine(schedule, population, loss, optimiser="lbfgs", every=6, **options)
    assert again.losses == fast.losses


def test_a_line_search_turns_back_where_the_loss_is_not_finite(train):
    population, solutions = train
    aim, seen = frechet_loss(moments(solutions)), []

    def loss(x):
        seen.append(float(x.detach().std()))
        return aim(x) + (math.nan if seen[-1] > 1.02 * seen[0] else 0.0)

    schedule = schedule_for("ddim", KARRAS, 3, grid="karras", final="min")
    options = {"free": ("weights",), "iterations": 12, "batch_size": 128}
    found = refine(schedule, population, loss, optimiser="lbfgs", every=4, **options)
    assert any(math.isnan(v) for v in found.losses) and found.after < found.before
    table = tabulate(schedule, KARRAS)
    assert bool(found.solver.weight.isfinite().all()) and len(found.solver.time) == len(table.time)


def test_a_descent_that_has_converged_ends(train):
    """A loss that is flat has no slope to follow."""

    schedule = schedule_for("dpmpp-2m", KARRAS, 3)
    options = {"optimiser": "lbfgs", "iterations": 50, "every": 5}
    found = refine(schedule, train[0], lambda x: 1 + 0 * x.sum(), **options)
    assert len(found.losses) == 1 and found.solver == schedule


def test_nothing_to_tune_is_told(train):
    one = SolverSchedule((1.0, KARRAS.t_min), (Step(),))
    with pytest.raises(UserError, match="nothing that is free acts on the samples"):
        refine(one, *train)
    assert refine(one, *train, free=("weights",), iterations=3).solver.nfe == 1


def test_descend_takes_a_loss(train):
    population, solutions = train
    loss = frechet_loss(moments(solutions))
    schedules = [schedule_for("ddim", KARRAS, 3, grid=g) for g in ("karras", "uniform")]
    before = [float(loss(x)) for _, x in sorted(dict(population(schedules)).items())]
    (found,) = descend(schedules, population, loss, starts=1, iterations=8, every=4)
    assert found.before == pytest.approx(min(before), rel=1e-3) and found.after <= found.before


def test_descend_refines_the_best(train, check):
    schedules = [schedule_for("dpmpp-2m", KARRAS, 4, grid=g) for g in ("logsnr", "uniform")]
    schedules.append(dataclasses.replace(schedules[0], steps=(Step(eta=1.0),) * 4))
    told = []
    found = descend(
        schedules, *train, starts=2, iterations=10, check=check, report=lambda *a: told.append(a)
    )
    assert len(found) == 2 and found[0].after <= found[1].after
    assert told[-1][0] == 20 and told[-1][1] == pytest.approx(found[0].after)
    with pytest.raises(UserError, match="there are 0 schedules"):
        descend(schedules[2:], *train)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"free": ("time",)}, "did you mean 'times'"),
        ({"free": ()}, "something must be free"),
        ({"iterations": 0}, "iterations 0"),
        ({"rate": 0.0}, "rate 0.0"),
        ({"optimiser": "bfgs"}, "optimiser is 'bfgs'"),
    ],
)
def test_bad_settings(train, options, words):
    with pytest.raises(UserError, match=words):
        refine(MENDED, *train, **options)


def test_steps_without_gradients_are_refused(train):
    schedule = SolverSchedule((1.0, 0.5, 0.3), (Step(eta=0.5), Step()))
    with pytest.raises(UserError, match="step 0 is empirical, random"):
        refine(schedule, *train)
