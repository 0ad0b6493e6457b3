r"""The light Schrödinger bridge under a trainer: run folder, checkpoints, resume, logs.

What is minimised, and how, is written in `genflow.models.fitting`, which needs no trainer; this is
the same fit, step for step in kind, for runs that are configured by a file, logged and resumed. It
gives the same quality and not the same numbers, since batches are drawn by the data module.

The parameters live in the frame where both clouds are centred and of order one; `fitted` has the
bridge between the clouds themselves. The points that the data module holds out are looked at every
twentieth of the way, outside of Lightning's validation (`genflow.models.watches`): the best
parameters are put back at the end, and an end comes early where the objective gets worse or a
covariance runs away.
"""

__all__ = ["LightSB", "bridge_of"]

import os
from typing import Any, Literal
import warnings

from lightning.pytorch import LightningModule
import numpy as np
from torch import Generator, Tensor
from torch.optim.lr_scheduler import LambdaLR

from genflow.data.stream import seed_words, seeded
from genflow.errors import UserError
from genflow.models.bridges import LightBridge
from genflow.models.clouds import Cloud
from genflow.models.covariances import FAMILIES
from genflow.models.fitting import check, loss_of, prepare
from genflow.models.frames import Frame, seen
from genflow.models.steps import BridgeAdam, one_cycle
from genflow.models.watches import Watch
from genflow.training.checkpoints import load_plain
from genflow.training.couplings import Coupling
from genflow.training.lots import recounted


class LightSB(LightningModule):
    """A light Schrödinger bridge that learns from `Clouds`.

    Args:
        epsilon: The variance ε of the Brownian motion per unit time, above 0.
        components: The number K of Gaussians.
        covariance: The family of their covariances.
        rank: The rank of the low-rank part; read by ``"lowrank"`` alone.
        start: Where the fit begins; see `genflow.models.starts`.
        width: S where the start gives none, above 0.
        loss: ``"dual"``, or ``"matching"``, the regression of LightSB-M.
        coupling: What pairs a batch for matching; independent if None.
        lr: The largest learning rate, above 0; centres move in units of their widths.
        decay: ``"one-cycle"`` up and down over the trainer's ``max_steps``, or ``"none"``.
        patience: Looks in a row at a worse objective after which the run ends, of 20 in all.
        seed: Names the random numbers, 0 or more.

    Attributes:
        bridge: The bridge in its frame, once a trainer has set the module up; None before.

    Raises:
        UserError: If a value is out of its range.

    Example:
        >>> module = LightSB(epsilon=0.1)
        >>> Trainer(max_steps=2000, use_distributed_sampler=False).fit(module, Clouds())
        >>> bridge = module.fitted()

    References:
        Light Schrödinger Bridge
        https://arxiv.org/abs/2310.01174

        Light and Optimal Schrödinger Bridge Matching
        https://arxiv.org/abs/2402.03207
    """

    def __init__(
        self,
        epsilon: float,
        components: int = 50,
        covariance: Literal["diagonal", "lowrank", "full"] = "diagonal",
        rank: int = 4,
        start: Literal["sinkhorn", "k-means", "samples"] = "sinkhorn",
        width: float = 0.1,
        loss: Literal["dual", "matching"] = "dual",
        coupling: Coupling | None = None,
        lr: float = 2e-2,
        decay: Literal["one-cycle", "none"] = "one-cycle",
        patience: int = 5,
        seed: int = 0,
    ) -> None:
        super().__init__()

        begin = {"components": components, "covariance": covariance, "rank": rank}
        begin |= {"start": start, "width": width}
        options = {"epsilon": epsilon, "loss": loss, "lr": lr, "patience": patience}
        check(**begin, **options, coupling=coupling)

        if seed < 0:
            raise UserError(f"seed is {seed}: it must be a whole number of 0 or more.")

        self.save_hyperparameters(ignore=["coupling"])
        self.coupling = coupling
        self.bridge: LightBridge | None = None
        self._begin, self._watch, self._kept = begin, None, None

    @property
    def net(self) -> LightBridge | None:
        """What an average of weights runs over: the bridge in its frame."""

        return self.bridge

    def fitted(self) -> LightBridge:
        """The bridge between the clouds, in float64, as a module of its own.

        Raises:
            UserError: If no trainer has set the module up yet.
        """

        if self.bridge is None:
            raise UserError("the bridge has not been fitted: give the module to a trainer first.")

        return self.frame.leave(self.bridge, self.hparams.epsilon)

    # Before --------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Makes the bridge to begin with, from all points to train on, once.

        Raises:
            UserError: If the data are no pair of clouds, or cannot be joined.
        """

        if self.bridge is not None:
            return

        data = getattr(self.trainer, "datamodule", None)

        if not hasattr(data, "source_set"):
            raise UserError(
                f"data is {type(data).__name__}, which has no source: a bridge learns from two "
                "clouds, set data.class_path to Clouds."
            )

        source = seeded("start", self.hparams.seed)
        sets = (("source", data.source_set), ("target", data.train_set))
        clouds = [Cloud(name, examples[:]["x"], 0.0, source) for name, examples in sets]
        self.frame, self.bridge = prepare(
            *clouds, self.hparams.epsilon, **self._begin, generator=source
        )
        held = zip(clouds, (data.source_val_set, data.val_set), strict=True)
        self._held = [
            cloud.held() if out is None else cloud.seen(out[:]["x"].flatten(1))
            for cloud, out in held
        ]

    def _seen(self, name: str, x: Tensor) -> Tensor:
        """Points as they are seen in the frame, in the dtype of the bridge."""

        place = self.frame.source if name == "source" else self.frame.target
        return seen(x.flatten(1), place, float(self.frame.scale), self.bridge.centre.dtype)

    def on_fit_start(self) -> None:
        """Takes a first look, or goes on from those of the checkpoint."""

        held = (h.to(self.device) for h in self._held)
        self._watch = Watch(self.bridge, *held, self.trainer.max_steps)

        if self._kept is not None:
            self._watch.resume(self._kept)

    # Steps ---------------------------------------------------------------------------------

    def loss(self, batch: dict[str, Tensor], *, step: int, place: int = 0) -> Tensor:
        """The loss of a batch, a pure function of its arguments and the parameters.

        Args:
            batch: "source" and "x", the target, each with shape (B, d).
            step: The number of optimiser steps before this one.
            place: The place of the batch among all those of the step, on all ranks.
        """

        words = seed_words("train", self.hparams.seed, step, place, 0)
        generator = Generator().manual_seed(int(words.generate_state(1, np.uint64)[0] >> 1))
        x, y = self._seen("source", batch["source"]), self._seen("target", batch["x"])
        return loss_of(self.bridge, x, y, self.hparams.loss, self.coupling, generator)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch, logged as "loss" when the trainer logs."""

        trainer, step = self.trainer, self.global_step
        micro = batch_idx % trainer.accumulate_grad_batches
        place = micro * trainer.world_size + self.global_rank
        loss = self.loss(batch, step=step, place=place)
        every = trainer.log_every_n_steps

        if every and (step == 0 or (step + 1) % every == 0):
            self.log("loss", loss.detach().cpu(), on_step=True, on_epoch=False, prog_bar=True)

        return loss

    def on_train_batch_start(self, *args: Any) -> None:
        """Looks at the points held out when it is time, and ends the run when that is best."""

        self._look()

        if self.global_step in self._watch.objective:
            value = self._watch.objective[self.global_step]
            self.log("objective", value, on_step=True, on_epoch=False)

    def _look(self) -> None:
        """Looks, unless this step has been looked at: by a run that this one goes on from."""

        step, watch = self.global_step, self._watch

        if watch.due(step) and step not in watch.objective:
            self.trainer.should_stop = watch.look(step, self.hparams.patience)

    def on_train_end(self) -> None:
        """Puts the best parameters back, and says what went wrong."""

        self._look()
        self._watch.restore()

        if self._watch.alarm:
            warnings.warn(
                f"the run ended at step {self.global_step}: {self._watch.alarm}", stacklevel=2
            )

    def configure_optimizers(self) -> Any:
        """Adam in the units of the bridge, and the learning rate.

        Raises:
            UserError: If one cycle is asked for and the trainer has no ``max_steps``.
        """

        optimizer, steps = BridgeAdam(self.bridge, self.hparams.lr), self.trainer.max_steps

        if self.hparams.decay == "none":
            return optimizer
        if steps < 1:
            raise UserError(
                f"decay is 'one-cycle' and trainer.max_steps is {steps}: set max_steps, where the "
                "cycle ends."
            )

        schedule = LambdaLR(optimizer, lambda step: one_cycle(step, steps))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    # Checkpoints ---------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the frame, the looks so far, and the best parameters, as plain values."""

        frame = {
            "source": self.frame.source,
            "target": self.frame.target,
            "scale": self.frame.scale,
        }
        record = {"module": type(self).__name__, "epsilon": self.hparams.epsilon}
        checkpoint["genflow"] = record | {"covariance": self.hparams.covariance}
        checkpoint["bridge"] = {"frame": frame, "watch": self._watch.state()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes over the frame and the looks.

        Raises:
            UserError: If the checkpoint is of another kind of model.
        """

        if "bridge" not in checkpoint:
            raise UserError(
                "the checkpoint is of no bridge: resume with the config that the run was started "
                "with."
            )

        self.frame = Frame(**checkpoint["bridge"]["frame"])
        self._kept = checkpoint["bridge"]["watch"]

        if self._trainer is not None:
            recounted(checkpoint, self.trainer.accumulate_grad_batches)


def bridge_of(path: str | os.PathLike[str]) -> LightBridge | None:
    """The bridge in a ``.ckpt`` file of a run, with the best parameters so far.

    Args:
        path: The file.

    Returns:
        The bridge between the clouds, in float64; None if the run was of another kind of model.

    Raises:
        UserError: If the file is missing, cut short, or not of a run.
    """

    content = load_plain(path, map_location="cpu")

    if "bridge" not in content:
        return None

    epsilon, kind = (content["genflow"][k] for k in ("epsilon", "covariance"))
    frame = Frame(**content["bridge"]["frame"])
    kept = content["bridge"]["watch"]["parameters"]
    parts = {k.removeprefix("covariance."): v for k, v in kept.items() if "covariance." in k}
    family = FAMILIES[kind](**parts)
    inner = LightBridge(kept["log_weight"], kept["centre"], family, frame.epsilon(epsilon))
    return frame.leave(inner, epsilon)
