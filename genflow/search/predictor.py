r"""The surrogate of S³: a network that ranks schedules without running them.

A schedule is read as a sequence of steps. Each is embedded by the numbers that decide it (times,
λ, the length of the step, order, prediction, points, relaxation, corrector …) and by what they
compile to, the row of the table, in which decisions that differ in name only are the same. A
recurrent network reads the sequence; a head joins what it read with the schedule's errors on small
problems whose solution is known (`genflow.search.probes`), and gives one number. It is trained to
*order* pairs,

.. math:: \max(0, \; 1 - (\hat y_{\text{worse}} - \hat y_{\text{better}})),

over pairs with the same number of calls whose ranks differ enough; so scores of any unit will do,
and schedules of all numbers of calls teach one network. A few networks with different random
weights are averaged, since a single one is easily fooled by children bred to please it.

The design is that of the published predictor of OMS-DPM, made smaller; the rows of the table and
the small problems are ours. Measured on schedules of five calls on a mixture in the plane, in the
order of three searches, learning from 60 and ranking the next 100: Kendall's τ 0.55, 0.77 and 0.63
with the problems, 0.17, 0.57 and 0.49 without; learning from 200: 0.79, 0.83 and 0.79, against
0.42, 0.76 and 0.71.
What is *not* assumed: that guesses are scores. Only their order means anything.

References:
    OMS-DPM: Optimizing the Model Schedule for Diffusion Probabilistic Models
    https://arxiv.org/abs/2306.08860

    Unified Sampling Framework for Diffusion Probabilistic Models (USF)
    https://openreview.net/forum?id=W2d3LZbhhI
"""

__all__ = ["RankingPredictor"]

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from genflow.errors import UserError
from genflow.models.paths import Path
from genflow.search.probes import Probes
from genflow.solvers.empirical import Statistics
from genflow.solvers.schedules import SolverSchedule, resolve
from genflow.solvers.tableau import Tableau, tabulate

LEAST = 0.05
"""The smallest difference of two ranks, as a share of all, that makes a pair."""

SLOTS = 4
"""The number of past calls whose weights are read."""


def embed(schedule: SolverSchedule, path: Path, table: Tableau) -> Tensor:
    """The steps of a schedule and what they compile to as rows of numbers, with shape (N, d)."""

    times = torch.tensor(schedule.times, dtype=torch.float64)
    lam = path.lam(times).clamp(-12, 12).tolist()
    effect = _effect(table, path).tolist()
    rows = []

    for i, step in enumerate(schedule.steps):
        t, s, h = schedule.times[i], schedule.times[i + 1], lam[i + 1] - lam[i]
        sets = resolve(step.points, step.order, step.start, i + 1)
        mend = step.correct
        rows.append(
            [
                *(4 * t - 2, 4 * s - 2, 8 * (t - s), lam[i] / 4, lam[i + 1] / 4, h),
                *(float(step.order == q) for q in (1, 2, 3)),
                *(float(step.predict == p) for p in ("data", "noise")),
                *(float(len(sets[0])) if sets else 0.0, 4 * step.relax * h, float(step.start)),
                *(float(mend is not None), 4 * mend.relax * h if mend else 0.0),
                *(float(step.source != "model"), float(i + 1 == len(schedule.steps))),
                float(np.mean(step.change.skips)) - 1 if step.change.skips else 0.0,
                *effect[i],
            ]
        )

    return torch.tensor(rows, dtype=torch.float32)


def _effect(table: Tableau, path: Path) -> Tensor:
    """The newest entries of each row, states in units of their σ, with shape (N, 2 SLOTS)."""

    weight = table.weight.flatten(2).mean(2) if table.weight.ndim > 2 else table.weight
    sigma = path(table.time)[1].clamp(min=1e-2)
    out = weight.new_zeros(len(weight), 2 * SLOTS)

    for k in range(min(SLOTS, table.window)):
        unit = torch.cat([sigma.new_ones(k), sigma[: len(sigma) - k]]) / sigma
        out[:, 2 * k] = weight[:, 2 * k] * unit
        out[:, 2 * k + 1] = weight[:, 2 * k + 1]

    return torch.asinh(out)


class Reader(nn.Module):
    """Sequences of steps → a number each, for a few networks at once.

    Args:
        features: The number of numbers that describe a step.
        probes: The number of small problems.
        width: The width of the recurrent network.
    """

    def __init__(self, features: int, probes: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(features, width), nn.SiLU())
        self.read = nn.GRU(width, width, batch_first=True)
        self.head = nn.Sequential(
            nn.Linear(2 * width + probes, width), nn.SiLU(), nn.Linear(width, 1)
        )
        self.direct = nn.Linear(probes, 1)  # orders by the errors themselves

    def forward(self, rows: Tensor, lengths: Tensor, probes: Tensor) -> Tensor:
        """The guesses, with shape (B), for rows with shape (B, N, d) and probes (B, P)."""

        out = self.read(self.embed(rows))[0]  # reads forwards, so the padding behind is not seen
        inside = torch.arange(out.shape[1])[None, :, None] < lengths[:, None, None]
        mean = (out * inside).sum(1) / lengths[:, None]
        most = out.masked_fill(~inside, -1e4).amax(1)
        guess = self.head(torch.cat([mean, most, probes], dim=1)) + self.direct(probes)
        return guess.squeeze(1)


class RankingPredictor:
    """A surrogate that learns the order of schedules, as a `Surrogate`.

    Args:
        path: The path of the schedules.
        statistics: The statistics of DPM-Solver-v3, if schedules may need them.
        members: The number of networks, 1 or more.
        width: Their width.
        iterations: The number of steps of Adam for each stage, 1 or more.
        pairs: The number of schedules in a batch, of which all pairs are taken.
        rate: The learning rate.
        seed: The seed of weights and batches.

    Raises:
        UserError: If a number is below 1.
    """

    def __init__(
        self,
        path: Path,
        *,
        statistics: Statistics | None = None,
        members: int = 2,
        width: int = 48,
        iterations: int = 200,
        pairs: int = 64,
        rate: float = 1e-2,
        seed: int = 0,
    ) -> None:
        if min(members, width, iterations, pairs) < 1:
            raise UserError(
                f"members is {members}, width {width}, iterations {iterations} and pairs {pairs}: "
                "each must be 1 or more."
            )

        self.path, self.statistics = path, statistics
        self.members, self.width = members, width
        self.iterations, self.pairs, self.rate, self.seed = iterations, pairs, rate, seed
        self.probes = Probes(path)
        self._nets: list[Reader] = []
        self._known: dict[SolverSchedule, tuple[Tensor, Tensor]] = {}
        self._mean, self._scale = torch.zeros(1), torch.ones(1)

    def fit(self, schedules: Sequence[SolverSchedule], values: Sequence[float]) -> None:
        """Learns the order of all schedules so far.

        Args:
            schedules: The schedules.
            values: Their scores, finite; lower is better.
        """

        self._take_in(schedules)
        errors = torch.stack([self._known[s][1] for s in schedules])
        self._mean, self._scale = errors.mean(0), errors.std(0, correction=0).clamp(min=1e-3)
        parts = self._read(schedules)
        ranks, groups = _ranks(schedules, values)
        self._nets = []

        with torch.random.fork_rng(devices=[]), torch.enable_grad(), _one_thread():
            for k in range(self.members):
                torch.manual_seed(1_000_003 * self.seed + k)
                net = Reader(parts[0].shape[-1], len(self.probes), self.width)
                self._train(net, parts, ranks, groups)
                self._nets.append(net.eval())

    def _train(
        self, net: Reader, parts: tuple[Tensor, ...], ranks: Tensor, groups: Tensor
    ) -> None:
        optimiser = torch.optim.AdamW(net.parameters(), self.rate, weight_decay=1e-3)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, self.iterations)

        for _ in range(self.iterations):
            some = torch.randperm(len(ranks))[: self.pairs]
            guess = net(*(part[some] for part in parts))
            gap = ranks[some][:, None] - ranks[some][None, :]
            alike = groups[some][:, None] == groups[some][None, :]
            # Row worse than column; pairs near the top count more, for that is where one chooses.
            better = torch.minimum(ranks[some][:, None], ranks[some][None, :])
            weight = ((gap > LEAST) & alike) * torch.exp(-2 * better)
            hinge = torch.relu(1 - (guess[:, None] - guess[None, :]))
            loss = (weight * hinge).sum() / weight.sum().clamp(min=1e-9)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            falling.step()

    def __call__(self, schedules: Sequence[SolverSchedule]) -> list[float]:
        """Guesses whose order is meant, lower is better.

        Raises:
            UserError: If nothing has been learned yet.
        """

        if not self._nets:
            raise UserError("the predictor has learned nothing yet: call fit first.")

        parts = self._read(schedules)

        with torch.no_grad(), _one_thread():
            total = sum(net(*parts) for net in self._nets)

        return (total / len(self._nets)).tolist()

    def _read(self, schedules: Sequence[SolverSchedule]) -> tuple[Tensor, Tensor, Tensor]:
        """Rows with shape (B, N, d), their numbers, and scaled errors with shape (B, P)."""

        self._take_in(schedules)
        rows = [self._known[s][0] for s in schedules]
        errors = torch.stack([self._known[s][1] for s in schedules])
        lengths = torch.tensor([len(r) for r in rows])
        return pad_sequence(rows, batch_first=True), lengths, (errors - self._mean) / self._scale

    def _take_in(self, schedules: Sequence[SolverSchedule]) -> None:
        """Embeds and probes the schedules that are new."""

        new = list(dict.fromkeys(s for s in schedules if s not in self._known))
        if not new:
            return

        with torch.no_grad(), _one_thread():
            tables = [tabulate(s, self.path, self.statistics) for s in new]
            errors = self.probes(new, tables).float()

        rows = [embed(s, self.path, t) for s, t in zip(new, tables, strict=True)]
        self._known |= zip(new, zip(rows, errors, strict=True), strict=True)


@contextmanager
def _one_thread() -> Iterator[None]:
    """These networks are so small that threads would only wait for each other."""

    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _ranks(schedules: Sequence[SolverSchedule], values: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Ranks in [0, 1] among the schedules with as many calls, and those numbers of calls."""

    calls = torch.tensor([s.nfe for s in schedules])
    values = torch.tensor(values, dtype=torch.float64)
    ranks = torch.zeros(len(calls))

    for n in calls.unique():
        mine = calls == n
        order = values[mine].argsort(stable=True).argsort(stable=True)
        ranks[mine] = order.float() / max(1, int(mine.sum()) - 1)

    return ranks, calls
