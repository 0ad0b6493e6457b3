"""Trains the feature net that ships with the package, ``genflow-small``.

Twenty classes: ten of Fashion-MNIST (60,000 images) and ten of scikit-learn's digits (the first
1,437 of a fixed order, a quarter of each batch). Images are shifted by up to three pixels, and
clothes mirrored; they are never blurred or made noisy, as the net must go on seeing both. Batch
normalisation is folded into the convolutions at the end, and the head is thrown away.

    python benchmarks/feature_net.py --fashion ROOT [--output FOLDER] [--steps 1600]

The weights and their card go to ``FOLDER/genflow-small.{safetensors,json}``; accuracies are
those of the folded net with its head. About two minutes on one CPU core.
"""

import argparse
import json
from pathlib import Path
import time

from safetensors.torch import save_file
from sklearn.datasets import load_digits
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.datasets import FashionMNIST

from genflow.metrics.small import SIDE, SmallNet, scaled
from genflow.metrics.weights import digest_of_file

CLASSES, KEPT = 20, 1437
BATCH, DIGITS = 128, 32  # images in a batch, and how many of them are digits


def prepared(images: Tensor) -> Tensor:
    """Grey 8-bit images as the net reads them."""

    return scaled(images.float() / 127.5 - 1)


def data(root: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Images scaled for the net, and classes; digits are the classes 10 to 19."""

    found = {}

    for name, train in (("fashion", True), ("fashion test", False)):
        both = FashionMNIST(root, train=train, download=False)
        found[name] = prepared(both.data[:, None]), both.targets

    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
    x = (torch.tensor(digits.images)[order, None] / 16 * 255).round().to(torch.uint8)
    y = torch.tensor(digits.target)[order] + 10
    found["digits"] = prepared(x[:KEPT]), y[:KEPT]
    found["digits test"] = prepared(x[KEPT:]), y[KEPT:]
    return found


def batches(sets: dict[str, tuple[Tensor, Tensor]], steps: int, seed: int):
    """Batches of moved images and their classes."""

    generator = torch.Generator().manual_seed(seed)

    def some(name: str, count: int) -> tuple[Tensor, Tensor]:
        x, y = sets[name]
        rows = torch.randint(len(x), (count,), generator=generator)
        return x[rows], y[rows]

    for _ in range(steps):
        clothes, kinds = some("fashion", BATCH - DIGITS)
        digits, values = some("digits", DIGITS)
        mirrored = torch.rand(len(clothes), generator=generator) < 0.5
        clothes = torch.where(mirrored[:, None, None, None], clothes.flip(3), clothes)
        x = F.pad(torch.cat((clothes, digits)), (3, 3, 3, 3), value=-1.0)
        down, right = torch.randint(7, (2,), generator=generator).tolist()
        yield x[:, :, down : down + SIDE, right : right + SIDE], torch.cat((kinds, values))


def trained(sets: dict, steps: int, seed: int) -> tuple[SmallNet, nn.Linear]:
    torch.manual_seed(seed)
    net, head = SmallNet(normalised=True), nn.Linear(2 * SmallNet.WIDTHS[-1], CLASSES)
    parameters = [*net.parameters(), *head.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=4e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps)

    for step, (x, y) in enumerate(batches(sets, steps, seed)):
        loss = F.cross_entropy(head(net(x)), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)

    return folded(net.eval()), head.eval()


@torch.no_grad()
def folded(net: SmallNet) -> SmallNet:
    """The same map without batch normalisation."""

    plain = SmallNet().eval()
    convs = [m for m in net if isinstance(m, nn.Conv2d)]
    norms = [m for m in net if isinstance(m, nn.BatchNorm2d)]
    targets = [m for m in plain if isinstance(m, nn.Conv2d)]

    for conv, norm, target in zip(convs, norms, targets, strict=True):
        gain = norm.weight / (norm.running_var + norm.eps).sqrt()
        target.weight.copy_(conv.weight * gain[:, None, None, None])
        target.bias.copy_((conv.bias - norm.running_mean) * gain + norm.bias)

    return plain


@torch.no_grad()
def accuracy(net: nn.Module, head: nn.Module, x: Tensor, y: Tensor) -> float:
    guess = torch.cat([head(net(part)).argmax(1) for part in x.split(1000)])
    return round((guess == y).float().mean().item(), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--fashion", required=True, help="torchvision's root of Fashion-MNIST")
    parser.add_argument("--output", default="genflow/metrics/nets")
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    torch.set_num_threads(1)
    begun = time.process_time()
    sets = data(options.fashion)
    net, head = trained(sets, options.steps, options.seed)
    scores = {name: accuracy(net, head, *sets[name]) for name in ("fashion test", "digits test")}

    file = Path(options.output) / "genflow-small.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, file)
    card = {
        "name": "genflow-small",
        "what": "features of grey images, for distances between sets of images; no FID",
        "parameters": sum(p.numel() for p in net.parameters()),
        "data": {
            "Fashion-MNIST, 60,000 training images": "MIT, https://arxiv.org/abs/1708.07747",
            f"digits, {KEPT:,} of 1,797": "with scikit-learn, BSD-3-Clause",
        },
        "licence": "Apache-2.0, as the package",
        "accuracy": scores,
        "script": f"benchmarks/feature_net.py --steps {options.steps} --seed {options.seed}",
        "sha256": digest_of_file(file),
    }
    text = json.dumps(card, indent=1, ensure_ascii=False) + "\n"
    file.with_suffix(".json").write_text(text, encoding="utf-8")
    file.chmod(0o644)
    print(f"{scores}, {card['parameters']} weights, {time.process_time() - begun:.0f} s of CPU")


if __name__ == "__main__":
    main()
