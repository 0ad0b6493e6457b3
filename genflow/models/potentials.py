r"""The potential of a light Schrödinger bridge: a sum of K Gaussians, at every time.

The bridge is parametrised by its *adjusted potential*, whose weights need not add up to 1,

.. math:: v(y) = \sum_k a_k \, \mathcal{N}(y \,|\, r_k, \epsilon S_k).

The plan, the law of the target y given the source point x, is :math:`e^{\langle x, y \rangle /
\epsilon} v(y) / c(x)`; multiplying all :math:`a_k` by one number changes nothing. With
:math:`B_k(t) = (1-t) S_k + t I`, the solution of the heat equation that starts from
:math:`e^{|y|^2 / 2\epsilon} v(y)` at t = 0 is

.. math:: \log \varphi_t(x) = -\tfrac d2 \log 2\pi\epsilon + \mathrm{LSE}_k \Big[ \log a_k
          - \tfrac12 \log\det B_k + \tfrac1{2\epsilon} \big( x' B_k^{-1} (S_k - I) x
          + 2 x' B_k^{-1} r_k - (1 - t) \, r_k' B_k^{-1} r_k \big) \Big].

The softmax of the bracket are the weights :math:`\omega_k(x, t)` of the components. The
potentials log v and log c are the same bracket at t = 0 and t = 1 with another quadratic form,
:math:`-S_k^{-1}` and :math:`S_k`, so that no large term is added and taken away again. Quadratic
forms are matrix products; nothing of B × K × d values arises for diagonal matrices.
"""

__all__ = ["Potential"]

from collections.abc import Callable
import math
from typing import Any

import torch
from torch import Tensor, nn

from genflow.errors import UserError
from genflow.models.covariances import At, Covariance
from genflow.models.operators import chunked, rows
from genflow.models.paths import Brownian


class Potential(nn.Module):
    r"""A sum of K Gaussians as the adjusted potential of a bridge.

    States have shape (B, \*) with d values each. Arithmetic is in the wider of the dtypes of the
    states and of the parameters: with parameters in float64, which is recommended, float32 states
    get the answers of float64, rounded. ``potential.float()`` is faster, and asks for centred data
    of order 1.

    Args:
        log_weight: The logarithms :math:`\log a_k`, with shape (K), or (C, K) with a row for each
            of C classes, which then share the centres; −inf switches a component off.
        centre: The centres :math:`r_k`, with shape (K, d).
        covariance: The matrices :math:`S_k`, in units of ε.
        epsilon: The variance ε of the Brownian motion per unit time, above 0.

    Raises:
        UserError: If shapes disagree, a value is not finite, or ε is not above 0.
    """

    def __init__(
        self, log_weight: Tensor, centre: Tensor, covariance: Covariance, epsilon: float
    ) -> None:
        super().__init__()

        log_weight, centre = torch.as_tensor(log_weight), torch.as_tensor(centre)
        shape = (covariance.components, covariance.dimension)

        if centre.shape != shape or log_weight.ndim not in (1, 2):
            raise UserError(
                f"log_weight has shape {tuple(log_weight.shape)}, centre {tuple(centre.shape)} "
                f"and the covariance (K, d) = {shape}: (K) or (C, K), and (K, d), are needed."
            )
        if log_weight.shape[-1] != shape[0]:
            raise UserError(
                f"log_weight has {log_weight.shape[-1]} weights for {shape[0]} centres: one each "
                "is needed."
            )
        if not bool(torch.isfinite(centre).all()):
            raise UserError("centre holds values that are not finite: give finite points.")
        if not bool(torch.isfinite(log_weight.logsumexp(-1)).all()):
            raise UserError(
                "log_weight holds NaN or +inf, or only −inf: give logarithms of weights, one of "
                "them finite in every row."
            )

        dtype = covariance.log_scale.dtype
        self.path = Brownian(float(epsilon))
        self.log_weight = nn.Parameter(log_weight.detach().to(dtype).clone())
        self.centre = nn.Parameter(centre.detach().to(dtype).clone())
        self.covariance = covariance

    @property
    def epsilon(self) -> float:
        """The variance ε of the Brownian motion per unit time."""

        return self.path.epsilon

    @property
    def components(self) -> int:
        """The number K of Gaussians in the potential."""

        return self.centre.shape[0]

    @property
    def dimension(self) -> int:
        """The number d of values of a state."""

        return self.centre.shape[1]

    @property
    def classes(self) -> int | None:
        """The number C of classes, or None."""

        return self.log_weight.shape[0] if self.log_weight.ndim == 2 else None

    # ------------------------------------------------------------------------ the entrance

    def state(self, x: Tensor, name: str = "x") -> Tensor:
        r"""States with shape (B, \*) as (B, d), in the dtype of the arithmetic.

        Raises:
            UserError: If a sample has not d values.
        """

        if x.ndim < 2 or x[:1].numel() != len(x[:1]) * self.dimension:
            raise UserError(
                f"{name} has shape {tuple(x.shape)} and the bridge {self.dimension} dimensions: "
                f"(B, *) with {self.dimension} values a sample is needed."
            )

        return x.flatten(1).to(torch.promote_types(x.dtype, self.centre.dtype))

    def time(self, t: Tensor | float, x: Tensor) -> Tensor:
        """Times as a tensor with shape () or (B) that goes with states (B, d).

        Raises:
            UserError: If the shape is another, or a number is outside [0, 1].
        """

        if isinstance(t, int | float) and not 0 <= t <= 1:
            raise UserError(f"t is {t}: a time from 0 (target) to 1 (source) is needed.")

        t = torch.as_tensor(t, dtype=x.dtype, device=x.device)

        if t.ndim and t.shape != (len(x),):
            raise UserError(f"t has shape {tuple(t.shape)} for {len(x)} states: () or (B).")

        return t

    def _log_weight(self, label: Tensor | None, x: Tensor) -> Tensor:
        """log a with shape (K), or with shape (B, K) for labels (B)."""

        if (label is None) != (self.classes is None):
            raise UserError(
                f"label is {'missing' if label is None else 'given'} and the bridge has "
                f"{self.classes or 'no'} classes: give one label a sample to bridges with classes "
                "alone."
            )
        if label is None:
            return self.log_weight

        label = torch.as_tensor(label, device=x.device).expand(len(x))
        return self.log_weight[label]

    # -------------------------------------------------------------------- the closed forms

    def _scores(self, x: Tensor, at: At, label: Tensor | None, quadratic: Tensor) -> Tensor:
        """The bracket with a quadratic form of its own, with shape (B, K)."""

        inverse = at.ratio(torch.ones_like(at.t)).of(self.centre)
        last = (1 - at.t)[..., None] * (self.centre * inverse).sum(-1)
        constant = -0.5 * at.logdet - last / (2 * self.epsilon)
        tilt = (quadratic + 2 * rows(inverse, x)) / (2 * self.epsilon)
        return tilt + (constant + self._log_weight(label, x))

    def logits(self, x: Tensor, t: Tensor | float, label: Tensor | None = None) -> Tensor:
        r"""The bracket of the potential, whose softmax are the weights of the components.

        Args:
            x: The states, with shape (B, \*).
            t: The times, with shape () or (B).
            label: The classes, with shape (B), of a bridge with classes.

        Returns:
            :math:`\log \omega_k(x, t)` up to a term that is the same for all k, with shape (B, K).
        """

        def part(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
            at = self.covariance.at(t)
            return self._scores(x, at, label, at.excess().quadratic(x))

        x = self.state(x)
        return self._chunked(part, x, self.time(t, x), label)

    def log_phi(self, x: Tensor, t: Tensor | float, label: Tensor | None = None) -> Tensor:
        r"""The potential :math:`\log \varphi_t(x)`, with shape (B).

        It solves the heat equation: :math:`\varphi_t(x)` is the mean of :math:`\varphi_s` at the
        end of a Brownian motion that runs from x for the time t − s.
        """

        return self.logits(x, t, label).logsumexp(-1) - self._constant

    def log_potential(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        r"""The adjusted potential log v at target points x with shape (B, \*), with shape (B)."""

        def part(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
            at = self.covariance.at(t)
            precision = at.ratio(torch.ones_like(t))
            return self._scores(x, at, label, -precision.quadratic(x)).logsumexp(-1)

        x = self.state(x)
        return self._chunked(part, x, self.time(0.0, x), label) - self._constant

    def log_normaliser(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        r"""The normaliser log c of the plan at source points x with shape (B, \*), with shape (B).

        .. math:: \log c(x) = \log \int e^{\langle x, y \rangle / \epsilon} v(y) \, dy
        """

        def part(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
            at = self.covariance.at(t)
            scale = at.ratio(torch.zeros_like(t))
            return self._scores(x, at, label, scale.quadratic(x)).logsumexp(-1)

        x = self.state(x)
        return self._chunked(part, x, self.time(1.0, x), label)

    @property
    def _constant(self) -> float:
        return 0.5 * self.dimension * math.log(2 * math.pi * self.epsilon)

    def _chunked(self, part: Callable[..., Tensor], x: Tensor, t: Tensor, *rest: Any) -> Tensor:
        """A function of states, in parts that fit in memory."""

        return chunked(part, self.covariance.width(t), x, t, *rest)
