r"""Variables in which the probability-flow ODE is written.

With :math:`\rho = \sigma/\alpha` and :math:`r = \sqrt{\alpha^2 + \sigma^2}`, a *chart* scales the
state by s(t), measures progress by u(t), and then the ODE reads

.. math:: \frac{d}{du} \frac{x}{s} = c_x \, x + c_D \, D(x, t).

========= ============== ============== ======================== ==========================
chart     s              u              c_x                      c_D
========= ============== ============== ======================== ==========================
rho       α              ρ              1/σ                      −α/σ
kappa     σ              1/ρ            0                        1
phi       r              arctan ρ       α/(r σ)                  −r/σ
log-rho   r              log ρ          α²/r³                    −α/r
========= ============== ============== ======================== ==========================

In ``rho`` the right-hand side is the noise estimate and Euler's method is DDIM: the exponential
integrator of the paper. In ``kappa`` it is the data estimate, finite where α = 0. In the last two
states and slopes stay of the size of the data, which tolerances need.

The adjoint of the ODE, for the gradient p of a loss with respect to x and :math:`a = s p`, is

.. math:: \frac{da}{du} = -s \, \Big( c_x + c_D \frac{\partial D}{\partial x} \Big)^{\!\top} a,
          \qquad \frac{dg_\theta}{du} = -\Big( c_D \frac{\partial D}{\partial\theta}
          \Big)^{\!\top} a.

References:
    AdjointDPM: Adjoint Sensitivity Method for Gradient Backpropagation of Diffusion Probabilistic
    Models
    https://arxiv.org/abs/2307.10711

    AdjointDEIS: Efficient Gradients for Diffusion Models
    https://arxiv.org/abs/2405.15020
"""

__all__ = ["CHARTS", "Chart", "time_of"]

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from genflow.models.paths import Path


class Chart(NamedTuple):
    """The four functions of a chart, at some times.

    Attributes:
        scale: s.
        place: u.
        state: c_x.
        data: c_D.
    """

    scale: Tensor
    place: Tensor
    state: Tensor
    data: Tensor


def _rho(alpha: Tensor, sigma: Tensor) -> Chart:
    return Chart(alpha, sigma / alpha, 1 / sigma, -alpha / sigma)


def _kappa(alpha: Tensor, sigma: Tensor) -> Chart:
    return Chart(sigma, alpha / sigma, torch.zeros_like(sigma), torch.ones_like(sigma))


def _phi(alpha: Tensor, sigma: Tensor) -> Chart:
    r = torch.hypot(alpha, sigma)
    return Chart(r, torch.atan2(sigma, alpha), alpha / (r * sigma), -r / sigma)


def _log_rho(alpha: Tensor, sigma: Tensor) -> Chart:
    r = torch.hypot(alpha, sigma)
    return Chart(r, torch.log(sigma) - torch.log(alpha), alpha**2 / r**3, -alpha / r)


CHARTS: dict[str, Callable[[Tensor, Tensor], Chart]] = {
    "rho": _rho,
    "kappa": _kappa,
    "phi": _phi,
    "log-rho": _log_rho,
}
"""The charts by name: functions of α and σ."""

_LOG_RHO: dict[str, Callable[[Tensor], Tensor]] = {
    "phi": lambda u: torch.log(torch.sin(u)) - torch.log(torch.cos(u).clamp_min(1e-30)),
    "log-rho": lambda u: u,
}


def time_of(chart: str, path: Path, u: Tensor) -> Tensor:
    """The time at which a path has reached u in ``"phi"`` or ``"log-rho"``."""

    return path.inverse(-_LOG_RHO[chart](u))
