"""A classifier that is put to the test: when it has failed, and how close it is to it."""

__all__ = ["Judge"]

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from genflow.data.pixels import to_float, to_uint8
from genflow.gradients.losses import Logits, check_logits, margin


class Judge:
    """A classifier, and what counts as its failure on each of n samples.

    Args:
        classifier: From images in [−1, 1] to logits.
        before: The samples before any change, with shape (n, C, H, W).
        truth: The right answers, with shape (n); what it answers to ``before`` if None.
        target: The answers that count as failures, with shape (n); any wrong one if None.
        batch_size: How many images it sees at a time.
        device: Where it sees them.

    Attributes:
        truth: The right answers, with shape (n).
        already: Whether it fails on the samples before any change, with shape (n).

    Raises:
        UserError: If it does not answer (B, K), or knows no such class.
    """

    def __init__(
        self,
        classifier: Logits,
        before: Tensor,
        truth: Tensor | None = None,
        target: Tensor | None = None,
        *,
        batch_size: int = 64,
        device: Any = "cpu",
    ) -> None:
        self.classifier, self.batch_size, self.device = classifier, batch_size, device
        logits = self.answers(before)
        check_logits(logits, len(before), 0)
        self.truth = logits.argmax(1) if truth is None else truth.cpu()
        self.target = None if target is None else target.cpu()
        named: Sequence[Tensor] = [self.truth] if target is None else [self.truth, self.target]
        check_logits(logits, len(before), int(torch.cat(list(named)).max()))
        self.already = self.failed(logits, torch.arange(len(before)))

    @torch.no_grad()
    def answers(self, x: Tensor) -> Tensor:
        """The logits of images in the 8 bits in which they are saved, on the CPU, (B, K)."""

        parts = to_float(to_uint8(x)).split(self.batch_size)
        return torch.cat([self.classifier(p.to(self.device)).cpu() for p in parts])

    def margin(self, x: Tensor, rows: Tensor) -> Tensor:
        """By how much it holds on to the samples of these numbers, differentiable, (B)."""

        logits = self.classifier(x)
        truth = self.truth[rows].to(logits.device)
        target = None if self.target is None else self.target[rows].to(logits.device)
        return margin(logits, truth, target)

    def failed(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Whether it fails on the samples of these numbers, by its answers to them, (B)."""

        answer = logits.argmax(1)
        return answer != self.truth[rows] if self.target is None else answer == self.target[rows]
