r"""Averages of the weights whose memory is a power of time, and how to combine them.

The average with exponent :math:`\gamma` at step t weighs the weights of step :math:`\tau` by

.. math:: p_{t, \gamma}(\tau) = (\gamma + 1) \, \tau^\gamma / t^{\gamma + 1}, \qquad
          0 \le \tau \le t,

so it always remembers the same *fraction* of the run, and forgets its random beginning. Its width
is the deviation of :math:`\tau/t`,

.. math:: w = \sqrt{\frac{\gamma + 1}{(\gamma + 2)^2 (\gamma + 3)}}, \qquad
          \beta_t = (1 - 1/t)^{\gamma + 1}

with :math:`\beta_t` the decay that makes an ordinary running average of it. A profile that nobody
kept is approximated by a linear combination of profiles that were kept, by least squares: their
inner products are integrals of powers. The same combination of the averages is nearly the average
wanted. It is exact where the target is one of those kept, and its error is that of the profile.

References:
    Analyzing and Improving the Training Dynamics of Diffusion Models
    https://arxiv.org/abs/2312.02696
"""

__all__ = ["WIDEST", "coefficients", "decay", "exponent"]

from collections.abc import Sequence
import math

import numpy as np

from genflow.errors import UserError

WIDEST = 1 / math.sqrt(12)
"""The width of the plain mean over the run, γ = 0, which no width reaches."""


def exponent(width: float) -> float:
    r"""γ of a width: the largest root of :math:`(\gamma + 2)^2 (\gamma + 3) = (\gamma + 1)/w^2`.

    Raises:
        UserError: If the width is not between 0 and that of the plain mean.
    """

    if not 0 < width < WIDEST:
        raise UserError(
            f"width is {width}: the relative width of an average must lie between 0 and "
            f"{WIDEST:.3f} (0.05 to 0.15 is usual)."
        )

    s = width**-2
    roots = np.roots([1, 7, 16 - s, 12 - s])
    return float(roots[np.abs(roots.imag) < 1e-6 * np.abs(roots)].real.max())


def decay(step: int, width: float, taken: int = 1) -> float:
    r""":math:`(1 - \Delta/t)^{\gamma + 1}`, the decay of an update at step t.

    Args:
        step: t, counted from 1.
        width: The width of the average.
        taken: Δ, the steps since the last update.
    """

    return (1 - taken / step) ** (exponent(width) + 1)


def _inner(t: np.ndarray, g: np.ndarray, s: np.ndarray, h: np.ndarray) -> np.ndarray:
    r""":math:`\int p_{t, g} \, p_{s, h} \, d\tau`: the shorter run's share of the longer one."""

    power = np.where(t < s, h, g)
    ratio = np.minimum(t, s) / np.maximum(t, s)
    return (g + 1) * (h + 1) / (g + h + 1) * ratio**power / np.maximum(t, s)


def coefficients(
    steps: Sequence[float], widths: Sequence[float], step: float, width: float
) -> tuple[np.ndarray, float]:
    """How to combine averages that were kept into one that was not.

    Args:
        steps: When each was kept.
        widths: The width of each.
        step: When the one wanted ends.
        width: Its width.

    Returns:
        The coefficients, which sum to 1, and the error of the profile relative to the profile, in
        the root mean square.

    Raises:
        UserError: If a width is out of its range.
    """

    t, s = np.asarray(steps, dtype=float), float(step)
    g, h = np.array([exponent(w) for w in widths]), exponent(width)
    A = _inner(t[:, None], g[:, None], t[None], g[None])
    b = _inner(t, g, np.array(s), np.array(h))
    x = np.linalg.lstsq(A, b, rcond=1e-13)[0]
    x = x / x.sum()
    whole = float(_inner(np.array(s), np.array(h), np.array(s), np.array(h)))
    rest = whole - 2 * float(x @ b) + float(x @ A @ x)
    return x, math.sqrt(max(0.0, rest) / whole)
