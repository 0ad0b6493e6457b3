"""Distances to the data while a run goes on.

Every so many steps a few thousand samples are drawn with the averaged weights, looked at by a
feature net, and compared with the data. As `SampleGrid` does, the callback draws from generators
of its own and borrows the network in evaluation mode, so it cannot change a run: with it and
without it the losses are the same, and a run that was resumed is the same as one that was not.
"""

__all__ = ["Evaluate"]

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
import torch

from genflow.errors import UserError
from genflow.training.callbacks import resting
from genflow.training.ema import averaged
from genflow.training.sharding import gathered, sharded

if TYPE_CHECKING:
    from genflow.evaluation.watching import Watch


class Evaluate(Callback):
    """Logs distances of samples to the data as "eval/fd" and the like, and keeps the best model.

    Sample i starts from the noise of seed i and has the class i mod classes. They are drawn from
    the averaged weights if the run has an `EMA`. With several ranks each draws a part; where each
    holds a part of the weights only, all draw everything together. Distances of n samples carry a
    bias that falls with n: compare them with each other, and measure the final model by ``genflow
    evaluate``, with floors.

    Args:
        every: Steps between two evaluations; 0 for none. The last step is evaluated, too.
        n: Samples, 2 or more.
        sampler: A name of the registry of samplers.
        steps: Its number of steps.
        guidance: The weight of classifier-free guidance, or None for none.
        feature: Feature nets, with commas; random-conv for images if None.
        metrics: Metrics, with commas, as in ``genflow evaluate``.
        reference: A folder, a zip, a data set or a stored reference to compare with, instead of
            the training data.
        keep_best: Whether the pipeline whose first number is the best so far is kept in ``best``,
            in the folder of the run.
        batch_size: How many samples are drawn at once.

    Attributes:
        history: What was measured, by step.

    Raises:
        UserError: If a number is out of its range.
    """

    def __init__(
        self,
        every: int = 5000,
        n: int = 2048,
        sampler: str = "heun",
        steps: int = 20,
        guidance: float | None = None,
        feature: str | None = None,
        metrics: str = "fd",
        reference: str | None = None,
        keep_best: bool = False,
        batch_size: int = 256,
    ) -> None:
        for name, value, least in (
            ("every", every, 0), ("n", n, 2), ("steps", steps, 1), ("batch_size", batch_size, 1)
        ):  # fmt: skip
            if value < least:
                raise UserError(f"{name} is {value}: a whole number of {least} or more is needed.")

        self.every, self.keep_best = every, keep_best
        self.options = {
            "n": n,
            "sampler": sampler,
            "steps": steps,
            "guidance": guidance,
            "feature": feature,
            "metrics": metrics,
            "reference": reference,
            "batch_size": batch_size,
        }
        self.history: dict[int, dict[str, float]] = {}
        self._best: dict[str, float] | None = None
        self._watch: Watch | None = None
        self._folder = Path()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses what cannot be measured, before training starts.

        Raises:
            UserError: If samples cannot be drawn or compared.
        """

        data = getattr(trainer, "datamodule", None)

        if stage != "fit" or not self.every:
            return
        if isinstance(trainer.strategy, FSDPStrategy):
            raise UserError(
                "strategy is FSDPStrategy, under which nothing is drawn: set evaluate.every to "
                "0, or take the strategy fully_shard."
            )
        if data is None:
            raise UserError("Evaluate needs the data of the run: hand a data module to fit.")

        from genflow.evaluation.watching import Watch

        with resting(pl_module):  # a pipeline puts what it is given into evaluation mode
            self._watch = Watch(
                pl_module.denoiser,
                data,
                split=not sharded(trainer.strategy),
                say=rank_zero_info,
                **self.options,
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets an earlier run, and agrees on the folder with all ranks."""

        self.history = {}
        self._folder = Path(trainer.log_dir or trainer.default_root_dir)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Evaluates every so many steps."""

        if self.every and trainer.global_step and trainer.global_step % self.every == 0:
            self.evaluate(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluates the last step."""

        if self.every:
            self.evaluate(trainer, pl_module)

    def evaluate(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws, measures and logs, once a step; a failure is told, and stops nothing."""

        step = trainer.global_step

        if self._watch is None or step in self.history:
            return

        self.history[step] = {}

        with averaged(trainer, pl_module), resting(pl_module):
            try:
                within = trainer.precision_plugin.forward_context
                found = self._watch(pl_module.device, within)
            except UserError as error:
                rank_zero_warn(f"the evaluation of step {step} is left out: {error}")
                return
            self._take(trainer, pl_module, step, found)

    def _take(
        self, trainer: Trainer, module: LightningModule, step: int, found: dict[str, float]
    ) -> None:
        """Logs numbers, and keeps the model if it is the best one so far.

        All ranks know the numbers, so that a checkpoint may go by them; rank 0 alone writes.
        """

        self.history[step] = found
        named = {f"eval/{k}": v for k, v in found.items()}
        rank_zero_info(f"step {step}: " + ", ".join(f"{k} {v:.4g}" for k, v in named.items()))

        for logger in trainer.loggers:
            logger.log_metrics(named, step=step)
        trainer.callback_metrics.update({k: torch.tensor(v) for k, v in named.items()})

        value = next(iter(found.values()), math.inf) * (1 if self._watch.lower else -1)
        if self.keep_best and (self._best is None or value < self._best["value"]):
            self._best = {"step": step, "value": value}
            card = {"training_steps": step, **{f"eval_{k}": v for k, v in found.items()}}
            cut = sharded(trainer.strategy)
            whole = (module.record(), gathered(module.net.state_dict())) if cut else None
            if trainer.is_global_zero:
                self._watch.keep(self._folder / "best", card, whole)

    def state_dict(self) -> dict[str, Any]:
        """The best number so far, which a run that goes on must beat."""

        return {"best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over the best number of a checkpoint."""

        self._best = state_dict["best"]
