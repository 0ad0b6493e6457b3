"""Fresh noise: ancestral steps, the pinned bridge, churn; laws in closed form on Gaussian data."""

import math

from oracles import PATHS, affine_moments, double
import pytest
import torch

from genflow.models import Brownian, Exact, Karras, Mixture, Rectified, StudentT
from genflow.solvers import Sampler, SolverSchedule, Step, build, schedule_for, tabulate


def gaussian(path, mean=0.4, variance=0.09):
    return Exact(path, Mixture(double([1.0]), double([[mean]]), double([[variance]])))


def truths(path, times, mean, variance):
    alpha, sigma = path(double(times))
    return alpha * mean, alpha**2 * variance + sigma**2


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("kind", PATHS)
def test_marginals_of_a_point(kind, eta):
    """Data at a point: after every step the mean is α c and the variance σ², for every η."""

    path = PATHS[kind]
    table = schedule_for("ddim", path, 7, eta=eta)
    mean, variance = truths(path, table.times, 0.4, 0.0)
    got = affine_moments(tabulate(table, path), path, 0.4, 0.0)
    torch.testing.assert_close(double([m for m, _ in got]), mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(double([v for _, v in got]), variance, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kind", PATHS)
def test_rows_keep_the_forward_law(kind, eta):
    """If the estimate were the data themselves, w_x² σ_t² + c² = σ_s² and the means add up."""

    path = PATHS[kind]
    table = tabulate(schedule_for("ddim", path, 7, eta=eta), path)
    times = torch.cat([table.time, double([schedule_for("ddim", path, 7).times[-1]])])
    (alpha, sigma), w, c = path(times), table.weight, table.noise[1:]
    torch.testing.assert_close(w[:, 0] ** 2 * sigma[:-1] ** 2 + c**2, sigma[1:] ** 2)
    torch.testing.assert_close(w[:, 0] * alpha[:-1] + w[:, 1], alpha[1:])
    if eta > 0:
        assert bool((c[:-1] > 0).all())
    else:
        assert not c.any()


@pytest.mark.parametrize("kind", ["vp", "cosine", "discrete", "rectified"])
def test_ddpm_converges_to_the_marginals(kind):
    """With spread data the ancestral variance errs by O(1/N), from below."""

    path = PATHS[kind]
    lacks = []

    for N in (50, 100, 200):
        schedule = schedule_for("ddpm", path, N, grid="uniform")
        mean, variance = truths(path, schedule.times, 0.4, 0.09)
        got = affine_moments(tabulate(schedule, path), path, 0.4, 0.09)
        assert got[-1][0] == pytest.approx(float(mean[-1]), abs=0.05)
        lacks.append(float(variance[-1]) - got[-1][1])

    assert lacks[0] > lacks[1] > lacks[2] > 0
    assert lacks[0] / lacks[1] == pytest.approx(2, abs=0.45)
    assert lacks[1] / lacks[2] == pytest.approx(2, abs=0.3)


@pytest.mark.parametrize("name", ["ddpm", "ddim"])
def test_closed_form_is_what_the_sampler_draws(name):
    """The moments propagated through the table are those of 200,000 samples."""

    path = PATHS["vp"]
    sampler = build(name, gaussian(path), 6)
    mean, variance = affine_moments(sampler.tableau, path, 0.4, 0.09)[-1]
    alpha, sigma = path(double(sampler.schedule.times[0]))
    x = alpha * 0.4 + torch.sqrt(alpha**2 * 0.09 + sigma**2) * torch.randn(200_000, 1).double()
    x = sampler(x)
    assert float(x.mean()) == pytest.approx(mean, abs=5 * math.sqrt(variance / 200_000))
    assert float(x.var()) == pytest.approx(variance, rel=0.02)


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 3.0])
def test_brownian_ancestral_step_is_the_pinned_bridge(epsilon):
    """From x at t, pinned to D at 0: mean D + (s/t)(x − D), variance ε s (t − s)/t."""

    times = (1.0, 0.8, 0.35, 0.1, 0.0)
    table = tabulate(SolverSchedule(times, [Step(eta=1.0)] * 4), Brownian(epsilon))
    t, s = double(times[:-1]), double(times[1:])
    torch.testing.assert_close(table.weight[:, 0], s / t)
    torch.testing.assert_close(table.weight[:, 1], 1 - s / t)
    torch.testing.assert_close(table.noise[1:] ** 2, epsilon * s * (t - s) / t)


def test_paths_that_fresh_noise_does_not_suit():
    from genflow.errors import UserError

    path = Karras(noise=StudentT(64.0))
    with pytest.raises(UserError, match="step 0 has eta 1.0 .*StudentT"):
        tabulate(SolverSchedule((1.0, 0.5), [Step(eta=1.0)]), path)
    with pytest.raises(UserError, match="churn is 5"):
        schedule_for("karras-heun", Rectified(), 4, churn=5)


# --------------------------------------------------------------------------------- churn


def textbook_churn(variance, sigmas, churn, low, high, extra):
    """EDM's Algorithm 2 on N(0, v) data in terms of the variance of the state."""

    N = len(sigmas) - 1
    total = float(sigmas[0] ** 2 + variance)
    for i in range(N):
        s, s_next = float(sigmas[i]), float(sigmas[i + 1])
        gamma = min(churn / N, math.sqrt(2) - 1) if low <= s <= high else 0.0
        hat = s * (1 + gamma)
        total += extra**2 * (hat**2 - s**2)

        def slope(at):
            return at / (at**2 + variance)

        h = s_next - hat
        euler = 1 + h * slope(hat)
        gain = euler if s_next == 0 else 1 + h / 2 * (slope(hat) + slope(s_next) * euler)
        total *= gain**2

    return total


@pytest.mark.parametrize("extra", [1.0, 1.007])
@pytest.mark.parametrize(("low", "high"), [(0.0, math.inf), (0.05, 50.0)])
@pytest.mark.parametrize("churn", [0.0, 10.0, 40.0])
def test_karras_heun(churn, low, high, extra):
    """The law of the samples is that of EDM's algorithm, in closed form."""

    path, variance, N = Karras(), 0.25, 40
    table = schedule_for(
        "karras-heun", path, N, churn=churn, churn_min=low, churn_max=high, churn_noise=extra
    )
    i = torch.arange(N, dtype=torch.float64) / (N - 1)
    sigmas = (80 ** (1 / 7) + i * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    sigmas = torch.cat([sigmas, sigmas.new_zeros(1)])
    truth = textbook_churn(variance, sigmas, churn, low, high, extra)
    mean, got = affine_moments(table, path, 0.0, variance)[-1]

    assert table.nfe == 2 * N - 1
    assert mean == pytest.approx(0, abs=1e-12)
    assert got == pytest.approx(truth, rel=1e-9)
    assert bool((table.noise > 0).any()) == (churn > 0)


@pytest.mark.parametrize("churn", [0.0, 20.0])
def test_karras_heun_approaches_the_data(churn):
    """With more steps the variance of the samples tends to that of the data, churn or not."""

    path, errors = Karras(), []
    for N in (40, 160, 640):
        table = schedule_for("karras-heun", path, N, churn=churn)
        errors.append(abs(affine_moments(table, path, 0.0, 0.25)[-1][1] / 0.25 - 1))
    assert errors[0] > 2.5 * errors[1] > 6 * errors[2]
    assert errors[2] < 5e-3


def test_churn_draws_what_it_says():
    path = Karras()
    sampler = build("karras-heun", gaussian(path, 0.0, 0.25), 12, churn=10.0)
    _, variance = affine_moments(sampler.tableau, path, 0.0, 0.25)[-1]
    x = sampler(math.sqrt(6400.25) * torch.randn(100_000, 1, dtype=torch.float64))
    assert float(x.var()) == pytest.approx(variance, rel=0.03)


# ----------------------------------------------------------------------------- generators


@pytest.mark.parametrize(("name", "options"), [("ddpm", {}), ("karras-heun", {"churn": 10.0})])
def test_a_sample_does_not_depend_on_its_batch(name, options):
    """With a generator for each sample, sample i is the same alone and in company."""

    sampler = build(name, gaussian(Karras()), 5, **options)

    def draw(seeds):
        streams = [torch.Generator().manual_seed(s) for s in seeds]
        x = sampler.init((len(seeds), 3), generator=streams, dtype=torch.float64)
        x = x[:, :1].contiguous()
        return sampler(x, generator=streams)

    together = draw([3, 1, 4, 15])
    assert torch.equal(together, torch.cat([draw([s]) for s in (3, 1, 4, 15)]))
    assert torch.equal(draw([4, 3])[1], together[0])
    assert not torch.equal(together[0], together[1])


def test_one_generator_reproduces():
    sampler = build("ddpm", gaussian(PATHS["vp"]), 5)
    x = torch.randn(4, 1, dtype=torch.float64)
    runs = [sampler(x, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_the_ode_draws_nothing():
    """Without η no generator is read, so the global one stays where it was."""

    sampler = Sampler(gaussian(PATHS["vp"]), schedule_for("unipc", PATHS["vp"], 5))
    x = torch.randn(4, 1, dtype=torch.float64)
    before = torch.random.get_rng_state()
    sampler(x)
    assert torch.equal(before, torch.random.get_rng_state())
