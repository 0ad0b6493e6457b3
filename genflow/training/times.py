r"""Laws of the training time: where along the path a network practises.

Training minimises :math:`\int \pi(t) \, w(t) \, \ell(t) \, dt`, and only the product of the
density and the weight matters. So the emphasis is one argument, a law of :math:`t`, and it is
given by its quantile function alone:

.. math:: t = Q(u), \qquad u \sim \mathcal U(0, 1)

which also makes every law stratifiable: with ``stratified`` the n draws of a batch take one
:math:`u` from each of the n slices :math:`[i/n, (i+1)/n)`. Each t keeps its law, and the mean of a
batch varies less. The clock is the path's: t = 0 is data, t = 1 is noise; a formula from a code
base that counts the other way round is mirrored before it is entered here. To add a law, write its
quantile function.

References:
    Variational Diffusion Models (low-discrepancy times)
    https://arxiv.org/abs/2107.00630
"""

__all__ = ["CosMap", "Grid", "LogNormal", "LogitNormal", "Mode", "TimeLaw", "UShaped", "Uniform"]

from abc import ABC, abstractmethod
from dataclasses import dataclass
import math

import torch
from torch import Generator, Tensor

from genflow.errors import UserError
from genflow.models import Path


class TimeLaw(ABC):
    """A law of t on the range of a path.

    Attributes:
        stratified: Whether a batch is spread evenly over the law.
    """

    stratified: bool

    @abstractmethod
    def quantile(self, u: Tensor, path: Path) -> Tensor:
        r"""The time below which a fraction u of the draws lies.

        Args:
            u: Numbers in [0, 1), with shape (\*).
            path: The path that the times are for.

        Returns:
            Times, with shape (\*); `sample` clamps them to the path's range.
        """

    def sample(
        self,
        n: int,
        path: Path,
        *,
        generator: Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Draws times.

        Args:
            n: How many.
            path: The path that the times are for.
            generator: The source; it lives on the device.
            device: Where the times live.

        Returns:
            Times in [t_min, t_max] of the path, in float32 with shape (n).
        """

        u = torch.rand(n, generator=generator, device=device)

        if self.stratified:
            u = (torch.arange(n, device=device) + u) / n

        return self.quantile(u, path).clamp(path.t_min, path.t_max)


@dataclass(frozen=True)
class Uniform(TimeLaw):
    """All times alike.

    Args:
        low: The smallest time, in [0, 1); None takes the path's.
        high: The largest time, in (0, 1]; None takes the path's.
        stratified: Whether a batch is spread evenly over the law.

    Raises:
        UserError: If the interval is empty or leaves [0, 1].
    """

    low: float | None = None
    high: float | None = None
    stratified: bool = False

    def __post_init__(self) -> None:
        low = 0.0 if self.low is None else self.low
        high = 1.0 if self.high is None else self.high

        if not 0 <= low < high <= 1:
            raise UserError(
                f"times.low is {self.low} and times.high is {self.high}: "
                "0 <= low < high <= 1 is needed (leave both out for the whole path)."
            )

    def quantile(self, u: Tensor, path: Path) -> Tensor:
        """low + (high − low) u."""

        low = path.t_min if self.low is None else self.low
        high = path.t_max if self.high is None else self.high
        return low + (high - low) * u


def _check_spread(std: float) -> None:
    if not std > 0:
        raise UserError(f"times.std is {std}: the spread of a law must be above 0 (1 is usual).")


@dataclass(frozen=True)
class LogitNormal(TimeLaw):
    r"""The middle of the path more than its ends, :math:`t = \text{sigmoid}(m + s \, n)`.

    Args:
        mean: m, any number; above 0 leans towards noise.
        std: s, above 0.
        stratified: Whether a batch is spread evenly over the law.

    Raises:
        UserError: If ``std`` is not above 0.

    References:
        Scaling Rectified Flow Transformers for High-Resolution Image Synthesis
        https://arxiv.org/abs/2403.03206
    """

    mean: float = 0.0
    std: float = 1.0
    stratified: bool = False

    def __post_init__(self) -> None:
        _check_spread(self.std)

    def quantile(self, u: Tensor, path: Path) -> Tensor:
        r""":math:`\text{sigmoid}(m + s \, \Phi^{-1}(u))`."""

        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u))


@dataclass(frozen=True)
class LogNormal(TimeLaw):
    r"""EDM's law of the noise level, :math:`\log(\sigma_t/\alpha_t) = m + s \, n`.

    It is a law of the level, not of the clock: on any path the same levels are drawn, and the
    path's inverse says when they occur.

    Args:
        mean: m, any number.
        std: s, above 0.
        stratified: Whether a batch is spread evenly over the law.

    Raises:
        UserError: If ``std`` is not above 0.

    References:
        Elucidating the Design Space of Diffusion-Based Generative Models
        https://arxiv.org/abs/2206.00364
    """

    mean: float = -1.2
    std: float = 1.2
    stratified: bool = False

    def __post_init__(self) -> None:
        _check_spread(self.std)

    def quantile(self, u: Tensor, path: Path) -> Tensor:
        r"""The time at which :math:`\lambda = -(m + s \, \Phi^{-1}(u))`."""

        return path.inverse(-(self.mean + self.std * torch.special.ndtri(u)))


@dataclass(frozen=True)
class UShaped(TimeLaw):
    r"""Both ends of the path more than its middle, :math:`\pi(t) \propto \cosh(a (t - 1/2))`.

    Made for a second rectified flow, whose paths are nearly straight already: what is left to
    learn lies at the ends.

    Args:
        a: How deep the trough is, above 0; the ends are cosh(a/2) times as likely as the middle.
        stratified: Whether a batch is spread evenly over the law.

    Raises:
        UserError: If ``a`` is not above 0.

    References:
        Improving the Training of Rectified Flows
        https://arxiv.org/abs/2405.20320
    """

    a: float = 4.0
    stratified: bool = False

    def __post_init__(self) -> None:
        if not self.a > 0:
            raise UserError(f"times.a is {self.a}: it must be above 0 (4 is usual).")

    def quantile(self, u: Tensor, path: Path) -> Tensor:
        r""":math:`\tfrac12 + \text{asinh}((2u - 1) \sinh(a/2)) / a`."""

        return 0.5 + torch.asinh((2 * u - 1) * math.sinh(self.a / 2)) / self.a


@dataclass(frozen=True)
class Mode(TimeLaw):
    r"""The middle of the path more (s > 0) or less (s < 0) than its ends, which stay likely.

    Args:
        s: The weight of the middle, in [−1, 2/(π − 2)]; 0 is uniform.
        stratified: Whether a batch is spread evenly over the law.

    Raises:
        UserError: If ``s`` is out of its range, where the map has a fold.

    References:
        Scaling Rectified Flow Transformers for High-Resolution Image Synthesis
        https://arxiv.org/abs/2403.03206
    """

    s: float = 1.29
    stratified: bool = False

    def __post_init__(self) -> None:
        if not -1 <= self.s <= 2 / (math.pi - 2):
            raise UserError(
                f"times.s is {self.s}: allowed are -1 to {2 / (math.pi - 2):.4f} (0 is uniform)."
            )

    def quantile(self, u: Tensor, path: Path) -> Tensor:
        r""":math:`u - s (\sin^2(\pi u / 2) - u)`."""

        return u - self.s * (torch.sin(math.pi / 2 * u).square() - u)


@dataclass(frozen=True)
class CosMap(TimeLaw):
    r"""The times at which a straight path has the levels of a cosine path at uniform times.

    Args:
        stratified: Whether a batch is spread evenly over the law.

    References:
        Scaling Rectified Flow Transformers for High-Resolution Image Synthesis
        https://arxiv.org/abs/2403.03206
    """

    stratified: bool = False

    def quantile(self, u: Tensor, path: Path) -> Tensor:
        r""":math:`\sin / (\sin + \cos)` of :math:`\pi u / 2`."""

        angle = math.pi / 2 * u
        return torch.sin(angle) / (torch.sin(angle) + torch.cos(angle))


@dataclass(frozen=True)
class Grid(TimeLaw):
    r"""The k times at which a k-step Euler sampler calls the network: 1/k, 2/k, ..., 1.

    The law of distillation, on pairs of noise and what a teacher makes of it. With one step the
    only time is 1, and the student learns :math:`x = z - v(z, 1)`.

    Args:
        steps: k, 1 or more.
        stratified: Whether a batch is spread evenly over the law.

    Raises:
        UserError: If ``steps`` is below 1.

    References:
        Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow
        https://arxiv.org/abs/2209.03003
    """

    steps: int = 1
    stratified: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"times.steps is {self.steps}: it must be 1 or more.")

    def quantile(self, u: Tensor, path: Path) -> Tensor:
        r""":math:`(\lfloor k u \rfloor + 1) / k`."""

        return (torch.floor(u * self.steps) + 1) / self.steps
