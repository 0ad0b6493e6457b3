r"""Diffusion in the classic form: a path, a prediction, and the law of the times.

With the variance-preserving path, noise prediction and uniform times this is DDPM in continuous
time. The law of the noise is a field of the path, so the same module trains DDPM-style PFGM++:
with :math:`\sigma_t/\alpha_t` for σ, Student-t noise is all that differs, and the update rules of
the ODE samplers stay as they are.
"""

__all__ = ["Diffusion"]

from typing import Any

from torch import nn

from genflow.models import Path, Preconditioned, VariancePreserving
from genflow.training.base import GenerativeModule
from genflow.training.couplings import Coupling, Independent
from genflow.training.times import TimeLaw, Uniform


class Diffusion(GenerativeModule):
    """A network that learns any prediction on any path.

    Args:
        net: A network called as ``net(x, clock, label=None)``.
        path: The path, with the law of its noise; the variance-preserving one if None.
        prediction: What the network predicts, as in `Preconditioned`.
        clock: What it is told about time; that of the prediction if None.
        sigma_data: The standard deviation of the data, for the karras predictions.
        times: The law of t; uniform if None.
        coupling: The joint law of data and noise; independent if None.
        options: Those of [`GenerativeModule`][genflow.training.base.GenerativeModule]: lr, warmup,
            decay, label_dropout, seed …

    Raises:
        UserError: If a value is out of its range.

    Example:
        >>> path = VariancePreserving(noise=StudentT(128))
        >>> module = Diffusion(UNet(8, 1, widths=(32, 64)), path, prediction="noise")

    References:
        Denoising Diffusion Probabilistic Models
        https://arxiv.org/abs/2006.11239

        PFGM++: Unlocking the Potential of Physics-Inspired Generative Models
        https://arxiv.org/abs/2302.04265
    """

    def __init__(
        self,
        net: nn.Module,
        path: Path | None = None,
        prediction: str = "noise",
        clock: str | None = None,
        sigma_data: float = 0.5,
        times: TimeLaw | None = None,
        coupling: Coupling | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            Preconditioned(net, path or VariancePreserving(), prediction, clock, sigma_data),
            times or Uniform(),
            coupling or Independent(),
            **options,
        )
