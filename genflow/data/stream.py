"""The order in which a training run sees its examples, as a pure function.

Epoch e of n examples is one permutation, drawn by a generator that knows (seed, e) and nothing
else. The stream is these permutations laid end to end, without end:

    stream = perm(seed, 0) | perm(seed, 1) | perm(seed, 2) | ...

and with batches of B on each of W ranks, batch s of rank r is

    stream[s·B·W + r·B : s·B·W + r·B + B]

So a batch may straddle two epochs, n need not divide by anything, and may even be below B; there
is no last short batch and no padding. Since nothing is remembered, resuming *is* starting at
another s: a run that was killed in the middle of an epoch sees, once restarted, exactly what it
would have seen. What is not assumed: that the number of ranks stays the same. The stream itself
does not depend on B or W. With A batches a rank for each step of the optimiser, step k takes the
places k·A·W·B to (k + 1)·A·W·B of it, however they are shared out: runs with the same A·W·B, the
global batch, see the same examples in every step. A run that goes on with another global batch
takes other places of the same permutations.
"""

from collections.abc import Callable, Iterator
import zlib

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from genflow.data.checks import at_least
from genflow.errors import UserError

__all__ = ["StreamSampler", "coins", "seed_words", "seeded"]


def seed_words(purpose: str, *numbers: int) -> np.random.SeedSequence:
    """Mixes a purpose and some numbers into one well-spread seed.

    The purpose keeps streams apart that happen to be given the same numbers: the flips of step 3
    share nothing with the permutation of epoch 3.

    Args:
        purpose: what the random numbers are for.
        *numbers: whole numbers of at least 0, such as (seed, epoch).
    """
    return np.random.SeedSequence([zlib.crc32(purpose.encode()), len(numbers), *numbers])


def seeded(purpose: str, *numbers: int) -> torch.Generator:
    """Returns a CPU generator that is a pure function of its arguments.

    Args:
        purpose: what the random numbers are for.
        *numbers: whole numbers of at least 0, such as (seed, epoch).
    """
    state = seed_words(purpose, *numbers).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))


def coins(purpose: str, seed: int, first: int, count: int) -> Tensor:
    """Fair coins laid along a stream, one a place, as a pure function of the place.

    A counter-based generator needs no other coins to throw these; so whoever holds a place of the
    stream, in whatever batch, finds the same side up.

    Args:
        purpose: what the coins are for.
        seed: names the row of coins; a whole number of at least 0.
        first: the first place, at least 0.
        count: the number n of places.

    Returns:
        the coins in bool with shape (n).

    References:
        Parallel random numbers: as easy as 1, 2, 3
        https://doi.org/10.1145/2063384.2063405
    """
    # the generator makes four words at each tick of its counter
    row = np.random.Philox(seed_words(purpose, seed)).advance(first // 4)
    words = row.random_raw(first % 4 + count)[first % 4 :]
    return torch.from_numpy((words & np.uint64(1)).astype(bool))


class StreamSampler(Sampler[list[int]]):
    """Batches of indices without end, from any step on.

    Hand it to a `DataLoader` as `batch_sampler`. It has no length, on purpose: a run is measured
    in steps.

    Args:
        size: n, the number of examples.
        batch_size: B, the number of indices in a batch of one rank.
        seed: names the stream; a whole number of at least 0.
        rank: r, which share of every step this process takes, in 0 .. world - 1.
        world: W, the number of processes.
        start: the step to begin with, or a function that says it. It is asked when iteration
            begins, never before, so that a trainer may load its checkpoint first.

    Raises:
        UserError: if a number is out of its range.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        start: Callable[[], int] | int = 0,
    ) -> None:
        self.size = at_least("size", size, 1)
        self.batch_size = at_least("batch_size", batch_size, 1)
        self.seed = at_least("seed", seed, 0)
        self.world = at_least("world", world, 1)
        self.rank = at_least("rank", rank, 0)
        if rank >= world:
            raise UserError(
                f"rank is {rank}, but with world = {world} it must be from 0 to {world - 1}: "
                f"lower the rank or raise world."
            )
        self.start = start if callable(start) else at_least("start", start, 0)
        self._drawn: tuple[int, Tensor] | None = None  # the latest permutation, kept for speed

    def epoch(self, number: int) -> Tensor:
        """The permutation of one epoch, with shape (n,)."""
        if self._drawn is None or self._drawn[0] != number:
            generator = seeded("epoch", self.seed, number)
            self._drawn = (number, torch.randperm(self.size, generator=generator))
        return self._drawn[1]

    def batch(self, step: int) -> list[int]:
        """The B indices that this rank takes at one step."""
        first = (step * self.world + self.rank) * self.batch_size
        taken: list[int] = []
        while len(taken) < self.batch_size:
            epoch, offset = divmod(first + len(taken), self.size)
            rest = self.batch_size - len(taken)
            taken += self.epoch(epoch)[offset : offset + rest].tolist()
        return taken

    def __iter__(self) -> Iterator[list[int]]:
        step = self.start() if callable(self.start) else self.start
        while True:
            yield self.batch(step)
            step += 1
