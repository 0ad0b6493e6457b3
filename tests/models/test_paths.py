"""Paths: their limits, rates, inverses and records."""

import json
import math

from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import PATHS, double, linear_path
import pytest
import torch

from genflow.errors import UserError
from genflow.models import (
    Brownian,
    Cosine,
    Discrete,
    Gaussian,
    Karras,
    Rectified,
    StudentT,
    VariancePreserving,
    path_from_dict,
    path_to_dict,
)

EVERY_PATH = pytest.mark.parametrize("kind", PATHS)
INNER = torch.linspace(0.01, 0.99, 57, dtype=torch.float64)


@EVERY_PATH
def test_clean_data_at_zero(kind):
    alpha, sigma = PATHS[kind](double([0.0]))
    assert alpha.item() == 1 and sigma.item() == 0


@EVERY_PATH
def test_monotone(kind):
    path = PATHS[kind]
    t = torch.linspace(path.t_min, path.t_max, 400, dtype=torch.float64)
    alpha, sigma = path(t)
    assert bool((alpha.diff() <= 0).all() and (sigma.diff() > 0).all())
    assert bool((path.lam(t).diff() < 0).all())
    assert 0 <= path.t_min < path.t_max <= 1


@EVERY_PATH
def test_rates(kind):
    """α̇ and σ̇ against autograd; between the kinks of a discrete path."""

    path, t = PATHS[kind], (INNER + 0.0003).requires_grad_()
    alpha, sigma = path(t)
    rates = path.rates(t.detach())
    for value, rate in zip((alpha, sigma), rates, strict=True):
        if value.requires_grad:
            (slope,) = torch.autograd.grad(value.sum(), t, retain_graph=True)
        else:
            slope = torch.zeros_like(t)
        torch.testing.assert_close(rate, slope, rtol=1e-8, atol=1e-10)


@EVERY_PATH
@given(u=st.floats(0.0, 1.0))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_inverse(kind, u):
    path = PATHS[kind]
    low = max(path.t_min, 1e-4)
    t = double(low + u * (path.t_max - low))
    lam = path.lam(t)
    if torch.isfinite(lam):
        assert float(path.inverse(lam)) == pytest.approx(float(t), rel=1e-8)
        assert float(path.lam(path.inverse(lam))) == pytest.approx(float(lam), rel=1e-8, abs=1e-8)


@pytest.mark.parametrize("kind", ["vp", "cosine", "discrete", "rectified"])
def test_inverse_is_finite_far_out(kind):
    t = PATHS[kind].inverse(double([-40.0, -15.0, 15.0, 40.0, math.inf]))
    assert bool(t.isfinite().all())
    assert float(t[-1]) == pytest.approx(0, abs=1e-12)


@EVERY_PATH
def test_lam_is_what_it_says(kind):
    path = PATHS[kind]
    alpha, sigma = path(INNER)
    torch.testing.assert_close(path.lam(INNER), torch.log(alpha / sigma))
    if kind in ("vp", "cosine", "discrete"):
        torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha))


@EVERY_PATH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_and_precision(kind, dtype):
    """Functions keep the dtype, and float32 stays close to float64, near data as well."""

    path, t = PATHS[kind], torch.tensor([0.002, 0.03, 0.4, 0.9], dtype=dtype)
    for value, truth in zip(
        (*path(t), path.lam(t), path.inverse(path.lam(t))),
        (*path(t.double()), path.lam(t.double()), t.double()),
        strict=True,
    ):
        assert value.dtype == dtype and value.shape == t.shape
        torch.testing.assert_close(value.double(), truth, rtol=5e-3, atol=1e-5)


@EVERY_PATH
def test_perturb(kind):
    path = PATHS[kind]
    x, z = torch.randn(2, 3, 2, 4, dtype=torch.float64)
    t = double([0.1, 0.5, 0.9])
    alpha, sigma = path(t)
    truth = torch.stack([alpha[i] * x[i] + sigma[i] * z[i] for i in range(3)])
    torch.testing.assert_close(path.perturb(x, z, t), truth)
    torch.testing.assert_close(path.perturb(x, z, t[1]), alpha[1] * x + sigma[1] * z)


# ------------------------------------------------------------------------- path by path


def test_variance_preserving_integrates_beta():
    """log α = −½ ∫ β with β = β₀ + t (β₁ − β₀)."""

    t = double([0.3, 1.0])
    beta = 0.1 * t + (20 - 0.1) * t**2 / 2
    torch.testing.assert_close(VariancePreserving()(t)[0], torch.exp(-beta / 2))


def test_cosine_is_the_published_one():
    path, t = Cosine(), double([0.0, 0.2, 0.7, 0.9946, 1.0])
    cosine = torch.cos((t + 0.008) / 1.008 * math.pi / 2)
    torch.testing.assert_close(path(t)[0], cosine / cosine[0])
    assert path(t)[0][-1] == 0 and path.lam(t)[-1] == -math.inf


def test_cosine_near_data_in_single_precision():
    """σ² is formed without cancellation: float32 is good to rounding at small times."""

    t = torch.tensor([1e-4, 1e-3, 1e-2])
    single, true = Cosine()(t)[1].double(), Cosine()(t.double())[1]
    torch.testing.assert_close(single, true, rtol=1e-6, atol=0)


def test_discrete_levels_are_the_cumulated_products():
    path = linear_path()
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    levels = torch.arange(1, 1001, dtype=torch.float64) / 1000
    torch.testing.assert_close(path(levels)[0] ** 2, (1 - beta).cumprod(0), rtol=1e-9, atol=0)
    assert path.levels == 1000 and path.t_min == 1 / 1000
    halfway = path(double([0.4995]))[0].log()
    ends = path(double([0.499, 0.500]))[0].log()
    torch.testing.assert_close(halfway, ends.mean(0, keepdim=True))


def test_discrete_with_zero_terminal_signal():
    """ᾱ = 0 at the last level is kept just above, so that a state can be divided by α."""

    path = Discrete((0.9, 0.5, 0.0))
    assert 0 < float(path(double([1.0]))[0]) < 1e-3
    assert math.isfinite(float(path.lam(double([1.0]))))


def test_discrete_is_a_value():
    again = Discrete(torch.tensor([0.9, 0.5, 0.1]))
    assert again == Discrete(torch.tensor([0.9, 0.5, 0.1])) and len({again, again}) == 1
    assert again != Discrete((0.9, 0.5, 0.2))
    assert again != Discrete(again.alphas_cumprod, StudentT(3.0))


def test_rectified():
    alpha, sigma = Rectified()(double([0.25]))
    assert (alpha.item(), sigma.item()) == (0.75, 0.25)
    assert [r.item() for r in Rectified().rates(double([0.25]))] == [-1, 1]


def test_karras_clock():
    """σ = 80 t⁷, so that its grid is uniform in t, and t_min is where σ = 0.002."""

    path = Karras()
    assert float(path(double(path.t_min))[1]) == pytest.approx(0.002, rel=1e-12)
    assert float(path(double(1.0))[1]) == 80


def test_brownian_variance():
    assert float(Brownian(0.3)(double(0.5))[1] ** 2) == pytest.approx(0.15)


# ------------------------------------------------------------------------------- records


@pytest.mark.parametrize(
    "path",
    [
        VariancePreserving(0.2, 15.0, 1e-4),
        Cosine(0.01),
        Discrete((0.9, 0.5, 0.1)),
        Rectified(),
        Karras(0.01, 50.0, 5.0),
        Karras(noise=StudentT(128.0)),
        Karras(noise=StudentT(math.inf)),
        Brownian(0.5),
    ],
    ids=str,
)
def test_json_round_trip(path):
    text = json.dumps(path_to_dict(path), allow_nan=False)
    again = path_from_dict(json.loads(text))
    assert again == path and type(again) is type(path)
    assert again.noise == path.noise


def test_records_are_checked():
    with pytest.raises(UserError, match="path.class is 'Karas': did you mean 'Karras'"):
        path_from_dict({"class": "Karas"})
    with pytest.raises(UserError, match="path.sigma_mx .*did you mean 'sigma_m"):
        path_from_dict({"class": "Karras", "sigma_mx": 80})
    with pytest.raises(UserError, match="path.class"):
        path_from_dict({})


REFUSED = {
    "beta": (lambda: VariancePreserving(5.0, 1.0), "beta_min is 5.0 and beta_max is 1.0"),
    "cosine": (lambda: Cosine(-0.1), "s is -0.1"),
    "rising levels": (lambda: Discrete((0.5, 0.9)), "holds 2 values from 0.5 to 0.9"),
    "one level": (lambda: Discrete((0.5,)), "alphas_cumprod holds 1 values"),
    "negative level": (lambda: Discrete((0.5, -0.1)), "alphas_cumprod"),
    "sigmas": (lambda: Karras(1.0, 0.5), "sigma_min is 1.0 and sigma_max is 0.5"),
    "rho": (lambda: Karras(rho=0.0), "rho is 0.0"),
    "epsilon": (lambda: Brownian(0.0), "epsilon is 0.0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_impossible_paths_are_refused(name):
    make, message = REFUSED[name]
    with pytest.raises(UserError, match=message):
        make()


def test_usual_noise():
    assert all(path.noise == Gaussian() for path in PATHS.values())


def test_small_levels_are_kept_and_a_vanishing_last_one_stays_below_them():
    small = Discrete((0.9, 0.1, 2.4e-9))
    alpha, _ = small(torch.tensor(1.0, dtype=torch.float64))
    assert alpha.square().item() == pytest.approx(2.4e-9, rel=1e-12)

    for last in (1e-3, 1e-9):
        alpha, _ = Discrete((0.9, last, 0.0))(torch.tensor([2 / 3, 1.0], dtype=torch.float64))
        kept = alpha.square().tolist()
        assert kept == pytest.approx([last, min(2.0**-24, 0.5 * last)])
