"""The Bures distance and the unexplained variance against closed forms and SciPy."""

import pytest
import scipy.linalg
import torch

from genflow.data import anisotropic, isotropic
from genflow.errors import UserError
from genflow.metrics import bures_distance, bw_uvp, cbw_uvp, cbw_uvp_from_samples
from genflow.metrics.frechet import Moments, frechet_distance

F64 = torch.float64


def random_laws(n, d, seed, rank=None):
    g = torch.Generator().manual_seed(seed)
    R = torch.randn(n, d, rank or d, generator=g, dtype=F64)
    return torch.randn(n, d, generator=g, dtype=F64), R @ R.mT


def test_by_scipys_square_root_and_half_the_frechet_distance():
    (m_1, C_1), (m_2, C_2) = random_laws(5, 4, 0), random_laws(5, 4, 1)
    found = bures_distance(m_1, C_1, m_2, C_2)
    for i in range(5):
        root = scipy.linalg.sqrtm(C_1[i].numpy())
        cross = scipy.linalg.sqrtm(root @ C_2[i].numpy() @ root).trace().real
        truth = 0.5 * float((m_1[i] - m_2[i]).square().sum() + (C_1[i] + C_2[i]).trace()) - cross
        assert float(found[i]) == pytest.approx(truth, rel=1e-10)
        whole = frechet_distance(Moments(9, m_1[i], C_1[i]), Moments(9, m_2[i], C_2[i]))
        assert float(found[i]) == pytest.approx(whole / 2, rel=1e-10)


def test_one_dimension_and_singular_covariances():
    found = bures_distance(
        torch.tensor([[1.0]]),
        torch.tensor([[[4.0]]]),
        torch.tensor([[3.0]]),
        torch.tensor([[[9.0]]]),
    )  # ½ (shift² + (difference of deviations)²)
    assert float(found) == pytest.approx(0.5 * (4 + 1), rel=1e-12)
    m, C = random_laws(3, 5, 2, rank=2)
    assert float(bures_distance(m, C, m, C).max()) < 1e-12
    point = bures_distance(m, 0 * C, m, C)
    assert torch.allclose(point, 0.5 * C.diagonal(dim1=1, dim2=2).sum(1), rtol=1e-12)


def test_bw_uvp_of_a_constant_is_a_hundred():
    y = torch.randn(500, 3, generator=torch.Generator().manual_seed(0), dtype=F64) * 2 + 1
    constant = y.mean(0).expand(2, 3)
    assert bw_uvp(constant, y) == pytest.approx(100, rel=1e-10)
    assert bw_uvp(y, y) == pytest.approx(0, abs=1e-10)
    line = y[:, :1]
    shifted = bw_uvp(line + 3, line)
    assert shifted == pytest.approx(100 * 9 / float(line.var()), rel=1e-10)


def test_cbw_uvp_of_the_constant_that_knows_no_start_is_a_hundred():
    problem = anisotropic(3, 1.0)
    x = problem.source(20_000, generator=torch.Generator().manual_seed(0))
    mean, covariance = problem.moments(x)
    between = mean.T.cov()
    variance = float(between.trace() + covariance.mean(0).trace())
    constant = mean.mean(0).expand_as(mean), torch.zeros_like(covariance)
    found = cbw_uvp(*constant, mean, covariance, variance=variance)
    assert found == pytest.approx(100, rel=1e-3)
    assert cbw_uvp(mean, covariance, mean, covariance, variance=variance) < 1e-10


def test_samples_of_the_truth_have_a_floor_that_falls_with_their_number():
    problem = isotropic(2, 1.0)
    x = problem.source(100, generator=torch.Generator().manual_seed(0))
    mean, covariance = problem.moments(x)
    root = torch.linalg.cholesky(covariance)
    g = torch.Generator().manual_seed(1)
    floor = {}
    for m in (100, 1000):
        z = torch.randn(100, m, 2, generator=g, dtype=F64)
        draws = mean[:, None] + torch.einsum("nde,nme->nmd", root, z)
        floor[m] = cbw_uvp_from_samples(draws, mean, covariance, variance=17.0)
    assert 5 < floor[100] / floor[1000] < 20
    assert 0.01 < floor[1000] < 0.3


def test_bad_input_is_told_in_one_sentence():
    m, C = random_laws(2, 3, 0)
    for call, sentence in [
        (lambda: bures_distance(m, C, m[:1], C[:1]), "do not go together"),
        (lambda: bures_distance(m, C * torch.nan, m, C), "NaN or infinite"),
        (lambda: cbw_uvp(m, C, m, C, variance=0.0), "variance: 0.0 leaves nothing"),
        (lambda: cbw_uvp_from_samples(m, m, C, variance=1.0), r"shape \(2, 3\) is not"),
        (lambda: cbw_uvp_from_samples(m[:, None], m, C, variance=1.0), "m of 2 or more"),
        (lambda: bw_uvp(m[:1], m), "1 points are too few"),
    ]:
        with pytest.raises(UserError, match=sentence):
            call()
