"""How fast images reach the model: ours, and torch's DataLoader with Pillow, on the same folder.

A folder of PNGs is made, and read by

    memory      ImageFolder: decoded once, bytes in memory
    packed      Packed: decoded once by genflow pack, bytes mapped from disk
    files       ImageFolder(in_memory=False): decoded anew in every batch
    torch       torch's DataLoader over torchvision's ImageFolder: decoded, flipped, scaled one by
                one, and collated

each until a float batch with random flips lies on the device. Nothing else runs between batches,
so the figure is what the loader alone can do in the training process, without workers, in images
a second of CPU time. It must be above what training consumes.

    python benchmarks/loading.py [--quick] [--device cuda]
"""

import argparse
from itertools import islice
from pathlib import Path
import tempfile
import warnings

from measure import clock, write_results
import numpy as np
from PIL import Image
import torch
from torch.utils.data import DataLoader, RandomSampler
import torchvision
from torchvision.transforms import v2

from genflow.data import ImageFolder, Packed, mirrored, pack, to_float
from genflow.data.stream import coins

SIZES = {32: 2048, 64: 1024}
BATCH = 128


def make_folder(root, size, count):
    """Pictures with some structure, so that their PNGs are neither tiny nor noise."""

    rng = np.random.default_rng(0)
    (root / "0").mkdir(parents=True)
    for k in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        fine = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), dtype=np.int16)
        noisy = fine + rng.integers(-4, 5, fine.shape)
        picture = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
        picture.save(root / "0" / f"{k:05d}.png")


def ours(data, device):
    for k, batch in enumerate(data.train_dataloader()):
        x = batch["x"].to(device, non_blocking=True)
        yield to_float(mirrored(x, coins("flip", 0, k * BATCH, len(x))))


def theirs(root, device):
    move = v2.Compose(
        [
            v2.PILToTensor(),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )
    found = torchvision.datasets.ImageFolder(str(root), move)
    endless = RandomSampler(found, replacement=True, num_samples=10**9)
    pinned = device != "cpu"
    for x, _ in DataLoader(found, BATCH, sampler=endless, pin_memory=pinned):
        yield x.to(device, non_blocking=True)


def rate(batches, count, now):
    """Images a second: the median of three stretches, after a batch to warm up."""

    stream = iter(batches)
    next(stream)
    found = []
    for _ in range(3):
        start = now()
        seen = sum(len(x) for x in islice(stream, count))
        found.append(seen / (now() - start))
    return sorted(found)[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few batches")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    now, results = clock(options.device), {}

    for size, count in SIZES.items():
        with tempfile.TemporaryDirectory() as folder:
            root, packed = Path(folder) / "photos", Path(folder) / "packed"
            make_folder(root, size, count // 4 if options.quick else count)
            pack(ImageFolder(root, in_memory=False), packed)
            device = options.device
            fast, slow = (20, 2) if options.quick else (200, 6)
            row = {
                "memory": rate(ours(ImageFolder(root, batch_size=BATCH), device), fast, now),
                "packed": rate(ours(Packed(packed, batch_size=BATCH), device), fast, now),
                "files": rate(
                    ours(ImageFolder(root, in_memory=False, batch_size=BATCH), device), slow, now
                ),
                "torch": rate(theirs(root, device), slow, now),
            }
        results[f"{size}×{size}"] = {k: round(v) for k, v in row.items()}

    write_results("loading", {"batch": BATCH, "images": results}, options)


if __name__ == "__main__":
    main()
