"""How long an average of the weights should be, decided after the run.

Training keeps running averages of a few widths and stores them now and then. Afterwards the
average of any other width, at any step at which averages were stored, is a linear combination of
what is on the disk; see `genflow.training.profiles`. Only parameters are averaged: buffers are
those of the checkpoint.

The averages are part of the run's checkpoints, so a resumed run stores what an unbroken one would
have stored. They need the whole run: a checkpoint without them cannot be gone on from with them.
"""

__all__ = ["PostHocEMA", "reconstruct"]

from collections.abc import Sequence
import os
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from genflow.errors import UserError, nearest
from genflow.files import writing
from genflow.training.checks import wrong_weights
from genflow.training.profiles import coefficients, decay, exponent
from genflow.training.sharding import gathered, like

PRECISIONS = {"float32": torch.float32, "float16": torch.float16}


class PostHocEMA(Callback):
    """Keeps averages of several widths, and stores them in the folder ``posthoc`` of the run.

    Args:
        widths: The relative widths, each between 0 and 0.288; two serve well.
        every: Steps between two snapshots, 1 or more; a run is better served by 20 than by 5.
        precision: How snapshots are stored, ``"float32"`` or ``"float16"``.

    Raises:
        UserError: If a value is out of its range.

    References:
        Analyzing and Improving the Training Dynamics of Diffusion Models
        https://arxiv.org/abs/2312.02696
    """

    def __init__(
        self,
        widths: Sequence[float] = (0.05, 0.10),
        every: int = 1000,
        precision: Literal["float32", "float16"] = "float32",
    ) -> None:
        if not widths or len(set(widths)) < len(widths):
            raise UserError(f"widths are {tuple(widths)}: one or more, all different, are needed.")
        if every < 1:
            raise UserError(f"every is {every}: a whole number of 1 or more is needed.")
        if precision not in PRECISIONS:
            raise UserError(f"precision is '{precision}'{nearest(precision, PRECISIONS)}")

        for width in widths:
            exponent(width)

        self.widths = tuple(widths)
        self.every = every
        self.precision = precision
        self._step = 0
        self._stored = -1
        self._names: list[str] = []
        self._weights: list[Tensor] = []
        self._averages: dict[float, list[Tensor]] = {}
        self._loaded: dict[str, dict[str, Tensor]] | None = None
        self._folder: Path | None = None

    def averages(self, width: float) -> dict[str, Tensor]:
        """The running average of a width by the names that ``module.net`` gives its parameters."""

        return dict(zip(self._names, self._averages[width], strict=True))

    def update(self, step: int) -> None:
        """Moves every average to a step."""

        for width, average in self._averages.items():
            beta = decay(step, width, step - self._step)
            weights = [p.to(a.dtype) for p, a in zip(self._weights, average, strict=True)]
            get_ema_multi_avg_fn(beta)(average, weights, None)

        self._step = step

    # Hooks ---------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finds the weights and the averages, and drops snapshots of a future that is no more.

        Raises:
            UserError: If the run goes on from a checkpoint without averages, or with others.
        """

        named = dict(pl_module.net.named_parameters())
        self._names, self._weights = list(named), list(named.values())
        self._folder = Path(trainer.log_dir or trainer.default_root_dir) / "posthoc"
        sources = self._sources(named, trainer.global_step)

        with torch.no_grad():
            self._averages = {
                width: [
                    like(source[n], p).detach().to(p.device, torch.float32, copy=True)
                    for n, p in named.items()
                ]
                for width, source in sources.items()
            }

        self._step, self._stored, self._loaded = trainer.global_step, -1, None

        if trainer.is_global_zero:
            for file, step, _ in _snapshots(self._folder):
                if step > trainer.global_step:
                    file.unlink()

    def _sources(self, named: dict[str, Any], step: int) -> dict[float, dict[str, Tensor]]:
        """What each average starts from: the weights, or the averages of a checkpoint."""

        if step == 0:
            return dict.fromkeys(self.widths, named)

        loaded = {float(w): found for w, found in (self._loaded or {}).items()}

        if set(loaded) != set(self.widths):
            raise UserError(
                f"the checkpoint holds averages of widths {sorted(loaded)}, the config asks for "
                f"{sorted(self.widths)}: they need the whole run, take the same or start again."
            )

        for width in self.widths:
            error = wrong_weights(named, loaded[width], "an average in the checkpoint")
            if error is not None:
                raise error

        return {width: loaded[width] for width in self.widths}

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Updates once a step of the optimiser, and stores when it is time to."""

        if trainer.global_step > self._step:
            self.update(trainer.global_step)
            if self._step % self.every == 0:
                self._store(trainer)

    def on_train_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Stores the last averages."""

        if self._step > 0 and self._stored != self._step:
            self._store(trainer)

    def _store(self, trainer: Trainer) -> None:
        self._stored = self._step

        for width in self.widths:
            kept = gathered(self.averages(width)).items()
            if not trainer.is_global_zero or self._folder is None:
                continue
            kept = {n: a.to("cpu", PRECISIONS[self.precision]).contiguous() for n, a in kept}
            record = {"step": str(self._step), "width": repr(width)}
            name = f"width-{width:g}-step-{self._step:09d}.safetensors"
            with writing(self._folder / name) as part:
                part.write_bytes(save(kept, metadata=record))

    # Checkpoints ---------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The averages by width."""

        return {"averages": {repr(w): gathered(self.averages(w)) for w in self._averages}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over the averages of a checkpoint; they are used when a run starts."""

        self._loaded = state_dict["averages"]


def _snapshots(folder: Path) -> list[tuple[Path, int, float]]:
    """The snapshots in a folder with their steps and widths, the earliest first.

    Raises:
        UserError: If a file is damaged.
    """

    found = []

    for file in sorted(folder.glob("width-*.safetensors")):
        try:
            with safe_open(file, "pt") as content:
                record = content.metadata() or {}
            found.append((file, int(record["step"]), float(record["width"])))
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise UserError(
                f"snapshot '{file}' cannot be read ({error}): it is damaged, remove it."
            ) from None

    return sorted(found, key=lambda item: item[1:])


def reconstruct(
    folder: str | os.PathLike[str], width: float, step: int | None = None
) -> tuple[dict[str, Tensor], int, float]:
    """The average of any width, from the snapshots of a run.

    Args:
        folder: The folder ``posthoc`` of the run.
        width: The relative width.
        step: The step at which it ends; the last snapshot up to it is taken. The last of all if
            None.

    Returns:
        The weights in float32 by the names of the network, the step, and the error of the profile.

    Raises:
        UserError: If there are no snapshots up to the step, one is damaged, or the width is out of
            its range.
    """

    limit = float("inf") if step is None else step
    kept = [item for item in _snapshots(Path(folder)) if item[1] <= limit]

    if not kept:
        raise UserError(
            f"'{folder}' holds no snapshots up to step {limit:g}: train with the callback "
            "PostHocEMA."
        )

    last = kept[-1][1]
    shares, error = coefficients([k[1] for k in kept], [k[2] for k in kept], last, width)
    total: dict[str, Tensor] = {}

    for (file, _, _), share in zip(kept, shares, strict=True):
        with safe_open(file, "pt") as content:
            for name in content.keys():  # noqa: SIM118, it is no mapping
                part = content.get_tensor(name).double() * share
                total[name] = part if name not in total else total[name].add_(part)

    return {name: value.float() for name, value in total.items()}, last, error
