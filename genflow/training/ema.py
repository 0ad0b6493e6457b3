r"""The exponential moving average of the weights, the one to sample from.

After the n-th step of the optimiser (n = 1, 2, …)

.. math:: \bar\theta \leftarrow \bar\theta + (1 - d_n)(\theta - \bar\theta), \qquad
          d_n = \min\big(d, \tfrac{1 + n}{10 + n}\big)

so that a long average forgets its random beginning. All weights move in one call; weights in half
precision are averaged in float32, where an update of 1e-4 does not vanish. Buffers are not
averaged.

The module always holds the raw weights, except inside a validation, a test, a prediction, or
``with ema.average(module)``. A checkpoint holds the raw weights where Lightning puts them and the
average beside them, whenever it is written, so that no resume can confuse the two. Where weights
are sharded (`genflow.training.sharding`), each process averages its part. What is *not* supported:
the flat parameters of Lightning's ``FSDPStrategy``, which are refused.
"""

__all__ = ["EMA", "averaged"]

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy
import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from genflow.errors import UserError
from genflow.training.base import PREFIX
from genflow.training.checks import wrong_weights
from genflow.training.sharding import gathered, like


class EMA(Callback):
    """Averages the weights of ``module.net``, and lends the average out.

    Args:
        decay: d, in [0, 1). The average spans about 1 / (1 − d) steps.

    Raises:
        UserError: If the decay is out of its range.

    References:
        Analyzing and Improving the Training Dynamics of Diffusion Models
        https://arxiv.org/abs/2312.02696
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise UserError(f"decay is {decay}: it must lie in [0, 1) (0.999 to 0.9999 is usual).")

        self.decay = decay
        self.updates = 0
        self._step = 0
        self._names: list[str] = []
        self._weights: list[Tensor] = []  # the module's own parameters
        self._averages: list[Tensor] = []
        self._raw: list[Tensor] | None = None  # raw weights, while the module holds the average
        self._loaded: dict[str, Tensor] | None = None

    def weights(self) -> dict[str, Tensor]:
        """The averages by the names that ``module.net`` gives its parameters."""

        return dict(zip(self._names, self._averages, strict=True))

    def update(self) -> None:
        """Moves the average towards the weights, once."""

        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        weights = [p.to(a.dtype) for p, a in zip(self._weights, self._averages, strict=True)]
        get_ema_multi_avg_fn(decay)(self._averages, weights, None)

    # The swap ------------------------------------------------------------------------------

    @contextmanager
    def average(self, module: LightningModule) -> Iterator[None]:
        """Inside, the module holds the average; no effect if it does already."""

        mine = self._enter(module)

        try:
            yield
        finally:
            if mine:
                self._leave()

    @torch.no_grad()
    def _enter(self, module: LightningModule) -> bool:
        self._attach(module)

        if self._raw is not None:
            return False

        self._raw = [p.detach().clone() for p in self._weights]
        for p, a in zip(self._weights, self._averages, strict=True):
            p.copy_(a)
        return True

    @torch.no_grad()
    def _leave(self) -> None:
        if self._raw is not None:
            for p, r in zip(self._weights, self._raw, strict=True):
                p.copy_(r)
            self._raw = None

    def _attach(self, module: LightningModule) -> None:
        """Finds the weights, and puts the averages beside them: loaded ones, or copies."""

        named = dict(module.net.named_parameters())
        weights = list(named.values())

        if self._loaded is not None:
            error = wrong_weights(named, self._loaded, "the average in the checkpoint")
            if error is not None:
                raise error
            source = [self._loaded[n] for n in named]
        elif len(weights) != len(self._weights) or any(
            a is not b for a, b in zip(weights, self._weights, strict=True)
        ):
            source, self.updates, self._step = weights, 0, 0
        else:
            return

        self._names, self._weights, self._loaded = list(named), weights, None

        with torch.inference_mode(False), torch.no_grad():
            self._averages = [_begun(s, p) for s, p in zip(source, weights, strict=True)]

    # Hooks ---------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts from the weights as they are, or from the checkpoint's average.

        Raises:
            UserError: If the weights are cut into flat parts.
        """

        if isinstance(trainer.strategy, FSDPStrategy):
            raise UserError(
                "strategy is FSDPStrategy, which lays many weights into one row, and EMA keeps "
                "them apart: take the strategy fully_shard, or train with ddp."
            )

        self.on_train_start(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes over the checkpoint's average where it is read later than `on_fit_start`."""

        self._attach(pl_module)
        self._averages = [
            a.to(p.device) for a, p in zip(self._averages, self._weights, strict=True)
        ]

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Updates once a step of the optimiser, however many batches it took."""

        if trainer.global_step > self._step:
            self.update()
            self._step = trainer.global_step

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Everything in a validation sees the average."""

        self._enter(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Training goes on with the raw weights."""

        self._leave()

    on_test_start = on_predict_start = on_validation_start
    on_test_end = on_predict_end = on_validation_end

    def on_exception(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Whatever stopped a validation, the module is left with the raw weights."""

        self._leave()

    # Checkpoints ---------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The averages, in float, and how often they were updated."""

        if self._loaded is not None:
            weights = self._loaded
        else:
            weights = gathered(self.weights())
        return {"updates": self.updates, "step": self._step, "weights": weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over the averages of a checkpoint; they reach the device when a run starts."""

        self.updates, self._step = state_dict["updates"], state_dict["step"]
        self._loaded = dict(state_dict["weights"])

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Puts the raw weights in their place if the module holds the average just now."""

        if self._raw is not None:
            for name, raw in gathered(dict(zip(self._names, self._raw, strict=True))).items():
                checkpoint["state_dict"][PREFIX + name] = raw


def _begun(source: Tensor, weight: Tensor) -> Tensor:
    """The first average of a weight: a copy of what it starts from, in float32 or wider."""

    wide = torch.promote_types(weight.dtype, torch.float32)
    return like(source, weight).detach().to(weight.device, wide, copy=True)


def averaged(trainer: Trainer, module: LightningModule) -> AbstractContextManager[None]:
    """Inside, a module holds the average of its run; no effect if the run has no `EMA`.

    The average is that of the trainer's step, also for a callback that comes before `EMA` in the
    trainer's list.

    Args:
        trainer: The trainer of the run.
        module: Its module.
    """

    ema = next((c for c in trainer.callbacks if isinstance(c, EMA)), None)

    if ema is None:
        return nullcontext()

    ema.on_train_batch_end(trainer)
    return ema.average(module)
