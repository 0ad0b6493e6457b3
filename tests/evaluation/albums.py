"""Small sets of images, in memory and on disk."""

import numpy as np
from PIL import Image
import torch

__all__ = ["nhwc", "pictures", "save"]


def pictures(n=40, channels=3, size=8, seed=0):
    """Smooth random images, with shape (n, C, H, W) in uint8."""

    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(n, channels, 4, 4, generator=generator)
    x = torch.nn.functional.interpolate(low, size=(size, size), mode="bilinear")
    return (255 * x).round().to(torch.uint8)


def save(folder, x, start=0):
    """Writes images as numbered PNG files."""

    folder.mkdir(parents=True, exist_ok=True)
    for i, one in enumerate(x):
        array = one.permute(1, 2, 0).numpy()
        picture = Image.fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array)
        picture.save(folder / f"{start + i:04d}.png")
    return folder


def nhwc(x):
    return np.ascontiguousarray(x.permute(0, 2, 3, 1).numpy())
