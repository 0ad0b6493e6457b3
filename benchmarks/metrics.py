"""What the metrics see: known damages of real images, in units of what real images score.

The reference is one half of a data set, the samples are the other half after some damage; every
value is set beside that of two real halves at equal numbers (the floor):

    test set          images that nobody split off: a perfect model
    noise .05, .2     a normal draw of this deviation added to each pixel of [0, 1]
    blur              the mean of 3 × 3 pixels
    8 of 10, 1 of 10  classes that are left
    copies ×10        a tenth of the images, each ten times
    pair mix          the mean of two images
    training copies   images of the reference itself: what a model that remembers would draw

Distances are ratios to the floor (1 is perfect, larger is worse), for KID's formula the number of
the floor's deviations; precision, recall, density and coverage are ratios to the floor's (1 is
perfect, smaller is worse), the memorisation check is the fraction of samples itself. A metric is
good for what lifts it, or presses it, far from its row "test set".

    python benchmarks/metrics.py [--fashion ROOT] [--n 2000] [--quick]
"""

import argparse
import time
from typing import Any

from measure import write_results
from sklearn.datasets import load_digits
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.datasets import FashionMNIST

from genflow.data import to_uint8
from genflow.metrics import METRICS, extract, measure
from genflow.metrics.features import features

NETS = ("genflow-small", "random-conv")  # and pixels where they are few
FEW_PIXELS = 256


def digits(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Samples, their classes, and the reference: two halves."""

    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(data.images)[order, None].float() / 16
    half = min(n, len(x) // 2)
    return x[:half], torch.tensor(data.target)[order][:half], x[half : 2 * half]


def fashion(root: str, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same of Fashion-MNIST; the samples are of its test set."""

    train, test = (FashionMNIST(root, train=t, download=False) for t in (True, False))
    generator = torch.Generator().manual_seed(0)
    rows, others = (torch.randperm(len(d), generator=generator)[:n] for d in (test, train))
    return test.data[rows, None] / 255, test.targets[rows], train.data[others, None] / 255


def damaged(x: Tensor, kind: Tensor, reference: Tensor) -> dict[str, Tensor]:
    """The samples of every row, as bytes, as many as are left."""

    generator = torch.Generator().manual_seed(1)
    grain = torch.randn(x.shape, generator=generator)
    other = x[torch.randperm(len(x), generator=generator)]
    sets = {
        "test set": x,
        "noise .05": x + 0.05 * grain,
        "noise .2": x + 0.2 * grain,
        "blur": F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1),
        "8 of 10 classes": x[kind < 8],
        "1 of 10 classes": x[kind == 3],
        "copies ×10": x[: len(x) // 10].repeat(10, 1, 1, 1),
        "pair mix": (x + other) / 2,
        "training copies": reference[torch.randperm(len(reference), generator=generator)],
    }
    return {name: to_uint8(2 * images.clamp(0, 1) - 1) for name, images in sets.items()}


def measured(name: str, sets: dict[str, Tensor], reference: Tensor, repeats: int) -> dict:
    """Net → row → metric → what was found, without the halvings one by one."""

    found: dict[str, dict[str, dict[str, Any]]] = {}
    real = to_uint8(2 * reference - 1)

    nets = NETS + (("pixels",) if real[0].numel() <= FEW_PIXELS else ())
    for net in nets:
        begun = time.process_time()
        feature = features(net, tuple(real.shape[1:]))
        y = extract(feature, real)
        found[net] = {}
        for row, images in sets.items():
            x = extract(feature, images)
            result = measure(x, y, METRICS, prefix=feature.prefix, repeats=repeats)
            found[net][row] = {m: entry(e) for m, e in result["metrics"].items()}
        seconds = time.process_time() - begun
        print(f"{name}, {net}: {seconds:.0f} s of CPU time", flush=True)

    return found


def entry(found: dict[str, Any]) -> dict[str, Any]:
    numbers = {key: found[key] for key in ("label", "value", "ratio", "points")}
    numbers |= {key: found[key]["mean"] for key in ("floor", "at_floor_n")}
    return numbers | {"floor_std": found["floor"]["std"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--fashion", help="torchvision's root of Fashion-MNIST; digits always")
    parser.add_argument("--n", type=int, default=2000, help="the most samples, and references")
    parser.add_argument("--repeats", type=int, default=4, help="halvings of the reference")
    parser.add_argument("--quick", action="store_true", help="tiny settings, to see it run")
    options = parser.parse_args()
    if options.quick:
        options.n, options.repeats = 200, 2

    torch.set_num_threads(1)
    begun, tables = time.process_time(), {}
    data = {"digits": digits(options.n)}
    if options.fashion:
        data["Fashion-MNIST"] = fashion(options.fashion, options.n)

    for name, (x, kind, reference) in data.items():
        sets = damaged(x, kind, reference)
        tables[name] = measured(name, sets, reference, options.repeats)

    print(f"{time.process_time() - begun:.0f} s of CPU time")

    options.fashion = options.fashion is not None  # whether, and not where
    write_results("metrics", {"tables": tables}, options)


if __name__ == "__main__":
    main()
