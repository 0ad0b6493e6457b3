"""What watches a run: pictures of its samples, and its loss.

Neither can change a run: `SampleGrid` has its own generators and borrows the network in evaluation
mode, `LossGuard` only reads.
"""

__all__ = ["LossGuard", "SampleGrid", "resting"]

from collections.abc import Iterator
from contextlib import contextmanager
import math
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_warn
import torch
from torch import Tensor, nn
from torchvision.io import encode_png
from torchvision.utils import make_grid

from genflow.data import Translation, to_uint8
from genflow.errors import UserError
from genflow.files import writing
from genflow.models import Guided
from genflow.solvers import build
from genflow.training.checks import Diverged, diverged
from genflow.training.ema import averaged
from genflow.training.sharding import sharded


@contextmanager
def resting(net: nn.Module) -> Iterator[None]:
    """Inside, every module is in evaluation mode; afterwards each is as it was."""

    modes = [(m, m.training) for m in net.modules()]
    net.eval()

    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


class SampleGrid(Callback):
    """Writes ``samples/step-000001000.png`` in the run's folder, and to TensorBoard if it logs.

    Image i starts from the noise of seed i and, with classes, has the label i mod classes; so the
    grids of a run show the same images as they improve. They are drawn from the averaged weights
    if the run has an `EMA`. The last grid is drawn when training ends. Where the data are a
    `Translation`, images start from examples of the source, and stand beside them.

    Args:
        every: Steps between two grids, 1 or more.
        n: Images in a grid, 1 or more.
        sampler: A name of the registry of samplers.
        steps: Its number of steps.
        guidance: The weight of classifier-free guidance, or None for none.

    Raises:
        UserError: If a number is out of its range.
    """

    def __init__(
        self,
        every: int = 1000,
        n: int = 64,
        sampler: str = "heun",
        steps: int = 20,
        guidance: float | None = None,
    ) -> None:
        for name, value in (("every", every), ("n", n), ("steps", steps)):
            if value < 1:
                raise UserError(f"{name} is {value}: a whole number of 1 or more is needed.")

        self.every = every
        self.n = n
        self.sampler = sampler
        self.steps = steps
        self.guidance = guidance
        self._drawn = -1
        self._folder: Path | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses what cannot be drawn, before training starts.

        Raises:
            UserError: If the network does not make images with 1 or 3 channels, the sampler is
                unknown, or there is guidance without classes.
        """

        if stage != "fit":
            return

        shape = getattr(pl_module.net, "shape", ())

        if len(shape) != 3 or shape[0] not in (1, 3):
            raise UserError(
                f"SampleGrid draws images with 1 or 3 channels, and the network's samples have "
                f"shape {tuple(shape)}: remove the callback."
            )
        if self.guidance is not None and pl_module.net.classes is None:
            raise UserError(
                f"guidance is {self.guidance} and the network has no classes: leave guidance out."
            )

        build(self.sampler, pl_module.denoiser, self.steps)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Agrees on the folder with all ranks."""

        self._drawn = -1
        self._folder = Path(trainer.log_dir or trainer.default_root_dir) / "samples"

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Draws every so many steps."""

        if trainer.global_step % self.every == 0 and trainer.global_step > 0:
            self.draw(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the last grid."""

        self.draw(trainer, pl_module)

    def draw(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Samples and writes, once a step and on one rank; all must draw where each has a part."""

        step, first = trainer.global_step, trainer.is_global_zero
        mine = first or sharded(trainer.strategy)

        if not mine or step == self._drawn or self._folder is None:
            return

        self._drawn = step

        data = getattr(trainer, "datamodule", None)
        begun = data.starts(self.n // 2 or 1) if isinstance(data, Translation) else None

        within = trainer.precision_plugin.forward_context

        with averaged(trainer, pl_module), resting(pl_module.net), within():
            grid = self.grid(pl_module, begun)

        if not first:
            return

        self._write(grid, self._folder / f"step-{step:09d}.png")

        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("samples", grid, step)

    @torch.no_grad()
    def grid(self, module: LightningModule, begun: Tensor | None = None) -> Tensor:
        """Samples of a module with the weights that it holds.

        Args:
            module: A module with a denoiser and a network.
            begun: States to start from instead of noise, with shape (m, C, H, W); each is shown
                beside what becomes of it.

        Returns:
            One picture in uint8 with shape (3, H, W).
        """

        denoiser, classes, cond = module.denoiser, module.net.classes, {}
        n = self.n if begun is None else len(begun)

        if classes is not None:
            cond["label"] = torch.arange(n, device=module.device) % classes
        if self.guidance is not None:
            denoiser = Guided(denoiser, self.guidance, null={"label": classes})

        sampler = build(self.sampler, denoiser, self.steps)
        sources = [torch.Generator().manual_seed(i) for i in range(n)]

        if begun is None:
            shape = (n, *module.net.shape)
            start = sampler.init(shape, generator=sources, device=module.device)
        else:
            start = begun.to(module.device)

        x = sampler(start, generator=sources, **cond)
        x = x if begun is None else torch.stack([start, x], 1).flatten(0, 1)
        x = to_uint8(x).cpu()
        scale = max(1, 32 // min(x.shape[2:]))
        x = x.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
        columns = math.ceil(math.sqrt(len(x)))
        columns += columns % 2 if begun is not None else 0
        return make_grid(x, nrow=columns, pad_value=128)

    @staticmethod
    def _write(grid: Tensor, path: Path) -> None:
        """Writes a whole file or none; a picture less is no reason to stop training."""

        try:
            with writing(path) as part:
                part.write_bytes(encode_png(grid).numpy().tobytes())
        except (UserError, OSError) as error:
            rank_zero_warn(f"a grid of samples is left out: {error}")


class LossGuard(Callback):
    """Stops a run whose loss is no longer finite, before anything bad is stored.

    On the CPU every loss is looked at before its gradient is computed, so the weights stay as the
    last good step left them. On other devices a look would stop the queue; there the losses are
    looked at together, every so many batches and before every checkpoint. A module, besides,
    refuses to store weights that are not finite.

    Args:
        every: Batches between two looks on a device other than the CPU, 1 or more.

    Raises:
        UserError: If the number is below 1.
    """

    def __init__(self, every: int = 50) -> None:
        if every < 1:
            raise UserError(f"every is {every}: a whole number of 1 or more is needed.")

        self.every = every
        self._steps: list[int] = []
        self._losses: list[Tensor] = []
        self._bad: Diverged | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets an earlier run."""

        self._steps, self._losses, self._bad = [], [], None

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Takes note of a loss, and looks if it is time to.

        Raises:
            Diverged: If a loss was not finite.
        """

        self._steps.append(trainer.global_step)
        self._losses.append(loss.detach())

        if loss.device.type == "cpu" or len(self._losses) >= self.every:
            self._look(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks at the last losses.

        Raises:
            Diverged: If a loss was not finite.
        """

        self._look(trainer)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Looks before a file is touched.

        Raises:
            Diverged: If a loss was not finite, now or earlier.
        """

        self._look(trainer)

    def _look(self, trainer: Trainer) -> None:
        if self._losses and self._bad is None:
            values = torch.stack(self._losses).tolist()
            found = ((s, v) for s, v in zip(self._steps, values, strict=True))
            step, value = next(((s, v) for s, v in found if not math.isfinite(v)), (None, 0.0))
            self._steps, self._losses = [], []
            if step is not None:
                self._bad = diverged(trainer, f"the loss is {value} at step {step}")

        if self._bad is not None:
            raise self._bad
