"""The one loop of the applications: iterate, remember, and go on where a killed run stood.

A `Task` holds everything that changes and does one iteration at a time. Which samples an iteration
sees follows from its number, and so do the global generators of random numbers, which a loss or a
gradient policy may draw from: a run that was killed and goes on is the unbroken run bit for bit,
on the same machine with the same number of threads.
"""

__all__ = ["Report", "Task", "iterate"]

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
import os
from pathlib import Path
from typing import Any

import torch

from genflow.gradients.states import load_state, save_state

Report = Callable[[int, int], None]
"""What may look on: called with the iterations done and to do."""


class Task(ABC):
    """Something to be done in iterations.

    Attributes:
        iterations: The number of iterations, at most.
        done: Whether nothing is left to do before that.
    """

    iterations: int
    done: bool = False

    @abstractmethod
    def advance(self, k: int) -> dict[str, float]:
        """Does iteration k; returns numbers for the record."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """All that changes: tensors and plain values, nested in mappings and lists."""

    @abstractmethod
    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes back to a state."""


def iterate(
    task: Task,
    file: str | os.PathLike[str] | None = None,
    *,
    every: int = 10,
    report: Report | None = None,
) -> list[dict[str, float]]:
    """Does the iterations of a task that are left.

    Args:
        task: The task.
        file: Where its state is kept; a state that is there already is gone on with. None keeps
            nothing.
        every: The number of iterations between two states, 1 or more.
        report: Looks on.

    Returns:
        The numbers of every iteration, those before an interruption among them.

    Raises:
        UserError: If the state cannot be read or written.
    """

    history: list[dict[str, float]] = []

    if file is not None and Path(file).exists():
        kept = load_state(file)
        history = kept["history"]
        task.restore(kept["task"])

    while len(history) < task.iterations and not task.done:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(len(history))
            history.append(task.advance(len(history)))
        last = len(history) == task.iterations or task.done
        if file is not None and (last or len(history) % every == 0):
            save_state(file, {"history": history, "task": task.state()})
        if report is not None:
            report(len(history), task.iterations)

    return history
