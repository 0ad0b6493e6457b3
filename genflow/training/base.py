r"""Training a denoiser: draw, perturb, regress, step.

A step of training minimises

.. math:: \mathbb E_{(X, Z), \, t} \; \tfrac1d
          \| F(\alpha_t X + \sigma_t Z, t) - F^\star(X, Z, t) \|^2

over a batch, where the path, the prediction and with them :math:`F^\star` belong to the denoiser,
the law of :math:`t` to ``times`` and the joint law of :math:`(X, Z)` to ``coupling``. Methods
differ in these arguments; the loop is written once, here.

Everything random in a step is a pure function of (seed, step, place), the place being that of the
batch among all that ranks and accumulation bring to the step: the times, the noise, the
augmentations, the dropped labels and, where the network has dropout, its masks. A run that was
killed and resumed repeats an unbroken one bit for bit, no two batches share their noise, and
nothing that happens between two steps, such as a grid of samples, changes the next one. With the
same global batch a run on another number of ranks draws the same numbers
(`genflow.training.lots`), and ends with the same weights up to the order of its sums. Not promised
are equal numbers on another device.

The learning rate is constant, after an optional linear warm-up, or falls as a cosine to zero at
the trainer's ``max_steps``. Clipping, precision and accumulation are the trainer's.
"""

__all__ = ["PREFIX", "GenerativeModule"]

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal

from lightning.pytorch import LightningModule
import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.optim import Optimizer

from genflow.data.checks import wrong_ends
from genflow.data.stream import seed_words
from genflow.models import Preconditioned
from genflow.training.augment import Augmentation
from genflow.training.checks import (
    check_augment,
    check_options,
    check_unpaired,
    diverged,
    drops,
    finite,
    recompute,
    wrong_classes,
    wrong_record,
    wrong_shape,
    wrong_weights,
)
from genflow.training.couplings import Coupling
from genflow.training.losses import Loss, SquaredError
from genflow.training.lots import Drawn, cut, joined, recounted
from genflow.training.optimisers import clip, optimiser
from genflow.training.records import denoiser_record, network_record
from genflow.training.sharding import shard_module
from genflow.training.times import TimeLaw

PREFIX = "denoiser.net."
"""How the names of the network's weights begin in a checkpoint."""


class GenerativeModule(LightningModule):
    r"""A denoiser, and how it is trained.

    A batch is a dictionary: "x" in float with shape (B, \*), and "label" with shape (B) if there
    are labels. Subclasses only build the arguments.

    Args:
        denoiser: The network on its path.
        times: The law of t.
        coupling: The joint law of data and noise.
        measure: How an answer is judged; the squared error if None.
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
            pass, which then keeps their inputs only; it costs another forward pass.
        augment: How training images are moved, and the network told so; None for not at all.
        lot: The number of examples whose random numbers are drawn together, a divisor of the
            batch size (see `genflow.training.lots`); the batch size if None.

    Attributes:
        denoiser: The network on its path.
        times: The law of t.
        coupling: The joint law of data and noise.
        measure: How an answer is judged.
        augment: How training images are moved, or None.

    Raises:
        UserError: If a value is out of its range.
    """

    def __init__(
        self,
        denoiser: Preconditioned,
        times: TimeLaw,
        coupling: Coupling,
        measure: Loss | None = None,
        *,
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
        lot: int | None = None,
    ) -> None:
        super().__init__()

        options = {
            "lr": lr,
            "betas": list(betas),
            "weight_decay": weight_decay,
            "warmup": warmup,
            "decay": decay,
            "label_dropout": label_dropout,
            "seed": seed,
            "compile": compile,
            "channels_last": channels_last,
            "gradient_checkpointing": gradient_checkpointing,
            "lot": lot,
        }
        check_options(options)
        check_augment(augment, denoiser.net)
        self.save_hyperparameters(options)

        self.denoiser = denoiser
        self.times = times
        self.coupling = coupling
        self.measure = measure or SquaredError()
        self.augment = augment
        self._options = options
        self._generator: torch.Generator | None = None
        self._masks = False
        self._compiled = False

        if channels_last:
            self.net.to(memory_format=torch.channels_last)
        if gradient_checkpointing:
            recompute(self.net)

    @property
    def net(self) -> nn.Module:
        """The network."""

        return self.denoiser.net

    def forward(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """The denoiser's estimate of the data; see `Denoiser.forward`."""

        return self.denoiser(x_t, t, **cond)

    # Random numbers ------------------------------------------------------------------------

    def _source(self, purpose: str, *numbers: int) -> torch.Generator:
        """The module's generator, set to a state that is a pure function of the arguments."""

        if self._generator is None or self._generator.device != self.device:
            self._generator = torch.Generator(self.device)

        words = seed_words(purpose, self._options["seed"], *numbers)
        state = int(words.generate_state(1, np.uint64)[0] >> np.uint64(1))

        if self._masks and purpose == "train":
            torch.manual_seed(state)

        return self._generator.manual_seed(state)

    def draw(
        self, batch: Mapping[str, Tensor], source: torch.Generator, *, dropout: bool = True
    ) -> Drawn:
        r"""Draws what a step needs beside the data, for one lot.

        Args:
            batch: "x" with shape (B, \*), perhaps "label" with shape (B), and perhaps the other
                end: "z" with shape (B, \*), or "seed" with shape (B), the seeds of the noise.
            source: The generator, on the device of the batch.
            dropout: Whether images are augmented and labels dropped, as in training.

        Returns:
            The data x and the noise z with shape (B, \*), the times with shape (B), and the
            conditions.

        Raises:
            UserError: If the batch does not have the shape or the labels that the network wants.
        """

        x = batch["x"]
        shape, classes = getattr(self.net, "shape", None), getattr(self.net, "classes", None)

        if shape is not None and x.shape[1:] != shape:
            raise wrong_shape(tuple(x.shape[1:]), shape)
        if classes is not None and "label" not in batch:
            raise wrong_classes(None, classes)

        cond: dict[str, Tensor] = {}

        if dropout and self.augment is not None:
            check_unpaired(batch)
            x, cond["augment"] = self.augment(x, source)
        if self._options["channels_last"] and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)

        path, device = self.denoiser.path, x.device
        t = self.times.sample(len(x), path, generator=source, device=device)
        z = batch.get("z")

        if z is None:
            seeds = batch.get("seed")
            given = (
                source if seeds is None else [Generator().manual_seed(s) for s in seeds.tolist()]
            )
            z = path.noise.sample(x.shape, generator=given, device=device, dtype=x.dtype)
        elif z.shape != x.shape:
            raise wrong_ends(tuple(z.shape[1:]), tuple(x.shape[1:]))

        label = batch["label"] if classes is not None else None
        x, z = self.coupling(x, z, label=label, generator=source)

        if classes is None:
            return x, z, t, cond

        share = self._options["label_dropout"]

        if dropout and share:
            dropped = torch.rand(len(x), generator=source, device=device) < share
            label = label.masked_fill(dropped, classes)

        return x, z, t, {**cond, "label": label}

    # Steps ---------------------------------------------------------------------------------

    def drawn(self, batch: Mapping[str, Tensor], *, step: int, place: int = 0) -> Drawn:
        """What `draw` gives for every lot of a batch; the arguments are those of `loss`."""

        lots = cut(batch, self._options["lot"])
        first = place * len(lots)
        # the 0 keeps the numbers of runs of one process what they were before there were lots
        sources = (self._source("train", step, first + k, 0) for k in range(len(lots)))
        return joined([self.draw(*pair) for pair in zip(lots, sources, strict=True)])

    def loss(self, batch: dict[str, Tensor], *, step: int, place: int = 0) -> Tensor:
        r"""The training loss of a batch, a pure function of its arguments and the weights.

        Args:
            batch: "x" with shape (B, \*) and perhaps "label" with shape (B).
            step: The number of optimiser steps before this one.
            place: The place of the batch among all those of the step, on all ranks.

        Returns:
            The mean loss, with shape ().
        """

        x, z, t, cond = self.drawn(batch, step=step, place=place)
        return self.measure(self.denoiser.regress(x, z, t, **cond)).mean()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch, logged as "loss" when the trainer logs.

        Reading a number from a device stops its queue. So the loss is handed to the loggers and
        the progress bar every ``log_every_n_steps`` steps only, and as a number on the host.
        """

        trainer, step = self.trainer, self.global_step
        micro = batch_idx % trainer.accumulate_grad_batches
        place = micro * trainer.world_size + self.global_rank
        loss = self.loss(batch, step=step, place=place)

        every = trainer.log_every_n_steps

        if every and (step == 0 or (step + 1) % every == 0):
            self.log("loss", loss.detach().cpu(), on_step=True, on_epoch=False, prog_bar=True)

        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The loss with times and noise that depend on the batch's number alone.

        Two validations differ by their weights and by nothing else. It is logged as "val_loss".
        """

        source = self._source("validation", batch_idx)
        x, z, t, cond = self.draw(batch, source, dropout=False)
        loss = self.measure(self.denoiser.regress(x, z, t, **cond)).mean()
        self.log("val_loss", loss, prog_bar=True, batch_size=len(x), sync_dist=True)
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW, fused where the device and the precision allow it, and the learning rate.

        Raises:
            UserError: If a cosine is asked for and the trainer has no ``max_steps``.
        """

        return optimiser(self, self._options)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips as the trainer says; see `genflow.training.optimisers.clip`."""

        clip(self, optimizer, gradient_clip_val, gradient_clip_algorithm)

    # Before and after ----------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Compares the data with the network, before anything is spent on either.

        Raises:
            UserError: If their shapes or their classes differ.
        """

        shape, classes = getattr(self.net, "shape", None), getattr(self.net, "classes", None)
        data = getattr(self.trainer, "datamodule", None)

        if shape is not None and getattr(data, "shape", None) not in (None, shape):
            raise wrong_shape(data.shape, shape)
        if classes is not None and hasattr(data, "classes") and data.classes != classes:
            raise wrong_classes(data.classes, classes)

        if stage == "fit":
            self._masks = any(map(drops, self.net.modules()))
            backend = self._options["compile"]
            if backend and not self._compiled:
                self.net.compile(**({} if backend is True else {"backend": backend}))
                self._compiled = True

    def configure_model(self) -> None:
        """Cuts the network over the processes, under `FullyShard` and its like.

        Raises:
            UserError: If the strategy names blocks that the network does not have.
        """

        if self._trainer is not None:
            shard_module(self, self.trainer.strategy)

    def record(self) -> dict[str, Any]:
        """What the denoiser can be built from again, beside its weights, as plain values."""

        return {
            **denoiser_record(self.denoiser),
            "augment": None if self.augment is None else asdict(self.augment),
            "net": network_record(self.net),
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds a record from which the denoiser can be built again, as plain values.

        Raises:
            Diverged: If a weight is not finite; no file has been touched by then.
        """

        if not finite(self.net.parameters()):
            raise diverged(
                self.trainer, f"the weights are no longer finite after step {self.global_step - 1}"
            )

        checkpoint["genflow"] = {"module": type(self).__name__, **self.record()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Compares a checkpoint with the network, and counts its batches as this run does.

        Raises:
            UserError: If the checkpoint is of another network, of another package, or of a path
                or prediction with other values.
        """

        error = wrong_weights(self.state_dict(), checkpoint.get("state_dict", {}))

        if error is None and "genflow" in checkpoint:
            error = wrong_record(denoiser_record(self.denoiser), checkpoint["genflow"])

        if error is not None:
            raise error
        if self._trainer is not None:
            recounted(checkpoint, self.trainer.accumulate_grad_batches)
