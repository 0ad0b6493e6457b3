r"""PFGM++: EDM's recipe under Student-t noise.

Data are perturbed as :math:`x_\sigma = x + \sigma Z` with Z Student-t with D degrees of freedom,
the kernel of a Poisson flow in N + D dimensions at radius :math:`r = \sigma \sqrt D`. With
:math:`D = \infty` it is EDM. The ODE to sample from is :math:`dx/d\sigma = (x - D_\theta)/\sigma`
for every D, and preconditioning, weights and solvers are the same too; only the noise differs.

The denoiser is :math:`D_\theta = c_{skip} x + c_{out} F(c_{in} x, \tfrac14 \log\sigma)`, and the
loss

.. math:: \mathbb E_{\log\sigma \sim \mathcal N(-1.2, 1.2^2)} \; \tfrac1N \, \lambda(\sigma)
          \, \| D_\theta(x_\sigma) - x \|^2, \qquad
          \lambda = \frac{\sigma^2 + \sigma_{data}^2}{(\sigma \sigma_{data})^2} = c_{out}^{-2}

is the squared error of F in its own units. Not assumed: that the denoiser gives the score. At
finite D it does not, so samplers that follow the score, SDE and Langevin, are refused.
"""

__all__ = ["PFGMPP"]

from typing import Any, Literal

from torch import Tensor, nn

from genflow.errors import UserError, nearest
from genflow.models import CLOCKS, Karras, Preconditioned, StudentT
from genflow.training.base import GenerativeModule
from genflow.training.couplings import Independent
from genflow.training.targets import StableTarget
from genflow.training.times import LogNormal, TimeLaw
from genflow.training.uncertainty import Uncertainty

PREDICTION = {"edm": "karras", "second-moment": "karras-moment"}


class PFGMPP(GenerativeModule):
    r"""A network that learns the denoiser of PFGM++.

    Args:
        net: A network called as ``net(x, log(σ)/4, label=None)``.
        D: The degrees of freedom, any number above 0; ``.inf`` is EDM. ``genflow suggest-d`` helps
            to choose.
        sigma_min: The smallest noise level, above 0.
        sigma_max: The largest one, from which samples start.
        sigma_data: The standard deviation of the data, above 0.
        times: The law of the noise level; the log-normal one above if None.
        preconditioning: ``"edm"``, as published, or ``"second-moment"``, which counts the variance
            of the noise as :math:`\sigma^2 D/(D - 2)`; it matters for D under about 16.
        uncertainty: Whether the noise levels are balanced by a learned function, which is dropped
            after training.
        stable_target: How many examples of a batch are trained on; the others serve as references,
            from which each target is the posterior mean. None: the target is the datum.
        options: Those of [`GenerativeModule`][genflow.training.base.GenerativeModule]: lr, warmup,
            decay, label_dropout, seed …

    Raises:
        UserError: If a value is out of its range.

    Example:
        >>> module = PFGMPP(UNet(8, 1, widths=(32, 64), classes=10), D=128, lr=2e-3)
        >>> Trainer(max_steps=2000, use_distributed_sampler=False).fit(module, Digits())

    References:
        PFGM++: Unlocking the Potential of Physics-Inspired Generative Models
        https://arxiv.org/abs/2302.04265

        Elucidating the Design Space of Diffusion-Based Generative Models
        https://arxiv.org/abs/2206.00364
    """

    def __init__(
        self,
        net: nn.Module,
        D: float = 2048.0,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        sigma_data: float = 0.5,
        times: TimeLaw | None = None,
        preconditioning: Literal["edm", "second-moment"] = "edm",
        uncertainty: bool = False,
        stable_target: int | None = None,
        **options: Any,
    ) -> None:
        if preconditioning not in PREDICTION:
            raise UserError(
                f"preconditioning is '{preconditioning}'{nearest(preconditioning, PREDICTION)}"
            )
        if stable_target is not None and options.get("augment") is not None:
            raise UserError(
                f"stable_target is {stable_target} and images are augmented: the references are "
                "not, leave one of the two out."
            )

        if stable_target is not None and options.get("lot") is not None:
            raise UserError(
                f"stable_target is {stable_target} and lot is {options['lot']}: the references "
                "are a whole batch and no lot, leave one of the two out."
            )

        path = Karras(sigma_min, sigma_max, noise=StudentT(D))
        prediction = PREDICTION[preconditioning]
        super().__init__(
            Preconditioned(net, path, prediction, sigma_data=sigma_data),
            times or LogNormal(),
            Independent(),
            **options,
        )
        self.uncertainty = Uncertainty() if uncertainty else None
        self.target = None if stable_target is None else StableTarget(stable_target)

    def loss(self, batch: dict[str, Tensor], *, step: int, place: int = 0) -> Tensor:
        """See [`GenerativeModule.loss`][genflow.training.base.GenerativeModule.loss]."""

        part = batch if self.target is None else self.target.first(batch)
        x, z, t, cond = self.drawn(part, step=step, place=place)

        if self.target is not None:
            allowed = self._allowed(cond.get("label"), batch)
            x, z = self.target(x, z, t, self.denoiser.path, batch["x"], allowed)

        loss = self.measure(self.denoiser.regress(x, z, t, **cond))

        if self.uncertainty is not None:
            loss = self.uncertainty(loss, CLOCKS[self.denoiser.clock](self.denoiser.path, t))

        return loss.mean()

    def _allowed(self, label: Tensor | None, batch: dict[str, Tensor]) -> Tensor | None:
        """Which examples have the labels that the network is told, with shape (B, n)."""

        if label is None:
            return None

        same = label[:, None] == batch["label"]
        return same | (label[:, None] == self.net.classes)
