"""Common noise, shared batches, teachers, judges, caches and seeds."""

import math

import numpy as np
from oracles import PATHS, golden, mixture
import pytest
import torch

from genflow.errors import UserError
from genflow.metrics import Identity, MomentSum, frechet_distance, kernel_distance
from genflow.models import Denoiser, Exact, Karras, Rectified, VariancePreserving
from genflow.search.archive import Entry
from genflow.search.population import Population
from genflow.search.score import (
    Cached,
    Simulated,
    error,
    finalists,
    frechet,
    kernel,
    ranked,
    split,
)
from genflow.search.teachers import Teacher, digest_of, trajectory
from genflow.search.usf import SolverSpace
from genflow.solvers import Sampler, SolverSchedule, Step, schedule_for

KARRAS = Karras()


def truth(path=KARRAS):
    return Exact(path, mixture())


def drawn(seeds=range(16), path=KARRAS, **options):
    return Population.draw(truth(path), (2,), seeds, dtype=torch.float64, **options)


def several(path, count=6, nfe=5):
    space = SolverSpace(path, nfe)
    found = [space.sample(np.random.default_rng(i)) for i in range(count)]
    tables = [schedule_for(n, path, nfe) for n in ("ipndm", "heun", "euler")]
    return [*found, *tables, schedule_for("ddim", path, 3)]


# -------------------------------------------------------------------------------- populations


@pytest.mark.parametrize("batch_size", [4096, 40, 5])
@pytest.mark.parametrize("name", ["karras", "rectified", "discrete"])
def test_together_is_one_by_one(name, batch_size):
    """Whatever the batch, the samples are those of a sampler started from the same noise."""

    path = PATHS[name]
    population = drawn(path=path, batch_size=batch_size)
    solvers = several(path)
    found = dict(population(solvers))
    assert sorted(found) == list(range(len(solvers)))

    for i, solver in enumerate(solvers):
        sampler = Sampler(truth(path), solver)
        start = path(sampler.tableau.time[0])[1] * population.z
        torch.testing.assert_close(found[i], sampler(start), rtol=1e-12, atol=1e-12)


class Labelled(Denoiser):
    """A denoiser of two classes, which counts its calls."""

    def __init__(self):
        super().__init__()
        self.path, self.calls, self.rows = Rectified(), 0, 0

    def forward(self, x_t, t, label, prompt):
        self.calls, self.rows = self.calls + 1, self.rows + len(x_t)
        assert len(label) == len(x_t) == len(prompt)
        here = torch.stack([label.double(), torch.tensor([len(p) for p in prompt]).double()], 1)
        return here + 0.1 * torch.tanh(x_t) * (t.reshape(-1, 1) if t.ndim else t)


def test_conditions_follow_their_samples():
    cond = {"label": torch.tensor([0, 1, 0, 1]), "prompt": ["", "a", "ab", "abc"]}
    z = torch.randn(4, 2, dtype=torch.float64)
    solvers = [schedule_for(n, Rectified(), 4) for n in ("ddim", "dpmpp-2m", "deis")]
    together = dict(Population(Labelled(), z, cond)(solvers))
    alone = dict(Population(Labelled(), z, cond, batch_size=3)(solvers))

    for i in range(3):
        torch.testing.assert_close(together[i], alone[i], rtol=1e-12, atol=1e-12)
        assert together[i][3, 1] > together[i][0, 1] + 2

    with pytest.raises(UserError, match="condition 'label' has 3 rows for 4 samples"):
        Population(Labelled(), z, {"label": torch.zeros(3)})
    with pytest.raises(UserError, match="batch_size is 0"):
        Population(Labelled(), z, batch_size=0)


def test_the_first_call_is_made_once():
    """Five schedules of four calls from one first time: 1 + 5 · 3 calls a sample."""

    cond = {"label": torch.tensor([0, 1]), "prompt": ["", "a"]}
    denoiser = Labelled()
    population = Population(denoiser, torch.randn(2, 2, dtype=torch.float64), cond)
    names = ("ddim", "dpmpp-2m", "deis", "dpm-2m", "unipc")
    list(population([schedule_for(n, Rectified(), 4) for n in names]))
    assert denoiser.rows == population.calls == 2 * (1 + 5 * 3)
    assert denoiser.calls == 1 + 3
    list(population([schedule_for("dpmpp-3m", Rectified(), 4)]))
    assert denoiser.rows == 2 * (1 + 6 * 3)


def test_noise_is_common_and_of_the_seeds():
    a, b = drawn(range(4)), drawn(range(2, 6))
    assert torch.equal(a.z[2:], b.z[:2])
    once, again = (dict(a(several(KARRAS)))[0] for _ in range(2))
    assert torch.equal(once, again)


@pytest.mark.parametrize("batch_size", [4096, 3])
def test_fresh_noise_is_common_too(batch_size):
    """Two random schedules in one population, alone, and in small batches: the same draws."""

    population = drawn(range(7), VariancePreserving(), batch_size=batch_size)
    ddpm = schedule_for("ddpm", VariancePreserving(), 4)
    half = SolverSchedule(ddpm.times, [Step(eta=0.5)] * 4)
    alone = [next(drawn(range(7), VariancePreserving())([s]))[1] for s in (ddpm, half)]
    found = dict(population([ddpm, half]))
    for i in range(2):
        torch.testing.assert_close(found[i], alone[i], rtol=1e-12, atol=1e-12)


# ----------------------------------------------------------------------------------- teachers


def test_teacher_and_presets_against_golden_numbers():
    """The teacher is the true solution; official samplers have the errors that were published."""

    record, arrays = golden("search")
    population = Population(truth(), golden("usf")[1]["xT"])
    target = Teacher().solve(population)
    torch.testing.assert_close(target, arrays["solution"], rtol=0, atol=1e-4)

    score = Simulated(population, error(target))
    edm7 = {"grid": "karras", "final": "min"}
    logsnr = {"grid": "logsnr", "final": "min"}
    solvers = {
        "ipndm/gm2d/edm7/nfe5/o3": schedule_for("ipndm", KARRAS, 5, order=3, **edm7),
        "ipndm/gm2d/edm7/nfe8/o2": schedule_for("ipndm", KARRAS, 8, order=2, **edm7),
        "ipndm/gm2d/edm7/nfe10/o4": schedule_for("ipndm", KARRAS, 10, order=4, **edm7),
        "deis/gm2d/edm7/nfe8/rhoab-o3": schedule_for("deis", KARRAS, 8, variable="rho", **edm7),
        "usf-edm/gm2d/logSNR/nfe5/dpmpp-2M": schedule_for("dpmpp-2m", KARRAS, 5, **logsnr),
        "usf-edm/gm2d/logSNR/nfe10/dpmpp-2M": schedule_for("dpmpp-2m", KARRAS, 10, **logsnr),
    }
    for name, value in zip(solvers, score(list(solvers.values()))):
        assert value == pytest.approx(record["rms"][name], abs=2e-4), name


@pytest.mark.parametrize("sampler", ["rk4", "heun", "dopri5"])
def test_teachers_agree(sampler):
    population = drawn(range(8), Rectified())
    fine = Teacher("rk4", 200).solve(population)
    torch.testing.assert_close(Teacher(sampler, 100).solve(population), fine, rtol=0, atol=2e-3)


def test_targets_are_kept_and_found_again(tmp_path):
    population, teacher = drawn(range(4)), Teacher("heun", 8)
    target = teacher.solve(population, tmp_path)
    (file,) = tmp_path.iterdir()
    moment = file.stat().st_mtime_ns
    assert torch.equal(teacher.solve(drawn(range(4)), tmp_path), target)
    assert file.stat().st_mtime_ns == moment and len(list(tmp_path.iterdir())) == 1

    for other in (drawn(range(5)), drawn(range(4), Karras(rho=6))):
        teacher.solve(other, tmp_path)
    Teacher("heun", 9).solve(population, tmp_path)
    assert len(list(tmp_path.iterdir())) == 4


def test_digests_see_weights_and_settings():
    one, two = truth(), truth()
    assert digest_of(one) == digest_of(two)
    two.mixture.means = two.mixture.means + 1e-9
    assert digest_of(one) != digest_of(two)


def test_bad_teachers():
    with pytest.raises(UserError, match="steps 0"):
        Teacher(steps=0)
    with pytest.raises(UserError, match="rk4"):
        Teacher("rk5")


def test_trajectories_end_at_the_solution():
    population = drawn(range(4), VariancePreserving())
    times = torch.linspace(1, 1e-3, 200).tolist()
    states, data = trajectory(truth(VariancePreserving()), population.z, times)
    assert states.shape == (200, 4, 2) and data.shape == (199, 4, 2)
    torch.testing.assert_close(states[-1], Teacher().solve(population), rtol=0, atol=5e-3)
    torch.testing.assert_close(
        data[100], truth(VariancePreserving())(states[100], torch.tensor(times[100]))
    )


# ------------------------------------------------------------------------------------- judges


def test_distances_are_those_of_metrics():
    population = drawn(range(64))
    solver = schedule_for("dpmpp-2m", KARRAS, 5)
    samples = dict(population([solver]))[0]
    data = mixture().sample(200, generator=torch.Generator().manual_seed(0))

    def moments(x):
        total = MomentSum()
        total.update(x)
        return total.moments()

    shift = lambda x: x + 1  # noqa: E731
    score = Simulated(population, frechet(moments(data), Identity(), shift))
    want = frechet_distance(moments((samples + 1).float()), moments(data))
    assert score([solver])[0] == pytest.approx(want, rel=1e-5)

    score = Simulated(population, kernel(data, Identity()))
    assert score([solver])[0] == pytest.approx(kernel_distance(samples, data)[0], rel=1e-4)

    score = Simulated(population, lambda x: float(x.abs().max()))
    assert score([solver]) == [float(samples.abs().max())]


def test_states_that_are_not_finite_score_nan():
    class Broken(Exact):
        def forward(self, x_t, t):
            return super().forward(x_t, t) * (math.nan if float(t.min()) < 0.5 else 1.0)

    population = Population(Broken(KARRAS, mixture()), torch.randn(4, 2, dtype=torch.float64))
    values = Simulated(population, lambda x: 0.0)([schedule_for("ddim", KARRAS, 5)])
    assert math.isnan(values[0])


def test_cache_asks_once():
    asked = []

    def score(schedules):
        asked.append(len(schedules))
        return [s.times[1] for s in schedules]

    a, b, c = (SolverSchedule((1.0, t, 0.1), (Step(), Step())) for t in (0.3, 0.5, 0.7))
    cached = Cached(score)
    assert cached([a, b, a]) == [0.3, 0.5, 0.3]
    assert cached([c, b]) == [0.7, 0.5]
    assert cached([a, SolverSchedule((1.0, 0.3, 0.1), (Step(), Step()))]) == [0.3, 0.3]
    assert asked == [2, 1] and (cached.asked, cached.scored) == (7, 3)


def test_finalists_are_ranked_again():
    schedules = [SolverSchedule((1.0, t), (Step(),)) for t in (0.1, 0.2, 0.3, 0.4)]
    entries = [Entry(i, s, float(i)) for i, s in enumerate(schedules)]
    entries.append(Entry(9, schedules[0], math.nan))
    seen = []

    def rung(values):
        def score(some):
            seen.append(len(some))
            return [values[schedules.index(s)] for s in some]

        return score

    best = finalists(entries, [(3, rung([5, 4, math.nan, 0])), (1, rung([1, 2, 3, 4]))])
    assert [e.number for e in best] == [1] and best[0].value == 2 and seen == [3, 1]
    with pytest.raises(UserError, match="takes 0 schedules"):
        finalists(entries, [(0, rung([1]))])


def test_halving_gives_the_names_with_the_last_scores():
    schedules = [SolverSchedule((1.0, t), (Step(),)) for t in (0.1, 0.2, 0.3, 0.4, 0.5)]
    named = list(zip("abcde", schedules, strict=True))

    def rung(*values):
        known = dict(zip(schedules, values, strict=True))
        return lambda some: [known[s] for s in some]

    rough, fine = rung(3, math.nan, 1, 2, math.inf), rung(7, 0, 9, 8, 0)
    assert [n for n, _, _ in ranked(named, [(5, rough)])] == ["c", "d", "a"]
    found = ranked(named, [(5, rough), (2, fine)])
    assert found == [("d", schedules[3], 8.0), ("c", schedules[2], 9.0)]
    assert ranked(named, [(2, rough), (2, fine)]) == [("a", schedules[0], 7.0)]
    assert ranked([], [(3, rough)]) == []


def test_seeds_are_disjoint():
    seeds = split(10, 20, 30, groups=4, first=5)
    parts = [seeds.search, seeds.final, *seeds.report]
    assert [len(p) for p in parts] == [10, 20, 30, 30, 30, 30]
    assert sorted(s for p in parts for s in p) == list(range(5, 5 + 150))
    with pytest.raises(UserError, match="final is 0"):
        split(1, 0, 1)
