"""The objectives of a bridge against loops, closed-form truths and each other."""

import lightsb
from oracles import golden
import pytest
import torch
from torch.distributions import MultivariateNormal

from genflow.data import KnownPlan, anisotropic, isotropic
from genflow.metrics import cbw_uvp
from genflow.models import Diagonal, Full, LightBridge
from genflow.models.objectives import dual_loss, matching_loss, usage

INFO, ARRAYS = golden("bridge_problems")


def truth(problem):
    log_a, r, S = problem.potential()
    return LightBridge(log_a, r, Full.of(S), problem.epsilon).requires_grad_(False)


def clouds(n, m, d, seed=0, scale=1.0):
    g = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(k, d, generator=g, dtype=torch.float64) for k in (n, m))


def naive(b, x, y):
    """One point and one component at a time."""

    c = b.covariance
    if isinstance(c, Diagonal):
        S = torch.diag_embed(c.log_scale.exp())
    elif isinstance(c, Full):
        S = c.rotation @ torch.diag_embed(c.log_scale.exp()) @ c.rotation.mT
    else:
        S = torch.diag_embed(c.log_scale.exp()) + c.factor @ c.factor.mT
    a, r, eps, parts = b.log_weight, b.centre, b.epsilon, range(b.components)
    log_c = [
        torch.stack([a[k] + (u @ S[k] @ u + 2 * r[k] @ u) / (2 * eps) for k in parts]).logsumexp(0)
        for u in x
    ]
    log_v = [
        torch.stack([a[k] + MultivariateNormal(r[k], eps * S[k]).log_prob(u) for k in parts])
        .logsumexp(0)
        for u in y
    ]  # fmt: skip
    return torch.stack(log_c).mean() - torch.stack(log_v).mean()


@pytest.mark.parametrize("kind", lightsb.FAMILIES)
def test_the_objective_and_its_gradient_by_a_loop(kind):
    b = lightsb.bridge(kind, K=4, d=3, epsilon=0.3)
    if kind == "full":
        b.covariance = b.covariance.turning()
        b.covariance.turn.data += 0.1
    b.requires_grad_(True)
    x, y = clouds(6, 9, 3)
    found, slow = dual_loss(b, x, y), naive(b, x, y)
    assert float((found - slow).detach().abs()) < 1e-12 * float(slow.detach().abs())
    parameters = list(b.parameters())
    for p, q in zip(*(torch.autograd.grad(v, parameters) for v in (found, slow)), strict=True):
        assert torch.allclose(p, q, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", lightsb.FAMILIES)
@pytest.mark.parametrize("epsilon", [0.01, 1.0, 10.0])
def test_matrix_products_agree_with_the_bridge_itself(kind, epsilon):
    b = lightsb.bridge(kind, K=7, d=5, epsilon=epsilon)
    x, y = clouds(50, 70, 5)
    slow = float(b.log_normaliser(x).mean() - b.log_potential(y).mean())
    assert float(dual_loss(b, x, y)) == pytest.approx(slow, rel=1e-10)
    assert float(dual_loss(b.float(), x.float(), y.float())) == pytest.approx(slow, rel=1e-4)


def test_the_gradient_is_once_differentiable_and_scales():
    b = lightsb.bridge("diagonal", K=3, d=2).requires_grad_(True)
    x, y = clouds(5, 5, 2)
    (one,) = torch.autograd.grad(dual_loss(b, x, y), [b.centre])
    (three,) = torch.autograd.grad(3 * dual_loss(b, x, y), [b.centre])
    assert torch.allclose(three, 3 * one, rtol=1e-12)


@pytest.mark.parametrize("problem", [isotropic(4, 1.0), anisotropic(4, 0.1)], ids=["A", "B"])
def test_nothing_beats_the_truth(problem):
    x, y = problem.pairs(20_000, generator=torch.Generator().manual_seed(0))
    best = truth(problem)
    least = float(dual_loss(best, x, y))
    g = torch.Generator().manual_seed(1)
    for size in (0.1, 0.3, 1.0):
        for _ in range(5):
            noise = torch.randn(5, 4, generator=g, dtype=torch.float64)
            a = best.log_weight + size * noise[:, 0]
            r = best.centre + size * 0.3 * noise
            wider = Full.of(best.covariance.dense() * (1 + 0.3 * size))
            other = LightBridge(a, r, wider, problem.epsilon).requires_grad_(False)
            assert float(dual_loss(other, x, y)) > least
    shifted = LightBridge(best.log_weight + 3, best.centre, best.covariance, problem.epsilon)
    shifted.requires_grad_(False)
    assert float(dual_loss(shifted, x, y)) == pytest.approx(least, rel=1e-12)


def test_what_the_official_training_reached():
    """The official class after its 10,000 steps, judged by our objective and our metric."""

    ((name, record),) = INFO["training"].items()
    problem_name = "gt/A_D2_eps1"
    info = INFO["problems"][problem_name]
    arrays = {
        k.rsplit("/", 1)[1]: v for k, v in ARRAYS.items() if k.startswith(problem_name + "/")
    }
    sigma = arrays["Sigma_iso"][:, None, None] * torch.eye(2, dtype=torch.float64)
    problem = KnownPlan(arrays["w"], arrays["b"], sigma, info["eps"], info["p0_std"])
    log_a, r, S = (ARRAYS[f"{name}/{k}"] for k in ("log_alpha", "r", "S_eig"))
    trained = LightBridge(log_a, r, Diagonal(S.log()), 1.0).requires_grad_(False)

    g = torch.Generator().manual_seed(0)
    x, y = problem.pairs(100_000, generator=g)
    least = float(dual_loss(truth(problem), x, y))
    assert least == pytest.approx(info["L_star"], abs=0.02)
    assert float(dual_loss(trained, x, y)) - least == pytest.approx(record["kl_gap"], abs=4e-4)
    plan, true = trained.plan(x[:2000].double()), problem.moments(x[:2000])
    found = cbw_uvp(plan.mean, plan.covariance, *true, variance=info["var_y_trace"])
    assert found == pytest.approx(record["cbw_uvp"], rel=0.3)


@pytest.mark.parametrize("coupled", [True, False], ids=["plan", "independent"])
def test_bridge_matching_is_the_same_objective_up_to_a_factor(coupled):
    problem = anisotropic(2, 1.0)
    g = torch.Generator().manual_seed(0)
    x, y = (v.double() for v in problem.pairs(100_000, generator=g))
    y_paired = y if coupled else y[torch.randperm(len(y), generator=g)]
    best = truth(problem)
    other = LightBridge(
        best.log_weight + torch.tensor([0.5, -0.5, 0.2, 0.0, 0.0]),
        best.centre + 0.2,
        best.covariance,
        1.0,
    )

    def matched(b):
        source = torch.Generator().manual_seed(3)
        return float(matching_loss(b, x, y_paired, generator=source))

    with torch.no_grad():
        gap = 2 * problem.epsilon * float(dual_loss(other, x, y) - dual_loss(best, x, y))
        assert gap > 0.05
        assert matched(other) - matched(best) == pytest.approx(gap, rel=0.15)


def test_matching_takes_gradients_and_is_repeatable():
    b = lightsb.bridge("diagonal", K=3, d=2).requires_grad_(True)
    x, y = clouds(40, 40, 2)
    losses = [
        matching_loss(b, x, y, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1)
    ]
    assert losses[0] == losses[1] != losses[2]
    losses[0].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in b.parameters())


def test_usage_is_the_mass_of_the_source():
    problem = isotropic(3, 1.0)
    x = problem.source(5000, generator=torch.Generator().manual_seed(0))
    found = usage(truth(problem), x)
    assert torch.allclose(found, problem.responsibilities(x).mean(0), atol=1e-10)
