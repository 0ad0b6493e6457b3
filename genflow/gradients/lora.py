r"""Low-rank changes of weights, laid over them and merged in the end.

.. math:: W = W_0 + \frac{s}{r} \, B A, \qquad A \in \mathbb{R}^{r \times k},
    \; B \in \mathbb{R}^{m \times r}

with :math:`W_0 \in \mathbb{R}^{m \times k}` fixed. A convolution's kernel is read as the matrix of
its m output channels. B begins at zero, so nothing changes at first. Each change is a
*parametrisation* of torch: the module computes with W wherever it reads its weight, and merging
leaves a plain module with plain weights, which saves and loads as before.

References:
    LoRA: Low-Rank Adaptation of Large Language Models
    https://arxiv.org/abs/2106.09685
"""

__all__ = ["LowRank", "lay", "merge", "pattern"]

import re

import torch
from torch import Generator, Tensor, nn
from torch.nn.utils import parametrize

from genflow.errors import UserError

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class LowRank(nn.Module):
    r"""A weight with a low-rank change.

    Args:
        weight: :math:`W_0`, with shape (m, \*).
        rank: r, 1 or more; no more than the matrix has is used.
        scale: s, above 0.
        generator: Draws A, uniform with variance 1 / (3k), from the CPU.
    """

    def __init__(
        self, weight: Tensor, rank: int, scale: float = 1.0, generator: Generator | None = None
    ) -> None:
        super().__init__()

        m, k = len(weight), weight[0].numel()
        r = min(rank, m, k)
        bound = k**-0.5
        down = (2 * torch.rand(r, k, generator=generator) - 1) * bound
        self.factor = scale / r
        self.down = nn.Parameter(down.to(weight.device, torch.float32))
        self.up = nn.Parameter(torch.zeros(m, r, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        r"""W, with the shape and the dtype of :math:`W_0`."""

        change = (self.factor * (self.up @ self.down)).view_as(weight)
        return weight + change.to(weight.dtype)


def pattern(layers: str) -> re.Pattern[str]:
    """A regular expression for names of layers.

    Raises:
        UserError: If it is none.
    """

    try:
        return re.compile(layers)
    except re.error as error:
        raise UserError(f"layers is '{layers}', no regular expression ({error}).") from None


def lay(
    net: nn.Module, rank: int = 4, *, scale: float = 1.0, layers: str = ".*", seed: int = 0
) -> dict[str, nn.Parameter]:
    """Lays low-rank changes over the linear and convolutional layers of a network.

    All parameters of the network are kept from wanting gradients; the new ones alone do.

    Args:
        net: The network, changed in place.
        rank: The rank, 1 or more.
        scale: The factor s.
        layers: A regular expression that must be found in the name of a layer.
        seed: The seed of A.

    Returns:
        The new parameters by name.

    Raises:
        UserError: If a value is out of its range, or no layer has such a name.

    Example:
        >>> parameters = lay(pipe.denoiser.net, rank=4, layers="attentions")
    """

    if rank < 1:
        raise UserError(f"rank is {rank}: it must be 1 or more.")
    if not scale > 0:
        raise UserError(f"scale is {scale}: it must be above 0.")

    chosen = pattern(layers)
    generator = Generator().manual_seed(seed)
    every = [(n, m) for n, m in net.named_modules() if isinstance(m, LAYERS)]
    found = {}
    net.requires_grad_(False)

    for name, module in every:
        if chosen.search(name):
            low = LowRank(module.weight, rank, scale, generator)
            parametrize.register_parametrization(module, "weight", low)
            found |= {f"{name}.down": low.down, f"{name}.up": low.up}

    if not found:
        raise UserError(
            f"layers is '{layers}', found in the name of none of the {len(every)} layers: "
            f"'{every[0][0] if every else ''}' is one of them."
        )

    return found


def merge(net: nn.Module) -> None:
    """Makes the low-rank changes of a network part of its weights, in place."""

    for module in list(net.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
