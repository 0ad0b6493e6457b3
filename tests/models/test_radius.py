"""The law of the radius: golden numbers, and what is drawn."""

import math

from oracles import golden
import pytest
from scipy import special, stats
import torch

from genflow.errors import UserError
from genflow.models import Gaussian, Radius, StudentT
from genflow.models.gamma import log_gamma_ratio

RECORD = golden("pfgmpp")[0]


def unit(entry):
    """The law of R/r, where r = σ √D."""

    return Radius(entry["N"], entry["D"], 1 / math.sqrt(entry["D"]))


@pytest.mark.parametrize("entry", RECORD["radius"], ids=lambda e: f"{e['N']}-{e['D']:g}")
def test_golden_law(entry):
    law = unit(entry)
    for p, q in entry["R_over_r_quantiles"].items():
        assert law.quantile(float(p)) == pytest.approx(q, rel=1e-13)
        assert law.cdf(q) == pytest.approx(float(p), rel=1e-9)

    assert law.log_mean == pytest.approx(entry["logR_over_r_mean"], abs=1e-14)
    assert law.log_variance == pytest.approx(entry["logR_over_r_var"], rel=1e-14)

    if entry["R_over_r_mean"] is None:
        assert law.mean == math.inf
    else:
        assert law.mean == pytest.approx(entry["R_over_r_mean"], rel=1e-13)
    if entry["R_over_r_second_moment"] is None:
        assert law.square_mean == math.inf
    else:
        assert law.square_mean == pytest.approx(entry["R_over_r_second_moment"], rel=1e-14)


@pytest.mark.parametrize("entry", RECORD["kernel_logpdf"][::3], ids=lambda e: f"{e['N']}-{e['D']}")
def test_golden_density(entry):
    N, sigma = entry["N"], entry["sigma"]
    z = torch.zeros(1, N, dtype=torch.float64)
    z[0, 0] = entry["R"] / sigma
    log_p = float(StudentT(entry["D"]).log_prob(z)) - N * math.log(sigma)
    assert log_p == pytest.approx(entry["logpdf"], rel=1e-12, abs=1e-9)


def test_golden_coordinates():
    """Every coordinate is a Student-t variable, whatever N."""

    for D, quantiles in RECORD["coordinate_quantiles"].items():
        for p, q in quantiles.items():
            law = stats.t(float(D))
            assert law.ppf(float(p)) == pytest.approx(q, rel=1e-12)
            # In one dimension the radius is the absolute value.
            assert Radius(1, float(D)).cdf(q) == pytest.approx(2 * float(p) - 1, rel=1e-10)


DRAWN = [
    (1, 0.5), (2, 0.5), (2, 1), (2, 128), (16, 0.5), (64, 64), (3072, 0.5), (3072, 1), (3072, 2),
    (3072, 64), (3072, 128), (3072, 2048), (3072, 3072), (3072, 1e6), (3072, 3072000),
    (12288, 128), (196608, 0.5), (196608, 128), (196608, 2048), (196608, 1e6),
]  # fmt: skip


def radii(N, D, total):
    """Radii of float32 noise, drawn in batches that memory holds."""

    g, at_once = torch.Generator().manual_seed(7), max(1, 2_000_000 // N)
    parts = []
    for first in range(0, total, at_once):
        size = min(at_once, total - first)
        z = StudentT(D).sample((size, N), generator=g)
        parts.append(torch.linalg.vector_norm(z, dim=1, dtype=torch.float64))
    return torch.cat(parts).numpy()


@pytest.mark.parametrize(("N", "D"), DRAWN)
def test_drawn_radii(N, D):
    drawn = radii(N, D, 10_000 if N < 100 else 1500 if N < 1e5 else 150)
    assert stats.kstest(drawn, StudentT(D).radius(N).cdf).pvalue > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("N", "D"), DRAWN)
def test_drawn_radii_many(N, D):
    drawn = radii(N, D, 100_000 if N < 100 else 10_000 if N < 1e5 else 1500)
    assert stats.kstest(drawn, StudentT(D).radius(N).cdf).pvalue > 1e-3


def test_infinite_degrees_are_the_limit():
    far, limit = Radius(3072, 1e14, 2.0), Gaussian().radius(3072, 2.0)
    assert limit == StudentT(math.inf).radius(3072, 2.0)
    assert limit.mean == pytest.approx(2 * stats.chi(3072).mean(), rel=1e-12)
    assert limit.square_mean == 4 * 3072
    for p in (1e-3, 0.5, 0.999):
        assert limit.quantile(p) == pytest.approx(2 * stats.chi(3072).ppf(p), rel=1e-12)
        assert far.quantile(p) == pytest.approx(limit.quantile(p), rel=1e-10)
    for name in ("mean", "square_mean", "log_mean", "log_variance"):
        assert getattr(far, name) == pytest.approx(getattr(limit, name), rel=1e-10)


def test_spread_and_trust():
    assert Radius(3072, 64).spread == pytest.approx(0.0900, abs=1e-4)
    assert Radius(3072, 2048).spread == pytest.approx(0.0202, abs=1e-4)
    assert Radius(3072).spread == pytest.approx(0.01276, abs=1e-5)
    assert Radius(3072, 1024).trust == 0.25 and Radius(3072).trust == 1.0
    for N, D in ((3072, 500.0), (64, 64.0)):
        assert Radius(N, D).spread == pytest.approx(math.sqrt((1 / N + 1 / D) / 2), rel=0.02)


def test_the_posterior_scale_that_trust_speaks_of():
    """Around R the log-density has the slope of a Gaussian of variance (D σ² + R²)/(N + D)."""

    N, D, r = 48, 10.0, 6.0
    law, square = StudentT(D), torch.tensor([r**2], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(law.log_radial(square, N).sum(), square)
    assert float(slope) == pytest.approx(-0.5 * (N + D) / (D + r**2), rel=1e-12)


@pytest.mark.parametrize("b", [-0.5, 0.5, 1.0, 37.25, 1536.0])
def test_ratio_of_gammas(b):
    """Exact where b is whole; elsewhere, and for a beyond all cancellation, by the series."""

    for a in (0.6, 3.0, 15.9, 16.1, 40.0, 1e4):
        truth = special.loggamma(a + b) - special.loggamma(a)
        assert log_gamma_ratio(a, b) == pytest.approx(truth, rel=1e-10, abs=1e-11)
    for a in (1e12, 1e18, 1e300):
        leading = b * math.log(a) + b * (b - 1) / (2 * a)
        assert log_gamma_ratio(a, b) == pytest.approx(leading, rel=1e-9)
    product = sum(math.log(1e9 + k) for k in range(50))
    assert log_gamma_ratio(1e9, 50) == pytest.approx(product, rel=1e-14)


@pytest.mark.parametrize(
    ("numbers", "words"),
    [((0, 1.0), "N is 0"), ((2, 0.0), "D is 0.0"), ((2, math.nan), "D is nan"),
     ((2, 1.0, -1.0), "sigma is -1.0"), ((2, 1.0, math.inf), "sigma is inf")],
)  # fmt: skip
def test_refusals(numbers, words):
    with pytest.raises(UserError, match=words):
        Radius(*numbers)
