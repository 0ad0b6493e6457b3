r"""Unit-scale laws of the noise :math:`Z`.

A path perturbs data as :math:`X_t = \alpha_t X + \sigma_t Z`. Nothing about a path says that
:math:`Z` is Gaussian: with a Student-t law the same path is PFGM++. A law is drawn either from
one generator or from a list with one generator per sample; with a list, a sample depends on its
own generator alone, never on the batch that it was drawn in.
"""

__all__ = ["Gaussian", "Generators", "Noise", "StudentT", "draw"]

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
import math

import torch
from torch import Generator, Tensor

from genflow.errors import UserError

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
    def log_prob(self, z: Tensor) -> Tensor:
        r"""The log-density of the law.

        Args:
            z: Values of the noise, with shape (B, \*event).

        Returns:
            :math:`\log p(z)` in nats, with shape (B).
        """


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

    def log_prob(self, z: Tensor) -> Tensor:
        r""":math:`-\|z\|^2/2 - (d/2) \log 2\pi`, with shape (B)."""

        z = z.flatten(1)
        return -0.5 * z.square().sum(1) - 0.5 * z.shape[1] * math.log(2 * math.pi)


@dataclass(frozen=True)
class StudentT(Noise):
    r"""The multivariate Student-t law with :math:`D` degrees of freedom and unit scale.

    .. math:: Z = G / \sqrt{W}, \quad G \sim \mathcal{N}(0, I), \quad
              W \sim \mathrm{Gamma}(D/2, \text{rate} = D/2)

    One :math:`W` is shared by all coordinates of a sample; it is drawn in float64. As
    :math:`D \to \infty` the law becomes the standard normal. The perturbation kernel of PFGM++
    with :math:`r = \sigma \sqrt{D}` is exactly :math:`\sigma Z`.

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

        def gamma(size: tuple[int, ...], source: Generator | None) -> Tensor:
            where = device if source is None else source.device
            half = torch.full(size, self.D / 2, device=where, dtype=torch.float64)
            return torch._standard_gamma(half, generator=source)

        ones = (1,) * (len(tuple(shape)) - 1)
        w = draw(gamma, (shape[0], *ones), generator) * (2 / self.D)

        return z * w.rsqrt().to(z)

    def log_prob(self, z: Tensor) -> Tensor:
        r"""The Student-t log-density, with shape (B):

        .. math:: \log\Gamma\tfrac{D+d}{2} - \log\Gamma\tfrac{D}{2} - \tfrac d2 \log(\pi D)
                  - \tfrac{D+d}{2} \log(1 + \|z\|^2 / D)
        """

        if math.isinf(self.D):
            return Gaussian().log_prob(z)

        z = z.flatten(1)
        d = z.shape[1]
        const = math.lgamma((self.D + d) / 2) - math.lgamma(self.D / 2)
        const -= d / 2 * math.log(math.pi * self.D)

        return const - (self.D + d) / 2 * torch.log1p(z.square().sum(1) / self.D)
