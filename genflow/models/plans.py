r"""The law of a bridge's state at one time given its state at a time before.

Given x at time t, the state at time s < t follows a mixture of K Gaussians. Their weights and
means depend on x, their covariances on the times alone. It is kept by its ingredients, not as
B × K × d numbers, and its moments and draws are exact.
"""

__all__ = ["Plan", "chosen_by", "log_brownian", "normals", "pinned", "uniforms"]

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
import math
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

from genflow.models.noise import Gaussian, Generators, draw
from genflow.models.operators import Operator, blend, chosen, chunked
from genflow.models.predictions import scaled

if TYPE_CHECKING:
    from genflow.models.bridges import LightBridge


def normals(x: Tensor, n: int, generator: Generators) -> Tensor:
    """n standard normal numbers for each of the rows of x, with shape (B, n)."""

    return Gaussian().sample((len(x), n), generator=generator, device=x.device, dtype=x.dtype)


def uniforms(x: Tensor, generator: Generators) -> Tensor:
    """A number in [0, 1) for each of the rows of x, with shape (B), in float64."""

    def one(shape: tuple[int, ...], source: Generator | None) -> Tensor:
        where = x.device if source is None else source.device
        return torch.rand(shape, generator=source, device=where, dtype=torch.float64)

    return draw(one, (len(x), 1), generator).to(x.device)[:, 0]


def chosen_by(place: Tensor, logits: Tensor) -> Tensor:
    """The member of a categorical law at a place in [0, 1) of its distribution function.

    Args:
        place: The places, with shape (B), in float64.
        logits: The logarithms of the weights, up to a constant a row, with shape (B, K).

    Returns:
        The members, with shape (B).
    """

    ladder = logits.double().softmax(-1).cumsum(-1)
    k = torch.searchsorted(ladder, place[:, None] * ladder[:, -1:], right=True)[:, 0]
    return k.clamp(max=logits.shape[1] - 1)


def pinned(x: Tensor, y: Tensor, t: Tensor, s: Tensor, epsilon: float, z: Tensor) -> Tensor:
    r"""A Brownian motion at time s that is at x at time t > s and at y at time 0.

    .. math:: \tfrac st x + \big(1 - \tfrac st\big) y
              + \sqrt{\epsilon \, s \, (t - s) / t} \, z

    Args:
        x: The states at time t, with shape (B, d).
        y: The states at time 0, with shape (B, d).
        t: The times of x, above 0, with shape () or (B).
        s: The times asked for, at most t, with shape () or (B).
        epsilon: The variance per unit time.
        z: Standard normal numbers, with shape (B, d).
    """

    part = s / t
    noise = torch.sqrt(epsilon * part * (t - s))
    return y + scaled(part, x - y) + scaled(noise, z)


def log_brownian(x: Tensor, y: Tensor, variance: Tensor | float) -> Tensor:
    """The log-density of a normal step from x to y, with shape (B, d), per variance, (B)."""

    variance = torch.as_tensor(variance, dtype=x.dtype, device=x.device)
    square = (y - x).square().sum(-1)
    return -0.5 * (square / variance + x.shape[-1] * torch.log(2 * math.pi * variance))


@dataclass(frozen=True)
class Plan:
    r"""The law of the state at time s given the states x at time t: K Gaussians a row.

    Attributes:
        bridge: The bridge.
        x: The states, with shape (B, d).
        t: Their times, with shape () or (B).
        s: The times asked for, with shape () or (B).
        label: The classes, with shape (B), or None.
        logits: The logarithms of the weights, up to a constant a row, with shape (B, K).
        event: The shape of a sample.
        dtype: The type of means and draws.
    """

    bridge: "LightBridge"
    x: Tensor
    t: Tensor
    s: Tensor
    label: Tensor | None
    logits: Tensor
    event: torch.Size
    dtype: torch.dtype

    @cached_property
    def weights(self) -> Tensor:
        """The weights of the components, with shape (B, K)."""

        return self.logits.softmax(-1)

    def _parts(self, t: Tensor, s: Tensor) -> tuple[Operator, Tensor]:
        r"""The ratio :math:`B(s) B(t)^{-1}` and the pull :math:`(t - s) B(t)^{-1} r`."""

        at = self.bridge.covariance.at(t)
        pull = at.ratio(torch.ones_like(t)).of(self.bridge.centre)
        return at.ratio(s), (t - s)[..., None, None] * pull

    def _given(self, x: Tensor) -> Tensor:
        return x.to(self.dtype).unflatten(1, self.event)

    def _chunked(self, part: Callable[..., Tensor], extra: int, *rest: Tensor) -> Tensor:
        """A function of the ratio, the pull, and rows; some rows at a time."""

        def given(x: Tensor, t: Tensor, s: Tensor, *more: Tensor) -> Tensor:
            return part(*self._parts(t, s), x, *more)

        width = max(extra, self.bridge.covariance.width(self.t + self.s))
        return chunked(given, width, self.x, self.t, self.s, *rest)

    @property
    def mean(self) -> Tensor:
        r"""The mean, with shape (B, \*)."""

        def part(ratio: Operator, pull: Tensor, x: Tensor, w: Tensor) -> Tensor:
            return ratio.mixed(w, x) + blend(w, pull)

        return self._given(self._chunked(part, 1, self.weights))

    @property
    def means(self) -> Tensor:
        r"""The means of the components, with shape (B, K, \*)."""

        ratio, pull = self._parts(self.t, self.s)
        return (ratio.spread(self.x) + pull).to(self.dtype).unflatten(2, self.event)

    @property
    def covariance(self) -> Tensor:
        """The covariance of the whole mixture, of flattened states, with shape (B, d, d)."""

        K, d = self.bridge.centre.shape
        level = self.bridge.epsilon * (self.t - self.s)

        def part(ratio: Operator, pull: Tensor, x: Tensor, w: Tensor, level: Tensor) -> Tensor:
            means = ratio.spread(x) + pull
            u = w[..., None].sqrt() * (means - (w[..., None] * means).sum(1, keepdim=True))
            return scaled(level, ratio.blended(w)) + u.mT @ u

        return self._chunked(part, (K + d) * d, self.weights, level).to(self.dtype)

    @torch.no_grad()
    def sample(self, *, generator: Generators = None) -> Tensor:
        r"""Draws a state for each row, with shape (B, \*), without gradients.

        Args:
            generator: None, one generator, or one a row, on whose draws alone the row depends.
        """

        ratio, _ = self._parts(self.t, self.s)
        k = chosen_by(uniforms(self.x, generator), self.logits)
        z = normals(self.x, ratio.draws, generator)
        level = (self.bridge.epsilon * (self.t - self.s)).sqrt()

        def part(
            ratio: Operator, pull: Tensor, x: Tensor, k: Tensor, z: Tensor, level: Tensor
        ) -> Tensor:
            return ratio.picked(k, x) + chosen(pull, k, 2) + scaled(level, ratio.noise(k, z))

        return self._given(self._chunked(part, self.bridge.covariance.member, k, z, level))

    def log_prob(self, y: Tensor) -> Tensor:
        r"""The log-density at states y, with shape (B, \*), with shape (B).

        It is that of the Brownian motion from x to y, times the potential at y over that at x.
        """

        y = self.bridge.state(y, "y")
        x, t, s = self.x, self.t, self.s
        free = log_brownian(x, y, self.bridge.epsilon * (t - s))
        gain = self.bridge.log_phi(y, s, self.label) - self.bridge.log_phi(x, t, self.label)
        return free + gain
