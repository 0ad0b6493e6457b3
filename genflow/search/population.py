r"""Carrying out many schedules on common random numbers.

All schedules start from the same noise :math:`z`, one seed a sample, as :math:`x_T = \sigma_T z`
at their own first time, so that two schedules differ in nothing but themselves; an error of a few
samples then orders them as an error of many would.

Schedules of one number of stages share batches of the network: their tables are stacked, and one
rollout runs them all (`genflow.solvers.stack`), which is what small networks need. As many run
together as ``batch_size`` holds samples; a network that is busy with the samples of one schedule
runs them one by one, and would gain nothing by more. The call at the first time is the same for
all schedules that begin there, and is made once. Deeper prefixes are not shared: in a search of
300 schedules it would have saved 2 % of the calls, and it breaks the batches up.

What is *not* shared: schedules that alter the network differently, or have statistics per element,
run apart, and a network that is altered makes its first call itself.
"""

__all__ = ["Population"]

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor

from genflow.errors import UserError
from genflow.models.denoisers import Denoiser
from genflow.models.paths import broadcast
from genflow.solvers.empirical import Statistics
from genflow.solvers.rollout import Stage, rollout
from genflow.solvers.samplers import Sampler
from genflow.solvers.schedules import SolverSchedule
from genflow.solvers.tableau import Tableau, stack, tabulate

Solver = SolverSchedule | Tableau
"""What can be carried out: a schedule, or a table that has none."""


class Population:
    r"""Common noise, and schedules that are run from it.

    Args:
        denoiser: The denoiser.
        z: The noise of unit scale, with shape (n, \*).
        cond: Named conditions, each with n rows.
        batch_size: How many samples the network is called with at a time, 1 or more.
        statistics: The statistics of DPM-Solver-v3, if schedules may need them.
        mean: The mean of the data, if schedules may begin from it, with the shape of a sample.

    Attributes:
        calls: The number of samples that the network has been called with so far.

    Raises:
        UserError: If a condition has not n rows, or the batch size is below 1.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        z: Tensor,
        cond: Mapping[str, Any] | None = None,
        *,
        batch_size: int = 1024,
        statistics: Statistics | None = None,
        mean: Tensor | None = None,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}: it must be 1 or more.")

        for name, value in (cond or {}).items():
            if len(value) != len(z):
                raise UserError(
                    f"condition '{name}' has {len(value)} rows for {len(z)} samples: give one a "
                    "sample."
                )

        self.denoiser, self.z, self.cond = denoiser, z, dict(cond or {})
        self.batch_size, self.statistics, self.mean = batch_size, statistics, mean
        self.calls = 0
        self._first: dict[tuple[float, int], Tensor] = {}

    @classmethod
    def draw(
        cls,
        denoiser: Denoiser,
        shape: Sequence[int],
        seeds: Sequence[int],
        cond: Mapping[str, Any] | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> "Population":
        """Draws the noise, one seed a sample, as pipelines do.

        Args:
            denoiser: The denoiser.
            shape: The shape of one sample.
            seeds: The seeds.
            cond: Named conditions, each with as many rows.
            device: Where the noise lives.
            dtype: Its floating type.
            options: The other arguments of the class.
        """

        generators = [Generator().manual_seed(int(s)) for s in seeds]
        size = (len(generators), *shape)
        noise = denoiser.path.noise
        z = noise.sample(size, generator=generators, device=device, dtype=dtype)
        return cls(denoiser, z, cond, **options)

    def __len__(self) -> int:
        return len(self.z)

    def __call__(self, solvers: Sequence[Solver]) -> Iterator[tuple[int, Tensor]]:
        r"""Runs schedules, and yields the place of each with its samples, in any order.

        Args:
            solvers: The schedules, or tables.

        Yields:
            The index of a schedule, and its samples with shape (n, \*).
        """

        tables = [s if isinstance(s, Tableau) else self._table(s) for s in solvers]
        groups: dict[Any, list[int]] = {}

        for i, table in enumerate(tables):
            kind = (len(table.time), table.reads, table.source, table.changes)
            alone = table.weight.ndim > 2 or table.time.ndim > 1
            groups.setdefault(i if alone else kind, []).append(i)

        with torch.no_grad():
            for members in groups.values():
                size = max(1, self.batch_size // len(self.z))
                for k in range(0, len(members), size):
                    part = members[k : k + size]
                    if len(part) == 1:
                        yield part[0], self._alone(tables[part[0]])
                    else:
                        together = self._together([tables[i] for i in part])
                        yield from zip(part, together, strict=True)

    def _table(self, schedule: SolverSchedule) -> Tableau:
        return tabulate(schedule, self.denoiser.path, self.statistics)

    def _together(self, tables: Sequence[Tableau]) -> Sequence[Tensor]:
        """The samples of several tables, in one rollout."""

        n, many = len(self.z), len(tables)
        sampler = self._sampler(stack(tables, n))
        x = self._start(sampler.tableau, self.z.repeat(many, *(1,) * (self.z.ndim - 1)))
        cond = {k: _tiled(v, many) for k, v in self.cond.items()}
        firsts = [self._known(t, slice(None)) for t in tables]
        first = None if any(f is None for f in firsts) else torch.cat(firsts)
        return self._run(sampler, x, cond, first, slice(None)).split(n)

    def _alone(self, table: Tableau) -> Tensor:
        """The samples of one schedule, batch by batch."""

        parts, sampler = [], self._sampler(table)

        for i in range(0, len(self.z), self.batch_size):
            rows = slice(i, i + self.batch_size)
            cond = {k: v[rows] for k, v in self.cond.items()}
            first = self._known(table, rows)
            parts.append(self._run(sampler, self._start(table, self.z[rows]), cond, first, rows))

        return torch.cat(parts)

    def _sampler(self, table: Tableau) -> Sampler:
        return Sampler(self.denoiser, table, mean=self.mean)

    def _start(self, table: Tableau, z: Tensor) -> Tensor:
        time = table.time[0] if table.start is None else table.start
        return broadcast(self.denoiser.path(time)[1].to(z), z) * z

    def _run(
        self,
        sampler: Sampler,
        x: Tensor,
        cond: Mapping[str, Any],
        first: Tensor | None,
        rows: slice,
    ) -> Tensor:
        stages: list[Stage] = sampler.stages(**cond)

        if first is not None:
            stages[0] = lambda x, t: first

        self.calls += len(x) * (sampler.nfe - (first is not None))
        return rollout(stages, x, sampler.tableau, noise=partial(self._fresh, rows))

    def _known(self, table: Tableau, rows: slice) -> Tensor | None:
        """What the network says at the first time, which all schedules that begin there share."""

        begins = table.start is None and not table.noisy[0]

        plain = table.source == "model" and table.reads == "data" and not table.changes

        if not plain or not begins or table.time.ndim > 1:
            return None

        key = float(table.time[0])

        if key not in self._first:
            parts = []
            denoiser = self.denoiser.at(key)
            for i in range(0, len(self.z), self.batch_size):
                part = slice(i, i + self.batch_size)
                x = self._start(table, self.z[part])
                cond = {k: v[part] for k, v in self.cond.items()}
                parts.append(denoiser(x, table.time[0].to(x), **cond))
            self.calls += len(self.z)
            self._first = {key: torch.cat(parts)}

        return self._first[key][rows]

    def _fresh(self, rows: slice, i: int, x: Tensor) -> Tensor:
        """The fresh noise of a stage: the same for every schedule, whatever the batch."""

        source = Generator().manual_seed(i + 2)
        drawn = torch.randn(self.z.shape, generator=source, dtype=self.z.dtype)[rows].to(x)
        return drawn.repeat(len(x) // len(drawn), *(1,) * (x.ndim - 1))


def _tiled(value: Any, many: int) -> Any:
    if isinstance(value, Tensor):
        return value.repeat(many, *(1,) * (value.ndim - 1))
    return list(value) * many
