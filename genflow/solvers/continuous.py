r"""AdjointDPM as published: the gradient as the solution of a second differential equation.

Seen as the solution of the probability-flow ODE, samples depend on what went in through that
ODE, and the gradient of a loss solves another one, its adjoint, from the sample back to the noise:
`genflow.solvers.charts` writes both down. What comes out *approximates* the gradient of the
samples that a sampler really made. ``"exact"`` has no such error at the same cost; this is for
reproducing the paper, for solvers that choose their own steps, and for backward grids of one's
own.

Parameters and conditions collect integrals on the way. They are summed up step by step and never
enter the state of the ODE, whose steps would then follow the roughest weight.
"""

__all__ = ["Continuous"]

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
import math
from typing import Literal
import warnings

import torch
from torch import Tensor

from genflow.errors import UserError, nearest
from genflow.models.denoisers import Denoiser
from genflow.solvers.backsolves import ADAPTIVE, FIXED, Grid
from genflow.solvers.charts import CHARTS
from genflow.solvers.policies import Gradient, Run
from genflow.solvers.rollout import Observe, rollout
from genflow.solvers.schedules import SolverSchedule
from genflow.solvers.solves import Solve
from genflow.solvers.tableau import Tableau

STEEP = 1.5
BOUNDED = ("phi", "log-rho")


@dataclass(frozen=True)
class Continuous(Gradient):
    r"""The gradient of the probability-flow ODE, by its adjoint equation.

    The sampler makes its samples as ever; the way back is solved on its own. With the defaults and
    the sampler ``ddim`` this is AdjointDPM: Euler's method in ρ = σ/α for y = x/α, with the states
    of the sampler. Its error is of first order in the steps and *large*. Measured with DDIM on a
    mixture of Gaussians, variance-preserving path, times uniform, for dL/dx at the initial states:
    relative error against the gradient of the samples / of the ODE.

    ============== =========== =========== =========== ===========
    steps          10          20          50          200
    ============== =========== =========== =========== ===========
    exact          0 / .33     0 / .18     0 / .08     0 / .02
    euler, rho     1.0 / 1.0   .94 / .95   .54 / .58   .16 / .17
    euler, phi     .43 / .05   .17 / .04   .06 / .02   .02 / .005
    heun, rho      .62 / .11   .24 / .04   .08 / .01   .02 / .003
    heun, phi      .55 / .08   .23 / .03   .08 / .01   .02 / .003
    multistep, phi .46 / .05   .22 / .03   .08 / .01   .02 / .003
    ============== =========== =========== =========== ===========

    So the bounded chart ``phi`` is the better one at the same cost. In ρ, where neighbours differ
    by more than a factor of 2 a step of Euler's method turns the sign of the gradient; the sampler
    warns from 1.5 on. On the straight path with equal times they always do near noise, and ρ does
    not converge at all.

    Losses on states on the way are allowed, on outputs of the denoiser not. Times and weights of
    the table get no gradients, fresh noise and altered networks are refused, and so is dropout in
    training mode, under which there is no ODE.

    Args:
        method: ``"euler"``, ``"heun"`` (two products a step) or ``"multistep"`` (Adams, order 2)
            on a grid, or an adaptive method of torchdiffeq, such as ``"dopri5"``, whose steps
            follow the hardest sample of the batch.
        chart: The variables, a name in `genflow.solvers.charts.CHARTS`: ``"rho"`` if None, or
            ``"phi"`` for adaptive methods, which want ``"phi"`` or ``"log-rho"``.
        states: ``"stored"``, those of the sampler, or ``"resolved"``: solved for again on the way
            back, from the samples alone, at no memory and one more error; None takes the latter
            for adaptive methods or grids of their own, the former otherwise.
        times: The decreasing times of a grid of its own, with the ends of the sampler's.
        rtol: The relative tolerance of adaptive methods, above 0.
        atol: The absolute one, above 0, in units of the data for states and of the whole for the
            gradient.

    Raises:
        UserError: If a value is not allowed; when a sampler is built, if the policy cannot serve
            it.

    References:
        AdjointDPM: Adjoint Sensitivity Method for Gradient Backpropagation of Diffusion
        Probabilistic Models
        https://arxiv.org/abs/2307.10711

        AdjointDEIS: Efficient Gradients for Diffusion Models
        https://arxiv.org/abs/2405.15020
    """

    method: str = "euler"
    chart: str | None = None
    states: Literal["stored", "resolved"] | None = None
    times: tuple[float, ...] | None = None
    rtol: float = 1e-4
    atol: float = 1e-4

    def __post_init__(self) -> None:
        allowed = (*FIXED, *ADAPTIVE)
        charts = BOUNDED if self.adaptive else tuple(CHARTS)

        if self.method not in allowed:
            raise UserError(f"method is '{self.method}'{nearest(self.method, allowed)}")
        if self.chart is not None and self.chart not in charts:
            raise UserError(f"chart is '{self.chart}'{nearest(self.chart, charts)}")
        if self.states not in (None, "stored", "resolved"):
            raise UserError(
                f"states is '{self.states}'{nearest(str(self.states), ('stored', 'resolved'))}"
            )
        if self.states == "stored" and (self.adaptive or self.times is not None):
            raise UserError(
                "states is 'stored', but states are known at the sampler's own times alone: leave "
                "it out with an adaptive method or times."
            )
        if self.times is not None and (self.adaptive or not _falling(self.times)):
            raise UserError(
                f"times is {self.times}: two or more decreasing times are needed, for a method "
                f"with a grid ({', '.join(FIXED)})."
            )
        if not (self.rtol > 0 and self.atol > 0):
            raise UserError(f"rtol is {self.rtol} and atol is {self.atol}: both must be above 0.")

    @property
    def adaptive(self) -> bool:
        """Whether the method chooses its own steps."""

        return self.method in ADAPTIVE

    @property
    def stored(self) -> bool:
        """Whether the states of the sampler are kept."""

        return not self.adaptive and self.times is None and self.states != "resolved"

    @property
    def variables(self) -> str:
        """The name of the chart."""

        return self.chart or ("phi" if self.adaptive else "rho")

    def check(self, denoiser: Denoiser, tableau: Tableau, schedule: SolverSchedule | None) -> None:
        """See [`Gradient.check`][genflow.solvers.policies.Gradient.check]."""

        if any(tableau.noisy):
            raise UserError(
                "gradient is 'continuous', but the sampler draws fresh noise, and solves no ODE: "
                "use eta 0 and no churn, or gradient='exact'."
            )
        if schedule is not None and any(step.change for step in schedule.steps):
            raise UserError(
                "gradient is 'continuous', but steps alter the network, so that there is no one "
                "ODE: use gradient='exact'."
            )
        if tableau.time.requires_grad or tableau.weight.requires_grad:
            raise UserError(
                "gradient is 'continuous', which knows no gradients of times and weights: use "
                "gradient='exact'."
            )
        if tableau.time.ndim > 1 or tableau.stop is None:
            raise UserError(
                "gradient is 'continuous', but the table has no stop, or times of its own for "
                "each sample: one grid is needed, from time to stop."
            )

        self.check_times(denoiser, _nodes(tableau)[0])

    def check_times(self, denoiser: Denoiser, times: Sequence[float]) -> None:
        """Looks at the times between which a denoiser's ODE is solved.

        Raises:
            UserError: If the adjoint equation cannot be solved between them.
        """

        ends = torch.tensor([times[0], times[-1]], dtype=torch.float64)
        alpha, sigma = denoiser.path(ends)

        if self.times is not None and not _close(self.times, times):
            raise UserError(
                f"times run from {self.times[0]} to {self.times[-1]}: those of the sampler run "
                f"from {times[0]} to {times[-1]}, give the same ends."
            )
        if not self.stored and not sigma[1] > 0:
            raise UserError(
                f"the sampler ends at time {times[-1]} where σ = 0, and no way leads back from "
                "clean data: end it earlier (final='min'), or use states='stored'."
            )
        if self.adaptive and self.variables == "log-rho" and not alpha[0] > 0:
            raise UserError(
                "chart is 'log-rho', which is infinite where the sampler starts, at α = 0: use "
                "chart='phi'."
            )

        if not self.adaptive:
            grid = self.grid(denoiser, times)
            if None in [grid.leg(j, self.variables) for j in range(len(grid))]:
                raise UserError(
                    "gradient is 'continuous', but one step leads from α = 0 to σ = 0: take two "
                    "steps or more, or use gradient='exact'."
                )
            self._warn(grid)

    def grid(self, denoiser: Denoiser, times: Sequence[float]) -> Grid:
        """The nodes of the way back, given those of the sampler."""

        own = times if self.times is None else sorted(self.times, reverse=times[0] > times[-1])
        return Grid(denoiser.path, torch.tensor(own, dtype=torch.float64))

    def _warn(self, grid: Grid) -> None:
        pairs = pairwise(grid.rho)
        steep = max((a / b for a, b in pairs if b > 0.5 and math.isfinite(a)), default=1.0)

        if self.variables == "rho" and steep > STEEP:
            warnings.warn(
                f"gradient is 'continuous' in ρ, and neighbouring ρ differ by a factor of up to "
                f"{steep:.2f}: beyond 2 steps turn the sign of the gradient; take more steps, or "
                "chart='phi', or gradient='exact'.",
                stacklevel=5,
            )

    def run(self, run: Run) -> Tensor:
        """See [`Gradient.run`][genflow.solvers.policies.Gradient.run]."""

        times, places = _nodes(run.tableau)
        # The closure lives as long as the graph, so it may not hold the observer.
        stages, tableau = run.stages(), run.tableau

        def forward(x: Tensor, observe: Observe) -> Tensor:
            return rollout(stages, x, tableau, observe=observe)

        solve = Solve(self, run.denoiser, run.module, run.cond, times, places, forward)
        return solve(run.x, run.observe)


def _nodes(tableau: Tableau) -> tuple[list[float], list[int]]:
    """The times of the nodes, and the node of each stage.

    Stages at the same time share a node, which has the state of the last of them.
    """

    times: list[float] = []
    places: list[int] = []

    for t in (*tableau.time.tolist(), float(tableau.stop)):
        if not times or t != times[-1]:
            times.append(t)
        places.append(len(times) - 1)

    return times, places[:-1]


def _falling(times: Sequence[float]) -> bool:
    pairs = pairwise(times)
    return len(times) > 1 and all(a > b for a, b in pairs)


def _close(a: Sequence[float], b: Sequence[float]) -> bool:
    return all(math.isclose(a[k], b[k], rel_tol=1e-9, abs_tol=1e-12) for k in (0, -1))
