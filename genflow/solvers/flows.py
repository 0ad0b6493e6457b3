r"""Two more tables: an SDE with the marginals of the flow, and re-interpolation.

Every flow has a family of SDEs with its marginals: with :math:`\hat\epsilon = E[Z|x_t]` and any
:math:`g_t \ge 0`, run from noise to data,

.. math:: dx = -\left( v + \frac{g_t^2}{2 \sigma_t} \hat\epsilon \right) d\tau + g_t \, dW

where :math:`-\hat\epsilon/\sigma_t` is the score. Nothing here assumes that the path is straight;
that the noise is Gaussian is assumed by the score.

Re-interpolation is not a solver of any equation. It draws the line from the *initial* noise to the
present estimate of the data, and is right only where that line is the flow.
"""

__all__ = ["euler_maruyama", "reinterpolate"]

from collections.abc import Sequence
import math
import warnings

import torch

from genflow.errors import UserError
from genflow.models.paths import Path
from genflow.solvers.tableau import Tableau
from genflow.solvers.tables import checked, units


def euler_maruyama(path: Path, times: Sequence[float], *, diffusion: float = 1.0) -> Tableau:
    r"""Euler-Maruyama steps of the SDE with :math:`g_t^2 = \kappa \sigma_t`.

    .. math:: x_s = x_t + h v - \tfrac\kappa2 |h| \hat\epsilon + \sqrt{\kappa \sigma_t |h|} \, n,
              \qquad h = s - t < 0

    With this :math:`g_t` the drift has no singularity at either end. The last step adds no noise.
    Moments converge at order 1.

    Args:
        path: The path.
        times: N + 1 decreasing times.
        diffusion: κ, 0 or more; 0 is Euler's method.

    Returns:
        A table of N stages.

    Raises:
        UserError: If ``diffusion`` is negative, or above 0 where the noise is not Gaussian.

    References:
        SiT: Exploring Flow and Diffusion-based Generative Models with Scalable Interpolant
        Transformers
        https://arxiv.org/abs/2401.08740
    """

    if not diffusion >= 0:
        raise UserError(f"diffusion is {diffusion}: it must be 0 or more (0 is the ODE).")
    if diffusion > 0 and not math.isinf(getattr(path.noise, "D", math.inf)):
        raise UserError(
            f"diffusion is {diffusion} on a path with noise {path.noise}: an SDE follows the "
            "score, which the data estimate gives for Gaussian noise only; use diffusion 0."
        )

    E, t = units(1), checked(times)
    h = t.diff()
    rows = []

    for t0, step in zip(t[:-1], h, strict=True):
        alpha_t, sigma_t = path(t0)
        alpha_dot, sigma_dot = path.rates(t0)
        x, D = E[0], E[1]
        eps = (x - alpha_t * D) / sigma_t
        velocity = alpha_dot * D + sigma_dot * eps
        rows.append(x + step * velocity + 0.5 * diffusion * step * eps)

    noise = torch.zeros(len(t), dtype=torch.float64)
    noise[1:-1] = torch.sqrt(diffusion * path(t[:-2])[1] * -h[:-1])

    return Tableau(time=t[:-1], weight=torch.stack(rows), noise=noise, stop=t[-1])


def reinterpolate(path: Path, times: Sequence[float]) -> Tableau:
    r"""The present estimate of the data, mixed with the noise that the sample started from.

    .. math:: x_s = \alpha_s \, E[X | x_t] + \sigma_s \, z_0

    For two steps or fewer on `Rectified` this is Euler's method. For more it solves no ODE: on a
    flow with curved paths its error *grows* with the number of steps. It is meant for flows that
    reflow has straightened. A sampler draws its start as :math:`\sigma z_0`, so :math:`z_0` is the
    first state over its σ.

    Args:
        path: The path.
        times: N + 1 decreasing times.

    Returns:
        A table of N stages.

    References:
        Improving the Training of Rectified Flows
        https://arxiv.org/abs/2405.20320
    """

    t = checked(times)
    alpha, sigma = path(t)
    N = len(t) - 1

    if N > 2:
        warnings.warn(
            "sampler 'reinterpolate' is right only for straight flows, as reflow makes them; on "
            "others its error grows with the number of steps.",
            stacklevel=2,
        )

    E = units(N)
    rows = [alpha[i + 1] * E[1] + sigma[i + 1] / sigma[0] * E[2 * i] for i in range(N)]

    return Tableau(
        time=t[:-1],
        weight=torch.stack(rows),
        noise=torch.zeros(N + 1, dtype=torch.float64),
        stop=t[-1],
    )
