"""What a gradient through a sampler costs: memory, time, error.

DDIM with N steps, a loss on the samples, and the gradients at the initial states and at all
weights. Every cell is a process of its own:

    autograd           the graph of the whole rollout
    checkpoint         torch.utils.checkpoint around every call
    exact              gradient="exact": calls repeated one by one, states kept
    exact, keep 1      the same, the activations of the last call kept
    exact, noise only  the same with frozen weights
    truncated, last 1  the last call alone (DRaFT-1)
    continuous         AdjointDPM: Euler in ρ, states of the sampler
    continuous, phi    the same in the bounded chart
    resolved           Euler in ρ, states solved for again
    odeint_adjoint     torchdiffeq: Euler in ρ over all nodes, as the published code calls it

Memory is the peak of the resident set above what the process held before (on a GPU, that of the
allocator). On the CPU freed blocks are given back at once, since malloc is told to map them. Time
is CPU time of both passes (on a GPU, wall time). Errors are relative L2 distances to autograd.

The network is trained for a moment on coloured blobs, so that its gradients are those of a
denoiser. Then autograd, exact and the bare forward pass take turns in one process.

    python benchmarks/gradients.py [--quick]
    python benchmarks/gradients.py --device cuda --net unet-large --dtype bfloat16 --batch 16
    python benchmarks/gradients.py --device cuda --net dit --dtype bfloat16 --batch 16
"""

import argparse
import json
import os
from pathlib import Path
import subprocess
import sys
import tempfile
import time

from measure import RESULTS, contest, write_results
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torchdiffeq import odeint_adjoint

from genflow.models import Preconditioned, VariancePreserving, grid
from genflow.nn import DiT, UNet
from genflow.solvers import adjoint, build, rollout

PATH = VariancePreserving()
NETS = {
    "unet": lambda: UNet(32, 3, widths=(32, 64, 96), layers=2, attention=(8,)),
    "unet-large": lambda: UNet(64, 3, widths=(128, 256, 384), layers=2, attention=(16,)),
    "dit": lambda: DiT(32, 4, patch=2, heads=6, head_width=64, depth=12, classes=1000),
}
POLICIES = {
    "autograd": "direct",
    "exact": "exact",
    "exact, keep 1": adjoint.Exact(keep=1),
    "exact, noise only": "exact",
    "truncated, last 1": adjoint.Truncated(1),
    "continuous": "continuous",
    "continuous, phi": adjoint.Continuous(chart="phi"),
    "resolved": adjoint.Continuous(states="resolved"),
}
METHODS = ("autograd", "checkpoint", *list(POLICIES)[1:], "odeint_adjoint")
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


# ------------------------------------------------------------------------------ the problem


def blobs(n, shape, generator):
    """Coloured spots on a dark ground, in [−1, 1]."""

    channels, height, width = shape
    place = torch.rand(n, 2, 1, 1, generator=generator)
    y = torch.linspace(0, 1, height).view(-1, 1) - place[:, 0]
    x = torch.linspace(0, 1, width) - place[:, 1]
    spot = torch.exp(-(x**2 + y**2) / 0.04)[:, None]
    return 2 * spot * torch.rand(n, channels, 1, 1, generator=generator) - 1


def denoiser_of(options):
    torch.manual_seed(0)
    return Preconditioned(NETS[options.net](), PATH, "v").to(options.device)


def train(denoiser, iterations, batch=8):
    """A moment of training."""

    generator = torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(denoiser.parameters(), 1e-3)
    device = next(denoiser.parameters()).device
    cond = classes(denoiser, batch)

    for _ in range(iterations):
        x = blobs(batch, denoiser.net.shape, generator).to(device)
        z = torch.randn(x.shape, generator=generator).to(device)
        t = torch.rand(batch, generator=generator).clamp(0.001).to(device)
        loss = denoiser.loss(x, z, t, **cond).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return float(loss.detach())


def classes(denoiser, n):
    """The labels of a network that needs some."""

    if denoiser.net.classes is None:
        return {}
    device = next(denoiser.parameters()).device
    return {"label": torch.arange(n, device=device) % denoiser.net.classes}


def start(denoiser, options):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(options.batch, *denoiser.net.shape, generator=generator)
    return x.to(options.device).requires_grad_()


def loss_of(y):
    return 0.5 * (y - 0.2).square().flatten(1).sum(1).mean()


class Field(nn.Module):
    """dy/dρ, for torchdiffeq."""

    def __init__(self, denoiser, cond):
        super().__init__()
        self.denoiser, self.cond = denoiser, cond

    def forward(self, rho, y):
        """The noise estimate."""

        t = PATH.inverse(-torch.log(rho))
        alpha, sigma = PATH(t)
        x = alpha * y
        return (x - alpha * self.denoiser(x, t, **self.cond)) / sigma


def sample(method, N, denoiser, x):
    """The samples, with a graph."""

    times, cond = grid(PATH, N, "uniform", final="min"), classes(denoiser, len(x))

    if method == "odeint_adjoint":
        alpha, sigma = PATH(torch.tensor(times, dtype=torch.float64))
        rho = (sigma / alpha).to(x)
        field = Field(denoiser, cond)
        y = odeint_adjoint(field, x / float(alpha[0]), rho, method="euler")
        return y[-1] * float(alpha[-1])

    sampler = build("ddim", denoiser, times=times, gradient=POLICIES.get(method, "direct"))

    if method == "checkpoint":
        stages = [
            lambda x, t, stage=stage: checkpoint(stage, x, t, use_reentrant=False)
            for stage in sampler.stages(**cond)
        ]
        return rollout(stages, x, sampler.tableau)

    return sampler(x, **cond)


def passes(method, N, denoiser, x, cast):
    """Both passes; the gradients at the initial states and the weights."""

    wanted = [p for p in denoiser.parameters() if p.requires_grad]
    with cast():
        y = sample(method, N, denoiser, x)
    targets = ([] if method.startswith("truncated") else [x]) + wanted
    found = torch.autograd.grad(loss_of(y.float()), targets, allow_unused=True)
    found = [torch.zeros_like(t) if g is None else g for g, t in zip(found, targets, strict=True)]
    return ([None] if method.startswith("truncated") else []) + found


def caster(options):
    dtype = getattr(torch, options.dtype)
    return lambda: torch.autocast(options.device, dtype, enabled=dtype != torch.float32)


# ------------------------------------------------------------------------------ one cell


def status(field):
    """A line of the process's status, in megabytes."""

    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def cell(method, N, options):
    """Runs one cell in this process, and prints what it found as JSON."""

    denoiser = denoiser_of(options)
    denoiser.load_state_dict(torch.load(f"{options.folder}/net.pt"))
    denoiser.eval().requires_grad_(not method.endswith("noise only"))
    x, cast = start(denoiser, options), caster(options)
    passes("autograd", 1, denoiser, x, cast)  # libraries settle before anything is measured
    gpu = options.device != "cpu"

    if gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        base, clock = torch.cuda.memory_allocated() / 2**20, time.perf_counter
    else:
        Path("/proc/self/clear_refs").write_text("5")
        base, clock = status("VmRSS"), time.process_time

    begun = clock()
    found = passes(method, N, denoiser, x, cast)

    if gpu:
        torch.cuda.synchronize()

    seconds = clock() - begun
    peak = torch.cuda.max_memory_allocated() / 2**20 if gpu else status("VmHWM")
    parts = {"x": found[0], "weights": found[1:]}
    torch.save(
        {
            "x": None if parts["x"] is None else parts["x"].cpu(),
            "weights": torch.cat([g.flatten() for g in parts["weights"]]).cpu()
            if parts["weights"]
            else None,
        },
        f"{options.folder}/{method}-{N}.pt",
    )
    print(json.dumps({"peak_mb": round(peak - base, 1), "seconds": round(seconds, 2)}))


def measured(method, N, options):
    """Runs one cell in a process of its own."""

    names = ("net", "device", "dtype", "batch", "folder")
    flags = [f"--{name}={getattr(options, name)}" for name in names]
    found = subprocess.run(
        [sys.executable, __file__, "--cell", method, str(N), *flags],
        env=os.environ | MALLOC,
        capture_output=True,
        text=True,
        check=False,
    )

    if found.returncode:
        raise RuntimeError(f"{method}, {N} steps: {found.stderr.strip().splitlines()[-1]}")

    result = json.loads(found.stdout.splitlines()[-1])
    truth, ours = (torch.load(f"{options.folder}/{m}-{N}.pt") for m in ("autograd", method))

    for part in ("x", "weights"):
        if ours[part] is not None:
            error = (ours[part] - truth[part]).norm() / truth[part].norm()
            result[f"error_{part}"] = float(f"{float(error):.3g}")

    return result


# ------------------------------------------------------------------------------ the contest


def turns(options, N, rounds):
    """Autograd, exact, and the bare forward pass take turns in one process."""

    denoiser = denoiser_of(options)
    denoiser.load_state_dict(torch.load(f"{options.folder}/net.pt"))
    denoiser.eval()
    x, cast = start(denoiser, options), caster(options)

    def forward(x):
        with torch.no_grad(), cast():
            sample("exact", N, denoiser, x)

    runs = {
        "autograd": lambda x: passes("autograd", N, denoiser, x, cast),
        "exact": lambda x: passes("exact", N, denoiser, x, cast),
        "exact, keep 1": lambda x: passes("exact, keep 1", N, denoiser, x, cast),
        "forward": forward,
    }
    found = contest(runs, x, rounds)
    bill = 1 + found["forward"]["ratio"]

    for name in ("exact", "exact, keep 1"):
        found[name]["of autograd + forward"] = found[name]["ratio"] / bill

    return found


def draw(cells, steps, file):
    from genflow.viz import costs

    def column(key):
        shown = [m for m in cells if m not in ("exact, keep 1", "resolved")]
        found = {m: {N: cells[m][str(N)].get(key) for N in steps} for m in shown}
        return {m: v for m, v in found.items() if None not in v.values()}

    panels = {
        "peak memory in MB": column("peak_mb"),
        "seconds": column("seconds"),
        "relative error of dL/dx": column("error_x"),
    }
    costs(panels).savefig(file)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 20, 50])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--net", default="unet", choices=NETS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--iterations", type=int, default=150, help="of training")
    parser.add_argument("--rounds", type=int, default=5, help="of the contest")
    parser.add_argument("--quick", action="store_true", help="few steps, no picture")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--cell", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)

    if options.cell:
        return cell(options.cell[0], int(options.cell[1]), options)
    if options.quick:
        options.steps, options.iterations, options.rounds = [4, 8], 5, 2

    methods = list(dict.fromkeys(["autograd", *options.methods]))
    cells = {m: {} for m in methods}

    with tempfile.TemporaryDirectory() as options.folder:
        denoiser = denoiser_of(options)
        parameters = sum(p.numel() for p in denoiser.parameters())
        loss = train(denoiser, options.iterations)
        torch.save(denoiser.state_dict(), f"{options.folder}/net.pt")
        print(f"{parameters / 1e6:.2f} M parameters, loss {loss:.3f}", flush=True)

        for N in options.steps:
            for m in methods:
                cells[m][str(N)] = found = measured(m, N, options)
                print(f"{N:4d}  {m:18}", *(f"{k} {v}" for k, v in found.items()), flush=True)

        contested = turns(options, options.steps[0], options.rounds)

    del options.folder, options.cell
    name = "gradients" if options.net == "unet" else f"gradients-{options.net}"
    results = {"threads": 1, "parameters": parameters, "cells": cells, "turns": contested}
    write_results(name, results, options)
    return None if options.quick else draw(cells, options.steps, RESULTS / f"{name}.png")


if __name__ == "__main__":
    main()
