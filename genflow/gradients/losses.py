r"""What samples are to become: a number for each, differentiable, the lower the better.

A loss is any callable ``loss(x, rows)``: images in about [−1, 1] with shape (B, C, H, W) and their
numbers among all samples with shape (B), to losses with shape (B). Because it is one number a
sample, a batch may be cut into parts, and the gradient is the same.
"""

__all__ = ["Classified", "Gram", "Loss", "Pixel", "margin"]

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from genflow.data.pixels import to_float, to_uint8
from genflow.errors import UserError

Logits = Callable[[Tensor], Tensor]
"""A classifier: images in [−1, 1] with shape (B, C, H, W) to logits with shape (B, K)."""

Maps = Callable[[Tensor], list[Tensor]]
"""A feature net: images in [−1, 1] to the channels of its layers, each (B, c, h, w)."""


class Loss(Protocol):
    """A loss of each sample."""

    def __call__(self, x: Tensor, rows: Tensor) -> Tensor:
        """Images with shape (B, C, H, W), and their numbers (B), to losses with shape (B)."""
        ...


def _fits(x: Tensor, target: Tensor) -> None:
    if x.shape[1:] != target.shape[1:]:
        raise UserError(
            f"the target has shape {tuple(target.shape[1:])} and the samples "
            f"{tuple(x.shape[1:])}: resize or convert the target."
        )


class Pixel:
    r"""The mean squared error of the pixels.

    .. math:: \ell_i = \frac1{CHW} \| x_i - y_i \|^2

    Args:
        target: y in [−1, 1], with shape (1, C, H, W), or one for each sample, (n, C, H, W).
    """

    def __init__(self, target: Tensor) -> None:
        self.target = target

    def __call__(self, x: Tensor, rows: Tensor) -> Tensor:
        """See `Loss`."""

        _fits(x, self.target)
        one = len(self.target) == 1
        y = self.target if one else self.target[rows.to(self.target.device)]
        return (x - y.to(x)).square().flatten(1).mean(1)


class Gram:
    r"""The distance of the Gram matrices of a feature net: style without place.

    .. math:: G_l(x) = \frac1{h_l w_l} \sum_{ij} h_l^{ij} {h_l^{ij}}^T, \qquad
        \ell = \frac1L \sum_l \frac{\| G_l(x) - \bar G_l \|_F^2}{\| \bar G_l \|_F^2}

    with :math:`\bar G_l` the mean over the target images: 0 is that style itself, and an image to
    which no channel answers has 1.

    Args:
        maps: The feature net, `genflow.metrics.features.RandomConv.maps` for instance.
        target: The images whose style is meant, in [−1, 1], with shape (m, C, H, W).

    References:
        A Neural Algorithm of Artistic Style
        https://arxiv.org/abs/1508.06576
    """

    def __init__(self, maps: Maps, target: Tensor) -> None:
        self.maps = maps
        self.shape = target[:1]

        with torch.no_grad():
            self.style = [_gram(h).mean(0) for h in maps(target)]

    def __call__(self, x: Tensor, rows: Tensor) -> Tensor:
        """See `Loss`."""

        _fits(x, self.shape)
        parts = [
            (_gram(h) - g).square().sum((1, 2)) / g.square().sum()
            for h, g in zip(self.maps(x), self.style, strict=True)
        ]
        return torch.stack(parts).mean(0)


def _gram(h: Tensor) -> Tensor:
    flat = h.flatten(2)
    return flat @ flat.mT / flat.shape[2]


class Classified:
    r"""The cross-entropy of a classifier: −log of the probability of the class that is wanted.

    Args:
        classifier: The classifier.
        label: The class wanted, with shape (1), or of each sample, with shape (n).

    Raises:
        UserError: If the answer is not (B, K), or has no class of that number.
    """

    def __init__(self, classifier: Logits, label: Tensor) -> None:
        self.classifier = classifier
        self.label = label

    def __call__(self, x: Tensor, rows: Tensor) -> Tensor:
        """See `Loss`."""

        logits, label = self._answer(x, rows)
        return F.cross_entropy(logits, label, reduction="none")

    def _answer(self, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.classifier(x)
        label = self.label.expand(len(x)) if len(self.label) == 1 else self.label[rows.cpu()]
        check_logits(logits, len(x), int(label.max()))
        return logits, label.to(logits.device)

    @torch.no_grad()
    def right(self, x: Tensor, rows: Tensor) -> Tensor:
        """Whether the images, in the 8 bits of a file, are of the class that is wanted: (B)."""

        logits, label = self._answer(to_float(to_uint8(x)).to(x), rows)
        return logits.argmax(1) == label


def check_logits(logits: Tensor, B: int, label: int) -> None:
    """Refuses what is no answer of a classifier, or has no such class.

    Raises:
        UserError: In both cases.
    """

    if logits.ndim != 2 or len(logits) != B or logits.shape[1] < 2:
        raise UserError(
            f"the classifier answers with shape {tuple(logits.shape)} for {B} images: "
            f"({B}, K) is needed, with K >= 2 logits."
        )
    if label >= logits.shape[1]:
        raise UserError(
            f"class {label} is wanted, and the classifier knows 0 … {logits.shape[1] - 1}."
        )


def margin(logits: Tensor, truth: Tensor, target: Tensor | None = None) -> Tensor:
    r"""By how much a classifier holds on, with shape (B): it has failed once this is below 0.

    .. math:: m = f_y - \max_{j \neq y} f_j \quad\text{or, with a target k,}\quad
        m = \max_{j \neq k} f_j - f_k

    Args:
        logits: f, with shape (B, K).
        truth: y, with shape (B).
        target: k, with shape (B), or None if any other answer is a failure.

    References:
        Towards Evaluating the Robustness of Neural Networks
        https://arxiv.org/abs/1608.04644
    """

    chosen = truth if target is None else target
    one = F.one_hot(chosen, logits.shape[1]).bool()
    own = logits[one]
    other = logits.masked_fill(one, -torch.inf).amax(1)
    return own - other if target is None else other - own
