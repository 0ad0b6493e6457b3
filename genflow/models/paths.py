r"""Paths from data to noise.

A path is a pair of functions of time,

.. math:: X_t = \alpha_t X + \sigma_t Z, \qquad t : 0 \text{ (data)} \to 1 \text{ (noise)},

and everything else follows: the half log signal-to-noise ratio
:math:`\lambda = \log(\alpha_t / \sigma_t)`, which decreases in :math:`t`, its inverse, and the
rates :math:`\dot\alpha, \dot\sigma` of the probability-flow ODE. Neither :math:`\alpha^2 +
\sigma^2 = 1` nor Gaussian noise is assumed: the law of :math:`Z` is a field of the path. All
functions are element-wise, keep the dtype and the device of their argument, and are
differentiable.
"""

__all__ = [
    "Brownian",
    "Cosine",
    "Discrete",
    "Karras",
    "Path",
    "Rectified",
    "VariancePreserving",
    "broadcast",
]

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
import math
from typing import ClassVar

import torch
from torch import Tensor

from genflow.errors import UserError
from genflow.models.noise import Gaussian, Noise


def broadcast(t: Tensor, x: Tensor) -> Tensor:
    r"""Views times, with shape () or (B), so that they multiply a state with shape (B, \*)."""

    return t if t.ndim == 0 else t.reshape(-1, *(1,) * (x.ndim - 1))


class Path(ABC):
    r"""A path :math:`X_t = \alpha_t X + \sigma_t Z` from data (t = 0) to noise (t = 1).

    Attributes:
        noise: The law of Z.
        t_min: The smallest time at which a denoiser of this path is meant to be called.
        t_max: The largest one, where sampling starts.
        default_grid: The kind of grid, and its end, that samplers use unless told otherwise.
    """

    noise: Noise
    t_min: float = 0.0
    t_max: float = 1.0
    default_grid: ClassVar[tuple[str, str]] = ("uniform", "min")

    @abstractmethod
    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        r""":math:`\alpha_t` and :math:`\sigma_t`, each with the shape of ``t``."""

    @abstractmethod
    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        r""":math:`d\alpha_t/dt` and :math:`d\sigma_t/dt`, each with the shape of ``t``."""

    @abstractmethod
    def inverse(self, lam: Tensor) -> Tensor:
        r"""The time at which :math:`\log(\alpha_t/\sigma_t)` has the value ``lam``."""

    def lam(self, t: Tensor) -> Tensor:
        r""":math:`\lambda_t = \log(\alpha_t/\sigma_t)`; infinite where α or σ vanishes."""

        alpha_t, sigma_t = self(t)
        return torch.log(alpha_t) - torch.log(sigma_t)

    def perturb(self, x: Tensor, z: Tensor, t: Tensor) -> Tensor:
        r""":math:`\alpha_t x + \sigma_t z` for x, z with shape (B, \*), t with shape () or (B)."""

        alpha_t, sigma_t = (broadcast(c, x) for c in self(t))
        return alpha_t * x + sigma_t * z


class _Logarithmic(Path):
    """The part that variance-preserving paths share: a law of log α, and σ² = 1 − α²."""

    @abstractmethod
    def log_alpha(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """log α and its rate."""

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """α and √(1 − α²)."""

        log_alpha, _ = self.log_alpha(t)
        return torch.exp(log_alpha), torch.sqrt(-torch.expm1(2 * log_alpha))

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """α̇ = α d(log α)/dt and σ̇ = −α α̇ / σ, infinite at σ = 0."""

        _, slope = self.log_alpha(t)
        alpha_t, sigma_t = self(t)
        return alpha_t * slope, -alpha_t.square() * slope / sigma_t


@dataclass(frozen=True)
class VariancePreserving(_Logarithmic):
    r"""The variance-preserving path with linear β(t).

    .. math:: \log \alpha_t = -\tfrac14 (\beta_1 - \beta_0) t^2 - \tfrac12 \beta_0 t, \qquad
              \sigma_t^2 = 1 - \alpha_t^2

    References:
        Score-Based Generative Modeling through Stochastic Differential Equations
        https://arxiv.org/abs/2011.13456
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3
    noise: Noise = field(default_factory=Gaussian)
    default_grid: ClassVar[tuple[str, str]] = ("logsnr", "min")

    def __post_init__(self) -> None:
        if not 0 < self.beta_min < self.beta_max:
            raise UserError(
                f"beta_min is {self.beta_min} and beta_max is {self.beta_max}: "
                "0 < beta_min < beta_max is needed (0.1 and 20 are usual)."
            )

    def log_alpha(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """log α and −β(t)/2."""

        slope = self.beta_max - self.beta_min
        return (
            -0.25 * slope * t.square() - 0.5 * self.beta_min * t,
            -0.5 * slope * t - 0.5 * self.beta_min,
        )

    def inverse(self, lam: Tensor) -> Tensor:
        """The positive root of the quadratic, in its form without cancellation."""

        slope = self.beta_max - self.beta_min
        c = 2 * slope * torch.nn.functional.softplus(-2 * lam, threshold=1e3)
        return c / ((torch.sqrt(self.beta_min**2 + c) + self.beta_min) * slope)


@dataclass(frozen=True)
class Cosine(Path):
    r"""The variance-preserving cosine path.

    .. math:: \alpha_t = \cos\!\Big(\frac{t + s}{1 + s} \frac\pi2\Big) \Big/
              \cos\!\Big(\frac{s}{1 + s} \frac\pi2\Big)

    α vanishes at t = 1, so sampling starts at ``t_max``, a little earlier.

    References:
        Improved Denoising Diffusion Probabilistic Models
        https://arxiv.org/abs/2102.09672
    """

    s: float = 0.008
    t_min: float = 1e-3
    t_max: float = 0.9946
    noise: Noise = field(default_factory=Gaussian)
    default_grid: ClassVar[tuple[str, str]] = ("logsnr", "min")

    def __post_init__(self) -> None:
        if not self.s >= 0:
            raise UserError(f"s is {self.s}: the offset of the cosine must be 0 or more (0.008).")

    def _angles(self) -> tuple[float, float]:
        unit = math.pi / 2 / (1 + self.s)
        return unit, self.s * unit

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """α as a sine of 1 − t, and 1 − σ² without cancellation: exact at both ends."""

        unit, origin = self._angles()
        alpha_t = torch.sin((1 - t) * unit) / math.cos(origin)
        drop = 2 * torch.sin(t * unit / 2) ** 2 + math.tan(origin) * torch.sin(t * unit)
        return alpha_t, torch.sqrt(drop * (2 - drop))

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """−θ' sin θ / cos θ₀ and −α α̇ / σ, infinite at σ = 0."""

        (unit, origin), (alpha_t, sigma_t) = self._angles(), self(t)
        alpha_dot = -unit * torch.cos((1 - t) * unit) / math.cos(origin)
        return alpha_dot, -alpha_t * alpha_dot / sigma_t

    def inverse(self, lam: Tensor) -> Tensor:
        """arccos(α cos θ₀) on the scale of t."""

        unit, origin = self._angles()
        log_alpha = -0.5 * torch.nn.functional.softplus(-2 * lam, threshold=1e3)
        return torch.acos(torch.exp(log_alpha) * math.cos(origin)) / unit - self.s


@dataclass(frozen=True)
class Discrete(_Logarithmic):
    r"""The variance-preserving path of a model trained at N discrete levels :math:`\bar\alpha_i`.

    Level i = 0 … N − 1 sits at time (i + 1)/N, and clean data at time 0. Between levels log α is
    interpolated linearly, as DPM-Solver does. A last level with :math:`\bar\alpha = 0` (zero
    terminal signal) is kept at :math:`2^{-24}`, or at half the level before if that is smaller,
    since a state without signal cannot be divided by α.

    Args:
        alphas_cumprod: The N values of :math:`\bar\alpha`, decreasing, in (0, 1].
        noise: The law of Z.

    Raises:
        UserError: If the values do not decrease or leave [0, 1].

    References:
        DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling
        https://arxiv.org/abs/2206.00927
    """

    alphas_cumprod: tuple[float, ...]
    noise: Noise = field(default_factory=Gaussian)
    default_grid: ClassVar[tuple[str, str]] = ("trailing", "zero")

    def __post_init__(self) -> None:
        values = torch.as_tensor(self.alphas_cumprod, dtype=torch.float64).flatten()
        falling = bool((values.diff() < 0).all()) and values[-1] >= 0 and values[0] < 1

        if len(values) < 2 or not falling:
            raise UserError(
                f"alphas_cumprod holds {len(values)} values from {float(values[0]):.4g} to "
                f"{float(values[-1]):.4g}: two or more values that decrease inside [0, 1) are "
                "needed, the cleanest first."
            )

        floor = min(2.0**-24, 0.5 * float(values[values > 0][-1]))
        kept = torch.where(values > 0, values, floor)
        levels = torch.cat([values.new_zeros(1), 0.5 * kept.log()])
        object.__setattr__(self, "alphas_cumprod", tuple(values.tolist()))
        object.__setattr__(self, "_tables", {(torch.device("cpu"), torch.float64): levels})

    @property
    def levels(self) -> int:
        """The number N of levels."""

        return len(self.alphas_cumprod)

    @property
    def t_min(self) -> float:
        """The time of the cleanest level, 1/N."""

        return 1 / self.levels

    def _table(self, t: Tensor) -> Tensor:
        key = (t.device, t.dtype)

        if key not in self._tables:
            cpu = self._tables[torch.device("cpu"), torch.float64]
            self._tables[key] = cpu.to(device=t.device, dtype=t.dtype)

        return self._tables[key]

    def log_alpha(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The piecewise-linear log α and its slope."""

        table = self._table(t)
        s = t * self.levels
        i = s.detach().floor().long().clamp(0, self.levels - 1)
        left, right = table[i], table[i + 1]
        return left + (s - i) * (right - left), (right - left) * self.levels

    def inverse(self, lam: Tensor) -> Tensor:
        """The time at which the interpolated path has the given λ, clamped to [0, 1]."""

        log_alpha = -0.5 * torch.nn.functional.softplus(-2 * lam, threshold=1e3)
        table = self._table(lam)
        i = torch.searchsorted(-table, (-log_alpha).contiguous()).clamp(1, self.levels) - 1
        left, right = table[i], table[i + 1]
        return ((i + (log_alpha - left) / (right - left)) / self.levels).clamp(0, 1)


@dataclass(frozen=True)
class Rectified(Path):
    r"""The straight path of rectified flow, :math:`\alpha_t = 1 - t, \sigma_t = t`.

    λ is infinite at both ends: solvers take their first step from pure noise, and their last one
    to data, at order 1 (see `genflow.solvers.tableau`).

    References:
        Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow
        https://arxiv.org/abs/2209.03003
    """

    noise: Noise = field(default_factory=Gaussian)
    default_grid: ClassVar[tuple[str, str]] = ("uniform", "min")

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """1 − t and t."""

        return 1 - t, t

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """−1 and 1."""

        one = torch.ones_like(t)
        return -one, one

    def inverse(self, lam: Tensor) -> Tensor:
        """sigmoid(−λ)."""

        return torch.sigmoid(-lam)


@dataclass(frozen=True)
class Karras(Path):
    r"""The variance-exploding path of EDM, on a clock in which its ρ-grid is uniform.

    .. math:: \alpha_t = 1, \qquad \sigma_t = \sigma_{\max} t^\rho

    The usual grid, uniform in :math:`\sigma^{1/\rho}` between ``sigma_max`` and ``sigma_min``, is
    then uniform in t between 1 and ``t_min`` :math:`= (\sigma_{\min}/\sigma_{\max})^{1/\rho}`,
    and t = 0 is clean data.

    References:
        Elucidating the Design Space of Diffusion-Based Generative Models
        https://arxiv.org/abs/2206.00364
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    noise: Noise = field(default_factory=Gaussian)
    default_grid: ClassVar[tuple[str, str]] = ("karras", "zero")

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise UserError(
                f"sigma_min is {self.sigma_min} and sigma_max is {self.sigma_max}: "
                "0 < sigma_min < sigma_max is needed (0.002 and 80 are usual)."
            )
        if not self.rho > 0:
            raise UserError(f"rho is {self.rho}: it must be above 0 (7 is usual).")

    @property
    def t_min(self) -> float:
        """The time at which σ is ``sigma_min``."""

        return (self.sigma_min / self.sigma_max) ** (1 / self.rho)

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """1 and σ_max t^ρ."""

        return torch.ones_like(t), self.sigma_max * t**self.rho

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """0 and ρ σ_max t^(ρ − 1)."""

        return torch.zeros_like(t), self.sigma_max * self.rho * t ** (self.rho - 1)

    def inverse(self, lam: Tensor) -> Tensor:
        """(e^(−λ)/σ_max)^(1/ρ)."""

        return torch.exp((-lam - math.log(self.sigma_max)) / self.rho)


@dataclass(frozen=True)
class Brownian(Path):
    r"""Brownian motion with variance ε per unit time: :math:`\alpha_t = 1, \sigma_t^2 = εt`.

    Pinned at both ends it is the reference process of the Schrödinger bridge; a sampler with
    η = 1 on this path takes exactly the steps of the pinned bridge.

    References:
        Light Schrödinger Bridge
        https://arxiv.org/abs/2310.01174
    """

    epsilon: float = 1.0
    noise: Noise = field(default_factory=Gaussian)

    def __post_init__(self) -> None:
        if not 0 < self.epsilon < math.inf:
            raise UserError(f"epsilon is {self.epsilon}: a finite number above 0 is needed.")

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """1 and √(εt)."""

        return torch.ones_like(t), torch.sqrt(self.epsilon * t)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """0 and ½ √(ε/t), infinite at t = 0."""

        return torch.zeros_like(t), 0.5 * torch.sqrt(self.epsilon / t)

    def inverse(self, lam: Tensor) -> Tensor:
        """e^(−2λ)/ε."""

        return torch.exp(-2 * lam) / self.epsilon
