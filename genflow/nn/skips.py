r"""Fading the skip connections of diffusers' U-Nets.

A U-Net's decoder concatenates to each of its states a tensor that the encoder left behind. Inside
`faded`, the j-th of these tensors enters its block multiplied by a factor :math:`c_j`:

.. math:: h_j \leftarrow \mathrm{up}_j(h_{j - 1}, \; c_j \, \mathrm{skip}_j).

The blocks are intercepted where they are called, and only inside the context: no weight, no buffer
and no method of the network is replaced, its state dict is what it was, and copies made before,
inside or after are ordinary copies. A factor of 1 costs nothing and changes no bit.
"""

__all__ = ["faded", "skip_counts"]

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from genflow.errors import UserError

TUPLE = "res_hidden_states_tuple"


def skip_counts(model: nn.Module) -> tuple[int, ...]:
    """The number of skip connections of each level, the coarsest first; empty if it has none.

    Args:
        model: A module of diffusers, a `UNet2DModel` or `UNet2DConditionModel` if it has any.
    """

    blocks = getattr(model, "up_blocks", None)

    if blocks is None or not all(
        isinstance(getattr(b, "resnets", None), nn.Module) for b in blocks
    ):
        return ()

    return tuple(len(block.resnets) for block in blocks)


@contextmanager
def faded(model: nn.Module, skips: Sequence[float]) -> Iterator[None]:
    """Multiplies the skip connections of a U-Net while the context lasts.

    Args:
        model: A `UNet2DModel` or `UNet2DConditionModel`.
        skips: The factors, the coarsest level first: one a level, or one a connection.

    Raises:
        UserError: If the model has no skip connections, or not as many.
    """

    hooks = [
        block.register_forward_pre_hook(_fade(factors), with_kwargs=True)
        for block, factors in _shared(model, skips)
        if any(c != 1 for c in factors)
    ]

    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _shared(model: nn.Module, skips: Sequence[float]) -> list[tuple[nn.Module, tuple[float, ...]]]:
    """The decoder's blocks, each with the factors of its connections."""

    counts = skip_counts(model)

    if not counts:
        raise UserError(
            f"change.skips holds {len(skips)} factors, but a {type(model).__name__} has no skip "
            "connections: leave them out, or use a U-Net."
        )

    if len(skips) == len(counts):
        parts = [(c,) * n for c, n in zip(skips, counts, strict=True)]
    elif len(skips) == sum(counts):
        rest = iter(skips)
        parts = [tuple(next(rest) for _ in range(n)) for n in counts]
    else:
        raise UserError(
            f"change.skips holds {len(skips)} factors: this network takes {len(counts)} (one a "
            f"level) or {sum(counts)} (one a skip connection)."
        )

    return list(zip(model.up_blocks, parts, strict=True))


def _fade(factors: tuple[float, ...]) -> Any:
    """What runs before a block: a block takes its tensors from the end of the tuple."""

    def scaled(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        pairs = zip(tensors, reversed(factors), strict=True)
        return tuple(x if c == 1 else c * x for x, c in pairs)

    def before(
        block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if TUPLE in kwargs:
            return args, {**kwargs, TUPLE: scaled(kwargs[TUPLE])}
        return (args[0], scaled(args[1]), *args[2:]), kwargs

    return before
