r"""The light Schrödinger bridge: a stochastic path from one data set to another, in closed form.

The bridge is the Brownian motion with variance ε per unit time, changed as little as possible so
that it carries the law of the source to that of the target. Given its potential (see
`genflow.models.potentials`) everything follows without approximation: with
:math:`B_k(t) = (1-t) S_k + t I` and the weights :math:`\omega_k(x, t)` of the components, the
drift is

.. math:: g(x, t) = \epsilon \nabla \log \varphi_t(x)
          = \sum_k \omega_k(x, t) \, B_k^{-1} \big( (S_k - I) x + r_k \big),

which is regular on the closed interval, and the Markov kernel from time t to s < t is

.. math:: \sum_k \omega_k(x, t) \, \mathcal{N}\big(B_k(t)^{-1} (B_k(s) x + (t - s) r_k),
          \; \epsilon (t - s) B_k(s) B_k(t)^{-1} \big).

*Time* runs as everywhere in this package: the target, as the data, is at t = 0 and the source at
t = 1. The literature on bridges counts 1 − t, from the source to the target. The drift is that of
its equation :math:`dX = g \, dt + \sqrt\epsilon \, dW`, so a step from t to s < t adds (t − s) g.

*What is not assumed*: nothing about the law of the source. The potential fixes where each source
point goes; the law at inner times, and so the probability-flow ODE, need the source besides (see
`genflow.models.marginals`).

References:
    Light Schrödinger Bridge
    https://arxiv.org/abs/2310.01174
"""

__all__ = ["LightBridge"]

from collections.abc import Sequence
from itertools import accumulate, pairwise
import math
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from genflow.errors import UserError, nearest
from genflow.models.covariances import Full, entropic_map
from genflow.models.denoisers import Denoiser
from genflow.models.noise import Generators
from genflow.models.operators import blend
from genflow.models.plans import Plan, log_brownian, normals, pinned
from genflow.models.potentials import Potential
from genflow.models.predictions import combine

Method = Literal["kernel", "bridge", "euler"]


class LightBridge(Potential, Denoiser):
    r"""A Schrödinger bridge whose adjusted potential is a sum of K Gaussians.

    As a denoiser it lives on the path `Brownian`(ε) and answers with the mean of the target given
    the state; a sampler with η = 1 that starts from source points then takes the steps of the
    Brownian motion pinned at that mean, which is the bridge in the limit of many steps. `sample`
    and `trajectory` are exact for any steps, and cost less.

    Its arguments are those of `genflow.models.potentials.Potential`.

    References:
        Light Schrödinger Bridge
        https://arxiv.org/abs/2310.01174
    """

    eta: ClassVar[float | None] = 1.0

    @classmethod
    def fit(cls, source: Any, target: Any, *, epsilon: float, **options: Any) -> "LightBridge":
        r"""A bridge fitted to two clouds of points.

        Args:
            source: Points at t = 1, with shape (n, \*), unpaired with those of the target.
            target: Points at t = 0, with shape (m, \*).
            epsilon: The variance of the Brownian motion per unit time, above 0.
            options: As in [`fit_bridge`][genflow.models.fitting.fit_bridge], which also returns
                how the fit went.

        Raises:
            UserError: If the clouds cannot be joined, or a value is out of its range.
        """

        from genflow.models.fitting import fit_bridge

        return fit_bridge(source, target, epsilon=epsilon, **options).bridge

    @classmethod
    def gaussian(
        cls, source: tuple[Tensor, Tensor], target: tuple[Tensor, Tensor], epsilon: float
    ) -> "LightBridge":
        """The exact bridge between two Gaussian laws, which has K = 1.

        Args:
            source: The mean, with shape (d), and the covariance, with shape (d, d), at t = 1.
            target: The mean and the covariance at t = 0; the covariance must have full rank.
            epsilon: The variance of the Brownian motion per unit time, above 0.

        Raises:
            UserError: If shapes disagree, or the covariance of the target has no full rank.
        """

        (m0, V0), (m1, V1) = source, target
        shapes = [tuple(value.shape) for value in (m0, V0, m1, V1)]

        if m0.ndim != 1 or shapes != 2 * [(len(m0),), (len(m0), len(m0))]:
            raise UserError(
                f"means and covariances have shapes {shapes}: (d) and (d, d), twice, are needed."
            )

        S = entropic_map(V0[None], V1[None], epsilon)
        return cls(m1.new_zeros(1), m1[None] - m0 @ S, Full.of(S), epsilon)

    @classmethod
    def joined(cls, bridges: Sequence["LightBridge"]) -> "LightBridge":
        """One bridge with a class for each of several.

        The components of all stand side by side, and the row of a class switches those of the
        others off, so that one call serves samples of all classes.

        Args:
            bridges: Bridges without classes, with one ε, d and family of covariances.

        Raises:
            UserError: If they differ, or have classes themselves.
        """

        kinds = {
            (b.epsilon, b.dimension, b.covariance.kind, b.covariance.member, b.classes)
            for b in bridges
        }

        if len(kinds) != 1 or bridges[0].classes is not None:
            raise UserError(
                "bridges have (epsilon, dimension, covariance, values of a matrix, classes) "
                f"{sorted(kinds, key=str)}: those that are joined must agree, and have no classes."
            )

        first = bridges[0]
        counts = [b.components for b in bridges]
        log_weight = first.log_weight.new_full((len(bridges), sum(counts)), -math.inf).detach()

        for row, stop, b in zip(log_weight, accumulate(counts), bridges, strict=True):
            row[stop - b.components : stop] = b.log_weight.detach()

        return cls(
            log_weight,
            torch.cat([b.centre.detach() for b in bridges]),
            type(first.covariance).joined([b.covariance for b in bridges]),
            first.epsilon,
        )

    def drift(self, x: Tensor, t: Tensor | float, label: Tensor | None = None) -> Tensor:
        r"""The drift g, with shape (B, \*), in the closed form that is regular on [0, 1].

        .. math:: g(x, t) = \sum_k \omega_k(x, t) \, B_k^{-1} \big( (S_k - I) x + r_k \big)

        It points forward in the time of the literature: from t to s < t, the Euler–Maruyama step
        is :math:`x + (t - s) g + \sqrt{\epsilon (t - s)} \, z`.

        Args:
            x: The states, with shape (B, \*).
            t: The times, with shape () or (B).
            label: The classes, with shape (B), of a bridge with classes.
        """

        def part(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
            at = self.covariance.at(t)
            excess = at.excess()
            w = self._scores(x, at, label, excess.quadratic(x)).softmax(-1)
            pull = at.ratio(torch.ones_like(t)).of(self.centre)
            return excess.mixed(w, x) + blend(w, pull)

        u = self.state(x)
        return self._chunked(part, u, self.time(t, u), label).to(x.dtype).view_as(x)

    def forward(self, x_t: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        r"""The mean of the target given the state, :math:`x_t + t \, g(x_t, t)`."""

        now = torch.as_tensor(t, dtype=x_t.dtype, device=x_t.device)
        return combine(1.0, x_t, now, self.drift(x_t, t, label))

    def velocity(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """None: the probability-flow ODE of a bridge depends on the law of its source.

        Raises:
            UserError: Always; `BridgeMarginals` has the velocity.
        """

        raise UserError(
            "a bridge alone has no probability-flow ODE, which depends on the source: use "
            "BridgeMarginals(bridge, source), or a sampler with eta 1."
        )

    def plan(
        self,
        x: Tensor,
        t: Tensor | float = 1.0,
        s: Tensor | float = 0.0,
        label: Tensor | None = None,
    ) -> Plan:
        r"""The law of the state at time s ≤ t given the state at time t: a mixture of K Gaussians.

        .. math:: \sum_k \omega_k(x, t) \, \mathcal{N}\big(B_k(t)^{-1} (B_k(s) x + (t - s) r_k),
                  \; \epsilon (t - s) B_k(s) B_k(t)^{-1} \big)

        With the defaults it is the plan, the law of the target given the source point, and
        otherwise the Markov kernel of the bridge.

        Args:
            x: The states, with shape (B, \*).
            t: Their times, with shape () or (B).
            s: The times asked for, with shape () or (B).
            label: The classes, with shape (B), of a bridge with classes.
        """

        u = self.state(x)

        if isinstance(t, int | float) and isinstance(s, int | float) and s > t:
            raise UserError(f"s is {s} and t is {t}: s must not lie before t, s <= t is needed.")

        t, s = self.time(t, u), self.time(s, u)
        return Plan(self, u, t, s, label, self.logits(u, t, label), x.shape[1:], x.dtype)

    def sample(
        self, x: Tensor, label: Tensor | None = None, *, generator: Generators = None
    ) -> Tensor:
        r"""Draws a target point for each source point, exactly and at once, without gradients.

        Args:
            x: The source points, with shape (B, \*).
            label: The classes, with shape (B), of a bridge with classes.
            generator: None, one generator, or one a sample.

        Returns:
            The target points, with shape (B, \*).
        """

        return self.plan(x, label=label).sample(generator=generator)

    @torch.no_grad()
    def trajectory(
        self,
        x: Tensor,
        times: Sequence[float],
        label: Tensor | None = None,
        *,
        method: Method = "kernel",
        generator: Generators = None,
    ) -> Tensor:
        r"""Draws a path from each state, without gradients.

        ========== ==================================================================
        method     how
        ========== ==================================================================
        kernel     step by step by the Markov kernel: exact on any grid
        bridge     the target point first, then a Brownian bridge to it: exact, and the
                   cheapest, since the weights of the components are needed once
        euler      Euler–Maruyama with the drift: of order 1 in the step
        ========== ==================================================================

        Args:
            x: The states at ``times[0]``, with shape (B, \*).
            times: Decreasing times between 1 (source) and 0 (target), two or more.
            label: The classes, with shape (B), of a bridge with classes.
            method: The method.
            generator: None, one generator, or one a sample.

        Returns:
            The states at all times, with shape (T, B, \*); the first are x.

        Raises:
            UserError: If times do not decrease inside [0, 1], or the method is unknown.
        """

        if method not in get_args(Method):
            raise UserError(f"method is '{method}'{nearest(method, get_args(Method))}")

        grid = _decreasing(times)
        path = [self.state(x)]
        end = None

        if method == "bridge":
            end = self.plan(path[0], grid[0], 0.0, label).sample(generator=generator)

        for t, s in pairwise(grid):
            x_t = path[-1]
            if method == "kernel":
                x_s = self.plan(x_t, t, s, label).sample(generator=generator)
            elif end is not None:
                at = (self.time(time, x_t) for time in (t, s))
                x_s = pinned(x_t, end, *at, self.epsilon, normals(x_t, self.dimension, generator))
            else:
                z = normals(x_t, self.dimension, generator)
                x_s = x_t + (t - s) * self.drift(x_t, t, label)
                x_s = x_s + math.sqrt(self.epsilon * (t - s)) * z
            path.append(x_s)

        return torch.stack(path).to(x.dtype).unflatten(2, x.shape[1:])

    # ------------------------------------------------------------------------ probabilities

    def log_density(self, x: Tensor, y: Tensor, label: Tensor | None = None) -> Tensor:
        r"""The log-density of the plan at the target y given the source x, with shape (B).

        .. math:: \log \pi(y | x) = \langle x, y \rangle / \epsilon + \log v(y) - \log c(x)
        """

        inner = (self.state(x) * self.state(y, "y")).sum(-1) / self.epsilon
        return inner + self.log_potential(y, label) - self.log_normaliser(x, label)

    def log_path(
        self, path: Tensor, times: Sequence[float], label: Tensor | None = None
    ) -> Tensor:
        r"""The log-density of the states at ``times[1:]``, given the first.

        It is the sum of the logarithms of the Markov kernels, which telescopes: with p the density
        of the Brownian motion,

        .. math:: \sum_i \log p(x_{i+1} | x_i) + \log \varphi_{t_n}(x_n) - \log \varphi_{t_0}(x_0).

        Args:
            path: The states, with shape (T, B, \*).
            times: Their times, decreasing, T of them.
            label: The classes, with shape (B), of a bridge with classes.

        Returns:
            The log-densities in nats, with shape (B).

        Raises:
            UserError: If shapes disagree, or times do not decrease inside [0, 1].
        """

        grid = _decreasing(times)

        if len(path) != len(grid):
            raise UserError(f"path has {len(path)} states and there are {len(grid)} times.")

        x = [self.state(state, "path") for state in path]
        total = self.log_phi(x[-1], grid[-1], label) - self.log_phi(x[0], grid[0], label)

        for i, (t, s) in enumerate(pairwise(grid)):
            total = total + log_brownian(x[i], x[i + 1], self.epsilon * (t - s))

        return total


def _decreasing(times: Sequence[float]) -> list[float]:
    """Times as numbers on the host, checked."""

    grid = [float(t) for t in times]
    falls = all(t > s for t, s in pairwise(grid))

    if len(grid) < 2 or not falls or not (grid[0] <= 1 and grid[-1] >= 0):
        raise UserError(
            f"times are {grid[:3]}{' …' if len(grid) > 3 else ''}: two or more that decrease, "
            "inside [0, 1] and from the source (1) towards the target (0), are needed."
        )

    return grid
