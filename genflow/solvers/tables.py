r"""Solvers whose weights are not Taylor series in λ, each as a short function that writes a table.

Runge-Kutta methods in t read the *velocity* of the probability-flow ODE; a step with an abscissa
at which that is not regular is an Euler step. EDM's Heun method, DEIS and iPNDM read the data
estimate. All write rows on the unit vectors of the window, as `genflow.solvers.compiler` does.
"""

__all__ = ["adams", "checked", "karras_heun", "runge_kutta", "units"]

from collections.abc import Sequence
import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from genflow.errors import UserError, nearest
from genflow.models.paths import Path
from genflow.solvers.schedules import SolverSchedule, Step
from genflow.solvers.tableau import Kick, Tableau

RUNGE_KUTTA: dict[str, tuple[list[list[float]], list[float]]] = {
    "euler": ([[]], [1]),
    "midpoint": ([[], [1 / 2]], [0, 1]),
    "heun": ([[], [1]], [1 / 2, 1 / 2]),
    "rk4": ([[], [1 / 2], [0, 1 / 2], [0, 0, 1]], [1 / 6, 1 / 3, 1 / 3, 1 / 6]),
}
"""Explicit Butcher tableaux: the rows of A, and b; the abscissae are the row sums of A."""


def units(K: int) -> Tensor:
    """The unit vectors of a window of K states and K outputs, and of the constant."""

    return torch.eye(2 * K + 1, dtype=torch.float64)


def _double(times: Sequence[float]) -> Tensor:
    return torch.tensor(times, dtype=torch.float64)


def checked(times: Sequence[float]) -> Tensor:
    """The times in float64, checked as those of a schedule are."""

    return _double(SolverSchedule(tuple(times), (Step(),) * (len(times) - 1)).times)


def runge_kutta(
    path: Path, times: Sequence[float], method: str = "heun", avoid: Sequence[float] = ()
) -> Tableau:
    r"""An explicit Runge-Kutta method for :math:`dx/dt = v(x, t)`.

    Args:
        path: The path.
        times: N + 1 decreasing times.
        method: ``"euler"``, ``"midpoint"``, ``"heun"`` or ``"rk4"``.
        avoid: Times at which the denoiser has no velocity, as at σ = 0 where it predicts the data.

    Returns:
        A table that reads the velocity, with 1, 2, 2 or 4 stages a step, and 1 in a step that
        would read it where there is none, or where a rate of the path is infinite, as clean data
        often are.

    Raises:
        UserError: If the method is unknown.
    """

    if method not in RUNGE_KUTTA:
        raise UserError(f"method is '{method}'{nearest(method, RUNGE_KUTTA)}")

    E = units(len(RUNGE_KUTTA[method][1]))
    t = checked(times)
    time, rows, begins = [], [], []

    for h, t0 in zip(t.diff(), t[:-1], strict=True):
        A, b = RUNGE_KUTTA[method]
        stages = [t0 + sum(a) * h for a in A]
        regular = all(torch.isfinite(r) for s in stages for r in path.rates(s))
        barred = any(math.isclose(s, a, abs_tol=1e-12) for s in stages[1:] for a in avoid)
        A, b = (A, b) if regular and not barred else RUNGE_KUTTA["euler"]

        for s in range(len(b)):
            # After stage s the window holds the states and velocities of stages s, s − 1, …, 0.
            coefficients = A[s + 1] if s + 1 < len(b) else b
            start = E[2 * s]
            push = sum(a * E[2 * (s - j) + 1] for j, a in enumerate(coefficients))
            time.append(t0 + sum(A[s]) * h)
            rows.append(start + h * push)
            begins.append(s == 0)

    return Tableau(
        time=torch.stack(time),
        weight=torch.stack(rows),
        noise=torch.zeros(len(rows) + 1, dtype=torch.float64),
        reads="velocity",
        begins=tuple(begins),
        stop=t[-1],
    )


def karras_heun(
    path: Path,
    times: Sequence[float],
    *,
    churn: float = 0.0,
    churn_min: float = 0.0,
    churn_max: float = math.inf,
    churn_noise: float = 1.0,
    churn_law: Literal["path", "gaussian"] = "path",
) -> Tableau:
    r"""EDM's sampler: Heun's method for :math:`y = x/\alpha` in :math:`\rho = \sigma/\alpha`.

    .. math:: \frac{dy}{d\rho} = \frac{y - D}{\rho}

    A step into σ = 0, or from α = 0, is an Euler step. With churn, a step first raises
    :math:`\rho` by the factor :math:`1 + \min(\text{churn}/N, \sqrt2 - 1)` with fresh noise. If
    the noise of the path is Student-t, Gaussian noise would lead away from its law; so it is
    scaled by κ, at no further call (see [`Kick`][genflow.solvers.tableau.Kick]).

    Args:
        path: The path.
        times: N + 1 decreasing times.
        churn: The total amount of churn, 0 or more; 0 is the ODE.
        churn_min: The smallest ρ that is churned.
        churn_max: The largest ρ that is churned.
        churn_noise: The deviation of the fresh noise, about 1.
        churn_law: ``"path"``: the fresh noise keeps to the law of the path; ``"gaussian"``: it is
            Gaussian whatever the path, as in the published PFGM++ sampler.

    Returns:
        A table of 2 N stages, less one for a start at α = 0 and one for an end at σ = 0.

    Raises:
        UserError: If churn is negative, or asked of a path whose α is not 1, or its law unknown.

    References:
        Elucidating the Design Space of Diffusion-Based Generative Models
        https://arxiv.org/abs/2206.00364
    """

    if not churn >= 0:
        raise UserError(f"churn is {churn}: it must be 0 or more (0 is the ODE).")
    if churn_law not in ("path", "gaussian"):
        raise UserError(f"churn_law is '{churn_law}': 'path' and 'gaussian' are allowed.")

    t = checked(times)
    N = len(t) - 1
    alpha, sigma = path(t)

    if churn > 0 and not bool((alpha == 1).all()):
        raise UserError(
            f"churn is {churn}: it needs a path with α = 1 (Karras, Brownian), not {path}."
        )

    E, zero = units(2), t.new_zeros(())
    rho = sigma / alpha
    gain = min(churn / N, math.sqrt(2) - 1)
    raised = [r * (1 + gain * (churn_min <= r <= churn_max)) for r in rho.tolist()]
    hat = _double(raised)
    still = hat == rho
    back = torch.where(still, t, path.inverse(-torch.log(hat)))
    level = torch.where(still, sigma, hat * alpha)
    fresh = churn_noise * torch.sqrt((level**2 - sigma**2).clamp(min=0))
    time, rows, noise, before, begins = [], [], [fresh[0]], [sigma[0]], []

    for i in range(N):
        a0, a1, r0, r1 = alpha[i], alpha[i + 1], hat[i], rho[i + 1]
        ratio = sigma[i + 1] / level[i]
        time.append(back[i])
        rows.append(ratio * E[0] + (a1 - a0 * ratio) * E[1])
        begins.append(True)

        if r1 > 0 and a0 > 0:
            begins.append(False)
            noise.append(zero)
            before.append(zero)
            slope = ((E[2] / a0 - E[3]) / r0 + (E[0] / a1 - E[1]) / r1) / 2
            time.append(t[i + 1])
            rows.append(a1 * (E[2] / a0 + (r1 - r0) * slope))

        noise.append(fresh[i + 1] if i + 1 < N else zero)
        before.append(sigma[i + 1])

    heavy = (
        churn > 0 and churn_law == "path" and not math.isinf(getattr(path.noise, "D", math.inf))
    )

    return Tableau(
        time=torch.stack(time),
        weight=torch.stack(rows),
        noise=torch.stack(noise),
        start=t[0],
        kick=Kick(path.noise, torch.stack(before)) if heavy else None,
        begins=tuple(begins),
        stop=t[-1],
    )


ADAMS_BASHFORTH = [
    [1],
    [3 / 2, -1 / 2],
    [23 / 12, -16 / 12, 5 / 12],
    [55 / 24, -59 / 24, 37 / 24, -9 / 24],
]
"""Weights of equal steps, the newest value first."""


def adams(
    path: Path,
    times: Sequence[float],
    *,
    order: int = 4,
    variable: Literal["rho", "t", "index"] = "index",
) -> Tableau:
    r"""Adams-Bashforth methods for :math:`x/\alpha` as a function of :math:`\rho = \sigma/\alpha`.

    .. math:: \frac{x_s}{\alpha_s} = \frac{x_t}{\alpha_t} + \sum_j w_j \epsilon_j, \qquad
              w_j = \int_{\rho_t}^{\rho_s} \ell_j \, d\rho

    with :math:`\ell_j` the Lagrange polynomials through the last noise estimates in ρ (DEIS ρAB),
    in t (DEIS tAB), or, for ``"index"``, as if all steps were equal (iPNDM): then
    :math:`w_j = (\rho_s - \rho_t) \, b_j`.

    Args:
        path: The path.
        times: N + 1 decreasing times; α must not vanish at the first.
        order: The number of noise estimates, 1 … 4; the first steps use those that exist.
        variable: The variable of the polynomials.

    Returns:
        A table of N stages.

    Raises:
        UserError: If the order or the variable is not allowed.

    References:
        Fast Sampling of Diffusion Models with Exponential Integrator (DEIS)
        https://arxiv.org/abs/2204.13902

        Pseudo Numerical Methods for Diffusion Models on Manifolds
        https://arxiv.org/abs/2202.09778
    """

    if not 1 <= order <= 4:
        raise UserError(f"order is {order}: 1 … 4 are allowed.")
    if variable not in ("rho", "t", "index"):
        raise UserError(f"variable is '{variable}': 'rho', 't' and 'index' are allowed.")

    t = checked(times)
    alpha, sigma = path(t)
    E = units(order)
    rows = []

    for i in range(len(t) - 1):
        ratio = sigma[i + 1] / sigma[i]
        used = [k for k in range(min(order, i + 1)) if alpha[i - k] > 0]

        if not used or used[-1] == 0:
            rows.append(ratio * E[0] + (alpha[i + 1] - alpha[i] * ratio) * E[1])
            continue

        noise = [(E[2 * k] - alpha[i - k] * E[2 * k + 1]) / sigma[i - k] for k in used]
        nodes = t[[i - k for k in used]]
        w = _weights(path, variable, nodes, t[i], t[i + 1])
        push = sum(a * n for a, n in zip(w, noise, strict=True))
        rows.append(alpha[i + 1] * (E[0] / alpha[i] + push))

    return Tableau(
        time=t[:-1],
        weight=torch.stack(rows),
        noise=torch.zeros(len(t), dtype=torch.float64),
        stop=t[-1],
    )


def _weights(path: Path, variable: str, nodes: Tensor, t: Tensor, s: Tensor) -> Tensor:
    r""":math:`\int_{\rho_t}^{\rho_s} \ell_j \, d\rho` for the polynomials through the nodes."""

    def rho(t: Tensor) -> Tensor:
        alpha, sigma = path(t)
        return sigma / alpha

    if variable == "index":
        return (rho(s) - rho(t)) * _double(ADAMS_BASHFORTH[len(nodes) - 1])

    # Gauss-Legendre: exact for polynomials, and to rounding for a smooth ρ(t).
    points, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(64))
    x, lo, hi = (nodes, t, s) if variable == "t" else (rho(nodes), rho(t), rho(s))
    at = (hi + lo) / 2 + (hi - lo) / 2 * points
    measure = (hi - lo) / 2 * weights

    if variable == "t":
        (alpha, sigma), (alpha_dot, sigma_dot) = path(at), path.rates(at)
        measure = measure * (sigma_dot * alpha - sigma * alpha_dot) / alpha**2

    others = [torch.cat([x[:j], x[j + 1 :]]) for j in range(len(x))]
    basis = [torch.prod((at[:, None] - o) / (x[j] - o), dim=1) for j, o in enumerate(others)]
    return torch.stack([(measure * b).sum() for b in basis])
