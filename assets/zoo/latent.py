"""Trains the model ``digits-latent-bridge``: an autoencoder of digits, and bridges in its latents.

    python assets/zoo/latent.py FOLDER [--steps 2500]

The autoencoder is diffusers' `AutoencoderKL`, made small and trained without its sampling: latents
are means, with a little noise while it learns, so that neighbours decode to neighbours. Between
the latents of two classes a light Schrödinger bridge is fitted, one pair after the other; side by
side they are one bridge with a class for each pair. Four fifths of the digits are learned from,
and the rest is what the numbers in ``distances.json`` are measured on.
"""

import argparse
import json
from pathlib import Path
import time

from diffusers import AutoencoderKL
from recipes import BRIDGE_PAIRS
from sklearn.linear_model import LogisticRegression
import torch
from torch import Tensor

from genflow.data import Digits, to_float
from genflow.data.stream import seeded
from genflow.files import write_text
from genflow.models import LightBridge
from genflow.pipelines import BridgePipeline
from genflow.pipelines.codecs import Codec

WIDTHS, CHANNELS = (16, 32, 32), 4
BATCH, RATE, NOISE, PULL = 128, 2e-3, 0.05, 1e-3
EPSILON, COMPONENTS = 0.1, 20
HOLD = 5
"""Every so manieth digit is held out."""


def autoencoder(x: Tensor, steps: int) -> AutoencoderKL:
    """An autoencoder of images in [−1, 1], with latents at unit scale."""

    torch.manual_seed(0)
    n = len(WIDTHS)
    vae = AutoencoderKL(
        in_channels=x.shape[1],
        out_channels=x.shape[1],
        down_block_types=("DownEncoderBlock2D",) * n,
        up_block_types=("UpDecoderBlock2D",) * n,
        block_out_channels=WIDTHS,
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=8,
        sample_size=x.shape[-1],
        mid_block_add_attention=False,
    )
    source = seeded("autoencoder", 0)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=RATE, fused=True)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    for _ in range(steps):
        batch = x[torch.randint(len(x), (BATCH,), generator=source)]
        z = vae.encode(batch).latent_dist.mean
        noisy = z + NOISE * torch.randn(z.shape, generator=source)
        loss = (vae.decode(noisy).sample - batch).square().mean() + PULL * z.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        falling.step()

    vae.eval().requires_grad_(False)
    vae.register_to_config(scaling_factor=1 / float(vae.encode(x).latent_dist.mean.std()))
    return vae


def measured(
    pipe: BridgePipeline, x: Tensor, label: Tensor, held: Tensor, seconds: float
) -> dict[str, object]:
    """What becomes of the digits that nothing was learned from."""

    learned = ~held
    judge = LogisticRegression(max_iter=2000).fit(x[learned].flatten(1), label[learned])
    kept = pipe.codec.decode(pipe.codec.encode(x[held]))
    table = []

    for row, (a, b) in enumerate(BRIDGE_PAIRS):
        start, others = x[held & (label == a)], x[learned & (label == b)]
        made = pipe(start, seed=0, label=row).x.clamp(-1, 1)
        table.append(
            {
                "pair": f"{a} to {b}",
                "held_out": len(start),
                "read": int((judge.predict(made.flatten(1)) == b).sum()),
                "moved": _rms(start, made).diagonal().mean().item(),
                "random": _rms(start, others).mean().item(),
            }
        )

    return {
        "table": table,
        "judge": float(judge.score(x[held].flatten(1), label[held])),
        "autoencoder": (kept - x[held]).square().mean().sqrt().item(),
        "cpu_seconds": round(seconds, 1),
    }


def _rms(x: Tensor, y: Tensor) -> Tensor:
    """Distances as root-mean-square of pixels, with shape (n, m)."""

    return torch.cdist(x.flatten(1), y.flatten(1)) / x[0].numel() ** 0.5


def main() -> None:
    """Trains, fits, measures, and saves."""

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=2500, help="training steps")
    options = parser.parse_args()
    began = time.process_time()

    digits = Digits().load()
    x, label = to_float(digits.x[:]), torch.as_tensor(digits.label)
    held = torch.arange(len(x)) % HOLD == 0
    codec = Codec(autoencoder(x[~held], options.steps))
    z = codec.encode(x)
    bridges = [
        LightBridge.fit(
            z[~held & (label == a)].flatten(1),
            z[~held & (label == b)].flatten(1),
            epsilon=EPSILON,
            components=COMPONENTS,
        )
        for a, b in BRIDGE_PAIRS
    ]
    pipe = BridgePipeline(
        LightBridge.joined(bridges),
        tuple(z.shape[1:]),
        tuple(f"{a} to {b}" for a, b in BRIDGE_PAIRS),
        {"data": "Digits", "training_steps": options.steps, "epsilon": EPSILON},
        codec,
    )
    record = measured(pipe, x, label, held, time.process_time() - began)
    write_text(options.folder / "distances.json", json.dumps(record, indent=1) + "\n")
    pipe.save(options.folder / "pipeline", overwrite=True)


if __name__ == "__main__":
    main()
