"""Agreement with the official samplers of EDM and PFGM++, and with ODEs solved to the end."""

import math

from oracles import double, golden
import pytest
from scipy import stats
import torch

from genflow.models import Empirical, Exact, Karras, Mixture, StudentT, grid
from genflow.solvers import Adaptive, Sampler, build, rollout, schedule_for

RECORD, ARRAYS = golden("pfgmpp")
POINTS = golden("pfgmpp_empirical")[1]
CHURNED = {
    "S_churn": "churn",
    "S_min": "churn_min",
    "S_max": "churn_max",
    "S_noise": "churn_noise",
}


def mixture():
    """The truth of the golden mixture."""

    w, mu, s = (ARRAYS[f"gmm/N2/{k}"] for k in ("w", "mu", "s"))
    return Exact(Karras(), Mixture(w, mu, s[:, None].square().expand(-1, 2)))


def points(D):
    """The truth of the golden points."""

    return Empirical(Karras(noise=StudentT(float(D))), POINTS["emp/n2k8/Y"])


# ----------------------------------------------------------------------------- D = infinity


@pytest.mark.parametrize("steps", [5, 9, 18, 40, 256])
def test_schedule(steps):
    _, sigma = Karras()(double(grid(Karras(), steps)))
    torch.testing.assert_close(sigma, ARRAYS[f"schedule/karras_n{steps}"], rtol=1e-12, atol=0)


def test_denoiser():
    truth, sigma = mixture(), ARRAYS["gmm/N2/denoise_sigma"]
    for x, s, data in zip(ARRAYS["gmm/N2/denoise_x"], sigma, ARRAYS["gmm/N2/denoise_out"]):
        t = truth.path.inverse(-s.log())
        torch.testing.assert_close(truth(x, t), data, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", ["heun_n5", "heun_n9", "heun_n18", "heun_n40"])
def test_heun(case):
    N = int(case.split("n")[-1])
    sampler = build("karras-heun", mixture(), N)
    x = sampler(80 * ARRAYS["gmm/N2/latents"])
    torch.testing.assert_close(x, ARRAYS[f"gmm/N2/{case}"], rtol=0, atol=1e-10)
    assert sampler.nfe == 2 * N - 1


@pytest.mark.parametrize("N", [9, 18, 35])
def test_euler(N):
    """Euler's method in σ is DDIM on this path."""

    x = build("ddim", mixture(), N)(80 * ARRAYS["gmm/N2/latents"])
    torch.testing.assert_close(x, ARRAYS[f"gmm/N2/euler_n{N}"], rtol=0, atol=1e-10)


def test_every_call_of_heun():
    seen, sampler = [], build("karras-heun", mixture(), 18)
    sampler(80 * ARRAYS["gmm/N2/latents"], observe=lambda i, x, D: seen.append(x))
    _, sigma = Karras()(sampler.tableau.time)
    torch.testing.assert_close(sigma, ARRAYS["gmm/N2/heun_n18_call_sigma"], rtol=1e-12, atol=0)
    calls = ARRAYS["gmm/N2/heun_n18_call_x"]
    torch.testing.assert_close(torch.stack(seen), calls, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("law", ["path", "gaussian"])
@pytest.mark.parametrize("name", "ABC")
def test_churn(name, law):
    """The official noise is drawn in every step; ours where a level is raised."""

    settings, truth = RECORD["churn"][name], mixture()
    options = {ours: float(settings[theirs]) for theirs, ours in CHURNED.items()}
    N = settings["num_steps"]
    table = schedule_for("karras-heun", truth.path, N, churn_law=law, **options)
    noise = ARRAYS[f"gmm/N2/churn{name}_noise"]
    start, stages = 80 * ARRAYS["gmm/N2/latents"], [truth] * table.nfe
    x = rollout(stages, start, table, noise=lambda i, x: noise[(i + 1) // 2])
    torch.testing.assert_close(x, ARRAYS[f"gmm/N2/churn{name}_out"], rtol=0, atol=1e-10)
    assert table.kick is None


@pytest.mark.parametrize(("name", "N"), [("heun", 9), ("heun", 18), ("heun", 40), ("euler", 9)])
def test_errors_are_as_large_as_theirs(name, N):
    key = {"heun": "karras-heun", "euler": "ddim"}[name]
    x = build(key, mixture(), N)(80 * ARRAYS["gmm/N2/latents"])
    rms = (x - ARRAYS["gmm/N2/ode_truth"]).square().sum(1).mean().sqrt()
    expected = RECORD["ode_truth_errors"][f"gmm_N2_{name}_n{N}_rms_error_to_ode_truth"]
    assert float(rms) == pytest.approx(expected, rel=0.5)


# -------------------------------------------------------------------------------- finite D


@pytest.mark.parametrize("N", [5, 9, 18])
@pytest.mark.parametrize("D", [2, 64, 2048])
def test_official_heun_at_finite_degrees(D, N):
    key = f"emp/n2k8/D{D}"
    x = build("karras-heun", points(D), N)(POINTS[f"{key}/latents"])
    torch.testing.assert_close(x, POINTS[f"{key}/official_heun_n{N}"], rtol=0, atol=1e-9)


@pytest.mark.parametrize("D", [2, 64])
def test_official_trajectories(D):
    """The states after each of the 18 steps."""

    key, seen = f"emp/n2k8/D{D}", []
    sampler = build("karras-heun", points(D), 18)
    end = sampler(POINTS[f"{key}/latents"], observe=lambda i, x, _: seen.append(x))
    states = torch.stack([*seen[2::2], end])
    torch.testing.assert_close(
        states, POINTS[f"{key}/official_heun_n18_traj"], rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("D", ["1", "64", "inf"])
def test_the_ode_at_every_level(D):
    """Solved from level to level, to a tolerance."""

    truth, key = points(D), f"emp/n2k8/D{D}"
    levels, states = POINTS[f"{key}/ode_sigma_grid"], POINTS[f"{key}/ode_traj"]
    times = truth.path.inverse(-levels.log()).tolist()
    x = states[0]

    for i in range(11):  # down to σ = 0.002
        solver = Adaptive(truth, 1e-7, 1e-8, start=times[i], stop=times[i + 1])
        x = solver(x)
        torch.testing.assert_close(x, states[i + 1], rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("D", ["1", "8", "64", "128", "1000000", "inf"])
def test_where_the_ode_ends(D):
    """Many steps of Heun's method reach the points that a solver of high order reaches."""

    truth, key = points(D), f"emp/n2k8/D{D}"
    x = build("karras-heun", truth, 300)(POINTS[f"{key}/latents"])
    gap = torch.cdist(x, POINTS["emp/n2k8/Y"])
    assert torch.equal(gap.argmin(1), POINTS[f"{key}/ode_final_index"])
    # With D = 1 the weights of the other points fall as a power of σ, and a low one in the plane.
    assert float(gap.min(1).values.max()) < (0.05 if D == "1" else 1e-6)


@pytest.mark.parametrize("D", [2.0, 64.0, math.inf])
def test_the_prior_leads_to_the_data(D):
    """From the prior, the ODE of six points in 16 dimensions ends at each as often."""

    g = torch.Generator().manual_seed(5)
    data = 0.5 * torch.randn(6, 16, generator=g, dtype=torch.float64)
    truth = Empirical(Karras(noise=StudentT(D)), data)
    sampler = build("karras-heun", truth, 80)
    start = sampler.init((1500, 16), generator=g, dtype=torch.float64)
    ends = torch.cdist(sampler(start), data)
    assert float(ends.min(1).values.max()) < 1e-3
    index = ends.argmin(1)
    assert stats.chisquare(index.bincount(minlength=6).numpy()).pvalue > 1e-3

    few = torch.cdist(build("karras-heun", truth, 18)(start), data).argmin(1)
    assert float((few == index).double().mean()) > 0.94


def test_sampler_of_a_trained_denoiser_has_the_prior_of_its_own_schedule():
    """The prior has the σ at which the schedule begins, not a usual one."""

    for low, high, D in ((0.01, 5.0, 8.0), (0.002, 380.0, 64.0)):
        path = Karras(low, high, noise=StudentT(D))
        truth = Empirical(path, torch.zeros(1, 32, dtype=torch.float64))
        for name in ("karras-heun", "dpmpp-2m", "euler"):
            sampler = build(name, truth, 6)
            assert isinstance(sampler, Sampler)
            x = sampler.init((4000, 32), generator=torch.Generator().manual_seed(0))
            cdf = path.noise.radius(32, high).cdf
            assert stats.kstest(x.double().norm(dim=1), cdf).pvalue > 1e-3
