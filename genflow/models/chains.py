r"""Chains of bridges through a sequence of snapshots.

A population seen at times :math:`\tau_0 < \dots < \tau_n` is followed by n bridges, one from each
snapshot to the next. Inside an interval the bridge's own time is
:math:`t = 1 - (\tau - \tau_i)/(\tau_{i+1} - \tau_i)`, so a bridge fitted with ε has the variance
:math:`\epsilon / (\tau_{i+1} - \tau_i)` per unit of :math:`\tau`.

*What is not assumed*, and not given: the law at which one bridge arrives is only close to the
snapshot from which the next was fitted, so errors add up along the chain. The chain is Markov: it
knows no correlation between snapshots but through the state between them, and its drift jumps
where two bridges meet. A smooth flow through all snapshots is another model.
"""

__all__ = ["BridgeChain"]

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from genflow.errors import UserError
from genflow.models.bridges import LightBridge, Method
from genflow.models.noise import Generators


class BridgeChain(nn.Module):
    r"""Bridges from snapshot to snapshot.

    Args:
        bridges: The n bridges, of the same dimension.
        times: The n + 1 increasing times :math:`\tau` of the snapshots; 0, 1, …, n if None.

    Raises:
        UserError: If dimensions differ, or the times do not increase or are not n + 1.
    """

    def __init__(
        self, bridges: Sequence[LightBridge], times: Sequence[float] | None = None
    ) -> None:
        super().__init__()

        times = range(len(bridges) + 1) if times is None else times
        self.times = tuple(float(time) for time in times)
        dimensions = {bridge.dimension for bridge in bridges}

        if len(dimensions) != 1:
            raise UserError(
                f"bridges have the dimensions {sorted(dimensions)}: one or more bridges of the "
                "same dimension are needed."
            )
        if len(self.times) != len(bridges) + 1 or not all(a < b for a, b in pairwise(self.times)):
            raise UserError(
                f"times are {self.times} for {len(bridges)} bridges: one more than bridges, and "
                "increasing, are needed."
            )

        self.bridges = nn.ModuleList(bridges)

    def _pieces(
        self, times: Sequence[float]
    ) -> Iterator[tuple[LightBridge, list[float], list[float]]]:
        """For each interval that the times touch: its bridge, the stops, and their own times."""

        first, last = times[0], times[-1]

        for bridge, (a, b) in zip(self.bridges, pairwise(self.times), strict=True):
            start, stop = max(a, first), min(b, last)
            if start < stop:
                stops = [start, *(time for time in times if start < time < stop), stop]
                yield bridge, stops, [(b - time) / (b - a) for time in stops]

    def _checked(self, times: Sequence[float]) -> list[float]:
        times = [float(time) for time in times]
        inside = (
            self.times[0] <= min(times, default=-1) and max(times, default=1) <= self.times[-1]
        )

        if len(times) < 2 or not inside or not all(a < b for a, b in pairwise(times)):
            raise UserError(
                f"times are {times}: two or more that increase inside [{self.times[0]}, "
                f"{self.times[-1]}] are needed."
            )

        return times

    def trajectory(
        self,
        x: Tensor,
        times: Sequence[float] | None = None,
        label: Tensor | None = None,
        *,
        method: Method = "kernel",
        generator: Generators = None,
    ) -> Tensor:
        r"""Draws a path from each state through the snapshots.

        Args:
            x: The states at ``times[0]``, with shape (B, \*).
            times: Increasing times :math:`\tau` at which the state is wanted; those of the
                snapshots if None.
            label: The classes, with shape (B), of bridges with classes.
            method: As in `LightBridge.trajectory`.
            generator: None, one generator, or one a sample.

        Returns:
            The states, with shape (T, B, \*); the first are x.

        Raises:
            UserError: If times do not increase inside those of the snapshots.
        """

        times = self._checked(self.times if times is None else times)
        kept, now = [x], x

        for bridge, stops, own in self._pieces(times):
            path = bridge.trajectory(now, own, label, method=method, generator=generator)
            kept += [path[i] for i, time in enumerate(stops) if i and time in times]
            now = path[-1]

        return torch.stack(kept)

    def sample(
        self, x: Tensor, label: Tensor | None = None, *, generator: Generators = None
    ) -> Tensor:
        r"""Draws a point of the last snapshot for each point of the first, with shape (B, \*)."""

        return self.trajectory(x, None, label, generator=generator)[-1]

    def log_path(
        self, path: Tensor, times: Sequence[float], label: Tensor | None = None
    ) -> Tensor:
        r"""The log-density of the states at ``times[1:]``, given the first, with shape (B).

        Args:
            path: The states, with shape (T, B, \*).
            times: Their increasing times; every snapshot between the first and the last is one.
            label: The classes, with shape (B), of bridges with classes.

        Raises:
            UserError: If a snapshot on the way is missing, or shapes and times disagree.
        """

        times = self._checked(times)
        missing = [
            time for time in self.times if times[0] < time < times[-1] and time not in times
        ]

        if missing or len(path) != len(times):
            raise UserError(
                f"path has {len(path)} states for {len(times)} times, and the snapshots at "
                f"{missing} are not among them: one state a time, and every snapshot on the way, "
                "is needed."
            )

        total = 0.0

        for bridge, stops, own in self._pieces(times):
            states = path[[times.index(time) for time in stops]]
            total = total + bridge.log_path(states, own, label)

        return total
