"""Noise on the state: its variance in closed form, where it stands, and what it leaves alone."""

import math

from oracles import affine_moments, double
import pytest
import torch

from genflow.errors import UserError
from genflow.models import Exact, Karras, Mixture, Rectified, StudentT, VariancePreserving
from genflow.solvers import (
    PRESETS,
    Adaptive,
    Sampler,
    build,
    schedule_for,
    shaken,
    shaken_table,
    stack,
    tabulate,
)

S = 0.3
KARRAS = Karras(0.02, 20.0)


def gaussian(path, variance=S**2):
    return Exact(path, Mixture(double([1.0]), double([[0.0]]), double([[variance]])))


def heun(r, s):
    """What one Heun step multiplies a centred Gaussian state by, and an Euler step into 0."""

    first = r / (S**2 + r**2)  # (x − D)/σ of the exact denoiser, over x
    ahead = 1 + (s - r) * first
    return ahead if s == 0 else 1 + (s - r) / 2 * (first + ahead * s / (S**2 + s**2))


def variance_by_hand(levels, alpha):
    """Var_{i+1} = m_i² (Var_i + α² σ_i²), from the first level's own law."""

    variance = levels[0] ** 2
    for r, s in zip(levels, levels[1:], strict=False):
        variance = heun(r, s) ** 2 * (variance + (alpha * r) ** 2)
    return variance


@pytest.mark.parametrize("alpha", [0.05, 0.4])
def test_the_variance_grows_as_predicted_before_every_heun_step(alpha):
    table = schedule_for("karras-heun", KARRAS, 9)
    t = [*dict.fromkeys(table.time.tolist()), 0.0]
    levels = [float(KARRAS(double(u))[1]) for u in t[:-1]] + [0.0]
    sampler = shaken(build("karras-heun", gaussian(KARRAS), 9), alpha)

    # The map is linear in its draws: one at a time, their squares sum to the variance.
    def answer(active):
        def noise(i, x):
            return torch.full_like(x, float(i == active))

        from genflow.solvers import rollout

        start = levels[0] * torch.full((1, 1), float(active is None), dtype=torch.float64)
        return float(rollout(sampler.stages(), start, sampler.tableau, noise=noise))

    total = sum(answer(k) ** 2 for k in [None, *range(-1, len(table.time))])
    assert total == pytest.approx(variance_by_hand(levels, alpha), rel=1e-9)
    assert total > variance_by_hand(levels, 0.0) * (1 + alpha**2)


@pytest.mark.parametrize("name", ["euler", "dpmpp-2m", "unipc", "midpoint", "dpm-2s", "ddpm"])
def test_samples_have_the_variance_that_the_table_says(name):
    path = VariancePreserving()
    sampler = shaken(build(name, gaussian(path, 0.09), 8), 0.2)
    x = sampler.init((40_000, 1), generator=torch.Generator().manual_seed(0)).double()
    x = sampler(x, generator=torch.Generator().manual_seed(1))

    if sampler.tableau.reads == "data":
        start = path(double(path.t_max))[1] ** 2
        moments = affine_moments(sampler.tableau, path, 0.0, 0.09)
        calm = affine_moments(build(name, gaussian(path, 0.09), 8).tableau, path, 0.0, 0.09)
        assert float(start) == pytest.approx(1, abs=1e-3)
        assert x.var().item() == pytest.approx(moments[-1][1], rel=0.04)
        assert moments[-1][1] > 1.02 * calm[-1][1]
    else:
        assert x.var() > 1.02 * 0.09


@pytest.mark.parametrize(
    "name", [n for n in PRESETS if n not in ("dopri5", "dpm-v3", "usf", "autodiffusion")]
)
def test_noise_stands_before_steps_and_nowhere_else(name):
    path, alpha = VariancePreserving(), 0.3
    N = 6
    made = schedule_for(name, path, N)
    table = made if hasattr(made, "weight") else tabulate(made, path)
    stressed = shaken_table(table, path, alpha)
    calls = {"midpoint": 2, "heun": 2, "rk4": 4, "karras-heun": 2}.get(name, 1)

    begins = list(range(0, len(table.time), calls))
    if name.endswith("s") and name != "ipndm" and name != "deis":  # singlestep: 2 or 3 calls
        begins = {"2s": [0, 2, 4], "3s": [0, 3, 5]}[name[-2:]]
    sigma = path(table.time)[1]
    expected = torch.zeros(len(table.time) + 1, dtype=torch.float64)
    expected[begins] = alpha * sigma[begins]

    torch.testing.assert_close(stressed.noise**2, table.noise**2 + expected**2)
    assert stressed.weight is table.weight and stressed.time is table.time


def test_churn_and_the_shake_add_their_variances():
    churned = schedule_for("karras-heun", KARRAS, 6, churn=3.0)
    stressed = shaken_table(churned, KARRAS, 0.2)
    sigma = KARRAS(churned.time[::2])[1]
    assert churned.noise[0] > 0
    torch.testing.assert_close(
        stressed.noise[:-1:2] ** 2, churned.noise[:-1:2] ** 2 + (0.2 * sigma) ** 2
    )


def test_no_shake_is_the_same_bits():
    denoiser = gaussian(Rectified())
    for name in ("unipc", "ddpm", "heun"):
        sampler = build(name, denoiser, 5)
        x = sampler.init((8, 1), generator=torch.Generator().manual_seed(0))
        one = sampler(x, generator=torch.Generator().manual_seed(1))
        two = shaken(sampler, 0.0)(x, generator=torch.Generator().manual_seed(1))
        assert torch.equal(one, two)
        assert shaken_table(sampler.tableau, denoiser.path, 0.0) is sampler.tableau


def test_a_shaken_sample_depends_on_its_own_seed_alone_and_the_old_sampler_is_left():
    sampler = build("dpmpp-2m", gaussian(Rectified()), 6)
    before = sampler.tableau
    stressed = shaken(sampler, 0.2)

    def draw(seeds):
        generators = [torch.Generator().manual_seed(s) for s in seeds]
        x = stressed.init((len(seeds), 1), generator=generators)
        return stressed(x, generator=generators)

    assert torch.equal(draw([3, 4, 5])[1:2], draw([4]))
    assert not torch.equal(draw([3]), draw([4]))
    assert sampler.tableau is before and not before.noise.any()
    assert stressed.denoiser is sampler.denoiser and stressed.nfe == sampler.nfe
    assert stressed.schedule is sampler.schedule, "steps that alter the network still do"


def test_finite_d_is_shaken_alike():
    path = Karras(0.02, 20.0, noise=StudentT(64))
    table = schedule_for("karras-heun", path, 6)
    gauss = shaken_table(schedule_for("karras-heun", KARRAS, 6), KARRAS, 0.1)
    torch.testing.assert_close(shaken_table(table, path, 0.1).noise, gauss.noise)

    churned = schedule_for("karras-heun", path, 6, churn=3.0)
    with pytest.raises(UserError, match=r"scaled by κ.*churn_law 'gaussian'"):
        shaken_table(churned, path, 0.1)
    plain = schedule_for("karras-heun", path, 6, churn=3.0, churn_law="gaussian")
    assert shaken_table(plain, path, 0.1).noise[0] > plain.noise[0]


@pytest.mark.parametrize("alpha", [-0.1, math.nan, math.inf])
def test_alpha_must_be_a_number_of_zero_or_more(alpha):
    with pytest.raises(UserError, match=f"alpha is {alpha}.*0 or more"):
        shaken(build("euler", gaussian(Rectified()), 3), alpha)


def test_what_cannot_be_shaken_is_named():
    denoiser = gaussian(Rectified())
    with pytest.raises(UserError, match=r"Adaptive.*chooses its own steps.*karras-heun"):
        shaken(Adaptive(denoiser), 0.1)
    table = build("euler", denoiser, 3).tableau
    with pytest.raises(UserError, match=r"2 samples.*before they are stacked"):
        shaken_table(stack([table, table], 1), denoiser.path, 0.1)
    assert Sampler(denoiser, shaken_table(table, denoiser.path, 0.1)).tableau.noisy[0]
