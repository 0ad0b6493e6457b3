r"""What the result of a call depends on besides its arguments.

A call that is repeated must come out as it did the first time, bit for bit: under the same
autocast, and with the same random numbers where a network in training mode drops units.
"""

__all__ = ["Circumstances"]

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class Circumstances:
    """Autocast and random numbers, on the device of the states.

    Args:
        x: A tensor of the device of the calls.
    """

    def __init__(self, x: Tensor) -> None:
        self.device = x.device
        self.autocast = torch.is_autocast_enabled(x.device.type)
        self.dtype = torch.get_autocast_dtype(x.device.type) if self.autocast else None

    def casting(self) -> torch.autocast:
        """Autocast as it was, but without its cache of weights.

        A cache that is filled without gradients would hide the weights from the calls that are
        repeated with them.
        """

        return torch.autocast(
            self.device.type, self.dtype, enabled=self.autocast, cache_enabled=False
        )

    def states(self) -> list[Tensor]:
        """The states of the generators of random numbers."""

        cuda = [torch.cuda.get_rng_state(self.device)] if self.device.type == "cuda" else []
        return [torch.get_rng_state(), *cuda]

    @contextmanager
    def again(self, states: list[Tensor]) -> Iterator[None]:
        """A context in which random numbers are drawn a second time."""

        cuda = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            torch.set_rng_state(states[0])
            for device, state in zip(cuda, states[1:], strict=True):
                torch.cuda.set_rng_state(state, device)
            with self.casting():
                yield
