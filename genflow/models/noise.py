r"""Unit-scale laws of the noise :math:`Z`.

A path perturbs data as :math:`X_t = \alpha_t X + \sigma_t Z`. Nothing about a path says that
:math:`Z` is Gaussian: with a Student-t law the same path is PFGM++. A law is drawn either from
one generator or from a list with one generator per sample; with a list, a sample depends on its
own generator alone, never on the batch that it was drawn in.

The Student-t law is a Gaussian whose scale is itself drawn, once a sample,

.. math:: Z = G / \sqrt W, \quad G \sim \mathcal N(0, I), \quad
          W \sim \mathrm{Gamma}(D/2, \text{rate} = D/2)

and given :math:`Z = z` in N dimensions W has the law Gamma((N + D)/2, rate :math:`(D + \|z\|^2)
/2`). So noise can be *added* to noise without leaving the law: the new Gaussian must share the W
of the old one (`StudentT.more`), or, nearly, its mean given z (`StudentT.kappa`).
"""

__all__ = ["Gaussian", "Generators", "Noise", "StudentT", "draw"]

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
import math

import torch
from torch import Generator, Tensor

from genflow.errors import UserError
from genflow.models.gamma import log_gamma_ratio
from genflow.models.radius import Radius

Generators = Generator | Sequence[Generator] | None


def draw(
    sampler: Callable[[tuple[int, ...], Generator | None], Tensor],
    shape: Sequence[int],
    generator: Generators,
) -> Tensor:
    r"""Calls a sampler once for the batch, or once a sample when there is a list of generators.

    Args:
        sampler: Draws a tensor of a given shape from a generator.
        shape: The shape (B, \*) to draw.
        generator: None, one generator, or B of them.

    Returns:
        The draws, with shape (B, \*).

    Raises:
        UserError: If the list does not hold exactly B generators.
    """

    shape = tuple(shape)

    if generator is None or isinstance(generator, Generator):
        return sampler(shape, generator)

    if len(generator) != shape[0]:
        raise UserError(
            f"generator holds {len(generator)} generators for a batch of {shape[0]}: "
            "give one generator, or one for each sample."
        )

    return torch.cat([sampler((1, *shape[1:]), g) for g in generator])


class Noise(ABC):
    r"""The law of the unit-scale noise :math:`Z`."""

    @abstractmethod
    def sample(
        self,
        shape: Sequence[int],
        *,
        generator: Generators = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        r"""Draws :math:`Z`.

        Args:
            shape: The shape (B, \*event).
            generator: None, one generator, or one for each of the B samples.
            device: Where the result lives. A generator of another device draws there first.
            dtype: The floating type of the result.

        Returns:
            The noise, with shape (B, \*event).
        """

    @abstractmethod
    def log_radial(self, square: Tensor, N: int) -> Tensor:
        r"""The log-density of the law, which depends on the length of z alone.

        Args:
            square: :math:`\|z\|^2` in float64, with shape (\*).
            N: The number of coordinates.

        Returns:
            :math:`\log p(z)` in nats, in float64 with shape (\*).
        """

    def log_prob(self, z: Tensor) -> Tensor:
        r"""The log-density of the law.

        Args:
            z: Values of the noise, with shape (B, \*event).

        Returns:
            :math:`\log p(z)` in nats, in float64 with shape (B).
        """

        return self.log_radial(_square(z), math.prod(z.shape[1:]))

    @abstractmethod
    def radius(self, N: int, sigma: float = 1.0) -> Radius:
        r"""The law of :math:`\|\sigma Z\|` in N dimensions."""

    @property
    @abstractmethod
    def variance(self) -> float:
        """The variance of a coordinate; it may be infinite."""


def _square(z: Tensor) -> Tensor:
    """‖z‖², summed in float64: its error would be multiplied by N + D."""

    return torch.linalg.vector_norm(z.flatten(1), dim=1, dtype=torch.float64).square()


def _normal(
    shape: Sequence[int],
    generator: Generators,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> Tensor:
    def one(size: tuple[int, ...], source: Generator | None) -> Tensor:
        where = device if source is None else source.device
        return torch.randn(size, generator=source, device=where, dtype=dtype)

    return draw(one, shape, generator).to(device=device)


@dataclass(frozen=True)
class Gaussian(Noise):
    r"""The standard normal law, :math:`Z \sim \mathcal{N}(0, I)`."""

    def sample(
        self,
        shape: Sequence[int],
        *,
        generator: Generators = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """See [`Noise.sample`][genflow.models.noise.Noise.sample]."""

        return _normal(shape, generator, device, dtype)

    def log_radial(self, square: Tensor, N: int) -> Tensor:
        r""":math:`-\|z\|^2/2 - (N/2) \log 2\pi`."""

        return -0.5 * square - 0.5 * N * math.log(2 * math.pi)

    def radius(self, N: int, sigma: float = 1.0) -> Radius:
        """See [`Noise.radius`][genflow.models.noise.Noise.radius]."""

        return Radius(N, math.inf, sigma)

    @property
    def variance(self) -> float:
        """1."""

        return 1.0


@dataclass(frozen=True)
class StudentT(Noise):
    r"""The multivariate Student-t law with :math:`D` degrees of freedom and unit scale.

    .. math:: Z = G / \sqrt{W}, \quad G \sim \mathcal{N}(0, I), \quad
              W \sim \mathrm{Gamma}(D/2, \text{rate} = D/2)

    One :math:`W` is shared by all coordinates of a sample. Its logarithm is drawn, in float64, so
    that nothing underflows however small D is; still, a draw beyond the range of the dtype is
    infinite, with probability :math:`10^{-19}` for D = 0.5 in float32. As :math:`D \to \infty` the
    law becomes the standard normal. The perturbation kernel of PFGM++ with :math:`r = \sigma
    \sqrt{D}` is exactly :math:`\sigma Z`.

    Args:
        D: The degrees of freedom, any real number above 0, or ``inf``.

    Raises:
        UserError: If ``D`` is not above 0.

    References:
        PFGM++: Unlocking the Potential of Physics-Inspired Generative Models
        https://arxiv.org/abs/2302.04265
    """

    D: float

    def __post_init__(self) -> None:
        if not self.D > 0:
            raise UserError(
                f"D is {self.D}: the degrees of freedom must be a number above 0 "
                "(large D is close to Gaussian noise, inf is Gaussian noise)."
            )

    def sample(
        self,
        shape: Sequence[int],
        *,
        generator: Generators = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """See [`Noise.sample`][genflow.models.noise.Noise.sample]."""

        z = _normal(shape, generator, device, dtype)

        if math.isinf(self.D):
            return z

        log_w = _log_gamma(self.D / 2, tuple(shape), generator, device) - math.log(self.D / 2)
        return z * torch.exp(-0.5 * log_w).to(z)

    def log_radial(self, square: Tensor, N: int) -> Tensor:
        r"""The Student-t log-density:

        .. math:: \log\Gamma\tfrac{D+N}{2} - \log\Gamma\tfrac{D}{2} - \tfrac N2 \log(\pi D)
                  - \tfrac{D+N}{2} \log(1 + \|z\|^2 / D)
        """

        if math.isinf(self.D):
            return Gaussian().log_radial(square, N)

        const = log_gamma_ratio(self.D / 2, N / 2)
        const -= N / 2 * (math.log(math.pi) + math.log(self.D))
        return const - (self.D + N) / 2 * torch.log1p(square / self.D)

    def radius(self, N: int, sigma: float = 1.0) -> Radius:
        """See [`Noise.radius`][genflow.models.noise.Noise.radius]."""

        return Radius(N, self.D, sigma)

    @property
    def variance(self) -> float:
        """D/(D − 2), infinite for D ≤ 2."""

        return 1 / (1 - 2 / self.D) if self.D > 2 else math.inf

    def kappa(self, z: Tensor) -> Tensor:
        r"""The deviation of the Gaussian behind a value of the noise, :math:`E[W | z]^{-1/2}`.

        .. math:: \kappa = \sqrt{\frac{D + \|z\|^2}{N + D}}

        :math:`a z + b \kappa n` with normal n then follows nearly the law of
        :math:`\sqrt{a^2 + b^2} \, Z`. The error falls with N: it cannot be seen at N = 64, and at
        N = 4 there is little gain over κ = 1.

        Args:
            z: Values of the noise at unit scale, with shape (B, \*).

        Returns:
            κ in the dtype of z, with shape (B).
        """

        if math.isinf(self.D):
            return z.new_ones(len(z))

        work = torch.float64 if z.dtype == torch.float64 else torch.float32
        norm = torch.linalg.vector_norm(z.flatten(1), dim=1, dtype=work)
        N = math.prod(z.shape[1:])
        long = torch.hypot(norm, norm.new_full((), math.sqrt(self.D)))
        return (long / math.sqrt(N + self.D)).to(z.dtype)

    def more(self, z: Tensor, *, generator: Generators = None) -> Tensor:
        r"""Further noise that shares the scale of a value of the noise: :math:`Z' = G'/\sqrt W`.

        :math:`a z + b Z'` follows the law of :math:`\sqrt{a^2 + b^2} \, Z` exactly.

        Args:
            z: Values of the noise at unit scale, with shape (B, \*).
            generator: None, one generator, or one for each of the B samples.

        Returns:
            Further noise, with shape (B, \*).
        """

        n = _normal(z.shape, generator, z.device, z.dtype)

        if math.isinf(self.D):
            return n

        log_w = _log_gamma((math.prod(z.shape[1:]) + self.D) / 2, z.shape, generator, z.device)
        log_w = log_w - torch.log(0.5 * (self.D + _square(z))).view_as(log_w)
        return n * torch.exp(-0.5 * log_w).to(n)


def _log_gamma(
    a: float, shape: Sequence[int], generator: Generators, device: torch.device | str | None
) -> Tensor:
    """Draws log g with g ~ Gamma(a, 1), one a sample, in float64 with shape (B, 1, …).

    g has the law of g' U^(1/a) with g' ~ Gamma(a + 1), which does not underflow.
    """

    def one(size: tuple[int, ...], source: Generator | None) -> Tensor:
        where = {"device": device if source is None else source.device, "dtype": torch.float64}
        g = torch._standard_gamma(torch.full(size, a + 1, **where), generator=source)
        u = torch.rand(size, generator=source, **where)
        return g.log() + torch.log1p(-u) / a

    return draw(one, (shape[0], *(1,) * (len(shape) - 1)), generator).to(device=device)
