"""SDEs that keep the marginals, re-interpolation, straightness and its identities, likelihood."""

import math

from oracles import double, golden
import pytest
import torch

from genflow.errors import UserError
from genflow.models import (
    Exact,
    Karras,
    Mixture,
    Rectified,
    StudentT,
    VariancePreserving,
    grid,
)
from genflow.solvers import build, schedule_for
from genflow.solvers.flows import euler_maruyama
from genflow.solvers.likelihood import Likelihood, bits_per_dim, dequantised
from genflow.solvers.straightness import crossing, flow_report, transport_cost

RECORD, A = golden("rectified_flow")


@pytest.fixture(scope="module")
def truth():
    return Exact(Rectified(), Mixture(A["w"], A["m"], A["C"]))


def gaussian(s, path=None, d=1):
    """The denoiser of N(0, s² I)."""

    return Exact(
        path or Rectified(), Mixture(double([1.0]), double([[0.0] * d]), double([[s * s] * d]))
    )


# ------------------------------------------------------------------------------------- SDE


def variance(table, path, s):
    """The variance that a table makes of N(0, s²), step by step: the denoiser is linear."""

    alpha, sigma = path(table.time)
    gain = alpha * s**2 / (alpha**2 * s**2 + sigma**2)
    v = path(table.time[0])[1] ** 2
    for row, k, c in zip(table.weight, gain, table.noise[1:], strict=True):
        v = (row[0] + row[1] * k) ** 2 * v + c**2
    return float(v)


@pytest.mark.parametrize("s", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("diffusion", [0.0, 1.0, 3.0])
def test_the_sde_ends_with_the_variance_of_the_data(s, diffusion):
    """The error halves with the step. A wrong drift stays off: 0.785 instead of 1 in one case."""

    path = Rectified()
    off = [
        variance(euler_maruyama(path, grid(path, n, "uniform"), diffusion=diffusion), path, s)
        - s * s
        for n in (200, 400, 800)
    ]
    assert abs(off[-1]) < 0.01 * s * s
    for coarse, fine in zip(off, off[1:], strict=False):
        assert 1.7 < coarse / fine < 2.4


def test_the_sde_is_right_on_other_paths():
    for path in (VariancePreserving(), Karras(0.002, 20.0)):
        off = []
        for n in (500, 1000):
            times = grid(path, n, "uniform", final="min")
            alpha, sigma = path(double(times[-1]))
            exact = float(alpha**2 * 0.25 + sigma**2)
            off.append(variance(euler_maruyama(path, times), path, 0.5) - exact)
        assert abs(off[1]) < 0.6 * abs(off[0]) and abs(off[1]) < 0.02


def test_without_diffusion_it_is_euler(truth):
    x = A["z0"]
    a = build("euler", truth, 10, grid="uniform")(x)
    b = build("euler-maruyama", truth, 10, grid="uniform", diffusion=0.0)(x)
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_fresh_noise_follows_the_seed(truth):
    sampler = build("euler-maruyama", truth, 10, grid="uniform")
    x = A["z0"]
    one, two, three = (sampler(x, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(one, two) and not torch.equal(one, three)
    with pytest.raises(UserError, match="diffusion is -1"):
        build("euler-maruyama", truth, 10, diffusion=-1.0)
    with pytest.raises(UserError, match="for Gaussian noise only"):
        schedule_for("euler-maruyama", Karras(noise=StudentT(8.0)), 10)


# ------------------------------------------------------------------------- re-interpolation


@pytest.mark.parametrize("N", [1, 2, 4, 10, 100])
def test_reinterpolation_is_golden(truth, N):
    options = {"steps": N, "grid": "uniform"}
    if N > 2:
        with pytest.warns(UserWarning, match="straight flows"):
            sampler = build("reinterpolate", truth, **options)
    else:
        sampler = build("reinterpolate", truth, **options)
    torch.testing.assert_close(sampler(A["z0"]), A[f"reinterp_{N}"], rtol=0, atol=1e-11)


def test_reinterpolation_knows_its_noise():
    """For data at one point the estimate is that point, and every state is on its line."""

    for path in (VariancePreserving(), Karras()):
        table = schedule_for("reinterpolate", path, 2)
        alpha, sigma = path(table.time)
        x, z = double([3.0]), double([-1.5])
        row = table.weight[1]
        state = row[0] * 0 + row[1] * x + row[2] * sigma[0] * z
        end = path(double(grid(path, 2)[-1]))
        torch.testing.assert_close(state, end[0] * x + end[1] * z)


# ----------------------------------------------------------------------------- straightness


def normal(n, d, seed=0):
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(n, d, generator=g, dtype=torch.float64)
    z = torch.cat([z, -z])
    return z / z.square().mean(0).sqrt()  # mean 0 and variance 1 exactly


@pytest.mark.parametrize("s", [0.5, 1.0, 2.0])
def test_straightness_of_gaussians(s):
    """S = (2 − π/2) s and V = (π/2) s in one dimension; their sum is 2 s."""

    z = normal(500, 1)
    report = flow_report(gaussian(s), z, steps=50)
    S, V = (2 - math.pi / 2) * s, math.pi / 2 * s
    assert report.straightness == pytest.approx(S, rel=1e-5)
    assert report.cost[2.0] == pytest.approx((1 - s) ** 2, abs=1e-6)
    assert report.relative == pytest.approx(S / max((1 - s) ** 2, 1e-12), rel=1e-3) or s == 1

    x = s * normal(20_000, 1, seed=1)
    z = normal(20_000, 1, seed=2)
    found = crossing(gaussian(s), x, z, generator=torch.Generator().manual_seed(0))
    error = float(found.std()) / math.sqrt(len(found))
    assert float(found.mean()) == pytest.approx(V, abs=4 * error)


def test_straightness_in_three_dimensions():
    """A rotated case of the golden file: S, and the cost of the flow's map."""

    record, S1 = RECORD["gauss_3d"]["identity_source"], A["gauss3d/identity_source/S1"]
    flow = Exact(Rectified(), Mixture(double([1.0]), double([[0.0] * 3]), S1[None]))
    z = math.sqrt(3) * torch.cat([torch.eye(3), -torch.eye(3)]).double()  # covariance I
    report = flow_report(flow, z, steps=100)
    assert report.straightness == pytest.approx(record["S(1RF)"], rel=1e-6)
    assert report.cost[2.0] == pytest.approx(record["cost2_1RF"], rel=1e-6)


def test_the_constants_of_the_mixture(truth):
    """S, V and E‖Z₁ − Z₀‖^p against quadrature; rectifying lowers every convex cost."""

    z = normal(4000, 2)
    x = truth.mixture.sample(8000, generator=torch.Generator().manual_seed(1))
    golden_numbers = RECORD["straightness"]
    report = flow_report(truth, z, steps=20, powers=(1.0, 2.0, 4.0), batch_size=8000)
    assert report.straightness == pytest.approx(golden_numbers["S"], rel=0.05)
    V = float(crossing(truth, x, z, generator=torch.Generator().manual_seed(3)).mean())
    assert pytest.approx(golden_numbers["V"], rel=0.06) == V

    for p in (1.0, 2.0, 4.0):
        exact = golden_numbers["cost_p"][str(int(p))]
        assert report.cost[p] == pytest.approx(exact, rel=0.06)
        assert report.cost[p] < float(transport_cost(x, z, p).mean())

    before = float(transport_cost(x, z).mean())
    assert before - report.cost[2.0] == pytest.approx(report.straightness + V, rel=0.06)


def test_few_euler_steps_are_as_far_off_as_stated(truth):
    report = flow_report(truth, A["z0"], steps=200, euler=(1, 4, 10))
    for n, rmse in report.error.items():
        golden_rmse = float((A[f"euler_{n}"] - A["z1_exact"]).square().mean().sqrt())
        assert rmse == pytest.approx(golden_rmse, rel=1e-4)
    assert report.nfe == 800 and set(report.to_dict()["error"]) == {1, 4, 10}


@pytest.mark.parametrize("method", ["euler", "midpoint", "heun", "rk4"])
def test_the_estimate_is_never_negative(method):
    """One coarse step of a nearly straight flow: a difference of squares, but no cancellation."""

    report = flow_report(gaussian(1e-3), normal(10, 1), steps=1, method=method, euler=())
    assert report.straightness >= -1e-12


def test_flows_that_cannot_be_reported(truth):
    with pytest.raises(UserError, match="run from data to noise in unit time"):
        flow_report(gaussian(1.0, Karras()), normal(2, 1))
    with pytest.raises(UserError, match="no states"):
        flow_report(truth, torch.empty(0, 2))


# ------------------------------------------------------------------------------- likelihood


def test_golden_likelihoods(truth):
    found = Likelihood(truth, rtol=1e-10, atol=1e-10)(A["lik_x1"])
    torch.testing.assert_close(found.latent, A["lik_z0"], rtol=0, atol=1e-8)
    torch.testing.assert_close(found.log_prob, A["lik_logp_ode"], rtol=0, atol=1e-8)
    torch.testing.assert_close(found.log_prob, A["lik_logp_analytic"], rtol=0, atol=1e-8)


@pytest.mark.parametrize("path", [Rectified(), VariancePreserving(), Karras(0.002, 80.0)])
def test_likelihood_on_every_path(truth, path):
    """The density where the path stops; it is the mixture's once the prior is nearly exact."""

    flow = Exact(path, truth.mixture)
    alpha, sigma = path(double(path.t_min))
    x = alpha * A["lik_x1"]
    found = Likelihood(flow, rtol=1e-6, atol=1e-6)(x)
    expected = truth.mixture.log_prob(x, alpha, sigma)
    torch.testing.assert_close(found.log_prob, expected, rtol=0, atol=0.06)
    torch.testing.assert_close(found.log_prob, found.prior + found.divergence)


def test_hutchinson_is_unbiased_and_keeps_its_probe(truth):
    """In two dimensions the mean over (1, 1) and (1, −1) is the exact divergence."""

    x = A["lik_x1"]
    exact = Likelihood(truth)(x)
    seen = []

    class Both(Likelihood):
        def _probes(self, x, generator):
            seen.append(1)
            one = torch.ones_like(x)
            return [one, one * double([1.0, -1.0])]

    both = Both(truth, "hutchinson", probes=2)(x)
    torch.testing.assert_close(both.log_prob, exact.log_prob, rtol=0, atol=1e-4)
    assert len(seen) == 1 < both.nfe

    one = Likelihood(truth, "hutchinson")
    a, b, c = (one(x, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(a.log_prob, b.log_prob) and not torch.equal(a.log_prob, c.log_prob)
    many = one(x[:1].expand(400, -1), generator=torch.Generator().manual_seed(2)).log_prob
    error = float(many.std()) / math.sqrt(400)
    assert float(many.mean()) == pytest.approx(float(exact.log_prob[0]), abs=4 * error)
    assert error > 1e-3


@pytest.mark.parametrize("law", ["rademacher", "gaussian"])
def test_probes_have_unit_covariance(truth, law):
    e = torch.cat(Likelihood(truth, "hutchinson", law=law)._probes(torch.zeros(20_000, 2), None))
    torch.testing.assert_close(e.T.cov(), torch.eye(2), rtol=0, atol=0.05)


def test_a_fixed_grid_converges_to_the_same(truth):
    x = A["lik_x1"]
    exact = A["lik_logp_analytic"]
    off = [
        float((Likelihood(truth, method="rk4", steps=n)(x).log_prob - exact).abs().max())
        for n in (20, 40)
    ]
    assert off[1] < off[0] / 8 and off[1] < 1e-3


def test_likelihood_of_images_and_of_student_noise():
    """Samples of any shape; the prior is the law of the path's noise at its largest scale."""

    flow = gaussian(0.5, d=12)
    x = torch.randn(3, 3, 2, 2, dtype=torch.float64)
    found = Likelihood(flow, rtol=1e-7, atol=1e-7)(x)
    expected = flow.mixture.log_prob(x.flatten(1))
    torch.testing.assert_close(found.log_prob, expected, rtol=0, atol=1e-4)

    class Shrink(type(flow)):
        """Data at the origin: the flow is the dilation by σ, whatever the noise."""

        def __init__(self, path):
            torch.nn.Module.__init__(self)
            self.path = path

        def velocity(self, x, t):
            return self.path.rates(t)[1] / self.path(t)[1] * x

    path = Karras(0.5, 20.0, noise=StudentT(3.0))
    x = torch.randn(4, 2, dtype=torch.float64)
    found = Likelihood(Shrink(path), rtol=1e-9, atol=1e-9)(x)
    expected = path.noise.log_prob(x / 0.5) - 2 * math.log(0.5)
    torch.testing.assert_close(found.log_prob, expected, rtol=0, atol=1e-6)


def test_bits_per_dim_of_what_is_known():
    """Uniform grey levels cost 8 bits; a level that is certain costs none."""

    d = 7
    uniform = torch.full((1,), -d * math.log(256 / 127.5), dtype=torch.float64)
    assert float(bits_per_dim(uniform, d)) == pytest.approx(8.0)
    certain = torch.full((1,), d * math.log(127.5), dtype=torch.float64)
    assert float(bits_per_dim(certain, d)) == pytest.approx(0.0)

    images = torch.arange(256, dtype=torch.uint8).repeat(40, 1)
    x = dequantised(images, generator=torch.Generator().manual_seed(0))
    cell = (x + 1) * 127.5 - images
    assert cell.abs().max() <= 0.5001 and abs(cell.mean()) < 0.01
    assert ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).eq(images).float().mean() > 0.99
    with pytest.raises(UserError, match="needs uint8"):
        dequantised(x)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"divergence": "exakt"}, "divergence is 'exakt'"),
        ({"law": "cauchy"}, "law is 'cauchy'"),
        ({"probes": 0}, "probes is 0"),
        ({"rtol": 0.0}, "rtol is 0.0"),
        ({"steps": 0}, "steps is 0"),
    ],
)
def test_likelihoods_that_cannot_be(truth, options, words):
    with pytest.raises(UserError, match=words):
        Likelihood(truth, **options)
