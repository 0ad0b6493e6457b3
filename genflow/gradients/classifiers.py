"""Classifiers by name: a small net trained on a labelled data set, or any function of yours.

A classifier maps images in [−1, 1] with shape (B, C, H, W) to logits with shape (B, K). The small
net is trained here and now, on four fifths of the images, and the share of the last fifth that it
gets right is stated: a few seconds for the 1,797 digits. It is there so that everything can be
tried without a download; it is no reference of any kind.
"""

__all__ = ["SmallNet", "classifier_of", "fit_classifier"]

from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genflow.data.named import SETS, named
from genflow.data.pixels import to_float
from genflow.data.stream import seeded
from genflow.errors import UserError
from genflow.gradients.losses import Logits


class SmallNet(nn.Sequential):
    """Three convolutions and a linear layer.

    Args:
        channels: The channels of the images, which have 8 pixels a side or more.
        classes: The number of classes.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__(
            nn.Conv2d(channels, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(64 * 16, classes),
        )


def fit_classifier(
    x: Tensor, label: Tensor, classes: int, *, steps: int = 400, seed: int = 0
) -> tuple[SmallNet, float]:
    """Trains a small net.

    Args:
        x: Images in uint8, with shape (n, C, H, W).
        label: Their classes, with shape (n).
        classes: The number of classes.
        steps: The number of steps, of 128 images each.
        seed: The seed of the weights, the split and the batches.

    Returns:
        The net, frozen and in evaluation mode, and its accuracy on the fifth held out, in [0, 1].
    """

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = SmallNet(x.shape[1], classes)

    generator = seeded("classifier", seed)
    order = torch.randperm(len(x), generator=generator)
    held, kept = order[: len(x) // 5], order[len(x) // 5 :]
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    for _ in range(steps):
        rows = kept[torch.randint(len(kept), (128,), generator=generator)]
        optimizer.zero_grad()
        F.cross_entropy(net(to_float(x[rows])), label[rows]).backward()
        optimizer.step()
        decay.step()

    net.eval().requires_grad_(False)

    with torch.no_grad():
        answer = torch.cat([net(to_float(part)).argmax(1) for part in x[held].split(512)])

    return net, float((answer == label[held]).float().mean())


def classifier_of(text: str, device: Any = "cpu") -> tuple[Logits, dict[str, Any]]:
    """The classifier that a text names.

    Args:
        text: A labelled data set to train a small net on, as `genflow.data.named` knows it, as in
            ``digits``; or ``package.module:function``, called without arguments for a classifier
            that takes images in [−1, 1].
        device: Where it goes.

    Returns:
        The classifier, and what is to be said of it.

    Raises:
        UserError: If the text names nothing.
    """

    module, _, function = text.partition(":")

    if text == "digits" or module in SETS:
        data = named(text)
        examples = data.train_set[:]
        net, accuracy = fit_classifier(examples["x"], examples["label"], data.classes)
        return net.to(device), {"classifier": text, "accuracy": accuracy}

    try:
        make = getattr(import_module(module), function)
        if not callable(make):
            raise ValueError(f"'{function}' is no function")
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"classifier is '{text}', which is neither a labelled data set (digits, "
            f"{', '.join(SETS)}) nor package.module:function ({error})."
        ) from None

    made = make()
    return (made.eval().to(device) if isinstance(made, nn.Module) else made), {"classifier": text}
