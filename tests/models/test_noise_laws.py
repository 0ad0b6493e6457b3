"""The unit-scale laws of the noise, against scipy."""

from functools import cache
import math

import numpy as np
import pytest
from scipy import stats
import torch

from genflow.errors import UserError
from genflow.models import Gaussian, StudentT
from genflow.models.noise import _log_gamma, draw

LAWS = {"gaussian": Gaussian(), "t64": StudentT(64.0), "t3": StudentT(3.0), "t0.7": StudentT(0.7)}


def sample(law, shape, seed=0, dtype=torch.float64):
    return law.sample(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("D", [0.7, 3.0, 17.5, 2048.0])
def test_student_marginals(D):
    """Each coordinate is a Student-t variable with D degrees of freedom."""

    z = sample(StudentT(D), (20_000, 3)).numpy()
    for k in range(3):
        assert stats.kstest(z[:, k], stats.t(D).cdf).pvalue > 1e-3


def test_student_radius():
    """‖z‖²/d follows the F(d, D) law: one Gamma is shared by all coordinates of a sample."""

    d, D = 12, 5.0
    z = sample(StudentT(D), (20_000, 3, 4)).flatten(1)
    assert stats.kstest((z.square().sum(1) / d).numpy(), stats.f(d, D).cdf).pvalue > 1e-3
    # Were the Gammas drawn per coordinate, the squares would be uncorrelated.
    squares = sample(StudentT(8.0), (50_000, 2)).square()
    assert float(torch.corrcoef(squares.T)[0, 1]) > 0.1


def test_student_moments():
    z = sample(StudentT(9.0), (200_000, 4))
    torch.testing.assert_close(z.mean(0), torch.zeros(4).double(), rtol=0, atol=0.02)
    torch.testing.assert_close(torch.cov(z.T), torch.eye(4).double() * 9 / 7, rtol=0, atol=0.05)


def test_infinite_degrees_are_gaussian():
    z = sample(StudentT(math.inf), (5, 3))
    assert torch.equal(z, sample(Gaussian(), (5, 3)))
    torch.testing.assert_close(StudentT(math.inf).log_prob(z), Gaussian().log_prob(z))
    torch.testing.assert_close(
        StudentT(1e9).log_prob(z), Gaussian().log_prob(z), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("D", [0.7, 3.0, 64.0])
@pytest.mark.parametrize("d", [1, 2, 7])
def test_student_log_density(D, d):
    z = sample(StudentT(D), (50, d))
    truth = stats.multivariate_t(np.zeros(d), np.eye(d), df=D).logpdf(z.numpy().reshape(50, d))
    torch.testing.assert_close(
        StudentT(D).log_prob(z), torch.from_numpy(np.asarray(truth)), rtol=1e-9, atol=1e-9
    )


def test_gaussian_log_density_of_images():
    z = sample(Gaussian(), (6, 2, 3, 3))
    truth = stats.norm.logpdf(z.numpy()).reshape(6, -1).sum(1)
    torch.testing.assert_close(Gaussian().log_prob(z), torch.from_numpy(truth))


def test_densities_are_taken_in_double_precision():
    """In float32 the sum of N squares errs by more than the difference of two densities."""

    z = sample(StudentT(64.0), (4, 3, 64, 64), dtype=torch.float32)
    for law in (Gaussian(), StudentT(64.0)):
        assert law.log_prob(z).dtype == torch.float64
        torch.testing.assert_close(law.log_prob(z), law.log_prob(z.double()), rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", LAWS)
def test_a_sample_depends_on_its_own_generator_alone(name):
    def of(seeds):
        streams = [torch.Generator().manual_seed(s) for s in seeds]
        return LAWS[name].sample((len(seeds), 2, 3), generator=streams)

    together = of([7, 1, 30])
    assert torch.equal(together[1:2], of([1]))
    assert torch.equal(of([30, 7])[0], together[2])
    assert not torch.equal(together[0], together[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LAWS)
def test_shape_and_dtype(name, dtype):
    z = LAWS[name].sample((4, 1, 2), dtype=dtype)
    assert z.shape == (4, 1, 2) and z.dtype == dtype
    assert LAWS[name].log_prob(z).shape == (4,)


@pytest.mark.parametrize("a", [1e-4, 5e-3, 0.25, 0.5, 1.0, 64.0, 1e5, 1e9])
def test_logarithms_of_gammas(a):
    """Drawn as such, half of the Gammas of shape 1e-4 would be 0."""

    g = torch.Generator().manual_seed(0)
    logs = _log_gamma(a, (20_000, 3), g, None)
    assert logs.shape == (20_000, 1) and logs.dtype == torch.float64
    if a < 1e8:
        p = stats.kstest(logs.flatten().numpy(), stats.loggamma(a).cdf).pvalue
    else:  # by then it is normal, with a spread of 1/√a
        unit = (logs.flatten().numpy() - math.log(a)) * math.sqrt(a)
        p = stats.kstest(unit, stats.norm.cdf).pvalue
    assert p > 1e-3


def test_heavy_tails_do_not_overflow():
    for D in (0.5, 1.0):
        z = sample(StudentT(D), (10_000, 2), dtype=torch.float32)
        assert bool((z.isfinite() & (z != 0)).all())


# --------------------------------------------------------------- noise added to noise

KICKS = [(2, 2.0), (16, 8.0), (64, 64.0), (3072, 128.0), (3072, 2048.0)]


@cache
def kicked(N, D):
    """How far √2 Z is from Z plus fresh noise of its scale, added in three ways."""

    law, g, n = StudentT(D), torch.Generator().manual_seed(N), 2500
    z = law.sample((n, N), generator=g)
    fresh = torch.randn(n, N, generator=g)
    cdf = law.radius(N, math.sqrt(2)).cdf
    ways = {
        "plain": fresh,
        "kappa": law.kappa(z)[:, None] * fresh,
        "more": law.more(z, generator=g),
    }
    return {way: stats.kstest((z + y).norm(dim=1).double(), cdf) for way, y in ways.items()}


@pytest.mark.parametrize(("N", "D"), KICKS)
def test_further_noise_keeps_the_law_exactly(N, D):
    assert kicked(N, D)["more"].pvalue > 1e-3
    assert kicked(N, D)["plain"].pvalue < 1e-4


@pytest.mark.parametrize(
    ("N", "D", "plain", "kappa"),
    [(16, 8.0, 0.07, 0.045), (64, 64.0, 0.05, 0.03), (3072, 128.0, 0.14, 0.03),
     (3072, 2048.0, 0.06, 0.03)],
)  # fmt: skip
def test_kappa_keeps_the_law_nearly(N, D, plain, kappa):
    """2,500 draws of the very law are 0.027 away in one case of twenty."""

    assert kicked(N, D)["plain"].statistic > plain
    assert kicked(N, D)["kappa"].statistic < kappa


def test_kappa_is_the_mean_scale_given_the_noise():
    """κ^−2 = E[W | z], by weighting draws of W with the likelihood of z."""

    D, z = 5.0, torch.tensor([[1.0, 2.0, 0.5]], dtype=torch.float64)
    w = stats.gamma(D / 2, scale=2 / D).rvs(400_000, random_state=0)
    likelihood = w ** (z.shape[1] / 2) * np.exp(-0.5 * w * float(z.square().sum()))
    mean = (w * likelihood).sum() / likelihood.sum()
    assert float(StudentT(D).kappa(z)) == pytest.approx(mean**-0.5, rel=2e-3)


def test_infinite_degrees_add_gaussian_noise():
    z, g = sample(Gaussian(), (4, 3)), torch.Generator().manual_seed(3)
    law = StudentT(math.inf)
    assert torch.equal(law.kappa(z), torch.ones(4).double())
    again = torch.randn(4, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert torch.equal(law.more(z, generator=g), again)
    assert law.variance == 1.0 and StudentT(2.0).variance == math.inf
    assert StudentT(3.0).variance == pytest.approx(3.0)


@pytest.mark.gpu
@pytest.mark.parametrize("D", [0.5, 64.0])
def test_generators_of_a_gpu(D):
    """Drawn on the device; a sample depends on its own generator alone."""

    def streams():
        return [torch.Generator("cuda").manual_seed(s) for s in (1, 2)]

    law = StudentT(D)
    both = law.sample((2, 64), generator=streams(), device="cuda")
    alone = law.sample((1, 64), generator=streams()[1:], device="cuda")
    assert both.device.type == "cuda" and torch.equal(both[1:], alone)
    z = law.sample((20_000, 4), generator=torch.Generator("cuda").manual_seed(0), device="cuda")
    radius = torch.linalg.vector_norm(z, dim=1, dtype=torch.float64).cpu().numpy()
    assert stats.kstest(radius, law.radius(4).cdf).pvalue > 1e-3


# ------------------------------------------------------------------------------ refusals


def test_refusals():
    for bad in (0.0, -1.0, math.nan):
        with pytest.raises(UserError, match="degrees of freedom"):
            StudentT(bad)
    streams = [torch.Generator()] * 3
    with pytest.raises(UserError, match="holds 3 generators for a batch of 4"):
        draw(lambda shape, g: torch.zeros(shape), (4, 2), streams)


def test_laws_are_values():
    assert StudentT(3.0) == StudentT(3.0) != StudentT(4.0)
    assert len({Gaussian(), Gaussian(), StudentT(3.0)}) == 2
