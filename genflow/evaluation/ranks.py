"""Processes that share a job: what rank 0 knows, all know.

A job started by ``torchrun`` finds RANK and WORLD_SIZE in its environment and opens a gloo group
of its own, since nothing but small Python objects is ever sent; a group that is there already, as
in a training run, is used as it is. Without either there is one rank, and nothing is sent.
"""

__all__ = ["Ranks", "gathered"]

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
import os
from typing import Any

from torch import distributed

from genflow.errors import UserError

PATIENCE = timedelta(days=2)  # a rank may wait long for the slowest chunk of another


@dataclass(frozen=True)
class Ranks:
    """One of several processes.

    Attributes:
        rank: Its number.
        world: How many there are.
    """

    rank: int = 0
    world: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which speaks for all."""

        return self.rank == 0

    def agree(self, find: Callable[[], Any]) -> Any:
        """What rank 0 finds, on every rank; an error of the user's is raised on every rank, too.

        Args:
            find: Called on rank 0 alone.
        """

        if self.world == 1:
            return find()

        found: list[Any] = [None, None]
        if self.leads:
            try:
                found[0] = find()
            except UserError as error:
                found[1] = str(error)

        distributed.broadcast_object_list(found, src=0)
        if found[1] is not None:
            raise UserError(found[1])
        return found[0]

    def together(self, work: Callable[[], Any]) -> list[Any]:
        """What every rank makes of its part, by rank; an error of one is raised on all.

        Args:
            work: Called on each rank.
        """

        if self.world == 1:
            return [work()]

        made, said = None, None
        try:
            made = work()
        except UserError as error:
            said = str(error)

        found: list[Any] = [None] * self.world
        distributed.all_gather_object(found, (made, said))
        errors = [error for _, error in found if error is not None]
        if errors:
            raise UserError(errors[0])
        return [part for part, _ in found]


@contextmanager
def gathered() -> Iterator[Ranks]:
    """The ranks of this job, in a group that is closed again if it was opened here."""

    if distributed.is_available() and distributed.is_initialized():
        yield Ranks(distributed.get_rank(), distributed.get_world_size())
        return

    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "RANK" not in os.environ:
        yield Ranks()
        return

    distributed.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield Ranks(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()
