"""The optimiser of a module, and the course of its learning rate."""

__all__ = ["clip", "optimiser"]

from functools import partial
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.utilities import GradClipAlgorithmType
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from genflow.errors import UserError
from genflow.training.rates import rate

FUSED = ("cpu", "cuda", "mps", "xpu")


def optimiser(module: LightningModule, options: dict[str, Any]) -> Any:
    """AdamW over all parameters that learn, with what Lightning wants beside it.

    All of it is one kernel (``fused``) where the device has one, except under a scaler of
    gradients (``16-mixed``), with which clipping would come too late.

    Args:
        module: The module, attached to its trainer.
        options: lr, betas, weight_decay, warmup and decay.

    Raises:
        UserError: If a cosine is asked for and the trainer has no ``max_steps``.
    """

    trainer = module.trainer
    scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
    made = AdamW(
        [p for p in module.parameters() if p.requires_grad],
        lr=options["lr"],
        betas=tuple(options["betas"]),
        weight_decay=options["weight_decay"],
        fused=module.device.type in FUSED and not scaled,
    )
    warmup, decay = options["warmup"], options["decay"]

    if not warmup and decay == "none":
        return made

    if decay == "cosine" and trainer.max_steps < 1:
        raise UserError(
            f"decay is 'cosine' and trainer.max_steps is {trainer.max_steps}: set max_steps, "
            "where the cosine ends."
        )

    factor = partial(rate, warmup=warmup, decay=decay, last=trainer.max_steps)
    return {
        "optimizer": made,
        "lr_scheduler": {"scheduler": LambdaLR(made, factor), "interval": "step"},
    }


def clip(
    module: LightningModule, optimizer: Optimizer, most: float | None, algorithm: str | None
) -> None:
    """Clips gradients as the trainer says, also those of a fused optimiser in mixed precision.

    Lightning refuses that, because such an optimiser might undo the scale of the gradients itself,
    after they were clipped. Under ``bf16-mixed`` there is no scale.

    Args:
        module: The module, attached to its trainer.
        optimizer: Its optimiser.
        most: The trainer's ``gradient_clip_val``.
        algorithm: The trainer's ``gradient_clip_algorithm``; the norm if None.
    """

    plugin = module.trainer.precision_plugin

    if most and isinstance(plugin, MixedPrecision) and plugin.scaler is None:
        kind = GradClipAlgorithmType(algorithm or "norm")
        Precision.clip_gradients(plugin, optimizer, most, kind)
    else:
        module.clip_gradients(optimizer, most, algorithm)
