"""What a sampler costs beside the network: N steps ÷ N bare network calls.

Every contestant drives the same network for the same number of steps, one after the other in each
round; the ratio is taken inside a round, and the median over the rounds is printed. CPU time of
the process is measured, wall time on a GPU. ``python benchmarks/sampling.py --help``.
"""

import argparse
from collections.abc import Callable

from measure import contest, write_results
import torch
from torch import Tensor, nn

from genflow import Preconditioned, Rectified, build
from genflow.nn import MLP, UNet


def genflow(name: str, net: nn.Module, steps: int) -> Callable[[Tensor], Tensor]:
    """One of our samplers on a flow network."""

    return build(name, Preconditioned(net, Rectified(), "flow"), steps)


def diffusers(name: str, net: nn.Module, steps: int) -> Callable[[Tensor], Tensor]:
    """The loop of a diffusers pipeline round one of its schedulers, guards and all."""

    import diffusers

    scheduler = getattr(diffusers, name)
    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    made = scheduler() if name == "FlowMatchEulerDiscreteScheduler" else scheduler(**flow)

    @torch.no_grad()
    def run(x: Tensor) -> Tensor:
        made.set_timesteps(steps, device=x.device)
        for t in made.timesteps:
            x = made.step(net(x, t), t, x, return_dict=False)[0]
        return x

    return run


def torchdiffeq(name: str, net: nn.Module, steps: int) -> Callable[[Tensor], Tensor]:
    """torchdiffeq's fixed-step Euler method on a given grid."""

    from torchdiffeq import odeint

    @torch.no_grad()
    def run(x: Tensor) -> Tensor:
        times = torch.linspace(1, 0, steps + 1, device=x.device)
        return odeint(lambda t, x: net(x, 1000 * t), x, times, method=name)[-1]

    return run


CONTESTANTS = [
    ("genflow euler", genflow, "euler"),
    ("genflow ddim", genflow, "ddim"),
    ("genflow dpmpp-2m", genflow, "dpmpp-2m"),
    ("genflow unipc", genflow, "unipc"),
    ("diffusers FlowMatchEuler", diffusers, "FlowMatchEulerDiscreteScheduler"),
    ("diffusers DPMSolverMultistep", diffusers, "DPMSolverMultistepScheduler"),
    ("diffusers UniPC", diffusers, "UniPCMultistepScheduler"),
    ("torchdiffeq euler", torchdiffeq, "euler"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="3 rounds of 5 steps")
    options = parser.parse_args()
    rounds, steps = (3, 5) if options.quick else (options.rounds, options.steps)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    small = UNet(32, 3, widths=(32, 64, 64), layers=1, attention=())
    cases = [
        ("U-Net 3×32×32, batch 4", small, (4, 3, 32, 32), max(3, rounds // 4)),
        ("MLP, batch 64", MLP(2, 128, 3), (64, 2), rounds),
        ("MLP, batch 4096", MLP(2, 128, 3), (4096, 2), max(3, rounds // 2)),
    ]
    results = {}

    for title, net, shape, count in cases:
        net = net.to(options.device).eval()
        x = torch.randn(shape, device=options.device)
        t = torch.tensor(500.0, device=options.device)

        @torch.no_grad()
        def bare(x: Tensor, net: nn.Module = net, t: Tensor = t) -> Tensor:
            for _ in range(steps):
                y = net(x, t)
            return y

        runs = {"bare": bare} | {n: make(k, net, steps) for n, make, k in CONTESTANTS}
        results[title] = contest(runs, x, count)

    write_results("sampling", {"steps": steps, "rounds": rounds, "cases": results}, options)


if __name__ == "__main__":
    main()
