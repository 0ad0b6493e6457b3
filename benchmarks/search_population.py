"""Scoring many schedules in one batch, against one by one."""

from measure import contest, print_table, write_results
import numpy as np
import torch

from genflow.models import Preconditioned, Rectified
from genflow.nn import MLP, UNet
from genflow.search.population import Population
from genflow.search.score import Simulated, error
from genflow.search.usf import SolverSpace
from genflow.solvers import Sampler

CASES = {
    "MLP 2-128, 16 samples": (lambda: MLP(2, 128, 3), (2,), 16, 24, 4096),
    "MLP 2-128, 64 samples": (lambda: MLP(2, 128, 3), (2,), 64, 24, 4096),
    "MLP 2-128, 256 samples": (lambda: MLP(2, 128, 3), (2,), 256, 24, 4096),
    "U-Net 1×8×8, 8 samples": (
        lambda: UNet(8, 1, widths=(32, 64), layers=1, attention=(4,)),
        (1, 8, 8),
        8,
        16,
        128,
    ),
    "U-Net 3×32×32, 16 samples": (
        lambda: UNet(32, 3, widths=(32, 64), layers=1, attention=()),
        (3, 32, 32),
        16,
        4,
        16,
    ),
}


def main(options):
    rows, results = [], {}
    torch.set_num_threads(1)

    for name, (make, shape, n, many, batch) in CASES.items():
        torch.manual_seed(0)
        denoiser = Preconditioned(make().eval(), Rectified()).to(options.device)
        rounds = 3
        space = SolverSpace(denoiser.path, 5)
        schedules = [space.sample(np.random.default_rng(i)) for i in range(many)]
        z = torch.randn(n, *shape, device=options.device)
        target = torch.zeros_like(z)

        def together(z, d=denoiser, b=batch, target=target, schedules=schedules):
            return Simulated(Population(d, z, batch_size=b), error(target))(schedules)

        @torch.no_grad()
        def alone(z, d=denoiser, target=target, schedules=schedules):
            return [error(target)(Sampler(d, s)(z)) for s in schedules]

        apart = max(abs(a - b) for a, b in zip(together(z), alone(z), strict=True))
        took = contest({"one by one": alone, "population": together}, z, rounds)
        speed = 1 / took["population"]["ratio"]
        each = took["population"]["seconds"] / many
        print(name, f"{speed:.2f}", flush=True)
        rows.append([name, str(many), f"{1e3 * each:.1f}", f"{speed:.1f}×", f"{apart:.0e}"])
        results[name] = {"speed": speed, "seconds": each, "apart": apart}

    print_table(
        ["network", "schedules", "ms a schedule", "one by one ÷ population", "apart"], rows
    )
    write_results("search-population", {"cases": results}, options)
