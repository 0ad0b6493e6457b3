r"""Solving the adjoint equation from the sample back to the noise.

`marched` goes along a grid: Euler's method, Heun's, or the two-step method of Adams. A step from
node j + 1 to node j evaluates the slope where it starts, at the *cleaner* node. Where a chart is
singular it steps aside: from α = 0 it takes ``kappa``; and where σ = 0, which has no slope, the
step takes the slope at its other end, so that it is the exact one of the last step of DDIM.

`adaptive` leaves the steps to torchdiffeq, in a chart in which states are of the size of the data,
and with the gradient brought to that size too (its equation is linear). The integrals of the
parameters are Simpson's rule on the steps that it accepted.
"""

__all__ = ["ADAPTIVE", "FIXED", "Grid", "Products", "adaptive", "marched"]

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
import math
from typing import NamedTuple

import torch
from torch import Tensor
from torchdiffeq import odeint

from genflow.models.paths import Path
from genflow.solvers.charts import CHARTS, time_of
from genflow.solvers.circumstances import Circumstances
from genflow.solvers.inputs import Inputs
from genflow.solvers.rollout import Stage

FIXED = ("euler", "heun", "multistep")
ADAPTIVE = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")


@dataclass
class Products:
    """Products with the Jacobian of a denoiser, and the integrals that they add up to.

    Attributes:
        call: The denoiser with its conditions.
        inputs: What it depends on.
        around: What a call is repeated under.
        wanted: The inputs of which gradients are wanted.
        sums: Their gradients so far.
    """

    call: Stage
    inputs: Inputs
    around: Circumstances
    wanted: list[Tensor]
    sums: dict[int, Tensor] = field(default_factory=dict)

    def __call__(
        self, x: Tensor, t: Tensor, v: Tensor | float, a: Tensor, weight: Tensor | float | None
    ) -> tuple[Tensor, Tensor]:
        r"""One call and one product.

        Args:
            x: The states, with shape (B, \*).
            t: The time.
            v: c_D, the factor of the data estimate.
            a: The gradient a, with shape (B, \*).
            weight: The length of the step that the inputs collect over; None collects nothing.

        Returns:
            :math:`D` and :math:`(c_D \, \partial D/\partial x)^\top a`, each with shape (B, \*).
        """

        with torch.enable_grad(), self.around.casting():
            leaf = x.detach().requires_grad_()
            data = self.call(leaf, t)

        self.inputs.check((data,), (leaf,), "continuous")

        if not data.requires_grad:
            return data, torch.zeros_like(x)

        wanted = [] if weight is None else self.wanted
        first, *found = torch.autograd.grad(data, [leaf, *wanted], v * a, allow_unused=True)

        for target, g in zip(wanted, found, strict=True):
            if g is not None:
                part, key = -weight * g, id(target)
                self.sums[key] = self.sums[key].add_(part) if key in self.sums else part

        return data.detach(), torch.zeros_like(x) if first is None else first


class _Node(NamedTuple):
    """A chart at a node, as numbers, with the time."""

    scale: float
    place: float
    state: float
    data: float
    time: Tensor

    @property
    def regular(self) -> bool:
        """Whether the equation has a slope here."""

        return math.isfinite(self.state) and math.isfinite(self.data)


class Grid:
    """The nodes of a march, from noise to data.

    Args:
        path: The path.
        times: M + 1 decreasing times, in float64.
    """

    def __init__(self, path: Path, times: Tensor) -> None:
        self.path = path
        self.times = times
        alpha, sigma = path(times)
        self.rho = (sigma / alpha).tolist()
        self.charts = {name: _columns(chart(alpha, sigma)) for name, chart in CHARTS.items()}

    def __len__(self) -> int:
        return len(self.times) - 1

    def leg(self, j: int, chart: str) -> str | None:
        """The chart of the step between nodes j and j + 1: the one asked for, if it is finite."""

        for name in (chart, "kappa", "rho"):
            places = self.charts[name][1][j : j + 2]
            if all(map(math.isfinite, places)):
                return name
        return None

    def node(self, j: int, chart: str, times: Sequence[Tensor]) -> _Node:
        """A chart at node j."""

        return _Node(*(column[j] for column in self.charts[chart]), times[j])


def _columns(chart: Sequence[Tensor]) -> list[list[float]]:
    return [c.tolist() for c in chart]


def marched(
    products: Products,
    grid: Grid,
    chart: str,
    method: str,
    states: Mapping[int, Tensor],
    jumps: Mapping[int, Tensor],
) -> Tensor:
    r"""The gradient at the first node, from the one at the last.

    Args:
        products: Products with the Jacobian.
        grid: The nodes.
        chart: The chart.
        method: A name in `FIXED`.
        states: The states at nodes, with shape (B, \*); the last at least, the others are solved
            for on the way if they are not known.
        jumps: The gradients of the loss with respect to states at nodes, where there are any.

    Returns:
        :math:`dL/dx` at the first node, with shape (B, \*).
    """

    M, x = len(grid), states[len(grid)]
    times = grid.times.to(device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))
    times = times.unbind(0)
    p = jumps.get(M, torch.zeros_like(x))
    plan = _plan(grid, chart, method == "multistep", jumps)
    before = (0.0, 0.0)

    for j in reversed(range(M)):
        name, weights, total = plan[j]
        near, far = grid.node(j + 1, name, times), grid.node(j, name, times)
        h = far.place - near.place
        a, y = near.scale * p, x / near.scale if near.scale else x
        begin = near if near.regular else far
        at = x if near.regular else states[j]
        slope = _slope(products, begin, at, a, h / 2 if _heun(method, near) else total)
        a_next, y_next = (
            c + weights[0] * s + (weights[1] * b if weights[1] else 0)
            for c, s, b in zip((a, y), slope, before, strict=True)
        )

        if _heun(method, near):
            other = states[j] if j in states else far.scale * y_next
            end = _slope(products, far, other, a_next, h / 2)
            a_next, y_next = (
                c + h / 2 * (s + e) for c, s, e in zip((a, y), slope, end, strict=True)
            )

        before = slope
        x = states[j] if j in states else far.scale * y_next
        p = a_next / far.scale + jumps.get(j, 0)

    return p


def _heun(method: str, near: _Node) -> bool:
    return method == "heun" and near.regular


def _plan(
    grid: Grid, chart: str, multistep: bool, jumps: Mapping[int, Tensor]
) -> list[tuple[str, tuple[float, float], float]]:
    """For each step its chart, the weights of its slopes, and the whole weight of its first one.

    Two slopes can be used where the step before was in the same chart, had a slope at its start,
    and no gradient jumps in between.
    """

    M = len(grid)
    names = [grid.leg(j, chart) for j in range(M)]
    place = [grid.charts[n][1] for n in names]
    h = [place[j][j] - place[j][j + 1] for j in range(M)]
    weights = [(h[j], 0.0) for j in range(M)]

    for j in range(M - 1):
        regular = math.isfinite(grid.charts[names[j + 1]][3][j + 2])
        if multistep and names[j] == names[j + 1] and regular and j + 1 not in jumps:
            r = h[j] / h[j + 1]
            weights[j] = (h[j] * (1 + r / 2), -h[j] * r / 2)

    later = [0.0, *(second for _, second in weights[:-1])]
    return [(n, w, w[0] + b) for n, w, b in zip(names, weights, later, strict=True)]


def _slope(
    products: Products, node: _Node, x: Tensor, a: Tensor, weight: float
) -> tuple[Tensor, Tensor]:
    """The slopes of a and of x/s at a node."""

    data, product = products(x, node.time, node.data, a, weight)
    return -node.scale * (node.state * a + product), node.state * x + node.data * data


def adaptive(
    products: Products,
    path: Path,
    chart: str,
    method: str,
    tolerances: tuple[float, float],
    times: Sequence[float],
    x: Tensor,
    jumps: Mapping[int, Tensor],
) -> Tensor:
    r"""The gradient at the first of some times, from the one at the last, by torchdiffeq.

    Args:
        products: Products with the Jacobian.
        path: The path.
        chart: ``"phi"`` or ``"log-rho"``.
        method: A name in `ADAPTIVE`.
        tolerances: The relative and the absolute one.
        times: Where gradients jump, and both ends: from noise to data.
        x: The final states, with shape (B, \*).
        jumps: As in `marched`, by the index of a time.

    Returns:
        :math:`dL/dx` at the first time, with shape (B, \*).
    """

    work = torch.promote_types(x.dtype, torch.float32)
    double = torch.tensor(times, dtype=torch.float64)
    at = CHARTS[chart](*path(double))
    places, scales = at.place.to(device=x.device, dtype=work), at.scale.tolist()
    low, high = min(times), max(times)

    def slope(u: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor:
        t = time_of(chart, path, u).clamp(low, high)
        c = CHARTS[chart](*path(t))
        z, a = y
        data, product = products(c.scale * z, t, c.data, a, weight)
        return torch.stack(
            [c.state * c.scale * z + c.data * data, -c.scale * (c.state * a + product)]
        )

    p = torch.zeros_like(x)

    for j in reversed(range(len(times) - 1)):
        p = p + jumps.get(j + 1, 0)
        size = p.square().mean().sqrt().clamp_min(torch.finfo(p.dtype).tiny)
        y = torch.stack([x / scales[j + 1], scales[j + 1] * p / size])
        nodes: list[tuple[Tensor, Tensor]] = []

        def field(u: Tensor, y: Tensor) -> Tensor:
            return slope(u, y)

        field.callback_accept_step = lambda u, y, h: nodes.append((u, y))  # noqa: B023
        span = places[[j + 1, j]]
        rtol, atol = tolerances
        options = {"step_t": span[1:]}
        y = odeint(field, y, span, rtol=rtol, atol=atol, method=method, options=options)[-1]

        if products.wanted:
            _collect(slope, [*nodes, (span[1], y)], size)

        x, p = scales[j] * y[0], y[1] * size / scales[j]

    return p + jumps.get(0, 0)


def _collect(
    slope: Callable[[Tensor, Tensor, Tensor], Tensor],
    nodes: Sequence[tuple[Tensor, Tensor]],
    size: Tensor,
) -> None:
    """Simpson's rule on accepted steps, with middles from Hermite's cubics."""

    gaps = [b - a for (a, _), (b, _) in pairwise(nodes)]
    zero = torch.zeros_like(size)
    last: Tensor | None = None

    for n, (u, y) in enumerate(nodes):
        left, right = gaps[n - 1] if n else zero, gaps[n] if n < len(gaps) else zero
        here = slope(u, y, size * (left + right) / 6)
        if last is not None:
            middle = (nodes[n - 1][1] + y) / 2 + left / 8 * (last - here)
            slope(u - left / 2, middle, size * left * (2 / 3))
        last = here
