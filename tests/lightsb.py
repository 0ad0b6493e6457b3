"""Bridges that the tests share, and slow textbook truths about them."""

import math

from oracles import golden
import torch
from torch.distributions import MultivariateNormal

from genflow.models import Diagonal, Full, LightBridge, LowRank

CASES = golden("lightsb")[0]["cases"]
FAMILIES = ("diagonal", "lowrank", "full")


def case(name):
    """The arrays of a golden case, its times turned into those of the house, and its bridge."""

    arrays = golden("lightsb")[1]
    found = {k.rsplit("/", 1)[1]: v for k, v in arrays.items() if k.rsplit("/", 1)[0] == name}
    found["t"] = 1 - found["t"]
    scale, basis = found["S_eig"].log(), found.get("S_rot")
    covariance = Diagonal(scale) if basis is None else Full(scale, basis)
    made = LightBridge(found["log_alpha"], found["r"], covariance, CASES[name]["epsilon"])
    return found, made.requires_grad_(False)


def bridge(kind="full", K=3, d=2, epsilon=0.5, seed=0, spread=1.0, scale=(0.2, 1.8)):
    """A bridge with random parameters in float64, S between the two scales."""

    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=g, dtype=torch.float64)

    low, high = scale
    levels = (low + (high - low) * torch.rand(K, d, generator=g, dtype=torch.float64)).log()
    families = {
        "diagonal": lambda: Diagonal(levels),
        "lowrank": lambda: LowRank(levels, 0.5 * normal(K, d, max(1, d // 2))),
        "full": lambda: Full(levels, torch.linalg.qr(normal(K, d, d))[0]),
    }
    made = LightBridge(normal(K), spread * normal(K, d), families[kind](), epsilon)
    return made.requires_grad_(False)


def textbook_kernel(b, x, t, s):
    """Weights (B, K), means (B, K, d) and covariances (K, d, d), by dense inverses and loops."""

    S, r, epsilon = b.covariance.dense(), b.centre, b.epsilon
    eye = torch.eye(b.dimension, dtype=S.dtype)
    logits, means, covariances = [], [], []

    for k in range(b.components):
        B_t = (1 - t) * S[k] + t * eye
        B_s = (1 - s) * S[k] + s * eye
        inverse = torch.linalg.inv(B_t)
        square = torch.einsum("bd,de,be->b", x, inverse @ (S[k] - eye), x)
        square = square + 2 * x @ inverse @ r[k] - (1 - t) * (r[k] @ inverse @ r[k])
        logits.append(b.log_weight[k] - 0.5 * torch.logdet(B_t) + square / (2 * epsilon))
        means.append((x @ B_s + (t - s) * r[k]) @ inverse)
        covariances.append(epsilon * (t - s) * B_s @ inverse)

    return torch.stack(logits, -1).softmax(-1), torch.stack(means, 1), torch.stack(covariances)


def moments(weights, means, covariances):
    """Mean (B, d) and covariance (B, d, d) of mixtures."""

    mean = torch.einsum("bk,bkd->bd", weights, means)
    u = means - mean[:, None]
    outer = torch.einsum("bk,bkd,bke->bde", weights, u, u)
    return mean, outer + torch.einsum("bk,kde->bde", weights, covariances)


def log_mixture(weights, means, covariances, y):
    """The log-density (B) of mixtures at y (B, d), by torch.distributions."""

    parts = [
        MultivariateNormal(means[:, k], covariances[k]).log_prob(y) + weights[:, k].log()
        for k in range(weights.shape[1])
    ]
    return torch.stack(parts, -1).logsumexp(-1)


def sinkhorn(p, q, cost, epsilon, sweeps=3000):
    """The entropic plan of two discrete laws, by alternating scaling of logarithms."""

    log_p, log_q, K = p.log(), q.log(), -cost / epsilon
    f, g = torch.zeros_like(p), torch.zeros_like(q)
    for _ in range(sweeps):
        f = log_p - (K + g).logsumexp(1)
        g = log_q - (K + f[:, None]).logsumexp(0)
    return (f[:, None] + K + g).exp()


def energy_distance(x, y):
    """2 E|X − Y| − E|X − X'| − E|Y − Y'|, of equal numbers of points."""

    n = len(x)
    within = (torch.cdist(x, x).sum() + torch.cdist(y, y).sum()) / (n * (n - 1))
    return float(2 * torch.cdist(x, y).mean() - within)


def log_normal(u, variance):
    """The log-density of N(0, variance I) at u, over the last dimension."""

    return -0.5 * (u.square().sum(-1) / variance + u.shape[-1] * math.log(2 * math.pi * variance))
