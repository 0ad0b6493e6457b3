"""Laws of the training time against golden quantiles, densities and closed forms."""

import math

import numpy as np
from oracles import golden
import pytest
from scipy import stats
import torch

from genflow.errors import UserError
from genflow.models import Rectified
from genflow.training import CosMap, Grid, LogitNormal, LogNormal, Mode, UShaped

RECORD, A = golden("rectified_flow")
U = A["tsample/u"]
PATH = Rectified()

GOLDEN = {
    "ushape_a4": (UShaped(), lambda q: q),
    "logit_normal_0_1": (LogitNormal(), lambda q: q),
    # the source states f(u) = 1 − Q(u), as the law of the data's clock
    "mode_s1.29 (noise time)": (Mode(1.29), lambda q: 1 - q),
    "cosmap (noise time)": (CosMap(), lambda q: q),
    "edm_skew Pmean-1.2 Pstd1.2 (data time)": (LogNormal(), lambda q: 1 - q),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_quantiles(name):
    law, turned = GOLDEN[name]
    u = U.flip(0) if "edm" in name else U
    torch.testing.assert_close(
        turned(law.quantile(u, PATH)),
        A[f"tsample/{name}"],
        rtol=0,
        atol=2e-4 if "edm" in name else 1e-12,
    )


LAWS = [UShaped(), UShaped(1.0), Mode(-0.9), Mode(1.29), CosMap()]


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_quantiles_rise_from_0_to_1(law):
    u = torch.linspace(0, 1, 1001, dtype=torch.float64)
    t = law.quantile(u, PATH)
    assert (t.diff() > 0).all()
    torch.testing.assert_close(t[[0, -1]], torch.tensor([0.0, 1.0], dtype=torch.float64))


def test_densities():
    """The derivative of the quantile is one over the published density."""

    u = torch.linspace(0.01, 0.99, 99, dtype=torch.float64, requires_grad=True)

    def density(law):
        t = law.quantile(u, PATH)
        return t.detach(), 1 / torch.autograd.grad(t.sum(), u)[0]

    t, p = density(UShaped(4.0))
    torch.testing.assert_close(p, 4 * torch.cosh(4 * (t - 0.5)) / (2 * math.sinh(2.0)))
    t, p = density(CosMap())
    torch.testing.assert_close(p, 2 / (math.pi - 2 * math.pi * t + 2 * math.pi * t**2))


def test_draws_of_the_u_shape():
    t = UShaped().sample(20_000, PATH, generator=torch.Generator().manual_seed(0))
    assert float(t.var()) == pytest.approx(0.115671319818113, abs=2e-3)

    def cdf(t):
        return 0.5 + np.sinh(4 * (t - 0.5)) / (2 * math.sinh(2))

    assert stats.kstest(t.double().numpy(), cdf).pvalue > 1e-3


def test_the_grid_is_where_a_sampler_calls():
    for k in (1, 2, 4):
        t = Grid(k).sample(4000, PATH, generator=torch.Generator().manual_seed(k))
        values, counts = t.unique(return_counts=True)
        torch.testing.assert_close(values, torch.arange(1, k + 1) / k)
        assert (counts - 4000 / k).abs().max() < 5 * math.sqrt(4000 / k)

    t = Grid(4, stratified=True).sample(8, PATH)
    assert t.tolist() == [0.25] * 2 + [0.5] * 2 + [0.75] * 2 + [1.0] * 2


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (lambda: UShaped(0.0), "a is 0.0"),
        (lambda: Mode(1.8), "s is 1.8: allowed are -1 to 1.7519"),
        (lambda: Mode(-1.1), "s is -1.1"),
        (lambda: Grid(0), "steps is 0"),
    ],
)
def test_laws_that_cannot_be(bad, words):
    with pytest.raises(UserError, match=words):
        bad()
