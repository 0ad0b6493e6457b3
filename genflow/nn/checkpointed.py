r"""Modules whose activations are not kept, and that take a batch piece by piece.

Behind a sampler often stands a decoder of latents, or a network that gives a reward. Under a
gradient policy that keeps one call of the denoiser alone, it is they that set the peak of memory.
"""

__all__ = ["Checkpointed"]

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Checkpointed(nn.Module):
    r"""A module that is called again on the way back, a few samples at a time.

    .. math:: y = \mathrm{cat}\big(f(x_{1:k}), f(x_{k+1:2k}), \dots\big)

    Going forward only x is kept; on the way back one piece after the other is computed again, so
    that the activations in memory are those of k samples. Random numbers and autocast are those of
    the first time. Where no gradient is wanted it is the loop alone.

    The module must treat samples one by one. Sums inside it may be taken in another order for a
    piece than for a batch, so results agree to rounding.

    Args:
        module: The module, or a function: (B, \*) and further arguments → a tensor with B rows.
        rows: k, the number of samples a piece; the whole batch if None.

    Example:
        >>> decode = Checkpointed(codec.decode, rows=1)
        >>> loss = reward(decode(sampler(z))).mean()
    """

    def __init__(self, module: Any, rows: int | None = 1) -> None:
        super().__init__()
        self.module = module
        self.rows = rows

    def forward(self, x: Tensor, *args: Any, **cond: Any) -> Tensor:
        r"""Calls the module.

        Args:
            x: The batch, with shape (B, \*).
            args: Further arguments; tensors with B rows are cut like x, others are handed on.
            cond: The same, by name.

        Returns:
            What the module returns, with B rows.
        """

        B = len(x)
        k = self.rows or max(B, 1)

        def piece(value: Any, i: int) -> Any:
            own = isinstance(value, Tensor) and value.ndim > 0 and len(value) == B
            return value[i : i + k] if own else value

        parts = []

        for i in range(0, max(B, 1), k):
            some = [piece(v, i) for v in args]
            named = {name: piece(v, i) for name, v in cond.items()}
            if torch.is_grad_enabled():
                part = checkpoint(self.module, x[i : i + k], *some, use_reentrant=False, **named)
            else:
                part = self.module(x[i : i + k], *some, **named)
            parts.append(part)

        return torch.cat(parts)
