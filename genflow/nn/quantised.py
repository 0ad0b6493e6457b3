r"""Weights rounded to few bits, to see how much of that a model bears.

Each weight tensor is replaced by the nearest point of a grid of its own, :math:`2^b` values evenly
spaced from its smallest to its largest entry:

.. math:: \hat w = w_{\min} + s \, \mathrm{round}\Big( \frac{w - w_{\min}}{s} \Big), \qquad
          s = \frac{w_{\max} - w_{\min}}{2^b - 1}

so that no entry moves by more than :math:`s/2`. This is *fake* quantisation: values are rounded
and arithmetic stays in floating point, which measures what the rounding does to samples and saves
neither memory nor time.

Rounded are all parameters with two or more dimensions: the matrices of linear layers, the kernels
of convolutions, embedding tables. Not rounded are those with one, which are biases and the scales
of normalisation, nor buffers. The published experiment chose by name instead: it left out whatever
is called norm, affine or map, and also every name that holds "32", so that on 32×32 images all
layers of the full resolution kept their precision. Its figures are not to be set beside ours.

References:
    PFGM++: Unlocking the Potential of Physics-Inspired Generative Models
    https://arxiv.org/abs/2302.04265
"""

__all__ = ["quantised", "rounded", "weights_of"]

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from genflow.errors import UserError

FEWEST, MOST = 1, 16


def rounded(weight: Tensor, bits: int) -> Tensor:
    r"""A tensor rounded to its own grid of :math:`2^b` values.

    Args:
        weight: The tensor, of any floating type, with shape (\*).
        bits: b, from 1 to 16.

    Returns:
        The rounded tensor, with shape (\*); a constant tensor is its own grid.

    Raises:
        UserError: If ``bits`` is not a whole number from 1 to 16.
    """

    if not isinstance(bits, int) or isinstance(bits, bool) or not FEWEST <= bits <= MOST:
        raise UserError(
            f"bits is {bits!r}: a whole number from {FEWEST} to {MOST} is needed; leave the "
            "network as it is for its full precision."
        )

    w = weight.detach().double()
    low, high = torch.aminmax(w)
    step = (high - low) / (2**bits - 1)
    unit = torch.where(step > 0, step, torch.ones_like(step))  # a constant tensor has no step
    return (low + step * torch.round((w - low) / unit)).to(weight.dtype)


def weights_of(net: nn.Module) -> dict[str, nn.Parameter]:
    """What is rounded: the parameters with two or more dimensions, by name, each once."""

    return {name: p for name, p in net.named_parameters() if p.ndim >= 2}


@contextmanager
def quantised(net: nn.Module, bits: int) -> Iterator[None]:
    """Inside, the weights of a network are rounded; afterwards they are the same bits as before.

    Args:
        net: The network, or anything that holds it: a denoiser, a sampler.
        bits: b, from 1 to 16.

    Raises:
        UserError: If ``bits`` is not a whole number from 1 to 16, or there is nothing to round.

    Example:
        >>> with quantised(pipe.denoiser, bits=5):
        ...     samples = pipe(64, seed=0)
    """

    weights = list(weights_of(net).values())

    if not weights:
        raise UserError(
            f"a {type(net).__name__} has no parameters with two or more dimensions: there is "
            "nothing to round."
        )

    coarse = [rounded(p, bits) for p in weights]
    exact = [p.detach().clone() for p in weights]

    try:
        _write(weights, coarse)
        yield
    finally:
        _write(weights, exact)


@torch.no_grad()
def _write(weights: list[nn.Parameter], values: list[Tensor]) -> None:
    for p, v in zip(weights, values, strict=True):
        p.copy_(v)
