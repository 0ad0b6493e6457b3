"""The runs that a scheduler has on offer: one for each schedule that it holds, or a fallback's.

Timesteps are what a pipeline tells its network about time: 1000 t for a flow, and for everything
else the level N t − 1, whole or not.
"""

__all__ = ["Runs"]

from collections.abc import Mapping, Sequence
import math
from typing import Any

import torch
from torch import Tensor

from genflow.errors import UserError
from genflow.models import CLOCKS, Path, Rectified, grid
from genflow.pipelines.driven import Driven, door
from genflow.pipelines.remainders import remainder
from genflow.pipelines.scheduler_config import PREDICTION_TYPES
from genflow.solvers.registry import preset, schedule_for
from genflow.solvers.schedules import SolverSchedule
from genflow.solvers.tableau import Tableau


class Runs:
    """The runs of one network.

    Args:
        config: The config of the scheduler: prediction_type, num_train_timesteps, fallback, shift
            and clip.
        path: The path of the network.
        schedules: Schedules, or tables, by the number of calls.

    Raises:
        UserError: If a schedule cannot be carried out, or is held under another number, or the
            fallback is unknown.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        path: Path,
        schedules: Mapping[str, SolverSchedule | Tableau],
    ) -> None:
        self.path = path
        self.levels = config["num_train_timesteps"]
        self.shift = config["shift"]
        self.fallback = config["fallback"]
        self.clock = "thousand" if isinstance(path, Rectified) else "discrete"
        self.prediction = PREDICTION_TYPES[config["prediction_type"]]
        self.clip = config["clip"]

        if self.fallback is not None and preset(self.fallback).make is None:
            raise UserError(
                f"fallback is '{self.fallback}', which chooses its own steps: name a sampler with "
                "a fixed number of calls, such as 'unipc'."
            )

        self.held = {n: self._compiled(n, schedules[n]) for n in sorted(schedules, key=int)}

    def _driven(self, schedule: SolverSchedule | Tableau, where: str) -> Driven:
        denoiser = door(self.path, self.prediction, self.clock, clip=self.clip)

        try:
            return Driven(denoiser, schedule)
        except UserError as error:
            raise UserError(f"{where} cannot be run by a diffusers pipeline: {error}") from None

    def _compiled(self, n: str, schedule: SolverSchedule | Tableau) -> Driven:
        run = self._driven(schedule, f"schedules['{n}']")

        if int(n) != len(run):
            raise UserError(
                f"schedules holds under {n} a schedule with {len(run)} calls of the network: hold "
                f"it under {len(run)}."
            )

        return run

    def of(self, count: int | None, mu: float | None = None) -> Driven:
        """The run with a number of calls.

        Args:
            count: The number.
            mu: The logarithm of the shift of the fallback's grid, instead of the scheduler's.

        Raises:
            UserError: If no schedule is held for it and there is no fallback.
        """

        if str(count) in self.held:
            return self.held[str(count)]

        if self.fallback is None or count is None:
            raise UserError(
                f"num_inference_steps is {count}: schedules are held for "
                f"{', '.join(self.held) or 'no number of'} steps; ask for one of these, or make "
                "the scheduler with fallback='unipc', say, to run that sampler instead."
            )

        shift = self.shift if mu is None else math.exp(mu)
        return self._by_fallback(grid(self.path, count, shift=shift if self._flow else 1.0))

    def through(self, timesteps: Sequence[float]) -> Driven:
        """The run of the fallback through given timesteps, and then to clean data.

        Raises:
            UserError: If there is no fallback.
        """

        if self.fallback is None:
            raise UserError(
                "timesteps are given, but a searched schedule has its own: leave them out, or "
                "make the scheduler with fallback='unipc', say, to run that sampler on them."
            )

        given = torch.as_tensor(timesteps, dtype=torch.float64).cpu()
        return self._by_fallback((*self.time(given).tolist(), 0.0))

    def rest(self, run: Driven, begin: int) -> Driven | None:
        """What is left of a run from a stage on, with no history; None if that is nothing.

        Raises:
            UserError: If the run is of a table, which knows nothing of its rest.
        """

        if run.times is not None:
            return self._by_fallback(run.times[begin:])
        if run.sampler.schedule is None:
            raise UserError(
                f"the pipeline begins at stage {begin} of a table, whose weights are for a whole "
                "run: hold a schedule for this number of steps to begin in the middle."
            )

        left = remainder(run.sampler.schedule, begin)
        return None if left is None else self._driven(left, "the rest of the schedule")

    def _by_fallback(self, times: tuple[float, ...]) -> Driven:
        N = len(times) - 1
        table = schedule_for(self.fallback, self.path, N, times=times)
        run = self._driven(table, f"fallback '{self.fallback}'")
        run.times = times

        if len(run) != N or run.table.noisy[0]:
            raise UserError(
                f"fallback is '{self.fallback}', which calls the network {len(run)} times in {N} "
                "steps: name a sampler with one call a step, such as 'unipc'."
            )

        return run

    # ------------------------------------------------------------------------- the clock

    @property
    def _flow(self) -> bool:
        return self.clock == "thousand"

    def timesteps(self, run: Driven) -> Tensor:
        """The timestep of each stage, in float32, with shape (N)."""

        return CLOCKS[self.clock](self.path, run.table.time).to(torch.float32)

    def time(self, timesteps: Tensor) -> Tensor:
        """The times in [0, 1] of timesteps: the clock, inverted."""

        return timesteps / 1000 if self._flow else (timesteps + 1) / self.levels
