"""Scoring many schedules in one batch, against one by one."""

from functools import partial

from measure import contest, write_results
import numpy as np
import torch

from genflow.models import Preconditioned, Rectified
from genflow.nn import MLP, UNet
from genflow.search.population import Population
from genflow.search.score import Simulated, error
from genflow.search.usf import SolverSpace
from genflow.solvers import Sampler, tabulate

CASES = {
    "MLP 2-32, 16 samples": (lambda: MLP(2, 32, 2), (2,), 16, 24, 1024),
    "MLP 2-32, 64 samples": (lambda: MLP(2, 32, 2), (2,), 64, 24, 1024),
    "MLP 2-128, 16 samples": (lambda: MLP(2, 128, 3), (2,), 16, 24, 1024),
    "MLP 2-128, 64 samples": (lambda: MLP(2, 128, 3), (2,), 64, 24, 1024),
    "MLP 2-128, 256 samples": (lambda: MLP(2, 128, 3), (2,), 256, 24, 1024),
    "U-Net 1×8×8, 8 samples": (lambda: UNet(8, 1, (32, 64), 1, (4,)), (1, 8, 8), 8, 16, 128),
    "U-Net 3×32×32, 16 samples": (lambda: UNet(32, 3, (32, 64), 1, ()), (3, 32, 32), 16, 4, 16),
}
"""Network, shape, samples, schedules, and the batch that the network is called with."""


def main(options):
    results = {}
    torch.set_num_threads(1)

    for name, (make, shape, n, many, batch) in CASES.items():
        torch.manual_seed(0)
        denoiser = Preconditioned(make().eval(), Rectified()).to(options.device)
        space = SolverSpace(denoiser.path, 5)
        schedules = [space.sample(np.random.default_rng(i)) for i in range(many)]
        z = torch.randn(n, *shape, device=options.device)
        target = torch.zeros_like(z)

        tables = [tabulate(s, denoiser.path) for s in schedules]

        def together(z, d=denoiser, b=batch, target=target, solvers=tables):
            return Simulated(Population(d, z, batch_size=b), error(target))(solvers)

        @torch.no_grad()
        def alone(z, d=denoiser, target=target, solvers=tables):
            return [error(target)(Sampler(d, s)(z)) for s in solvers]

        runs = {
            "one by one": alone,
            "population": together,
            "one by one, compiled": partial(alone, solvers=schedules),
            "population, compiled": partial(together, solvers=schedules),
        }
        apart = max(abs(a - b) for a, b in zip(together(z), alone(z), strict=True))
        took = {k: v["seconds"] / many for k, v in contest(runs, z, 3).items()}
        print(name, f"{took['one by one'] / took['population']:.2f}", flush=True)
        results[name] = {"seconds": took, "apart": apart}

    write_results("search-population", {"cases": results}, options)
