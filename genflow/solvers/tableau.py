r"""From a schedule and a path to a table of numbers.

Every solver of this package moves the state by a linear combination of a short window of past
states and past outputs of the denoiser,

.. math:: x_{i+1} = \sum_{k < K} \big( w_{i,2k} \, x_{i-k} + w_{i,2k+1} \, D_{i-k} \big)
                    + w_{i,2K} + c_{i+1} \, n_{i+1},

whose coefficients depend on times and decisions only, never on data. *Compiling is running the
solver on symbols*: a slot of the window is a unit row vector, the published update is written
once, in its own notation, on these rows, and what comes out is the row of the table. All of this
happens once, on the host, in float64, and is differentiable in the times.

References:
    DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models
    https://arxiv.org/abs/2211.01095

    Unified Sampling Framework for Diffusion Probabilistic Models (USF)
    https://openreview.net/forum?id=W2d3LZbhhI
"""

__all__ = ["Kick", "Tableau", "stack", "stage_changes", "tabulate"]

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
import math
from typing import Literal

import torch
from torch import Tensor

from genflow.errors import UserError
from genflow.models.noise import StudentT
from genflow.models.paths import Path, broadcast
from genflow.solvers.alterations import UNCHANGED, Alteration
from genflow.solvers.compiler import Compiler
from genflow.solvers.empirical import Statistics
from genflow.solvers.schedules import SolverSchedule


@dataclass(frozen=True)
class Kick:
    r"""How fresh Gaussian noise is scaled where the noise of the path is Student-t.

    The state :math:`x = X + \sigma Z` hides the scale of its own noise. Fresh noise must share
    it, or the law of the state is lost, so it is multiplied by :math:`\kappa\big((x - D)/\sigma
    \big)` of [`StudentT.kappa`][genflow.models.noise.StudentT.kappa], D being the last estimate
    of the data; before the first one it is 0, as for a state that is pure noise.

    Attributes:
        law: The law of the path's noise.
        sigma: The scale of the noise in the state before each draw, with shape (N + 1) or
            (N + 1, B).
    """

    law: StudentT
    sigma: Tensor

    def factor(self, i: int, x: Tensor, data: Tensor | None) -> Tensor:
        r"""κ of draw i, ready to multiply states; these and the estimates have shape (B, \*)."""

        residual = x if data is None else x - data
        return broadcast(self.law.kappa(residual / broadcast(self.sigma[i].to(x), x)), x)


@dataclass(frozen=True)
class Tableau:
    r"""The numbers of a sampler.

    Attributes:
        time: Where each stage is evaluated, with shape (N), or (N, B) for a population.
        weight: The row of each stage for :math:`x_i, D_i, x_{i-1}, D_{i-1}, \dots, 1`, with shape
            (N, 2K + 1), (N, 2K + 1, B) for a population, or (N, 2K + 1, 1, \*event) for statistics
            per element.
        noise: The deviation of the fresh noise before the first stage and after each of the N,
            with shape (N + 1) or (N + 1, B).
        reads: What the stages return: the ``"data"`` estimate or the ``"velocity"``.
        source: Where the first stage comes from, as in `Step`.
        start: The time whose law the initial state has, with shape () or (B); it differs from
            ``time[0]`` if noise is added before the first stage.
        begins: Whether each stage begins a step, rather than looks ahead or corrects inside one;
            None if all do.
        kick: How fresh noise is scaled; None if it is Gaussian.
        stop: The time whose law the final state has, with shape () or (B); None if unknown.
        changes: How the network is altered at each of the N stages; empty if it never is.
    """

    time: Tensor
    weight: Tensor
    noise: Tensor
    reads: Literal["data", "velocity"] = "data"
    source: Literal["model", "noise", "mean"] = "model"
    start: Tensor | None = None
    begins: tuple[bool, ...] | None = None
    kick: Kick | None = None
    stop: Tensor | None = None
    changes: tuple[Alteration, ...] = ()

    @property
    def nfe(self) -> int:
        """The number of calls of the denoiser."""

        return len(self.time) - (self.source != "model")

    @cached_property
    def slots(self) -> list[list[int]]:
        """The slots that each stage really uses."""

        used = self.weight.detach().ne(0)
        used = used.flatten(2).any(2) if used.ndim > 2 else used
        return [[k for k, u in enumerate(flags) if u] or [0] for flags in used.tolist()]

    @cached_property
    def numbers(self) -> list[list[float] | None]:
        """The weights of these slots as plain numbers, where there are few of them.

        None stands for a row of more than three slots, of weights that differ between samples or
        elements, or of weights that carry gradients.
        """

        if self.weight.ndim > 2 or self.weight.requires_grad:
            return [None] * len(self.slots)

        rows = zip(self.weight.tolist(), self.slots, strict=True)
        return [[row[k] for k in used] if len(used) <= 3 else None for row, used in rows]

    @cached_property
    def packed(self) -> Tensor:
        """The weights of all other rows, one after the other, so that one copy moves them all."""

        return self._pack()

    def _pack(self) -> Tensor:
        rest = [
            row[used]
            for row, used, n in zip(self.weight, self.slots, self.numbers, strict=True)
            if n is None
        ]
        return torch.cat(rest) if rest else self.weight.new_zeros(0)

    def rows(self, x: Tensor) -> list[list[float] | Tensor]:
        """The weights of each stage's slots, for states of the device and dtype of ``x``."""

        sizes = [len(u) for u, n in zip(self.slots, self.numbers, strict=True) if n is None]
        # Weights that carry gradients may have changed, and need a graph of their own each time.
        packed = self._pack() if self.weight.requires_grad else self.packed
        rest = iter(packed.to(device=x.device, dtype=x.dtype).split(sizes))
        return [next(rest) if n is None else n for n in self.numbers]

    @cached_property
    def noisy(self) -> list[bool]:
        """Whether fresh noise is added before the first stage, and after each."""

        return self.noise.detach().ne(0).reshape(len(self.noise), -1).any(1).tolist()

    def prepare(self) -> None:
        """Finds now what the loop reads, since a traced loop cannot ask for it."""

        _ = self.packed, self.noisy

    @property
    def window(self) -> int:
        """The number K of stages that a row looks back on."""

        return (self.weight.shape[1] - 1) // 2


def tabulate(
    schedule: SolverSchedule,
    path: Path,
    statistics: Statistics | None = None,
    *,
    times: Tensor | None = None,
    relax: Tensor | None = None,
) -> Tableau:
    r"""Compiles a schedule on a path.

    Args:
        schedule: The schedule.
        path: The path that gives α, σ and λ.
        statistics: The statistics of DPM-Solver-v3, for ``"empirical"`` steps.
        times: Times that replace the schedule's, in float64, with shape (N + 1), when gradients
            with respect to them are wanted.
        relax: Relaxations that replace the schedule's, likewise: of each step's slope, and of its
            corrector's, with shape (N, 2).

    Returns:
        The table, on the CPU in float64.

    Raises:
        UserError: If a step is empirical without statistics, or has η > 0 on a path whose noise is
            not Gaussian (there the data estimate does not give the score), or ends below the path.

    Example:
        >>> path = Rectified()
        >>> table = tabulate(SolverSchedule((1.0, 0.5, 0.0), (Step(), Step())), path)
        >>> table.weight[0]  # x, D, 1: halfway from the state to the denoised state
        tensor([0.5000, 0.5000, 0.0000], dtype=torch.float64)
    """

    for i, step in enumerate(schedule.steps):
        if step.predict == "empirical" and statistics is None:
            raise UserError(
                f"step {i} has predict 'empirical' and there are no statistics: hand statistics "
                "of this denoiser to the sampler, or choose 'data' or 'noise'."
            )
        if step.eta > 0 and not _gaussian(path):
            raise UserError(
                f"step {i} has eta {step.eta} on a path with noise {path.noise}: SDE and Langevin "
                "steps follow the score, and (α D − x)/σ² is the score for Gaussian noise only; "
                "use eta 0, or karras-heun with churn."
            )

    t = torch.tensor(schedule.times, dtype=torch.float64) if times is None else times
    used = any(step.predict == "empirical" for step in schedule.steps)
    compiler = Compiler(schedule, t, path, statistics if used else None, relax)
    rows, noise = compiler.rows()
    weight = torch.stack(torch.broadcast_tensors(*rows))

    if used:
        weight = weight.unsqueeze(2)

    if not bool(torch.isfinite(weight.detach()).all()):
        bad = int((~torch.isfinite(weight.detach().flatten(1))).any(1).nonzero()[0])
        raise UserError(
            f"step {bad} has weights that are not finite on {type(path).__name__} (from time "
            f"{schedule.times[bad]}): keep its times inside the path."
        )

    whole = [step.start == 0 for step in schedule.steps]

    changes = tuple(change or UNCHANGED for change in stage_changes(schedule))

    return Tableau(
        time=t[: len(rows)],
        weight=_trim(weight),
        noise=torch.stack(noise),
        source=schedule.steps[0].source,
        begins=(*whole, *(False,) * (len(rows) - len(whole))),
        stop=t[-1],
        changes=changes if any(changes) else (),
    )


def stage_changes(schedule: SolverSchedule) -> list[Alteration | None]:
    """How each stage of a schedule alters the network; None for a stage that does not call it.

    Args:
        schedule: The schedule.
    """

    steps = schedule.steps
    steps = [*steps, steps[-1]] if steps[-1].correct is not None else steps
    changes: list[Alteration | None] = [step.change or UNCHANGED for step in steps]

    if steps[0].source != "model":
        changes[0] = None

    return changes


def _gaussian(path: Path) -> bool:
    return math.isinf(getattr(path.noise, "D", math.inf))


def _trim(weight: Tensor) -> Tensor:
    """Drops the oldest slots of the window that no row uses."""

    slots = (
        weight.detach()[:, :-1].abs().flatten(2).amax(dim=(0, 2))
        if weight.ndim > 2
        else (weight.detach()[:, :-1].abs().amax(dim=0))
    )
    used = slots.nonzero()
    K = max(1, int(used.max()) // 2 + 1) if len(used) else 1
    return torch.cat([weight[:, : 2 * K], weight[:, -1:]], dim=1)


def stack(tables: Sequence[Tableau], repeats: int | Sequence[int]) -> Tableau:
    """One table for a batch in which each sample follows a schedule of its own.

    Args:
        tables: Tables with the same number of stages, that read the same and start alike.
        repeats: How many consecutive samples follow each table.

    Returns:
        A table whose last dimension runs over the samples.

    Raises:
        UserError: If the tables differ in their number of stages, in what they read, in how they
            alter the network or in the law of fresh noise, or hold statistics per element.
    """

    first = tables[0]
    counts = [repeats] * len(tables) if isinstance(repeats, int) else list(repeats)
    law = first.kick and first.kick.law
    alike = all(
        (len(t.time), t.reads, t.source, t.kick and t.kick.law)
        == (len(first.time), first.reads, first.source, law)
        and t.weight.ndim == 2
        for t in tables
    )

    if not alike or len(counts) != len(tables):
        raise UserError(
            "a population needs tables with the same number of stages, the same reads, source and "
            "law of fresh noise, and plain weights, and a count for each; got stages "
            f"{[len(t.time) for t in tables]} and counts {counts}."
        )

    if any(t.changes != first.changes for t in tables):
        raise UserError(
            "a population shares every call of the network, and these schedules alter it "
            "differently: put schedules with the same changes into one batch."
        )

    K = max(t.window for t in tables)

    def padded(w: Tensor) -> Tensor:
        gap = w.new_zeros(len(w), 2 * K + 1 - w.shape[1])
        return torch.cat([w[:, :-1], gap, w[:, -1:]], dim=1)

    n = torch.tensor(counts)

    def spread(parts: list[Tensor]) -> Tensor:
        return torch.stack(parts, dim=-1).repeat_interleave(n, dim=-1)

    starts = [t.time[0] if t.start is None else t.start for t in tables]
    stops = [t.stop for t in tables if t.stop is not None]

    return Tableau(
        time=spread([t.time for t in tables]),
        weight=spread([padded(t.weight) for t in tables]),
        noise=spread([t.noise for t in tables]),
        reads=first.reads,
        source=first.source,
        start=spread(starts),
        kick=Kick(law, spread([t.kick.sigma for t in tables])) if law else None,
        stop=spread(stops) if len(stops) == len(tables) else None,
        changes=first.changes,
    )
