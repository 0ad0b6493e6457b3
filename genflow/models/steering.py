r"""Steering: a denoiser that is pulled towards a condition by a gradient.

By Tweedie's formula the data estimate and the score say the same, :math:`D = (x_t + \sigma^2
\nabla \log p(x_t)) / \alpha`, so Bayes' rule for a condition y adds a gradient to the estimate:

.. math:: D_y(x_t) = D(x_t) + w \, \frac{\sigma^2}{\alpha} \nabla_{x_t} \log p(y | x_t).

Classifier guidance has a network that knows noisy states for the last term. Where there is none, a
loss on data stands in, taken at the estimate, :math:`\log p(y | x_t) \approx \log p(y | D(x_t))`:
a plug-and-play loss, whose gradient passes through the denoiser.

When autograd records, the gradient that steers is recorded with its own derivative: gradients
through a steered sampler contain the Hessian of the log-probability. A copy that is detached first
leaves it out.

References:
    Diffusion Models Beat GANs on Image Synthesis
    https://arxiv.org/abs/2105.05233

    Diffusion Posterior Sampling for General Noisy Inverse Problems
    https://arxiv.org/abs/2209.14687
"""

__all__ = ["Steered"]

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from genflow.errors import UserError
from genflow.models.denoisers import Denoiser
from genflow.models.paths import broadcast


class Steered(Denoiser):
    r"""A denoiser with the gradient of a log-probability added.

    The samples of a batch must not see each other in ``log_prob``: it is differentiated as a sum.
    At α = 0 the state is noise alone and knows nothing of y, so nothing is added there.

    Args:
        denoiser: The denoiser to steer.
        log_prob: :math:`\log p(y | \cdot)` with shape (B), up to a constant; minus a loss, for
            instance. Called as ``log_prob(x_t, t, **own)``, or as ``log_prob(data, **own)`` where
            it is taken at the estimate. A module becomes a part of this one; gradients with
            respect to its parameters are found if they are wanted.
        weight: w; 1 is Bayes' rule. A float, or a tensor with shape () or (B).
        at: ``"state"``: it knows noisy states, as a classifier trained on them does;
            ``"estimate"``: it knows data, and is taken at the estimate.
        takes: The names of conditions that are for ``log_prob`` and not for the denoiser.
        interval: The times (low, high) inside which it steers.

    Raises:
        UserError: If ``at`` is unknown or the interval is empty.

    Example:
        >>> def log_prob(data, target):
        ...     return -0.5 * (data - target).square().flatten(1).sum(1) / 0.1**2
        >>> steered = Steered(denoiser, log_prob, at="estimate", takes=("target",))
        >>> x = build("ddim", steered, 50)(x, target=image)
    """

    def __init__(
        self,
        denoiser: Denoiser,
        log_prob: Callable[..., Tensor],
        weight: float | Tensor = 1.0,
        at: Literal["state", "estimate"] = "state",
        takes: tuple[str, ...] = (),
        interval: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        super().__init__()

        if at not in ("state", "estimate"):
            raise UserError(f"at is '{at}': 'state' and 'estimate' are allowed.")
        if not interval[0] < interval[1]:
            raise UserError(f"interval is {interval}: low < high is needed, within [0, 1].")

        self.denoiser = denoiser
        self.path = denoiser.path
        self.log_prob = log_prob
        self.weight = weight
        self.where = at
        self.takes = tuple(takes)
        self.interval = interval

    def at(self, t: float) -> Denoiser:
        """What the inner denoiser calls at that time, steered inside the interval."""

        inner = self.denoiser.at(t)
        low, high = self.interval

        if not low <= t <= high and not self.takes:
            return inner

        return Steered(inner, self.log_prob, self.weight, self.where, self.takes, self.interval)

    def forward(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """See [`Denoiser.forward`][genflow.models.denoisers.Denoiser.forward]."""

        own = {k: v for k, v in cond.items() if k in self.takes}
        rest = {k: v for k, v in cond.items() if k not in self.takes}
        recorded = torch.is_grad_enabled()

        with torch.enable_grad():
            x = x_t if recorded and x_t.requires_grad else x_t.detach().requires_grad_()
            through = self.where == "estimate"
            data = self.denoiser(x, t, **rest) if through else None
            value = self.log_prob(data, **own) if through else self.log_prob(x, t, **own)
            (pull,) = torch.autograd.grad(value.sum(), x, create_graph=recorded)

        if data is None:
            data = self.denoiser(x_t, t, **rest)

        alpha_t, sigma_t = self.path(t)
        low, high = self.interval
        acts = (alpha_t > 0) & (t >= low) & (t <= high)
        share = torch.where(acts, sigma_t**2 / alpha_t.where(acts, 1.0), 0.0) * self.weight
        steered = data + broadcast(share.to(data), data) * pull
        return steered if recorded else steered.detach()
