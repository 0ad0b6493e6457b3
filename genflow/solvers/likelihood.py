r"""Likelihoods by the instantaneous change of variables.

The probability-flow ODE is a bijection, so the density of its samples is known along the way:

.. math:: \log p_0(x) = \log p_T(x_T) + \int_0^T \nabla \cdot v(x_t, t) \, dt,

where :math:`x_t` solves the ODE from the data to the noise. It is the density *of the samples of
the model*, solved exactly: a denoiser that is not the true one has a density too, and this is it.
The prior :math:`p_T` is the law that samples are drawn from, the path's noise at the scale
:math:`\sigma_T`. On a path that stops short of clean data it is the density at that stop.

The divergence is exact, at the cost of d products with the Jacobian a call, or Hutchinson's
estimate :math:`\epsilon^\top J \epsilon`, unbiased if :math:`\epsilon` has unit covariance. The
probe is drawn once and kept during the solve; a fresh one at each call would make the integrand
rough and an adaptive solver would chase the noise.
"""

__all__ = ["Likelihood", "LogLikelihood", "bits_per_dim", "dequantised"]

from dataclasses import dataclass
import math
from typing import Any, Literal

import torch
from torch import Tensor
from torchdiffeq import odeint

from genflow.errors import UserError
from genflow.models.denoisers import Denoiser
from genflow.models.noise import Generators, draw

SCALE = 127.5
"""Grey levels to a unit: pixels in 0 … 255 become numbers in [−1, 1]."""


@dataclass(frozen=True)
class LogLikelihood:
    r"""The log-density of points, and where it comes from.

    Attributes:
        log_prob: :math:`\log p_0(x)` in nats, with shape (B).
        latent: :math:`x_T`, the code of each point, with shape (B, \*).
        prior: :math:`\log p_T(x_T)`, with shape (B).
        divergence: The integral of the divergence, with shape (B).
        nfe: The number of calls of the denoiser.
    """

    log_prob: Tensor
    latent: Tensor
    prior: Tensor
    divergence: Tensor
    nfe: int


class Likelihood:
    r"""Computes log-densities under the flow of a denoiser.

    Args:
        denoiser: The denoiser.
        divergence: ``"exact"``, or ``"hutchinson"``.
        probes: How many probes the estimate averages, 1 or more.
        law: The law of the probes: ``"rademacher"`` (±1, of the least variance), or
            ``"gaussian"``.
        rtol: The relative tolerance, above 0.
        atol: The absolute tolerance, above 0.
        method: A method of torchdiffeq, adaptive (``"dopri5"``) or not (``"rk4"``, ``"euler"``).
        steps: The number of equal steps of a method that is not adaptive.

    Raises:
        UserError: If a value is out of its range.

    Example:
        >>> found = Likelihood(denoiser)(x)
        >>> bits_per_dim(found.log_prob, d=x[0].numel())

    References:
        FFJORD: Free-form Continuous Dynamics for Scalable Reversible Generative Models
        https://arxiv.org/abs/1810.01367
    """

    def __init__(
        self,
        denoiser: Denoiser,
        divergence: Literal["exact", "hutchinson"] = "exact",
        *,
        probes: int = 1,
        law: Literal["rademacher", "gaussian"] = "rademacher",
        rtol: float = 1e-5,
        atol: float = 1e-5,
        method: str = "dopri5",
        steps: int | None = None,
    ) -> None:
        if divergence not in ("exact", "hutchinson"):
            raise UserError(f"divergence is '{divergence}': allowed are 'exact' and 'hutchinson'.")
        if law not in ("rademacher", "gaussian"):
            raise UserError(f"law is '{law}': allowed are 'rademacher' and 'gaussian'.")
        if probes < 1:
            raise UserError(f"probes is {probes}: it must be 1 or more.")
        if not (rtol > 0 and atol > 0):
            raise UserError(f"rtol is {rtol} and atol is {atol}: both must be above 0.")
        if steps is not None and steps < 1:
            raise UserError(f"steps is {steps}: it must be 1 or more.")

        self.denoiser = denoiser
        self.exact = divergence == "exact"
        self.probes, self.law = probes, law
        self.rtol, self.atol, self.method, self.steps = rtol, atol, method, steps

    def __call__(self, x: Tensor, *, generator: Generators = None, **cond: Any) -> LogLikelihood:
        r"""Solves the ODE from the data to the noise.

        Args:
            x: The data, with shape (B, \*).
            generator: For the probes: one generator, or one for each sample.
            cond: Named conditions, each with B rows.

        Returns:
            The log-densities, in the dtype of x or float32 if that is narrower.
        """

        path, calls = self.denoiser.path, 0
        low, high = path.t_min, path.t_max
        x = x if x.dtype == torch.float64 else x.float()
        probes = None if self.exact else self._probes(x, generator)

        def rates(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            nonlocal calls
            calls += 1
            with torch.enable_grad():
                y = state[0].detach().requires_grad_(True)
                v = self.denoiser.velocity(y, t.clamp(low, high), **cond)
                div = _exact(v, y) if probes is None else _hutchinson(v, y, probes)
            return v.detach(), div

        times = torch.tensor([low, high], dtype=x.dtype, device=x.device)
        options = {"step_t": times[1:]} if self.steps is None else None

        if self.steps is not None:
            times = torch.linspace(low, high, self.steps + 1, dtype=x.dtype, device=x.device)

        with torch.no_grad():
            start = (x, x.new_zeros(len(x)))
            kept = odeint(
                rates,
                start,
                times,
                rtol=self.rtol,
                atol=self.atol,
                method=self.method,
                options=options,
            )
            latent, total = (v[-1] for v in kept)
            sigma = float(path(torch.tensor(high, dtype=torch.float64))[1])
            prior = path.noise.log_prob(latent / sigma) - x[0].numel() * math.log(sigma)

        return LogLikelihood(prior + total, latent, prior, total, calls)

    def _probes(self, x: Tensor, generator: Generators) -> list[Tensor]:
        """Probes of unit covariance, each with shape (B, *)."""

        def one(shape: tuple[int, ...], g: torch.Generator | None) -> Tensor:
            where = x.device if g is None else g.device
            e = torch.randn(shape, generator=g, device=where, dtype=x.dtype).to(x.device)
            return torch.where(e >= 0, 1.0, -1.0).to(x) if self.law == "rademacher" else e

        return [draw(one, x.shape, generator) for _ in range(self.probes)]


def _exact(v: Tensor, y: Tensor) -> Tensor:
    """The trace of the Jacobian of v at y, with shape (B): a product for each of d elements."""

    flat, total = v.flatten(1), y.new_zeros(len(y))

    for i in range(flat.shape[1]):
        (row,) = torch.autograd.grad(flat[:, i].sum(), y, retain_graph=True)
        total = total + row.flatten(1)[:, i]

    return total.detach()


def _hutchinson(v: Tensor, y: Tensor, probes: list[Tensor]) -> Tensor:
    """The mean of ε'Jε over probes, with shape (B)."""

    total = y.new_zeros(len(y))

    for i, e in enumerate(probes):
        (row,) = torch.autograd.grad(v, y, e, retain_graph=i + 1 < len(probes))
        total = total + (row * e).flatten(1).sum(1)

    return (total / len(probes)).detach()


def bits_per_dim(log_prob: Tensor, d: int) -> Tensor:
    r"""Bits a dimension of 8-bit data that were dequantised and scaled to [−1, 1].

    .. math:: -\frac{\log p(x)}{d \log 2} + \log_2 127.5

    The last term undoes the scaling: a grey level is 1/127.5 wide.

    Args:
        log_prob: Log-densities in nats, with shape (B).
        d: The number of elements of a sample.

    Returns:
        Bits a dimension, with shape (B).
    """

    return -log_prob / (d * math.log(2)) + math.log2(SCALE)


def dequantised(images: Tensor, *, generator: Generators = None) -> Tensor:
    r"""Grey levels 0 … 255 as points of their cells, uniform, scaled to [−1, 1].

    The cells are centred on the values that a network is trained on, and the mean of
    :math:`-\log_2 p` over a cell bounds the code length of its level from above.

    Args:
        images: Images in uint8, with shape (B, \*).
        generator: One generator, or one for each image.

    Returns:
        Images in float32, with shape (B, \*).

    Raises:
        UserError: If the images are not in uint8.
    """

    if images.dtype != torch.uint8:
        raise UserError(f"images are in {images.dtype}: dequantisation needs uint8.")

    def one(shape: tuple[int, ...], g: torch.Generator | None) -> Tensor:
        where = images.device if g is None else g.device
        return torch.rand(shape, generator=g, device=where).to(images.device)

    u = draw(one, images.shape, generator)
    return (images.float() + u - 0.5) / SCALE - 1
