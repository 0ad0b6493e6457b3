"""Agreement with the golden trajectories of rectified flow, whose clock runs the other way.

There t = 0 is noise and t = 1 is data; here it is the reverse, so v changes its sign and an Euler
grid from 0 to 1 is ours from 1 to 0.
"""

from oracles import double, golden
import pytest
import torch

from genflow.models import Cosine, Exact, Mixture, Rectified, grid
from genflow.solvers import Adaptive, build

RECORD, A = golden("rectified_flow")


@pytest.fixture(scope="module")
def truth():
    return Exact(Rectified(), Mixture(A["w"], A["m"], A["C"]))


def close(ours, golden, atol=1e-12):
    torch.testing.assert_close(ours, golden, rtol=0, atol=atol)


@pytest.mark.parametrize("i", range(8))
def test_field(truth, i):
    """Velocity, data and noise estimates, score and log-density at eight times."""

    x, t = A["field_x"], 1 - A["field_t"][i]
    data, noise = truth.mixture.posterior(x, *truth.path(t))

    close(truth.velocity(x, t), -A["field_v"][i])
    close(truth(x, t), A["field_E_x1_data"][i])
    close(noise, A["field_E_x0_noise"][i])
    close(truth.mixture.log_prob(x, *truth.path(t)), A["field_logpt"][i])
    if t > 0:
        close(-noise / t, A["field_score"][i], atol=1e-9)


def test_divergence(truth):
    """The trace of autograd's Jacobian of v is the golden divergence."""

    x = A["field_x"]
    for i in (1, 4, 6):
        t = 1 - A["field_t"][i]
        jacobian = torch.func.vmap(torch.func.jacrev(lambda y: truth.velocity(y[None], t)[0]))(x)
        close(-jacobian.diagonal(dim1=1, dim2=2).sum(1), A["field_div"][i], atol=1e-10)


CASES = [
    *(("euler", N) for N in (1, 2, 4, 10, 100)),
    *((m, N) for m in ("heun", "midpoint") for N in (1, 2, 5, 10, 50)),
    *(("rk4", N) for N in (5, 10, 25)),
]


@pytest.mark.parametrize(("method", "N"), CASES)
def test_trajectories(truth, method, N):
    sampler = build(method, truth, N)
    x = sampler(A["z0"])
    close(x, A[f"{method}_{N}"])

    calls = {"euler": 1, "heun": 2, "midpoint": 2, "rk4": 4}[method] * N
    rmse = (x - A["z1_exact"]).square().sum(1).mean().sqrt()
    assert sampler.nfe == calls
    assert float(rmse) == pytest.approx(RECORD["rmse"][f"{method}_{N} (NFE {calls})"], rel=1e-9)


def test_ddim_is_euler(truth):
    """On the straight path one DDIM step is one Euler step, and both ends are included."""

    close(build("ddim", truth, 10)(A["z0"]), A["euler_10"])


def test_shift(truth):
    times = grid(Rectified(), 10, shift=3.0)
    close(double(times), double(RECORD["shift"]["alpha3"]), atol=1e-15)
    close(1 - double(times), A["shift3_grid_t"], atol=1e-15)
    close(build("euler", truth, 10, shift=3.0)(A["z0"]), A["euler_shift3_10"])


def test_inside_interval(truth):
    """DPM-Solver++(2M) and Euler between 0.999 and 0.001, where λ is finite."""

    ends = {"start": 0.999, "stop": 0.001}
    second = build("dpmpp-2m", truth, 10, lower_final=False, **ends)
    close(second(A["z0"]), A["dpmpp2m_10"])
    close(build("euler", truth, 10, **ends)(A["z0"]), A["euler_10_0.001_0.999"])
    exact = Adaptive(truth, rtol=1e-8, atol=1e-8, start=0.999, stop=0.001)(A["z0"])
    close(exact, A["exact_0.001_0.999"], atol=1e-6)


@pytest.mark.parametrize(("tol", "bound"), [(1e-3, 2e-1), (1e-5, 5e-3), (1e-7, 2e-5)])
def test_adaptive(truth, tol, bound):
    sampler = Adaptive(truth, rtol=tol, atol=tol)
    close(sampler(A["z0"]), A["z1_exact"], atol=bound)
    if f"tol={tol:g}, t0=0" in RECORD["rk45"]:
        nfe = RECORD["rk45"][f"tol={tol:g}, t0=0"]["NFE"]
        assert 0.6 * nfe < sampler.nfe < 1.6 * nfe


def test_encode_goes_back(truth):
    sampler = Adaptive(truth, rtol=1e-8, atol=1e-8)
    close(sampler.encode(A["lik_x1"]), A["lik_z0"], atol=1e-5)
    close(sampler(A["lik_z0"]), A["lik_x1"], atol=1e-5)


def test_log_density(truth):
    close(truth.mixture.log_prob(A["lik_x1"]), A["lik_logp_analytic"])
    assert (A["lik_logp_ode"] - A["lik_logp_analytic"]).abs().max() < 1e-10


STANDARD = [c for c in RECORD["gaussian"] if (c["mu0"], c["sigma0"], c["rho"]) == (0, 1, 0)]


@pytest.mark.parametrize("case", STANDARD, ids=lambda c: f"to{c['sigma1']}at{c['mu1']}")
def test_gaussian_euler_factors(case):
    """N Euler steps map N(0, 1) affinely onto μ₁ with the known factor of the deviation."""

    law = Mixture(double([1.0]), double([[case["mu1"]]]), double([[case["sigma1"] ** 2]]))
    z = double([[-2.0], [-0.5], [1.7]])

    for N, factor in case["euler_std_factor"].items():
        x = build("euler", Exact(Rectified(), law), int(N))(z)
        close(x, case["mu1"] + factor * z)


def test_finite_data():
    """A data set is a mixture of Diracs: its field in eight dimensions."""

    data = A["empirical/data"]
    law = Mixture(torch.ones(len(data)), data, torch.zeros_like(data))
    truth = Exact(Rectified(), law)
    for t, v in zip(A["empirical/t"], A["empirical/v"], strict=True):
        close(truth.velocity(A["empirical/x"], 1 - t), -v, atol=1e-11)


def test_one_dimensional_quantile_map():
    """In one dimension the flow is the monotone map, and stays known at inner times."""

    law = Mixture(A["mix1d/w"], A["mix1d/m"][:, None], A["mix1d/s"][:, None] ** 2)
    truth = Exact(Rectified(), law)
    for t, z in zip(A["mix1d/t"].tolist(), A["mix1d/Z_t"], strict=True):
        if t > 0:
            solve = Adaptive(truth, rtol=1e-6, atol=1e-6, stop=1 - t)
            close(solve(A["mix1d/z0"][:, None])[:, 0], z, atol=1e-4)


def test_cosine_velocity():
    """The same mixture on the path cos, sin: velocities found by the reference's conversion."""

    law = Mixture(A["w"], A["m"], A["C"])
    truth = Exact(Cosine(s=0.0), law)
    for r, v in zip(A["cosine_r"], A["cosine_velocity"], strict=True):
        close(truth.velocity(A["field_x"], 1 - r), -v, atol=1e-10)
