"""What must hold for any schedule on any path, whatever the denoiser."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import PATHS, double, mixture, phi_quadrature, usf_loop
import pytest
from strategies import decreasing_times, schedules
import torch

from genflow.models import Exact, Mixture
from genflow.solvers import Sampler, SolverSchedule, Step, rollout, tabulate
from genflow.solvers.compiler import phi, slopes
from genflow.solvers.presets import relaxation

EVERY_PATH = pytest.mark.parametrize("kind", PATHS)
QUICK = settings(max_examples=12, deadline=None, derandomize=True)


def torch_points(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@EVERY_PATH
@given(data=st.data())
@QUICK
def test_dirac_transport(kind, data):
    """Data at one point c: every schedule maps αc + σz onto α'c + σ'z, at every stage."""

    path = PATHS[kind]
    schedule = data.draw(schedules(path, ends=True))
    c, z = torch_points(2, 5, 3)
    seen = []
    table = tabulate(schedule, path)
    times = double(schedule.times)
    x = path.perturb(c, z, times[0])
    x = rollout([lambda x, t: c] * table.nfe, x, table, observe=lambda i, x, D: seen.append(x))

    for t, state in zip(times, [*seen, x], strict=False):
        truth = path.perturb(c, z, t)
        torch.testing.assert_close(state, truth, rtol=1e-9, atol=1e-9 * float(truth.abs().max()))
    torch.testing.assert_close(x, path.perturb(c, z, times[-1]), rtol=1e-9, atol=1e-9)


@EVERY_PATH
@given(data=st.data())
@QUICK
def test_table_is_the_textbook_loop(kind, data):
    """A table and the loop that USF writes agree on a mixture, correctors and all."""

    path = PATHS[kind]
    schedule = data.draw(schedules(path, most=5))
    truth = Exact(path, mixture())
    _, sigma = path(double(schedule.times[0]))
    x = sigma * torch_points(4, 2)
    slow = usf_loop(truth, x, schedule)
    fast = Sampler(truth, schedule)(x)
    torch.testing.assert_close(fast, slow, rtol=1e-7, atol=1e-7 * float(slow.abs().max()))


@EVERY_PATH
@given(data=st.data())
@QUICK
def test_affine_for_gaussian_data(kind, data):
    """With Gaussian data the denoiser is affine, and so is any sampler made of it."""

    path = PATHS[kind]
    law = Mixture(double([1.0]), torch_points(1, 2), double([[0.3, 1.7]]))
    sampler = Sampler(Exact(path, law), data.draw(schedules(path, ends=True, source=True)))
    x, y = torch_points(2, 6, 2)
    left = sampler(0.3 * x + 0.7 * y)
    torch.testing.assert_close(left, 0.3 * sampler(x) + 0.7 * sampler(y), rtol=1e-8, atol=1e-8)


@EVERY_PATH
@given(data=st.data())
@QUICK
def test_first_order_is_one_method(kind, data):
    """Of order 1, expanding noise and expanding data are the same row."""

    path = PATHS[kind]
    times = data.draw(decreasing_times(path, 4, ends=True))
    tables = [
        tabulate(SolverSchedule(times, [Step(predict=p)] * 3), path) for p in ("data", "noise")
    ]
    torch.testing.assert_close(tables[0].weight, tables[1].weight, rtol=1e-9, atol=1e-11)


@EVERY_PATH
@given(data=st.data())
@QUICK
def test_json_round_trip(kind, data):
    schedule = data.draw(schedules(PATHS[kind], ends=True, noisy=True, source=True))
    again = SolverSchedule.from_json(schedule.to_json())
    assert again == schedule and hash(again) == hash(schedule)
    assert again.to_json() == schedule.to_json()


@pytest.mark.parametrize("other", PATHS)
@EVERY_PATH
@given(data=st.data())
@settings(max_examples=3, deadline=None, derandomize=True)
def test_on_another_path_and_back(kind, other, data):
    """A schedule moves by λ, and solves the same ODE up to the scale of its states."""

    a, b = PATHS[kind], PATHS[other]
    schedule = data.draw(schedules(a, most=4))
    moved = schedule.on(b, source=a)
    back = moved.on(a, source=b)
    assert back.steps == schedule.steps
    torch.testing.assert_close(double(back.times), double(schedule.times), rtol=1e-6, atol=1e-9)

    y = torch_points(4, 2)
    ends = []
    for path, s in ((a, schedule), (b, moved)):
        first, last = (path(double(s.times[k])) for k in (0, -1))
        x = Sampler(Exact(path, mixture()), s)(y * torch.hypot(*first))
        ends.append(x / torch.hypot(*last))
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-6)


@EVERY_PATH
@given(data=st.data())
@QUICK
def test_one_step_there_and_back(kind, data):
    """A DDIM step with the same estimate is undone by the step between the swapped times."""

    path = PATHS[kind]
    times = data.draw(decreasing_times(path, 2))
    schedule = SolverSchedule(times, [Step()])
    there = tabulate(schedule, path)
    back = tabulate(schedule, path, times=double(times).flip(0))
    x, D = torch_points(2, 5, 3)
    away = rollout([lambda x, t: D], x, there)
    assert not torch.allclose(away, x)
    torch.testing.assert_close(rollout([lambda x, t: D], away, back), x, rtol=1e-11, atol=1e-11)


# ------------------------------------------------------------------------------- formulas


@given(z=st.floats(-40, 40), k=st.integers(1, 5))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_phi(z, k):
    value = float(phi(k, double(z)))
    assert value == pytest.approx(phi_quadrature(k, z), rel=1e-12)


@pytest.mark.parametrize("z", [0.0, 1e-300, -1e-12, 1e-6, -1e-3, 0.999999, 1.0, -1.0])
def test_phi_near_zero(z):
    assert float(phi(0, double(z))) == pytest.approx(math.exp(z), rel=1e-15)
    for k in range(1, 6):
        assert float(phi(k, double(z))) == pytest.approx(phi_quadrature(k, z), rel=2e-14)
    assert float(phi(4, double(0.0))) == pytest.approx(1 / 24, rel=1e-15)


@given(
    gaps=st.lists(st.floats(0.2, 1.5), min_size=1, max_size=4),
    d=st.integers(1, 4),
    ahead=st.booleans(),
)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_slopes_differentiate_polynomials(gaps, d, ahead):
    """m points read every derivative of a polynomial of degree m exactly."""

    r = double(gaps).cumsum(0) * (1 if ahead else -1)
    m = len(r)
    d = min(d, m)
    coefficients = torch_points(m + 1, seed=m).tolist()
    values = sum(c * r**n for n, c in enumerate(coefficients)) - coefficients[0]
    truth = math.factorial(d) * coefficients[d]
    assert float(slopes(r, d) @ values) == pytest.approx(truth, rel=1e-6, abs=1e-6)


@given(h=st.floats(0.05, 4), predict=st.sampled_from(["data", "noise"]))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_named_relaxations(h, predict):
    z = -h if predict == "data" else h
    rest = math.expm1(z) - z
    bh1, bh2 = z * z / (2 * rest), z * math.expm1(z) / (2 * rest)
    assert 1 + h * relaxation("bh1", h, predict) == pytest.approx(bh1, rel=1e-9)
    assert 1 + h * relaxation("bh2", h, predict) == pytest.approx(bh2, rel=1e-9)
    assert relaxation("none", h, predict) == 0
    assert relaxation("bh2", math.inf, predict) == 0


def test_named_relaxations_of_small_steps():
    for predict, sign in (("data", -1), ("noise", 1)):
        assert relaxation("bh1", 1e-5, predict) == pytest.approx(-sign / 3, abs=1e-4)
        assert relaxation("bh2", 1e-5, predict) == pytest.approx(sign / 6, abs=1e-4)
