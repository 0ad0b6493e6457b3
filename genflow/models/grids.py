r"""Grids of times along a path.

A grid is a plain tuple of decreasing floats, computed once on the host in float64. Its kind names
the variable in which the times are evenly spaced; where it ends, and whether a last step is spent
on going to clean data, are separate questions.
"""

__all__ = ["grid", "inner_end"]

from collections.abc import Sequence
from typing import Literal, get_args

import torch

from genflow.errors import UserError, nearest
from genflow.models.paths import Path

Grid = Literal["logsnr", "uniform", "quadratic", "karras", "trailing", "leading"]

INSIDE = 1e-3
"""How far inside of an end grids in λ stay, where λ is infinite at it."""


def inner_end(path: Path, t: float, inwards: float) -> float:
    """The end of a grid in λ: t itself if λ is finite there, else a little further in.

    Args:
        path: The path.
        t: An end.
        inwards: The direction of the inner times: 1 at the lower end, −1 at the upper one.
    """

    finite = bool(torch.isfinite(path.lam(torch.tensor(t, dtype=torch.float64))))
    return t if finite else t + inwards * INSIDE


def grid(
    path: Path,
    steps: int,
    kind: str | None = None,
    *,
    start: float | None = None,
    stop: float | None = None,
    final: Literal["min", "zero"] | None = None,
    rho: float = 7.0,
    shift: float = 1.0,
) -> tuple[float, ...]:
    r"""A decreasing grid of times for a number of steps.

    ========= =====================================================================
    kind      the times are evenly spaced in
    ========= =====================================================================
    logsnr    :math:`\lambda`
    uniform   t
    quadratic :math:`\sqrt t`
    karras    :math:`(\sigma/\alpha)^{1/\rho}`
    trailing  t, from the noisiest level to 0, whatever ``final`` says
    leading   t, with the whole step ⌊N/steps⌋ of N levels, ending at 0 (N = 1000 if continuous)
    ========= =====================================================================

    Args:
        path: The path.
        steps: The number of steps, 1 or more.
        kind: The kind of grid; the path's own default if None.
        start: The first time; the path's ``t_max`` if None.
        stop: The last time; the path's ``t_min`` if None. On a kind that needs a finite λ, ends
            at which λ is infinite are moved inside by 1e-3.
        final: ``"min"`` ends the grid at ``stop``; ``"zero"`` spends the last step on going from
            ``stop`` to clean data at time 0. The path's own default if None.
        rho: The exponent of the Karras grid.
        shift: Multiplies σ/α at the inner times, exactly if λ is infinite at both ends and with
            the ends held fast otherwise: above 1, more time is spent near noise, as large images
            need.

    Returns:
        ``steps + 1`` decreasing times.

    Raises:
        UserError: If a value is out of its range.

    References:
        Elucidating the Design Space of Diffusion-Based Generative Models
        https://arxiv.org/abs/2206.00364

        Scaling Rectified Flow Transformers for High-Resolution Image Synthesis (shift)
        https://arxiv.org/abs/2403.03206

        Common Diffusion Noise Schedules and Sample Steps are Flawed (trailing, leading)
        https://arxiv.org/abs/2305.08891
    """

    kind = kind or path.default_grid[0]
    final = final or path.default_grid[1]
    start = path.t_max if start is None else start
    stop = path.t_min if stop is None else stop

    if steps < 1:
        raise UserError(f"steps is {steps}: a sampler needs 1 step or more.")
    if kind not in get_args(Grid):
        raise UserError(f"grid is '{kind}'{nearest(kind, get_args(Grid))}")
    if final not in ("min", "zero"):
        raise UserError(f"final is '{final}': 'min' and 'zero' are allowed.")
    if not 0 <= stop < start:
        raise UserError(f"start is {start} and stop is {stop}: 0 <= stop < start is needed.")
    if not (shift > 0 and rho > 0):
        raise UserError(f"shift is {shift} and rho is {rho}: both must be above 0.")

    times = _spaced(path, steps, kind, start, stop, final, rho)

    return _shifted(path, times, shift) if shift != 1.0 else times


def _spaced(
    path: Path, steps: int, kind: str, start: float, stop: float, final: str, rho: float
) -> tuple[float, ...]:
    """Evenly spaced times in the variable of the kind."""

    if kind == "trailing":
        return (*(start * (1 - i / steps) for i in range(steps)), 0.0)
    if kind == "leading":
        levels = getattr(path, "levels", 1000)
        if steps > levels:
            raise UserError(f"steps is {steps}: a leading grid has at most {levels} steps.")
        stride = levels // steps
        return (*((i * stride + 1) / levels for i in reversed(range(steps))), 0.0)

    if kind in ("logsnr", "karras"):
        start, stop = inner_end(path, start, -1), inner_end(path, stop, 1)

    zero = final == "zero" and stop > 0
    count = steps if zero else steps + 1

    if count == 1:
        return (start, 0.0) if zero else (start, stop)

    u = torch.linspace(0, 1, count, dtype=torch.float64)
    ends = torch.tensor([start, stop], dtype=torch.float64)

    if kind == "uniform":
        times = ends[0] + u * (ends[1] - ends[0])
    elif kind == "quadratic":
        root = ends.sqrt()
        times = (root[0] + u * (root[1] - root[0])).square()
    else:
        lam = path.lam(ends)
        if kind == "karras":
            root = torch.exp(-lam / rho)
            lam = -rho * torch.log(root[0] + u * (root[1] - root[0]))
        else:
            lam = lam[0] + u * (lam[1] - lam[0])
        times = path.inverse(lam)

    inner = tuple(times[1:-1].tolist())
    return (start, *inner, stop, 0.0) if zero else (start, *inner, stop)


def _shifted(path: Path, times: Sequence[float], shift: float) -> tuple[float, ...]:
    r"""The times at :math:`r' = r_1 + a (r - r_1) / (1 + (a - 1) q)`, with r = σ/α, a the shift,
    and q the place of r between its last value :math:`r_1` (q = 0) and its first (q = 1)."""

    t = torch.tensor(times, dtype=torch.float64)
    r = torch.exp(-path.lam(t))
    above = r - r[-1]
    moved = r[-1] + shift * above / (1 + (shift - 1) * above / above[0])
    inner = path.inverse(-torch.log(moved[1:-1]))
    return (times[0], *inner.tolist(), times[-1])
