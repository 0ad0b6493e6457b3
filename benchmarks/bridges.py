"""Light Schrödinger bridges against problems of entropic transport whose plan is known.

Each contestant is given the same points of the source and of the target, unpaired, more of them
than it can look at: four million in 2 and 16 dimensions, one and a half in 64, one in 128.

    published     the settings of the original experiments: 50 diagonal components on points of the
                  target, S = 1, Adam at a constant rate that goes with ε, 10,000 steps of 128,
                  log-weights kept as ε log a, and the loss as tensors of B × K × d
    same, ours    the same settings with our form of the loss: what is owed to arithmetic alone
    fit           `fit_bridge` as it comes: 50 diagonal components
    full          `fit_bridge` with 10 full covariances
    sinkhorn      POT on 2,000 points of each cloud, extended to new starts by its dual potential;
                  left out where POT is not installed

cBW is the unexplained variance of the conditional law in per cent, from exact moments at 1,000
starts; gap is the KL divergence from the true plan in nats, as the difference of the objectives on
20,000 pairs, which can come out slightly negative (Sinkhorn has no density, so none). Seconds are
CPU time of the process on one thread, without the drawing of the points. Up to three seeds: the
mean, and the range of cBW in brackets; "same, ours" and Sinkhorn have one, full covariances are
fitted to B.

    python benchmarks/bridges.py [--only A-16-1] [--quick] [--pictures FOLDER]

Finished cells are kept in results/bridges.json, and a second run goes on from there; --again
measures everything anew.
"""

import argparse
from contextlib import redirect_stdout
import json
import math
import time
import warnings

from measure import RESULTS, write_results
import torch

from genflow.data.eot import anisotropic, isotropic
from genflow.metrics.bures import cbw_uvp
from genflow.models import Diagonal, Full, LightBridge
from genflow.models.fitting import fit_bridge
from genflow.models.objectives import dual_loss

FAMILIES = {"A": isotropic, "B": anisotropic}
CASES = {  # family, dimension, ε: seeds of the published settings
    **{("A", 16, eps): 3 for eps in (0.1, 1.0, 10.0)},
    **{("B", 16, eps): 3 for eps in (0.1, 1.0, 10.0)},
    **{("A", 64, eps): 3 for eps in (0.1, 1.0, 10.0)},
    ("B", 64, 1.0): 1,
    **{(f, 2, eps): 1 for f in "AB" for eps in (0.1, 1.0, 10.0)},
    **{("A", 128, eps): 1 if eps == 1.0 else 0 for eps in (0.1, 1.0, 10.0)},
}
POOL = {2: 4_000_000, 16: 4_000_000, 64: 1_500_000, 128: 1_000_000}  # points of each cloud
STARTS, PAIRS = 1000, 20_000
RATES = {0.1: 1e-3, 1.0: 3e-3, 10.0: 6e-2}


# ---------------------------------------------------------------------------- contestants


def published(x, y, eps, seed, *, plain=True, steps=10_000):
    """The original settings; see above."""

    g = torch.Generator().manual_seed(seed)
    K, d = 50, x.shape[1]
    raw = torch.full((K,), -eps * math.log(K)).requires_grad_()
    r = y[torch.randint(len(y), (K,), generator=g)].clone().requires_grad_()
    log_s = torch.zeros(K, d, requires_grad=True)
    loss = broadcast_loss if plain else _shared_loss
    optimizer = torch.optim.Adam([raw, r, log_s], lr=RATES[eps])

    for _ in range(steps):
        i, j = (torch.randint(len(c), (128,), generator=g) for c in (x, y))
        optimizer.zero_grad()
        batch = x.index_select(0, i), y.index_select(0, j)
        loss(raw / eps, r, log_s, *batch, eps).backward()
        optimizer.step()

    return LightBridge(
        *(p.detach().double() for p in (raw / eps, r)), Diagonal(log_s.double()), eps
    )


def broadcast_loss(log_a, r, log_s, x, y, eps):
    """The objective, read off the formula."""

    S = log_s.exp()
    form = (S * x[:, None] ** 2 + 2 * r * x[:, None]).sum(-1)
    log_c = (log_a + form / (2 * eps)).logsumexp(1)
    gaussian = torch.distributions.Normal(r, (eps * S).sqrt())
    log_v = (log_a + gaussian.log_prob(y[:, None]).sum(-1)).logsumexp(1)
    return log_c.mean() - log_v.mean()


def _shared_loss(log_a, r, log_s, x, y, eps):
    from genflow.models.objectives import _DiagonalDual

    return _DiagonalDual.apply(log_a, r, log_s, x, y, eps)


def fitted(x, y, eps, seed, **options):
    return fit_bridge(x, y, epsilon=eps, seed=seed, **options).bridge


class Sinkhorn:
    """Sinkhorn's plan between samples, with starts of its own by the soft c-transform."""

    def __init__(self, x, y, eps, seed, n=2000):
        import ot

        g = torch.Generator().manual_seed(seed)
        x, y = (c[torch.randperm(len(c), generator=g)[:n]].double() for c in (x, y))
        cost = 0.5 * torch.cdist(x, y) ** 2
        even = torch.full((n,), 1 / n, dtype=torch.float64)
        plan = ot.sinkhorn(
            even, even, cost, eps, method="sinkhorn_log", numItermax=2000, stopThr=1e-6, log=True
        )
        self.y, self.eps = y, eps
        self.dual = plan[1]["log_v"] - 0.5 * y.square().sum(1) / eps

    def moments(self, x):
        """Means (n, d) and covariances (n, d, d) of the ends."""

        w = (self.dual + x @ self.y.mT / self.eps).softmax(1)
        mean = w @ self.y
        return mean, torch.stack([(self.y.mT * p) @ self.y for p in w]) - mean[:, :, None] * mean[
            :, None
        ]


CONTESTANTS = {
    "published": published,
    "same, ours": lambda *a: published(*a, plain=False),
    "fit": fitted,
    "full": lambda *a: fitted(*a, covariance="full", components=10),
    "sinkhorn": Sinkhorn,
}


# --------------------------------------------------------------------------------- scores


class Judge:
    """One problem: the points that are given, and what is asked."""

    def __init__(self, family, dimension, eps, pool):
        self.problem, self.eps = FAMILIES[family](dimension, eps), eps
        g = torch.Generator().manual_seed(1)
        self.pairs = [v.double() for v in self.problem.pairs(PAIRS, generator=g)]
        self.starts = self.problem.source(STARTS, generator=g).double()
        self.true = self.problem.moments(self.starts)
        self.x = self.problem.source(pool, generator=g)
        self.y = self.problem.target(pool, generator=g)
        self.variance = float(self.y.var(0).sum())
        log_a, r, S = self.problem.potential()
        self.least = float(dual_loss(LightBridge(log_a, r, Full.of(S), eps), *self.pairs).detach())

    @torch.no_grad()
    def score(self, model):
        """cBW from exact moments, and the gap."""

        if isinstance(model, Sinkhorn):
            return cbw_uvp(*model.moments(self.starts), *self.true, variance=self.variance), None
        plan = model.plan(self.starts)
        cbw = cbw_uvp(plan.mean, plan.covariance, *self.true, variance=self.variance)
        return cbw, float(dual_loss(model, *self.pairs)) - self.least

    def run(self, name, seed):
        """The CPU seconds of a contestant, and its scores."""

        begun = time.process_time()
        model = CONTESTANTS[name](self.x, self.y, self.eps, seed)
        return (time.process_time() - begun, *self.score(model))


def contestants(case, seed):
    """Who takes part in a case with a seed."""

    family, dimension, _ = case
    names = ["published", "fit"] if seed < CASES[case] else ["fit"]
    if seed == 0 and dimension <= 16:
        names.insert(1, "same, ours")
    if family == "B" and (seed == 0 or dimension <= 16):
        names.append("full")
    try:
        import ot  # noqa: F401

        if seed == 0 and dimension <= 16:
            names.append("sinkhorn")
    except ImportError:
        pass
    return names


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", help="one case, as in A-16-0.1")
    parser.add_argument("--quick", action="store_true", help="one seed, a tenth of the points")
    parser.add_argument("--again", action="store_true", help="forget what was measured before")
    parser.add_argument("--pictures", help="draw the pictures into this folder instead")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="Converting a tensor")

    if options.pictures:
        from pictures_of_bridges import draw

        return draw(options.pictures)

    file = RESULTS / "bridges.json"
    kept = (
        []
        if options.again or options.quick or not file.exists()
        else json.loads(file.read_text())["cells"]
    )
    torch.optim.Adam([torch.zeros(1, requires_grad=True)]).step()  # its imports take seconds

    for case in CASES:
        name = "-".join(f"{v:g}" if isinstance(v, float) else str(v) for v in case)
        if options.only not in (None, name):
            continue
        judge = None
        for seed in range(1 if options.quick else 3):
            for who in contestants(case, seed):
                key = {"case": name, "name": who, "seed": seed}
                if any(all(c[k] == v for k, v in key.items()) for c in kept):
                    continue
                judge = judge or Judge(*case, POOL[case[1]] // (10 if options.quick else 1))
                seconds, cbw, gap = judge.run(who, seed)
                kept.append(key | {"seconds": seconds, "cbw": cbw, "gap": gap})
                if not options.quick:
                    with redirect_stdout(None):
                        write_results("bridges", {"threads": 1, "cells": kept}, options)

    write_results("bridges", {"threads": 1, "cells": kept}, options)
    return None


if __name__ == "__main__":
    main()
