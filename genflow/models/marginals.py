r"""The laws that a bridge passes through, for a source known by its points.

With the N source points :math:`x^n` at t = 1 each equally likely, and p the density of the
Brownian motion, the law of the state at time t is

.. math:: p_t(x) = \varphi_t(x) \cdot \frac1N \sum_n
          \frac{p(x \,|\, x^n, \epsilon (1 - t))}{\varphi_1(x^n)},

one factor that looks towards the target and one that looks back to the source. It is the mixture
of the N × K Gaussians of all kernels, at the cost of N + K. The second factor also gives the
weights :math:`\rho_n(x, t)` with which the state came from each source point. The probability-flow
ODE moves a state half towards where it is going and half away from where it came from,

.. math:: \frac{dx}{dt} = -\tfrac12 \Big( g(x, t) + \frac{x - \sum_n \rho_n x^n}{1 - t} \Big).

The laws are those of the empirical source: at t = 1 they are points without a density, and close
to it, where :math:`\epsilon (1 - t)` is small beside the spacing of the points, they are clusters.
"""

__all__ = ["BridgeMarginals"]

from collections.abc import Callable
import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from genflow.errors import UserError
from genflow.models.bridges import LightBridge
from genflow.models.denoisers import Denoiser
from genflow.models.noise import Generators
from genflow.models.operators import chunked
from genflow.models.plans import chosen_by, uniforms
from genflow.models.predictions import scaled


class BridgeMarginals(Denoiser):
    r"""The laws of a bridge that starts from given points, and its probability-flow ODE.

    As a denoiser it has the bridge's ODE on the path `Brownian`(ε): samplers with η = 0 carry
    draws of :math:`p_t`, with t below 1, to the target. Its data estimate is the one that goes
    with this velocity, :math:`x - 2 t \, dx/dt`, and not the mean of the target.

    Args:
        bridge: The bridge, taken as it is now: build this anew after training it.
        source: The source points, with shape (N, \*).
        label: The class of all points, for a bridge with classes.

    Raises:
        UserError: If the points do not fit the bridge or are not finite.
    """

    eta: ClassVar[float | None] = 0.0

    def __init__(self, bridge: LightBridge, source: Tensor, label: int | None = None) -> None:
        super().__init__()

        self.path = bridge.path
        self.bridge = bridge
        self.label = label
        self.event = source.shape[1:]
        points = bridge.state(source, "source").detach()

        finite = torch.isfinite(points).all(1)

        if not len(points) or not bool(finite.all()):
            raise UserError(
                f"source has {len(points)} points, {int((~finite).sum())} of them not finite: one "
                "point or more, all finite, are needed."
            )

        with torch.no_grad():
            log_phi = bridge.log_phi(points, 1.0, self._labels(points))

        self.register_buffer("points", points)
        self.register_buffer("log_phi", log_phi)

    def _labels(self, x: Tensor) -> Tensor | None:
        if self.label is None:
            return None
        return torch.full((len(x),), self.label, dtype=torch.long, device=x.device)

    def at(self, t: float) -> Denoiser:
        """Itself; a sampler that starts at t = 1 is refused here.

        Raises:
            UserError: If t is not below 1.
        """

        if not 0 <= t < 1:
            raise UserError(
                f"t is {t}: the source is known by its points, and its law has a density at times "
                "from 0 (target) to just below 1 alone; start at 0.99, say, from sample(n, 0.99)."
            )

        return self

    def _enter(self, x: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor]:
        if isinstance(t, int | float):
            self.at(t)

        u = self.bridge.state(x)
        return u, self.bridge.time(t, u)

    def logits(self, x: Tensor, t: Tensor | float) -> Tensor:
        r"""The summands of the backward factor, as logarithms, with shape (B, N).

        Their softmax are the weights :math:`\rho_n(x, t)` of the source points.
        """

        x, t = self._enter(x, t)
        middle = self.points.mean(0)
        x, y = x - middle, self.points - middle
        variance = self.bridge.epsilon * (1 - t)[..., None]
        square = x.square().sum(-1, keepdim=True) - 2 * x @ y.mT + y.square().sum(-1)
        level = self.bridge.dimension * torch.log(2 * math.pi * variance)
        return -0.5 * (square / variance + level) - self.log_phi

    def log_prob(self, x: Tensor, t: Tensor | float = 0.0) -> Tensor:
        r"""The log-density of the state at time t, in nats, with shape (B).

        At t = 0 it is the log-likelihood of target points under the bridge.

        Args:
            x: The states, with shape (B, \*).
            t: The times, below 1, with shape () or (B).
        """

        def part(x: Tensor, t: Tensor) -> Tensor:
            back = self.logits(x, t).logsumexp(-1) - math.log(len(self.points))
            return self.bridge.log_phi(x, t, self._labels(x)) + back

        return self._rowwise(part, x, t)

    def _rowwise(
        self, part: Callable[..., Tensor], x: Tensor, t: Tensor | float, *rest: Tensor
    ) -> Tensor:
        """A function of states and times, some rows at a time."""

        x, t = self._enter(x, t)
        return chunked(part, len(self.points), x, t, *rest)

    def source_mean(self, x: Tensor, t: Tensor | float) -> Tensor:
        r"""The mean of the source point that a state came from, with shape (B, \*)."""

        def part(x: Tensor, t: Tensor) -> Tensor:
            return self.logits(x, t).softmax(-1) @ self.points

        return self._rowwise(part, x, t).to(x.dtype).view_as(x)

    @torch.no_grad()
    def source_of(
        self, x: Tensor, t: Tensor | float = 0.0, *, generator: Generators = None
    ) -> Tensor:
        r"""Draws the source point that each state came from: the bridge run backwards.

        Args:
            x: The states, with shape (B, \*).
            t: Their times, below 1, with shape () or (B).
            generator: None, one generator, or one a sample.

        Returns:
            Points of the source, with shape (B, \*).
        """

        def part(x: Tensor, t: Tensor, place: Tensor) -> Tensor:
            return self.points[chosen_by(place, self.logits(x, t))]

        place = uniforms(x, generator)
        return self._rowwise(part, x, t, place).to(x.dtype).view_as(x)

    @torch.no_grad()
    def sample(self, n: int, t: float = 0.0, *, generator: Generators = None) -> Tensor:
        r"""Draws n states at time t, with shape (n, \*)."""

        place = uniforms(self.points.new_empty(n, 0), generator)
        x = self.points[(place * len(self.points)).long()]
        y = self.bridge.plan(x, 1.0, t, self._labels(x)).sample(generator=generator)
        return y.unflatten(1, self.event)

    def score(self, x: Tensor, t: Tensor | float) -> Tensor:
        r"""The score :math:`\nabla \log p_t(x)`, with shape (B, \*)."""

        ahead, behind = self._pulls(x, t)
        return (ahead - behind) / self.bridge.epsilon

    def _pulls(self, x: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor]:
        r"""The drift, and :math:`(x - \sum_n \rho_n x^n)/(1 - t)`."""

        t = torch.as_tensor(t, dtype=x.dtype, device=x.device)
        ahead = self.bridge.drift(x, t, self._labels(x))
        return ahead, scaled(1 / (1 - t), x - self.source_mean(x, t))

    def velocity(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """The velocity of the probability-flow ODE, regular for t in [0, 1)."""

        ahead, behind = self._pulls(x_t, t)
        return -0.5 * (ahead + behind)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        r"""The data estimate that has this velocity, :math:`x_t - 2 t \, dx/dt`."""

        t = torch.as_tensor(t, dtype=x_t.dtype, device=x_t.device)
        return x_t - scaled(2 * t, self.velocity(x_t, t))
