r"""Small problems whose solution is known: what a schedule makes of them says much about it.

In one dimension, for data that follow a Gaussian mixture, the denoiser of a path is known in
closed form and costs next to nothing. A schedule's error on a few such problems,

.. math:: e_j = \Big( \frac{1}{n} \sum_i \big(x^{(j)}_\tau(z_i) - x^{(j)}_*(z_i)\big)^2
                \Big)^{1/2}, \qquad z_i = \Phi^{-1}\big((i - \tfrac12) / n\big),

is a number that a surrogate may read before the network has been called once. On single Gaussians
the denoiser is linear: these are the test equations of the path, one for each scale of the data.
Two separate Gaussians add the bend that a state takes when it decides between them.

Kendall's τ of the mean of log e with the error to a teacher, on schedules of 4 and 8 calls on
small U-Nets trained on digits: 0.5 to 0.8 for EDM and PFGM++, and −0.2 to 0.6 for a rectified
flow, on which the widest Gaussian alone reaches 0.45 to 0.73. So which problems matter must be
learned.

What is *not* assumed: that data are mixtures, or that these errors are those of the network. Where
the path's noise is not Gaussian, the path with Gaussian noise stands for it; altered networks,
statistics and fresh noise are left out.
"""

__all__ = ["Probes"]

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from genflow.models.denoisers import Denoiser
from genflow.models.exact import Exact
from genflow.models.mixtures import Mixture
from genflow.models.noise import Gaussian
from genflow.models.paths import Path
from genflow.search.population import Population, Solver
from genflow.search.teachers import Teacher
from genflow.solvers.alterations import UNCHANGED
from genflow.solvers.schedules import SolverSchedule
from genflow.solvers.tableau import Tableau

PROBLEMS = ((0.0, 0.1), (0.0, 0.5), (0.0, 1.0), (1.0, 0.1), (1.0, 0.3), (0.5, 0.1), (0.25, 0.05))
"""The distance of two Gaussians from 0, and their deviation; images lie in [−1, 1]."""

POINTS = 8
"""The number n of quantiles."""


class Apart(Denoiser):
    r"""A denoiser each of whose coordinates has a law of its own.

    Args:
        parts: The denoisers of the coordinates, in one dimension, all of one path.
    """

    def __init__(self, parts: Sequence[Denoiser]) -> None:
        super().__init__()
        self.path = parts[0].path
        self.parts = torch.nn.ModuleList(parts)

    def forward(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """The estimates of the data, with shape (B, d)."""

        return torch.cat([p(x_t[:, [j]], t) for j, p in enumerate(self.parts)], dim=1)

    def velocity(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """The velocities, with shape (B, d)."""

        return torch.cat([p.velocity(x_t[:, [j]], t) for j, p in enumerate(self.parts)], dim=1)


class Probes:
    """The errors of schedules on problems in one dimension.

    Args:
        path: The path.
    """

    def __init__(self, path: Path) -> None:
        twin = replace(path, noise=Gaussian())
        denoiser = Apart([Exact(twin, _pair(*p)) for p in PROBLEMS])
        place = (torch.arange(POINTS, dtype=torch.float64) + 0.5) / POINTS
        z = torch.special.ndtri(place)[:, None].expand(-1, len(PROBLEMS))
        self.population = Population(denoiser, z.contiguous(), mean=z.new_zeros(len(PROBLEMS)))
        self.truth = Teacher().solve(self.population)

    def __len__(self) -> int:
        return len(PROBLEMS)

    def __call__(
        self, schedules: Sequence[SolverSchedule], tables: Sequence[Tableau] | None = None
    ) -> Tensor:
        """log e of each schedule on each problem, with shape (S, P).

        Args:
            schedules: The schedules.
            tables: What they compile to, if it is known already.
        """

        out = torch.zeros(len(schedules), len(self), dtype=torch.float64)
        solvers: list[Solver] = [_plain(s) for s in schedules]

        for i, table in enumerate(tables or ()):
            solvers[i] = table if solvers[i] == schedules[i] else solvers[i]

        for i, x in self.population(solvers):
            out[i] = (x - self.truth).square().mean(0).sqrt()

        return out.nan_to_num(1e3).clamp(1e-6, 1e3).log()


def _pair(distance: float, deviation: float) -> Mixture:
    """Two Gaussians, or one."""

    means = torch.tensor([[-distance], [distance]] if distance else [[0.0]], dtype=torch.float64)
    return Mixture(torch.ones_like(means[:, 0]), means, torch.full_like(means, deviation**2))


def _plain(schedule: SolverSchedule) -> SolverSchedule:
    """The schedule without what only a trained network has."""

    steps = (
        replace(
            step,
            change=UNCHANGED,
            eta=0.0,
            predict="data" if step.predict == "empirical" else step.predict,
        )
        for step in schedule.steps
    )
    return replace(schedule, steps=tuple(steps))
