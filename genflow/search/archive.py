"""What a search has seen: schedules and their scores, and questions one asks of them."""

__all__ = ["Archive", "Entry", "Stage"]

from collections.abc import Iterable
from dataclasses import dataclass, field
import math

from genflow.errors import UserError
from genflow.solvers.schedules import SolverSchedule


@dataclass(frozen=True)
class Entry:
    """A schedule that was scored.

    Attributes:
        number: Its number in the ledger; they grow in the order of proposal.
        schedule: The schedule.
        value: Its score, lower is better; NaN if it was rejected.
        origin: Where it comes from: ``"seed …"``, ``"random"``, ``"mutation"``, ``"crossover"``,
            ``"chosen"`` by a surrogate, or the name of a sampler of Optuna.
        cost: What a sample costs, in the unit of the space.
        seconds: The time that its scoring took.
    """

    number: int
    schedule: SolverSchedule
    value: float
    origin: str = ""
    cost: float = 0.0
    seconds: float = 0.0

    @property
    def rejected(self) -> bool:
        """Whether the score was NaN or infinite."""

        return not math.isfinite(self.value)


@dataclass(frozen=True)
class Stage:
    """A stage in which a surrogate chose the children.

    Attributes:
        seen: The number of scores that the surrogate had learned from.
        chosen: The number of schedules scored after it had chosen.
        tau: Kendall's τ between its guesses and their true scores, in [−1, 1]; NaN if undefined.
    """

    seen: int
    chosen: int
    tau: float


@dataclass
class Archive:
    """All entries of a search, in the order in which they were scored.

    Attributes:
        entries: The entries, rejected ones too.
        stages: The stages of a surrogate, if there was one.
    """

    entries: list[Entry] = field(default_factory=list)
    stages: list[Stage] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def kept(self) -> list[Entry]:
        """The entries with a finite score."""

        return [e for e in self.entries if not e.rejected]

    @property
    def rejected(self) -> int:
        """The number of schedules whose score was NaN or infinite."""

        return len(self.entries) - len(self.kept)

    @property
    def best(self) -> Entry:
        """The entry with the lowest score.

        Raises:
            UserError: If none was kept.
        """

        if not self.kept:
            raise UserError(
                f"all {len(self)} schedules were rejected, their scores are not finite: look at "
                "the score or at the network, which may answer NaN."
            )

        return self.top(1)[0]

    def top(self, n: int) -> list[Entry]:
        """The n best entries, the best first; ties go to the older one."""

        return sorted(self.kept, key=lambda e: (e.value, e.number))[:n]

    def front(self) -> list[Entry]:
        """The entries that no other one beats in both score and cost, the cheapest first."""

        return front(self.kept)

    def curve(self) -> list[float]:
        """The best score after each evaluation; infinity before the first that was kept."""

        best, out = math.inf, []

        for entry in self.entries:
            best = best if entry.rejected else min(best, entry.value)
            out.append(best)

        return out


def front(entries: Iterable[Entry]) -> list[Entry]:
    """The Pareto front in (cost, score), the cheapest first."""

    out: list[Entry] = []

    for entry in sorted(entries, key=lambda e: (e.cost, e.value, e.number)):
        if not out or entry.value < out[-1].value:
            out.append(entry)

    return out
