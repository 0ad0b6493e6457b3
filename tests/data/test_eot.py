"""Problems of transport with a known plan: golden numbers, Sinkhorn's fixed point, and draws."""

import math

from oracles import golden
import pytest
import torch

from genflow.data import KnownPlan, anisotropic, isotropic
from genflow.errors import UserError

INFO, ARRAYS = golden("bridge_problems")
NAMES = sorted(INFO["problems"])


def kept(name):
    """A golden problem, and its arrays."""
    a = {
        k.rsplit("/", 1)[1]: torch.as_tensor(v)
        for k, v in ARRAYS.items()
        if k.startswith(name + "/")
    }
    info = INFO["problems"][name]
    eye = torch.eye(2, dtype=torch.float64)
    covariance = a["Sigma"] if "Sigma" in a else a["Sigma_iso"][:, None, None] * eye
    return KnownPlan(a["w"], a["b"], covariance, info["eps"], info["p0_std"]), a, info


@pytest.mark.parametrize("name", NAMES)
def test_golden_plans_and_potentials(name):
    problem, a, info = kept(name)
    x = a["x0"]
    mean, covariance = problem.moments(x)
    assert torch.allclose(problem.responsibilities(x), a["cond_weights"], atol=1e-11)
    assert torch.allclose(mean, a["cond_mean"], atol=1e-10)
    assert torch.allclose(covariance[:2], a["cond_cov_first2"], atol=1e-10)
    log_a, r, S = problem.potential()
    truth = (a["S_rot"] * a["S_eig"][:, None]) @ a["S_rot"].mT
    assert torch.allclose(log_a, a["log_alpha"], atol=1e-9)
    assert torch.allclose(r, a["r"], atol=1e-12)
    assert torch.allclose(S, truth, atol=1e-12)
    y = problem.target(50_000, generator=torch.Generator().manual_seed(0))
    assert float(y.var(0).sum()) == pytest.approx(info["var_y_trace"], rel=0.02)


def test_the_plan_is_the_fixed_point_of_sinkhorns_iteration():
    problem = KnownPlan([0.3, 0.7], [[-1.0], [1.5]], [[[0.3]], [[0.1]]], 0.5, spread=0.8)
    x = torch.linspace(-4, 4, 161, dtype=torch.float64)
    y = torch.linspace(-5, 6, 441, dtype=torch.float64)
    log_p = -0.5 * (x / 0.8) ** 2
    log_p = log_p - log_p.logsumexp(0)
    log_a, r, S = problem.potential()
    spread = problem.epsilon * S[:, 0, 0]
    bell = -0.5 * (y[:, None] - r[:, 0]) ** 2 / spread - 0.5 * spread.log()
    plan = (x[:, None] * y / problem.epsilon + (log_a + bell).logsumexp(1)).log_softmax(1)
    log_q = (log_p[:, None] + plan).logsumexp(0)

    cost = -((x[:, None] - y) ** 2) / (2 * problem.epsilon)
    f, g = torch.zeros_like(x), torch.zeros_like(y)
    for _ in range(300):
        f = log_p - (cost + g).logsumexp(1)
        g = log_q - (cost + f[:, None]).logsumexp(0)
    joint = (cost + f[:, None] + g).exp()
    mean = (joint @ y) / joint.sum(1)
    second = (joint @ y.square()) / joint.sum(1)
    true_mean, true_covariance = problem.moments(x[:, None])
    inside = x.abs() < 2
    assert torch.allclose(mean[inside], true_mean[inside, 0], atol=1e-6)
    assert torch.allclose((second - mean**2)[inside], true_covariance[inside, 0, 0], atol=1e-6)


@pytest.mark.parametrize("family", [isotropic, anisotropic])
def test_draws_follow_the_plan(family):
    problem, n = family(3, 1.0), 100_000
    x, y = problem.pairs(n, generator=torch.Generator().manual_seed(0))
    mean, covariance = problem.moments(x)
    x, y = x.double(), y.double()
    error = y - mean
    noise = 5 * covariance.diagonal(dim1=1, dim2=2).mean().sqrt() / math.sqrt(n)
    assert float(error.mean(0).abs().max()) < noise
    assert float((x.T @ error / n).abs().max()) < noise * problem.spread
    assert torch.allclose(error.T @ error / n, covariance.mean(0), atol=0.03 * float(noise) * 60)
    assert float(x.std()) == pytest.approx(problem.spread, rel=0.01)
    again = problem.pairs(n, generator=torch.Generator().manual_seed(0))[1]
    assert torch.equal(again.double(), y)


def test_families_are_what_they_are_called():
    a, b = isotropic(16, 0.1), anisotropic(16, 10.0)
    assert torch.allclose(a.centre.norm(dim=1), torch.full((5,), 5.0, dtype=torch.float64))
    assert torch.allclose(b.centre.norm(dim=1), torch.full((5,), 90**0.5, dtype=torch.float64))
    off = b.covariance - torch.diag_embed(b.covariance.diagonal(dim1=1, dim2=2))
    assert float(off.abs().max()) > 1
    value = torch.linalg.eigvalsh(b.covariance)
    assert float(value.min()) > 2.5 and float(value.max()) < 20
    assert torch.equal(isotropic(16, 0.1).centre, a.centre)
    assert not torch.equal(isotropic(16, 0.1, seed=1).centre, a.centre)
    # the components of the first are multiples of the identity, and legal in a light bridge
    _, _, S = a.potential()
    assert torch.allclose(S, S[:, :1, :1] * torch.eye(16, dtype=torch.float64))
    assert float(torch.linalg.eigvalsh(b.potential()[2]).max()) < 1


def test_bad_problems_are_told_in_one_sentence():
    w, b, C = [0.5, 0.5], torch.zeros(2, 2), torch.eye(2).expand(2, 2, 2)
    for call, sentence in [
        (lambda: KnownPlan(w[:1], b, C, 1.0), r"shapes \(1,\), \(2, 2\)"),
        (lambda: KnownPlan([0.5, 0.0], b, C, 1.0), "each must be above 0"),
        (lambda: KnownPlan(w, b, C, 0.0), "epsilon is 0.0"),
        (lambda: KnownPlan(w, b, C, 1.0, spread=-1.0), "spread is -1.0"),
        (lambda: KnownPlan(w, b, -C, 1.0), "eigenvalue of 0 or less"),
        (lambda: isotropic(0, 1.0), "dimension is 0"),
    ]:
        with pytest.raises(UserError, match=sentence):
            call()
