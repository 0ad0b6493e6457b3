r"""Running a solver on symbols: the published updates, written once, on rows of the table.

A slot of the window is a unit row vector: the state k stages back is ``E[2k]``, the data estimate
made there ``E[2k + 1]``, and the constant 1 is ``E[2K]``.

With :math:`h = \lambda_s - \lambda_t` and :math:`\varphi_{k+1}(z) = \int_0^1 e^{(1-u)z} u^k / k!
\, du`, a step from :math:`t` to :math:`s` is one of

.. math:: x_s &= \tfrac{\sigma_s}{\sigma_t} x_t
                 + \alpha_s \sum_k h^{k+1} \varphi_{k+1}(-h) \, D^{(k)}_t   & \text{(data)} \\
          x_s &= \tfrac{\alpha_s}{\alpha_t} x_t
                 - \sigma_s \sum_k h^{k+1} \varphi_{k+1}(h) \, \epsilon^{(k)}_t & \text{(noise)}

with derivatives in λ estimated from history points. Where λ is infinite (pure noise with α = 0,
clean data with σ = 0) a step is of order 1, in a form that stays finite, and such a point lends
its value but never a slope: asking for a higher order there is legal and is lowered.

References:
    DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models
    https://arxiv.org/abs/2211.01095

    Unified Sampling Framework for Diffusion Probabilistic Models (USF)
    https://openreview.net/forum?id=W2d3LZbhhI
"""

__all__ = ["Compiler", "phi", "slopes"]

from collections.abc import Sequence
import math

import torch
from torch import Tensor

from genflow.errors import UserError
from genflow.models.paths import Path
from genflow.solvers.empirical import Statistics
from genflow.solvers.schedules import SolverSchedule, Step, correction, resolve


def phi(k: int, z: Tensor) -> Tensor:
    r""":math:`\varphi_k(z)`, with :math:`\varphi_0 = e^z` and
    :math:`\varphi_{k+1} = (\varphi_k - 1/k!)/z`, accurate at every z.

    Below \|z\| = 1 a power series, :math:`\sum_j z^j / (j + k)!`, stands in for the recursion,
    which cancels there.
    """

    small = z.abs() < 1
    safe = torch.where(small, torch.ones_like(z), z)
    value = torch.exp(safe) if k == 0 else torch.expm1(safe) / safe

    for j in range(1, k):
        value = (value - 1 / math.factorial(j)) / safe

    near = torch.where(small, z, torch.zeros_like(z))
    series = torch.zeros_like(z)

    for j in reversed(range(20)):
        series = series * near + 1 / math.factorial(j + k)

    return torch.where(small, series, value)


def slopes(r: Tensor, d: int) -> Tensor:
    r"""The weights a that read a derivative off differences: :math:`\sum_j a_j r_j^i / i! =
    \delta_{id}`, i = 1 … m.

    Args:
        r: The distances of the m points, in units of the step, with shape (m).
        d: The order of the derivative, 1 … m.

    Returns:
        The weights of the differences of values, with shape (m).
    """

    m = len(r)
    V = torch.stack([r**i / math.factorial(i) for i in range(1, m + 1)])
    e = torch.zeros(m, dtype=r.dtype)
    e[d - 1] = 1
    return torch.linalg.solve(V, e)


class Compiler:
    """Runs the steps of a schedule on unit rows."""

    def __init__(
        self,
        schedule: SolverSchedule,
        times: Tensor,
        path: Path,
        statistics: Statistics | None,
        relax: Tensor | None = None,
    ) -> None:
        self.steps = schedule.steps
        self.relax = [(s.relax, s.correct.relax if s.correct else 0.0) for s in self.steps]
        self.relax = self.relax if relax is None else relax
        self.alpha, self.sigma = path(times)
        self.lam = torch.log(self.alpha) - torch.log(self.sigma)
        self.finite = torch.isfinite(self.lam).tolist()
        self.integrals = statistics.integrals(self.lam) if statistics is not None else None

        self.K = min(len(self.steps) + 1, _depth(schedule))
        ones = (1,) * (0 if statistics is None else len(statistics.event))
        size = 2 * self.K + 1
        self.unit = torch.eye(size, dtype=times.dtype).reshape(size, size, *ones)
        self.bases: list[Tensor] = []
        self.moves: list[tuple[Tensor, Tensor]] = []

    def state(self, k: int) -> Tensor:
        """The state at which the denoiser was called k stages back."""

        return self.unit[2 * k]

    def value(self, predict: str, i: int, k: int) -> Tensor:
        """What a step expands, k stages back from stage i."""

        x, data, j = self.state(k), self.unit[2 * k + 1], i - k

        if predict == "data":
            return data

        noise = (x - self.alpha[j] * data) / self.sigma[j]

        if predict == "noise":
            return noise

        return (self.sigma[j] * noise - self.integrals.slope(j) * x) / self.alpha[j]

    def later(self, row: Tensor, n: int) -> Tensor:
        """The same combination, seen n stages later."""

        if n == 0:
            return row
        window = row[: 2 * (self.K - n)]
        return torch.cat([torch.zeros_like(row[: 2 * n]), window, row[-1:]])

    def base(self, i: int, k: int) -> Tensor:
        """The corrected state k stages back from stage i."""

        return self.later(self.bases[i - k], k)

    def move(
        self,
        i: int,
        start: int,
        target: int,
        predict: str,
        sets: Sequence[Sequence[int]],
        relax: float | Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The pair (p, q) of a step: p times the state it starts from, plus the row q.

        Args:
            i: The current stage.
            start: Stages back to the start.
            target: The index of the time to go to.
            predict: What is expanded.
            sets: The stages back behind each derivative.
            relax: The relaxation of the slope.
        """

        s, j = i - start, target
        alpha, sigma = self.alpha, self.sigma

        if not (self.finite[s] and self.finite[j]):
            sets = []
            predict = "data" if predict == "empirical" or not self.finite[s] else predict

        derivatives = self._derivatives(i, start, j, predict, sets, relax)

        if predict == "empirical":
            return self._move_empirical(i, start, j, derivatives)

        if predict == "data":
            p, c, sign = sigma[j] / sigma[s], alpha[j], -1
            first = alpha[j] - alpha[s] * p
        else:
            p, c, sign = alpha[j] / alpha[s], -sigma[j], 1
            first = sigma[j] - sigma[s] * p

        q = first * self.value(predict, i, start)
        h = self.lam[j] - self.lam[s]

        for d, row in enumerate(derivatives, start=1):
            q = q + c * h * phi(d + 1, sign * h) * row

        return p, q

    def _derivatives(
        self,
        i: int,
        start: int,
        j: int,
        predict: str,
        sets: Sequence[Sequence[int]],
        relax: float | Tensor,
    ) -> list[Tensor]:
        """Rows of h^d F^(d), d = 1, 2, …, up to the first that too few points carry."""

        s = i - start
        h = self.lam[j] - self.lam[s]
        here = self._node(predict, i, start, s)
        rows: list[Tensor] = []

        for d, used in enumerate(sets, start=1):
            used = [k for k in used if self.finite[i - k]]
            if len(used) < d:
                break
            r = torch.stack([(self.lam[i - k] - self.lam[s]) / h for k in used])
            gaps = [self._node(predict, i, k, s) - here for k in used]
            row = sum(a * g for a, g in zip(slopes(r, d), gaps, strict=True))
            rows.append(row * (1 + relax * h) if d == 1 else row)

        return rows

    def _node(self, predict: str, i: int, k: int, s: int) -> Tensor:
        """The value at a history point; for statistics, carried to the start of the step."""

        value = self.value(predict, i, k)

        if predict != "empirical":
            return value

        u, v = self.integrals.transport(s, i - k)
        return u * value - v * self.unit[-1]

    def _move_empirical(
        self, i: int, start: int, j: int, derivatives: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        s = i - start
        decay, first, bias = self.integrals.step(s, j)
        alpha, h = self.alpha[j], self.lam[j] - self.lam[s]
        q = -alpha * (first * self.value("empirical", i, start) + bias * self.unit[-1])

        for d, row in enumerate(derivatives, start=1):
            q = q - alpha * decay * self.integrals.moment(s, j, d) / h**d * row

        return alpha / self.alpha[s] * decay, q

    def correct(self, i: int, step: Step) -> Tensor:
        """The state at stage i, mended by the call made there."""

        p, q = self.moves[i - 1]
        began = (self.state(0) - self.later(q, 1)) / p
        _, sets = correction(step, i)
        p, q = self.move(i, step.start + 1, i, step.predict, sets, self.relax[i - 1][1])
        return p * began + q

    def rows(self) -> tuple[list[Tensor], list[Tensor]]:
        """The row and the noise of every stage."""

        N = len(self.steps)
        rows, noise = [], [self.lam.new_zeros(())]

        for i, step in enumerate(self.steps):
            self.bases.append(self._mended(i))
            p, q = self._predict(i, step)
            self.moves.append((p, q))
            rows.append(p * self.base(i, step.start) + q)
            noise.append(self._fresh(i, step))

        if self.steps[-1].correct is not None:
            if not self.finite[N]:
                raise UserError(
                    f"step {N - 1} ends at clean data and has a corrector: there is nothing to "
                    "correct at σ = 0, drop the corrector of the last step."
                )
            rows.append(self._mended(N))
            noise.append(self.lam.new_zeros(()))

        return rows, noise

    def _mended(self, i: int) -> Tensor:
        before = self.steps[i - 1] if i > 0 else None
        return (
            self.state(0) if before is None or before.correct is None else self.correct(i, before)
        )

    def _predict(self, i: int, step: Step) -> tuple[Tensor, Tensor]:
        if step.eta > 0:
            c = self._fresh(i, step)
            p = torch.sqrt(self.sigma[i + 1] ** 2 - c**2) / self.sigma[i]
            return p, (self.alpha[i + 1] - self.alpha[i] * p) * self.value("data", i, 0)

        sets = resolve(step.points, step.order, step.start, i + 1)
        return self.move(i, step.start, i + 1, step.predict, sets, self.relax[i][0])

    def _fresh(self, i: int, step: Step) -> Tensor:
        r""":math:`c^2 = \eta^2 \sigma_s^2 (1 - \alpha_t^2 \sigma_s^2 / (\alpha_s^2
        \sigma_t^2))`."""

        (alpha_t, alpha_s), (sigma_t, sigma_s) = self.alpha[i : i + 2], self.sigma[i : i + 2]
        if step.eta == 0:
            return self.lam.new_zeros(())
        ratio = alpha_t * sigma_s / (alpha_s * sigma_t)
        return step.eta * sigma_s * torch.sqrt((1 - ratio**2).clamp(min=0))


def _depth(schedule: SolverSchedule) -> int:
    """A bound on the number of stages that a row can look back on."""

    deepest = 0

    for i, step in enumerate(schedule.steps):
        sets = list(resolve(step.points, step.order, step.start, i + 1))
        if step.correct is not None:
            sets += correction(step, i + 1)[1]
        deepest = max(deepest, step.start + 1, *(max(s) for s in sets if s), 0)

    return 2 * deepest + 2
