"""What a search begins with: presets, Beta, AYS and GITS times."""

from itertools import combinations

import numpy as np
from oracles import PATHS, mixture
import pytest
import torch

from genflow.errors import UserError
from genflow.models import Clipped, Discrete, Exact, Karras, Rectified, grid
from genflow.search.population import Population
from genflow.search.score import Simulated, error
from genflow.search.seeds import (
    AYS,
    ays,
    beta,
    chain,
    distinct,
    gits,
    presets,
    seeds_for,
    step_errors,
)
from genflow.search.teachers import Teacher, trajectory
from genflow.solvers import Sampler, SolverSchedule, schedule_for


@pytest.mark.parametrize(("M", "steps"), [(6, 1), (7, 3), (8, 5), (6, 6)])
def test_the_chain_is_the_cheapest(M, steps):
    """Against every chain, on costs without any order in them."""

    costs = np.random.default_rng(M).random((M + 1, M + 1))
    costs[np.tril_indices(M + 1)] = np.inf

    def total(places):
        return sum(costs[a, b] for a, b in zip(places, places[1:]))

    every = [(0, *inner, M) for inner in combinations(range(1, M), steps - 1)]
    found = chain(costs, steps)
    assert len(found) == steps + 1
    assert total(found) == pytest.approx(min(map(total, every)))


def test_step_errors_are_those_of_euler_steps():
    path = Rectified()
    denoiser, z = Exact(path, mixture()), torch.randn(5, 2, dtype=torch.float64)
    times = grid(path, 12, "uniform")
    states, data = trajectory(denoiser, z, times)
    errors = step_errors(path, times, states, data)
    i, j = 3, 7
    step = schedule_for("euler", path, times=(times[i], times[j]))

    landed = Sampler(denoiser, step)(states[i])
    want = (landed - states[j]).square().mean().sqrt()
    assert errors[i, j] == pytest.approx(float(want), rel=1e-9)
    assert np.isinf(errors[j, i]) and np.isinf(errors[4, 4])


def test_gits_beats_evenly_spaced_euler_steps():
    denoiser = Exact(Karras(), mixture())
    population = Population.draw(denoiser, (2,), range(128), dtype=torch.float64)
    score = Simulated(population, error(Teacher().solve(population)))
    times = gits(denoiser, population.z[:32], 6)
    found = schedule_for("ddim", Karras(), times=times)
    usual = [schedule_for("ddim", Karras(), 6, grid=g, final="min") for g in ("karras", "logsnr")]
    values = score([found, *usual])
    assert len(times) == 7 and values[0] < 0.9 * min(values[1:])
    with pytest.raises(UserError, match="steps is 61"):
        gits(denoiser, population.z, 61)


def test_a_clipped_flow_has_a_trajectory_and_times_of_its_own():
    """Its velocity is 0/0 at clean data, which must reach neither states nor the choice."""

    exact = Exact(Rectified(), mixture())
    clipped = Clipped(exact, -50.0, 50.0)  # so wide that nothing is clipped
    z = torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    times = grid(Rectified(), 60, "uniform")
    (states, _), (known, _) = (trajectory(d, z, times) for d in (clipped, exact))
    assert times[-1] == 0 and states.isfinite().all()
    assert float((states[-1] - known[-1]).square().mean().sqrt()) < 0.02
    a, b = (gits(d, z[:32], 6) for d in (clipped, exact))
    assert a[-1] == 0 and np.allclose(a, b, atol=0.05)


@pytest.mark.parametrize("name", sorted(PATHS))
@pytest.mark.parametrize("nfe", [1, 2, 5])
def test_every_preset_has_the_calls_asked_for(name, nfe):
    found = list(presets(PATHS[name], nfe))
    names = [n for n, _ in found]
    assert len(set(names)) == len(names) > 20
    assert {s.nfe for _, s in found} == {nfe}


def test_presets_cover_methods_and_grids():
    names = [n for n, _ in presets(Karras(), 6)]
    for part in ("heun,", "ipndm order 4", "deis variable rho", "dpm-3s", "unipc order 3"):
        assert any(part in n for n in names), part
    for part in ("logsnr zero", "karras 3.0 min", "trailing", "uniform min 2.0"):
        assert any(part in n for n in names), part


@pytest.mark.parametrize("name", sorted(PATHS))
def test_everything_to_begin_with_runs(name):
    denoiser = Exact(PATHS[name], mixture())
    population = Population.draw(denoiser, (2,), range(8), dtype=torch.float64)
    found = list(seeds_for(denoiser, 4, population.z))
    assert {s.nfe for _, s in found} == {4}
    assert {n.rsplit(", ", 1)[1] for n, _ in found} >= {"beta", "gits", *AYS}
    assert any(isinstance(s, SolverSchedule) for _, s in found)
    values = Simulated(population, lambda x: float(x.abs().max()))([s for _, s in found])
    assert sum(v == v for v in values) > 0.9 * len(values)


def test_ays_has_the_published_levels():
    """Ten steps on Stable Diffusion's own path: the published timesteps themselves."""

    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    path = Discrete(tuple((1 - betas).cumprod(0).tolist()))
    times = ays(path, 10)
    assert times[1:-1] == pytest.approx([(t + 1) / 1000 for t in AYS["ays-sd"][1:]], abs=1e-9)
    assert times[0] == 1.0 and times[-1] == path.t_min


def test_beta_is_dense_at_both_ends():
    times = beta(Rectified(), 20)
    gaps = -np.diff(times)
    assert gaps[10] > 2 * gaps[0] and gaps[10] > 2 * gaps[-1]
    assert times[10] == pytest.approx(0.5)
    assert np.allclose(beta(Rectified(), 10, 1, 1), np.linspace(1, 0, 11))


def test_solvers_with_several_names_are_kept_once():
    """At one call most presets are the same Euler step; at five they differ by far more."""

    denoiser = Exact(Karras(), mixture())
    population = Population.draw(denoiser, (2,), range(2), dtype=torch.float64)
    score = Simulated(population, error(Teacher().solve(population)))
    one, five = (list(presets(Karras(), n)) for n in (1, 5))
    left = distinct(one, score)
    assert len(left) < len(one) / 3 and left[0] == one[0]
    assert len(distinct(five, score)) > len(five) / 2

    values = dict(zip([n for n, _ in one], score([s for _, s in one]), strict=True))
    kept = [values[n] for n, _ in left]
    assert len(set(kept)) == len(kept)
    for value in values.values():
        assert min(abs(value / v - 1) for v in kept) < 1e-4
    twice = [*one, ("again", one[0][1])]
    assert distinct(twice, score) == left
    assert distinct(one, lambda some: [float("nan")] * len(some)) == []
