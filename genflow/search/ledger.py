"""Where a search keeps its queue and its scores.

A ledger is a queue and a record. Proposals wait in it, a worker claims one at a time and closes it
with a score; so a schedule that is proposed is never lost, and one that has been claimed belongs
to one worker. `Memory` serves one worker, `genflow.search.study.StudyLedger` any number of them.
"""

__all__ = ["Candidate", "Ledger", "Memory"]

from dataclasses import dataclass
from typing import Protocol

from genflow.search.archive import Entry
from genflow.solvers.schedules import SolverSchedule


@dataclass(frozen=True)
class Candidate:
    """A schedule that a worker has claimed.

    Attributes:
        number: Its number in the ledger.
        schedule: The schedule.
        origin: Where it comes from, as in `Entry`.
    """

    number: int
    schedule: SolverSchedule
    origin: str


class Ledger(Protocol):
    """The queue and the record of a search."""

    def propose(self, schedule: SolverSchedule, origin: str) -> None:
        """Queues a schedule."""
        ...

    def claim(self) -> Candidate | None:
        """Takes the oldest schedule from the queue; None if it is empty."""
        ...

    def close(
        self, candidate: Candidate, value: float, *, cost: float = 0.0, seconds: float = 0.0
    ) -> None:
        """Records a score; one that is not finite rejects the schedule."""
        ...

    def entries(self) -> list[Entry]:
        """All scores, in the order in which they were recorded."""
        ...

    def known(self) -> set[SolverSchedule]:
        """All schedules that were ever proposed."""
        ...

    def finished(self) -> int:
        """The number of scores."""
        ...

    def running(self) -> int:
        """The number of schedules that have been claimed and not closed."""
        ...


class Memory:
    """A ledger in memory, of one worker."""

    def __init__(self) -> None:
        self._queue: list[Candidate] = []
        self._known: set[SolverSchedule] = set()
        self._entries: list[Entry] = []
        self._count = self._claimed = 0

    def propose(self, schedule: SolverSchedule, origin: str) -> None:
        """See [`Ledger.propose`][genflow.search.ledger.Ledger.propose]."""

        self._known.add(schedule)
        self._queue.append(Candidate(self._count, schedule, origin))
        self._count += 1

    def claim(self) -> Candidate | None:
        """See [`Ledger.claim`][genflow.search.ledger.Ledger.claim]."""

        self._claimed += bool(self._queue)
        return self._queue.pop(0) if self._queue else None

    def close(
        self, candidate: Candidate, value: float, *, cost: float = 0.0, seconds: float = 0.0
    ) -> None:
        """See [`Ledger.close`][genflow.search.ledger.Ledger.close]."""

        c = candidate
        self._entries.append(Entry(c.number, c.schedule, value, c.origin, cost, seconds))

    def entries(self) -> list[Entry]:
        """See [`Ledger.entries`][genflow.search.ledger.Ledger.entries]."""

        return list(self._entries)

    def known(self) -> set[SolverSchedule]:
        """See [`Ledger.known`][genflow.search.ledger.Ledger.known]."""

        return set(self._known)

    def finished(self) -> int:
        """See [`Ledger.finished`][genflow.search.ledger.Ledger.finished]."""

        return len(self._entries)

    def running(self) -> int:
        """See [`Ledger.running`][genflow.search.ledger.Ledger.running]."""

        return self._claimed - len(self._entries)
