r"""Rectified flow: regress the straight line between noise and data.

On :math:`X_t = (1 - t) X + t Z` the network learns the velocity by

.. math:: \min_v \int_0^1 \mathbb E \, \tfrac1d \| v(X_t, t) - (Z - X) \|^2 \, \pi(t) \, dt

whose minimiser is :math:`\mathbb E[Z - X \mid X_t]`, and samples are ends of
:math:`\dot x = v(x, t)` from t = 1, noise, to t = 0, data. The law :math:`\pi` of the times and
the coupling of the ends are arguments. The network is told 1000 t, so that a trained model is a
stock one for diffusers' flow-matching schedulers.
"""

__all__ = ["RectifiedFlow"]

from typing import Literal

from torch import nn

from genflow.models import Gaussian, Noise, Preconditioned, Rectified
from genflow.training.augment import Augmentation
from genflow.training.base import GenerativeModule
from genflow.training.couplings import Coupling, Independent
from genflow.training.losses import Loss
from genflow.training.times import TimeLaw, Uniform


class RectifiedFlow(GenerativeModule):
    """A network that learns the velocity of the straight path.

    Args:
        net: A network called as ``net(x, 1000 t, label=None)``.
        times: The law of t; uniform if None.
        coupling: The joint law of data and noise; independent if None.
        loss: How an answer is judged; the squared error if None.
        lr: The learning rate of AdamW, above 0.
        betas: Its two decay rates, in [0, 1).
        weight_decay: Its decoupled weight decay, 0 or more; with 0 it is Adam.
        warmup: Steps over which the learning rate rises from 0.
        decay: ``"none"``, or ``"cosine"``: down to 0 at the trainer's ``max_steps``.
        label_dropout: The fraction of labels replaced by the null class, in [0, 1); without
            effect if the network has no classes.
        seed: Names the random numbers of the run, 0 or more.
        compile: Whether the network is compiled, in place, when fitting begins; or the name of a
            backend of `torch.compile`.
        channels_last: Whether images and weights use that memory layout.
        gradient_checkpointing: Whether blocks of the network are computed again in the backward
            pass, which then keeps their inputs only.
        augment: How training images are moved, and the network told so; None for not at all.
        noise: The law of the noise, Gaussian if None; ``StudentT(D)`` gives heavier tails.
        lot: The number of examples whose random numbers are drawn together; see
            `genflow.training.lots`.

    Raises:
        UserError: If a value is out of its range.

    Example:
        >>> module = RectifiedFlow(UNet(8, 1, widths=(32, 64), classes=10), lr=1e-3)
        >>> Trainer(max_steps=2000, use_distributed_sampler=False).fit(module, Digits())

    References:
        Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow
        https://arxiv.org/abs/2209.03003
    """

    def __init__(
        self,
        net: nn.Module,
        times: TimeLaw | None = None,
        coupling: Coupling | None = None,
        loss: Loss | None = None,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        warmup: int = 0,
        decay: Literal["none", "cosine"] = "none",
        label_dropout: float = 0.1,
        seed: int = 0,
        compile: bool | str = False,
        channels_last: bool = False,
        gradient_checkpointing: bool = False,
        augment: Augmentation | None = None,
        noise: Noise | None = None,
        lot: int | None = None,
    ) -> None:
        super().__init__(
            Preconditioned(net, Rectified(noise or Gaussian()), "flow", clock="thousand"),
            times or Uniform(),
            coupling or Independent(),
            loss,
            lr=lr,
            betas=betas,
            weight_decay=weight_decay,
            warmup=warmup,
            decay=decay,
            label_dropout=label_dropout,
            seed=seed,
            compile=compile,
            channels_last=channels_last,
            gradient_checkpointing=gradient_checkpointing,
            augment=augment,
            lot=lot,
        )
