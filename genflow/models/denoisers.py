r"""Denoisers: everything that this package samples from is an estimate of :math:`E[X | x_t]`.

A `Denoiser` owns its path and answers two questions about a state :math:`x_t = \alpha_t x +
\sigma_t z`: the data that it hides, and the velocity of the probability-flow ODE there,

.. math:: \frac{dx}{dt} = \dot\alpha_t \, E[X | x_t] + \dot\sigma_t \, E[Z | x_t].

What a *network* predicts (data, noise, v, flow, or EDM's preconditioned output) is a row of a
table of coefficients: with :math:`F` the output of the network, data and noise estimates are
linear in
:math:`(x_t, F)`, and the target of :math:`F` is linear in :math:`(x, z)`. The loss is the squared
error of :math:`F` in its own units, for every row. Denoisers wrap: guidance and clipping are
denoisers around denoisers.
"""

__all__ = ["Denoiser", "Preconditioned", "inside"]

from abc import ABC, abstractmethod
import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from genflow.errors import UserError, nearest
from genflow.models.grids import INSIDE
from genflow.models.paths import Path, Rectified
from genflow.models.predictions import (
    CLOCKS,
    PREDICTIONS,
    TURNED,
    USUAL_CLOCKS,
    Coefficient,
    Coefficients,
    Regression,
    combine,
    scaled,
)


class Denoiser(nn.Module, ABC):
    r"""An estimate of :math:`E[X | x_t]` along a path.

    Attributes:
        path: The path that the states come from.
        eta: The share of fresh noise that samplers must use, where the states are no perturbed
            data, as on a bridge; None if any will do.
    """

    path: Path
    eta: ClassVar[float | None] = None

    @abstractmethod
    def forward(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        r"""The estimate of the data.

        Args:
            x_t: The states, with shape (B, \*).
            t: The times in [0, 1], with shape () or (B).
            cond: Named conditions, each with B rows; a leaf rejects the ones it does not know.

        Returns:
            :math:`E[X | x_t]`, with shape (B, \*).
        """

    def velocity(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        r"""The velocity :math:`dx/dt` of the probability-flow ODE, with shape (B, \*).

        .. math:: v = \frac{\dot\sigma}{\sigma} x_t
                      + \Big(\dot\alpha - \alpha \frac{\dot\sigma}{\sigma}\Big) E[X | x_t]

        This general form is singular where σ = 0; denoisers that know better override it.
        """

        data = self(x_t, t, **cond)
        alpha_t, sigma_t = self.path(t)
        alpha_dot, sigma_dot = self.path.rates(t)
        ratio = sigma_dot / sigma_t
        return combine(ratio, x_t, alpha_dot - alpha_t * ratio, data)

    def regular(self, t: float) -> bool:
        r"""Whether the velocity can be read at a time.

        The general formula cannot where σ = 0, a rate of the path is infinite, or a denoiser
        inside of this one cannot; a denoiser that has a formula of its own is taken to know.
        """

        if type(self).velocity is not Denoiser.velocity:
            return True

        time = torch.tensor(t, dtype=torch.float64)
        ratio = self.path.rates(time)[1] / self.path(time)[1]
        inner = (part for part in self.children() if isinstance(part, Denoiser))
        return _finite(ratio, *self.path.rates(time)) and all(part.regular(t) for part in inner)

    def at(self, t: float) -> "Denoiser":
        """The denoiser to call at a time that is known on the host.

        It answers as the denoiser itself does, but may have done at once, in float64, whatever
        depends on the time alone.
        """

        return self

    def unguided(self) -> "Denoiser":
        """The denoiser without guidance: the conditional estimate alone, one pass a call."""

        return self


class Preconditioned(Denoiser):
    r"""A network as a denoiser.

    .. math:: F = \text{net}(c_{in} x_t, \text{clock}(t)), \qquad E[X|x_t] = a_t x_t + b_t F

    ============= ============================================= ===========================
    prediction    the target of F                               with
    ============= ============================================= ===========================
    data          :math:`x`
    noise         :math:`z`
    v             :math:`\alpha z - \sigma x`
    flow          :math:`\dot\alpha x + \dot\sigma z`           z − x on `Rectified`
    reverse-flow  :math:`-\dot\alpha x - \dot\sigma z`          clocks with noise at 0
    karras        :math:`(x - c_{skip} x_t/\alpha) / c_{out}`   EDM's σ_data, σ/α for σ
    karras-moment the same                                      the noise's variance for σ²
    ============= ============================================= ===========================

    The last two differ for Student-t noise alone, whose variance is :math:`\sigma^2 D/(D - 2)`:
    the second gives the network inputs and targets of unit variance for every D above 2.

    The network is called in its own dtype and the answer returned in that of the state.

    Args:
        net: A module called as ``net(x, time, **cond)`` that returns a tensor shaped like x.
        path: The path.
        prediction: The row of the table.
        clock: What the network is told about time, a name in ``CLOCKS``; None takes 1000 t, or
            ¼ log(σ/α) for the karras prediction.
        sigma_data: The standard deviation of the data, above 0; read by karras alone.

    Raises:
        UserError: If a name is unknown, ``sigma_data`` is not above 0, or karras-moment is asked
            of noise without a variance.

    References:
        Elucidating the Design Space of Diffusion-Based Generative Models
        https://arxiv.org/abs/2206.00364

        Progressive Distillation for Fast Sampling of Diffusion Models (v)
        https://arxiv.org/abs/2202.00512
    """

    def __init__(
        self,
        net: nn.Module,
        path: Path,
        prediction: str = "flow",
        clock: str | None = None,
        sigma_data: float = 0.5,
    ) -> None:
        super().__init__()

        if prediction not in PREDICTIONS:
            raise UserError(f"prediction is '{prediction}'{nearest(prediction, PREDICTIONS)}")

        clock = clock or USUAL_CLOCKS[prediction]

        if clock not in CLOCKS:
            raise UserError(f"clock is '{clock}'{nearest(clock, CLOCKS)}")
        if not sigma_data > 0:
            raise UserError(f"sigma_data is {sigma_data}: it must be above 0 (0.5 is usual).")
        if prediction == "karras-moment" and math.isinf(path.noise.variance):
            raise UserError(
                f"prediction is 'karras-moment' and noise is {path.noise}, whose variance is "
                "infinite: take D above 2, or the prediction 'karras'."
            )

        self.net = net
        self.path = path
        self.prediction = prediction
        self.clock = clock
        self.sigma_data = sigma_data

    def coefficients(self, t: Tensor) -> Coefficients:
        """The row of the table at times t, with shape () or (B)."""

        return PREDICTIONS[self.prediction](self.path, t, self.sigma_data)

    def output(self, x_t: Tensor, t: Tensor, scale: Coefficient, **cond: Any) -> Tensor:
        """F, in the dtype of the state."""

        dtype = next(self.net.parameters(), x_t).dtype
        time = CLOCKS[self.clock](self.path, t)
        return self.net(scaled(scale, x_t).to(dtype), time, **cond).to(x_t.dtype)

    def at(self, t: float) -> "Denoiser":
        """The same network, its coefficients computed once."""

        return _Timed(self, t)

    def drift(self, t: Tensor) -> tuple[Coefficient, Coefficient]:
        r""":math:`(a, b)` with the velocity equal to :math:`a x_t + b F`."""

        if self.prediction == "flow":
            return 0.0, 1.0

        c = self.coefficients(t)
        alpha_dot, sigma_dot = self.path.rates(t)
        a, b = (alpha_dot * d + sigma_dot * n for d, n in zip(c.data, c.noise, strict=True))
        return a, b

    def turned(self) -> "Preconditioned":
        r"""The same flow the other way round: its data are the noise of this one, and vice versa.

        With :math:`s = 1 - t` a state :math:`(1 - t) x + t z` is :math:`(1 - s) z + s x`, and the
        velocity is :math:`-v(x_t, 1 - s)`. So a sampler of the turned denoiser, whichever it is,
        leads from data to noise. The two share their network.

        Raises:
            UserError: If the path is not `Rectified`, or the network predicts something else than
                a flow.
        """

        if not isinstance(self.path, Rectified) or not {self.prediction, self.clock} <= {*TURNED}:
            raise UserError(
                f"path {self.path} with prediction '{self.prediction}' and clock '{self.clock}' "
                "cannot be turned round: a flow on the straight path (RectifiedFlow) can."
            )

        prediction, clock = TURNED[self.prediction], TURNED[self.clock]
        return Preconditioned(self.net, self.path, prediction, clock, self.sigma_data)

    def forward(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """See [`Denoiser.forward`][genflow.models.denoisers.Denoiser.forward]."""

        c = self.coefficients(t)
        F = self.output(x_t, t, c.scale, **cond)
        return combine(c.data[0], x_t, c.data[1], F)

    def velocity(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        r"""See [`Denoiser.velocity`][genflow.models.denoisers.Denoiser.velocity].

        A flow prediction *is* the velocity, and costs nothing. The others go through the
        coefficients :math:`\dot\alpha a + \dot\sigma a'` and :math:`\dot\alpha b + \dot\sigma b'`,
        which are regular wherever the data and the noise estimates are.
        """

        a, b = self.drift(t)
        scale = 1.0 if self.prediction == "flow" else self.coefficients(t).scale
        return combine(a, x_t, b, self.output(x_t, t, scale, **cond))

    def regular(self, t: float) -> bool:
        """Whether the coefficients of the velocity, and what the network is told, are finite."""

        time = torch.tensor(t, dtype=torch.float64)
        scale = 1.0 if self.prediction == "flow" else self.coefficients(time).scale
        return _finite(*self.drift(time), scale, CLOCKS[self.clock](self.path, time))

    def regress(self, x: Tensor, z: Tensor, t: Tensor, **cond: Any) -> Regression:
        r"""Calls F on perturbed data, and keeps what is needed to judge the answer.

        Args:
            x: The data, with shape (B, \*).
            z: The noise at unit scale, or the other end of the coupling, with shape (B, \*).
            t: The times, with shape (B).
            cond: Named conditions.

        Returns:
            The answer beside the target.
        """

        c = self.coefficients(t)
        x_t = self.path.perturb(x, z, t)
        F = self.output(x_t, t, c.scale, **cond)
        error = F - combine(c.target[0], x, c.target[1], z)
        return Regression(x, x_t, t, F, error, c.data)

    def loss(self, x: Tensor, z: Tensor, t: Tensor, **cond: Any) -> Tensor:
        r"""The squared error of F, in the network's own units.

        .. math:: \ell = \frac1d \| F(\alpha_t x + \sigma_t z, t) - F^\star(x, z, t) \|^2

        For a flow prediction on the straight path the target is :math:`z - x`.

        Args:
            x: The data, with shape (B, \*).
            z: The noise at unit scale, or the other end of the coupling, with shape (B, \*).
            t: The times, with shape (B).
            cond: Named conditions.

        Returns:
            The loss of each sample, with shape (B).
        """

        return self.regress(x, z, t, **cond).error.square().flatten(1).mean(1)


def inside(denoiser: Denoiser, t: float, inwards: float) -> float:
    """An end of the path, or 1e-3 further in if the denoiser has no velocity at it.

    Args:
        denoiser: The denoiser.
        t: The end.
        inwards: 1 for the clean end, −1 for the noisy one.
    """

    return t if denoiser.regular(t) else t + inwards * INSIDE


def _finite(*values: Coefficient) -> bool:
    return all(math.isfinite(v) for v in map(float, values))


class _Timed(Denoiser):
    """A preconditioned network at one time: the same answers, with numbers for coefficients.

    It runs at every step, so what it needs lies ready in one tuple: the look-ups of a module, and
    the search for the dtype of its weights, cost as much as a small kernel.
    """

    def __init__(self, inner: Preconditioned, t: float) -> None:
        super().__init__()
        self.path = inner.path
        time = torch.tensor(t, dtype=torch.float64)
        c = inner.coefficients(time)
        self.data = tuple(map(float, c.data))
        self.drift = tuple(map(float, inner.drift(time)))
        weight = next(inner.net.parameters(), None)
        self.parts = (inner.net, CLOCKS[inner.clock], float(c.scale), weight)

    def forward(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return self._answer(self.data, x_t, t, cond)

    def velocity(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return self._answer(self.drift, x_t, t, cond)

    def _answer(
        self, mix: tuple[float, float], x_t: Tensor, t: Tensor, cond: dict[str, Any]
    ) -> Tensor:
        net, clock, scale, weight = self.parts
        x_in = scaled(scale, x_t)
        time = clock(self.path, t)

        if weight is None or weight.dtype == x_t.dtype:
            return combine(mix[0], x_t, mix[1], net(x_in, time, **cond))

        return combine(mix[0], x_t, mix[1], net(x_in.to(weight.dtype), time, **cond).to(x_t))
