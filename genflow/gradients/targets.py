"""Targets by name: a file, a folder, or what the model makes of a class; and the loss to them."""

__all__ = ["loss_of", "pictures"]

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genflow.data.decode import Decoder
from genflow.data.named import images_of
from genflow.data.pixels import to_float
from genflow.errors import UserError
from genflow.gradients.drawing import Drawn
from genflow.gradients.losses import Gram, Loss, Pixel
from genflow.metrics.features import features
from genflow.pipelines import Pipeline


def loss_of(name: str, target: Tensor) -> Loss:
    """The loss that a name says: ``pixel``, or ``gram`` of a fixed net of random convolutions.

    Args:
        name: The name.
        target: The images to match, in [−1, 1], with shape (m, C, H, W).

    Raises:
        UserError: If the feature net does not take such images.
    """

    if name == "pixel":
        return Pixel(target)

    net = features("random-conv", tuple(target.shape[1:])).to(target.device)
    return Gram(net.maps, target)


def pictures(text: str, pipe: Pipeline, seeds: Sequence[int], **options: Any) -> Tensor:
    """The images that a text names.

    Args:
        text: A picture, or a folder of them; or ``label:NAME`` or ``prompt:TEXT``, the pipeline's
            own samples of it, from the same seeds.
        pipe: The pipeline, whose samples give the shape.
        seeds: One seed a sample.
        options: The sampler, as in `genflow.Pipeline.build`.

    Returns:
        Images in [−1, 1], with shape (m, C, H, W): the number of pictures, or one a seed.

    Raises:
        UserError: If the text names nothing.
    """

    kind, _, name = text.partition(":")
    C, H, _ = pipe.event

    if kind in ("label", "prompt") and name:
        asked = {"prompt": name} if kind == "prompt" else {"label": pipe.labels(name, len(seeds))}
        return Drawn(pipe, seeds, gradient="none", **asked, **options).all()

    if Path(text).is_dir():
        return to_float(images_of(text, channels=C, size=H)).to(pipe.device)

    try:
        data = Path(text).read_bytes()
        pixels = torch.from_numpy(Decoder(C, H).pixels(data).copy())
        return to_float(pixels)[None].to(pipe.device)
    except OSError as error:
        raise UserError(
            f"target is '{text}', which is no picture that can be read ({error.strerror or error})"
            ": give a picture, a folder of them, label:NAME or prompt:TEXT."
        ) from None
