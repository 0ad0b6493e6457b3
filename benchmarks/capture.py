"""Whole solves as CUDA graphs, against the plain loop and against a compiled network.

For a small, a middling and a large U-Net, with few and many images at once: milliseconds a solve
of 10 calls, all contestants in turn, round after round; the ratio is to the plain sampler of the
same round. Samples of the captured solve are compared with the plain ones, to the bit. There is
nothing to measure without a GPU: then it says so, and ends well.

    python benchmarks/capture.py [--quick]
"""

import argparse
import copy
import sys

from measure import contest, write_results
import torch

from genflow.models import Preconditioned, Rectified
from genflow.nn import UNet
from genflow.solvers import build

NETS = {
    "small, 32×32": {"widths": (64, 128), "layers": 1, "attention": (16,)},
    "middling, 32×32": {"widths": (128, 256, 256), "layers": 2, "attention": (16,)},
    "CIFAR-10's, 32×32": {"widths": (128, 256, 256, 256), "layers": 4, "attention": (16,)},
}
BATCHES = (1, 16, 128)
STEPS = 10


def rate(options, batch, rounds):
    """The contest of one network and batch size."""

    torch.manual_seed(0)
    net = UNet(32, 3, **options).cuda().eval().to(memory_format=torch.channels_last)
    twin = copy.deepcopy(net)
    twin.compile(mode="max-autotune-no-cudagraphs")
    plain, fast = (build("unipc", Preconditioned(n, Rectified()), STEPS) for n in (net, twin))
    x = plain.init((batch, 3, 32, 32), device="cuda")
    solve, both = plain.capture(), fast.capture()

    with torch.no_grad():
        runs = {"plain": plain, "captured": solve, "compiled": fast, "compiled, captured": both}
        found = contest(runs, x, rounds)
        same = torch.equal(solve(x), plain(x))

    return {**found, "bit for bit": same}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one network, few rounds")
    options = parser.parse_args()

    if not torch.cuda.is_available():
        print("there is no GPU here, and nothing to capture: run it where there is one.")
        return 0

    options.device = "cuda"
    results = {}

    for name, net in list(NETS.items())[: 1 if options.quick else None]:
        for batch in BATCHES:
            rounds = 5 if options.quick else 30
            results[f"{name}, batch {batch}"] = rate(net, batch, rounds)

    write_results("capture", {"steps": STEPS, "cases": results}, options)

    return 0


if __name__ == "__main__":
    sys.exit(main())
