"""The unit-scale laws of the noise, against scipy."""

import math

import numpy as np
import pytest
from scipy import stats
import torch

from genflow.errors import UserError
from genflow.models import Gaussian, StudentT
from genflow.models.noise import draw

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


def test_heavy_tails_do_not_overflow():
    """With few degrees of freedom the Gamma may be tiny: float64 keeps the draws finite."""

    assert bool(sample(StudentT(0.5), (10_000, 2)).isfinite().all())


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
