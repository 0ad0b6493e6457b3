r"""How straight a flow is, and how much its targets contradict each other.

With :math:`Z_1` the noise and :math:`Z_0` the sample of a flow, the straightness

.. math:: S = \int_0^1 E \| (Z_1 - Z_0) - v(Z_t, t) \|^2 dt
            = \int_0^1 E \| v(Z_t, t) \|^2 dt - E \| Z_1 - Z_0 \|^2

is 0 if and only if every trajectory is a line run at constant speed; then one Euler step is exact.
The second form needs no trajectory. A Runge-Kutta method with weights b moves the state by
:math:`\sum_i h b_i v_i`, and the same weights integrate :math:`\|v\|^2`: so the estimate is never
negative, and it is exactly the straightness of the polygon that the method walks.

The crossing of a coupling,

.. math:: V = \int_0^1 E \| (Z - X) - E[Z - X | X_t] \|^2 dt,

is the loss that no network can go below. Rectifying trades one for the other:
:math:`E\|Z - X\|^2 - E\|Z_1 - Z_0\|^2 = S + V`. Both are about the straight path in t and the
velocity of this package, noise minus data; sums are over elements.
"""

__all__ = ["FlowReport", "crossing", "flow_report", "transport_cost"]

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from genflow.errors import UserError
from genflow.models.denoisers import Denoiser
from genflow.models.grids import grid
from genflow.solvers.samplers import Sampler
from genflow.solvers.tables import RUNGE_KUTTA, runge_kutta


def transport_cost(x: Tensor, z: Tensor, p: float = 2.0) -> Tensor:
    r"""What moving z to x costs, :math:`\|z - x\|^p`, for each pair.

    Args:
        x: One end, with shape (B, \*).
        z: The other, with shape (B, \*).
        p: The power, 1 or more for a convex cost.

    Returns:
        The costs, with shape (B).
    """

    return (z - x).flatten(1).double().norm(dim=1).pow(p)


def crossing(
    denoiser: Denoiser,
    x: Tensor,
    z: Tensor,
    *,
    repeats: int = 1,
    generator: torch.Generator | None = None,
    **cond: Any,
) -> Tensor:
    r"""Estimates V with a denoiser in the place of the conditional expectation.

    With the exact denoiser of the coupling the mean over pairs is V without bias. A trained one
    adds its own squared error, so the mean is an upper bound. Times are stratified over [0, 1].

    Args:
        denoiser: The denoiser.
        x: The data, with shape (B, \*).
        z: The noise that belongs to them, with shape (B, \*).
        repeats: How many times each pair is looked at, 1 or more.
        generator: For the times, on the device of x.
        cond: Named conditions, each with B rows.

    Returns:
        :math:`\|(z - x) - v(x_t, t)\|^2` averaged over the times of a pair, with shape (B).
    """

    total = torch.zeros(len(x), dtype=torch.float64, device=x.device)

    with torch.no_grad():
        for _ in range(repeats):
            u = torch.rand(len(x), generator=generator, device=x.device)
            order = torch.rand(len(x), generator=generator, device=x.device).argsort()
            t = ((order + u) / len(x)).to(x.dtype)
            v = denoiser.velocity(denoiser.path.perturb(x, z, t), t, **cond)
            total += (z - x - v).flatten(1).double().square().sum(1)

    return total / repeats


@dataclass(frozen=True)
class FlowReport:
    r"""What the trajectories of a flow are like.

    Attributes:
        n: The number of trajectories.
        straightness: S, a sum over elements; 0 is straight.
        relative: S over :math:`E\|Z_1 - Z_0\|^2`, which has no unit.
        cost: :math:`E\|Z_1 - Z_0\|^p` by p.
        error: By the number of Euler steps, the root mean square over samples and elements of the
            distance to the accurate solution from the same noise.
        nfe: The number of calls for one accurate trajectory.
    """

    n: int
    straightness: float
    relative: float
    cost: dict[float, float]
    error: dict[int, float]
    nfe: int

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values for JSON."""

        return asdict(self)


def flow_report(
    denoiser: Denoiser,
    z: Tensor,
    *,
    steps: int = 25,
    method: str = "rk4",
    powers: Sequence[float] = (1.0, 2.0, 4.0),
    euler: Sequence[int] = (1, 2, 4, 8),
    batch_size: int = 256,
    report: Callable[[int, int], None] | None = None,
    conditions: dict[str, Tensor] | None = None,
) -> FlowReport:
    r"""Measures the straightness, the transport costs and the errors of few Euler steps.

    Args:
        denoiser: The denoiser, on a path with :math:`\alpha = 1, 0` and :math:`\sigma = 0, 1` at
            its ends (Rectified).
        z: The states at t = 1, noise or source data, with shape (n, \*).
        steps: The number of steps of the accurate solution, 1 or more.
        method: Its method, a Runge-Kutta method by name.
        powers: The powers of the transport costs.
        euler: The numbers of Euler steps to compare with it.
        batch_size: How many trajectories are followed at a time.
        report: Called with the numbers of trajectories done and to do.
        conditions: Named conditions, each with n rows.

    Returns:
        The report.

    Raises:
        UserError: If the path does not run from the data to the noise, or there is nothing to
            follow.
    """

    path = denoiser.path
    ends = path(torch.tensor([0.0, 1.0], dtype=torch.float64))

    if not torch.allclose(torch.stack(ends), torch.tensor([[1.0, 0.0], [0.0, 1.0]]).double()):
        raise UserError(
            f"the path is {path}: straightness is about flows that run from data to noise in unit "
            "time (Rectified)."
        )
    if not len(z):
        raise UserError("there are no states to start from: give one or more.")

    accurate = Sampler(denoiser, runge_kutta(path, grid(path, steps, "uniform"), method))
    few = {
        n: Sampler(denoiser, runge_kutta(path, grid(path, n, "uniform"), "euler")) for n in euler
    }
    b = RUNGE_KUTTA[method][1]
    energy, move, costs = 0.0, 0.0, dict.fromkeys(powers, 0.0)
    errors = dict.fromkeys(euler, 0.0)

    for i in range(0, len(z), batch_size):
        start = z[i : i + batch_size]
        cond = {k: v[i : i + batch_size] for k, v in (conditions or {}).items()}
        total = torch.zeros((), dtype=torch.float64, device=z.device)

        def watch(j: int, x: Tensor, v: Tensor, total: Tensor = total) -> None:
            total += b[j % len(b)] / steps * v.double().square().sum()

        end = accurate(start, observe=watch, **cond)
        energy += float(total)
        move += float(transport_cost(end, start).sum())
        for p in powers:
            costs[p] += float(transport_cost(end, start, p).sum())
        for n, sampler in few.items():
            errors[n] += float((sampler(start, **cond) - end).double().square().sum())
        if report is not None:
            report(min(i + batch_size, len(z)), len(z))

    n, d = len(z), z[0].numel()
    excess = energy - move
    return FlowReport(
        n=n,
        straightness=excess / n,
        relative=excess / move if move else 0.0,
        cost={p: c / n for p, c in costs.items()},
        error={k: (e / (n * d)) ** 0.5 for k, e in errors.items()},
        nfe=accurate.nfe,
    )
