r"""Checkpoints that are whole or absent, and what is read from them.

A checkpoint is written to ``NAME.part`` in its own folder, flushed to the disk, and renamed. A
process that dies in between, or a disk that is full, leaves the old files as they were. (Lightning
alone builds the file in memory, writes it to the folder of temporary files, and copies it where
that is another disk; a copy can stop half-way.)

Nothing is unpickled that is not a tensor or a plain value: every file is read with
``weights_only=True``. A file of this package holds

    state_dict            raw weights, "denoiser.net.…"
    callbacks / EMA       the averaged weights, and the number of updates
    genflow               path, prediction, clock and the network's config, as plain values
"""

__all__ = [
    "Checkpoint",
    "SafeCheckpoint",
    "SafeIO",
    "begin_with",
    "ema_weights",
    "load_plain",
    "read_checkpoint",
    "set_aside",
]

from dataclasses import dataclass
import os
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors import SafetensorError
from safetensors.torch import load_file
import torch
from torch import Tensor, nn

from genflow.errors import UserError
from genflow.files import writing
from genflow.shelves import resolved
from genflow.training.base import PREFIX
from genflow.training.checks import wrong_weights

UNREADABLE = (OSError, RuntimeError, EOFError, UnpicklingError, ValueError, KeyError)


def load_plain(path: str | os.PathLike[str], **options: Any) -> dict[str, Any]:
    """The content of a checkpoint file, or a clear error."""

    if not os.path.isfile(path):
        kind = "a folder" if os.path.isdir(path) else "no file"
        raise UserError(f"checkpoint is '{path}', which is {kind}: name a .ckpt file of a run.")

    try:
        content = torch.load(path, weights_only=True, **options)
    except UNREADABLE as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:100]
        raise UserError(
            f"checkpoint '{path}' cannot be read ({reason}): it is cut short, or no checkpoint; "
            "use an earlier one."
        ) from error

    if not isinstance(content, dict) or "state_dict" not in content:
        raise UserError(
            f"checkpoint '{path}' has no 'state_dict': it was not written by a training run; name "
            "a .ckpt file of one."
        )

    return content


class SafeIO(TorchCheckpointIO):
    """Reads and writes checkpoints on local disks; other addresses are left to Lightning."""

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | os.PathLike[str],
        storage_options: Any | None = None,
    ) -> None:
        """Writes a whole file or none.

        Args:
            checkpoint: What to write.
            path: Where; its folder is made.
            storage_options: Not used for local disks.

        Raises:
            UserError: If the disk does not take the file.
        """

        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return

        with writing(path) as part, open(part, "wb") as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:  # torch's own, when the file could not be written
                cause = error.__context__
                raise (cause if isinstance(cause, OSError) else error) from None
            file.flush()
            os.fsync(file.fileno())

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Any = "cpu",
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Reads a file, plain values and tensors only.

        Raises:
            UserError: If it is missing, cut short, or no checkpoint.
        """

        if "://" in str(path):
            return super().load_checkpoint(path, map_location, True)

        content = load_plain(path, map_location=map_location)

        if "pytorch-lightning_version" not in content:
            raise UserError(
                f"checkpoint '{path}' was not written by a training run: name a .ckpt file of one."
            )

        return content


class SafeCheckpoint(ModelCheckpoint):
    """Lightning's `ModelCheckpoint`, with files that are whole or absent.

    All checkpoints of the run go through `SafeIO`, also those that are written by hand.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Gives the run `SafeIO`, unless its strategy writes files of another kind."""

        super().setup(trainer, pl_module, stage)

        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = SafeIO()


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint says about a network.

    Attributes:
        step: The number of optimiser steps behind it.
        raw: The weights and buffers of the network, by its own names.
        average: The same with averaged weights, or None if the run kept no average.
        record: path, prediction, clock, sigma_data and net (class and config), as plain values;
            None if another program wrote the file.
    """

    step: int
    raw: dict[str, Tensor]
    average: dict[str, Tensor] | None
    record: dict[str, Any] | None


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Reads the network of a ``.ckpt`` file, on the CPU.

    Args:
        path: The file.

    Raises:
        UserError: If the file is missing, cut short, or not of a run of this package.
    """

    content = load_plain(path, map_location="cpu")
    weights = content["state_dict"]
    raw = {k.removeprefix(PREFIX): v for k, v in weights.items() if k.startswith(PREFIX)}

    if not raw:
        raise UserError(
            f"checkpoint '{path}' holds no '{PREFIX}…': it is of another program; name a .ckpt "
            "file of a run of genflow."
        )

    average = content.get("callbacks", {}).get("EMA", {}).get("weights")

    if average:
        average = raw | {k: v.to(raw[k].dtype) for k, v in average.items() if k in raw}

    return Checkpoint(content.get("global_step", 0), raw, average or None, content.get("genflow"))


def ema_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The averaged weights, and the buffers, of the network in a ``.ckpt`` file.

    Args:
        path: The file.

    Returns:
        A state dict for the network, on the CPU.

    Raises:
        UserError: If the file cannot be read, is foreign, or holds no average.
    """

    average = read_checkpoint(path).average

    if average is None:
        raise UserError(
            f"checkpoint '{path}' holds no averaged weights: train with the EMA callback, or read "
            "the raw ones with read_checkpoint(path).raw."
        )

    return average


def begin_with(net: nn.Module, source: str | os.PathLike[str]) -> None:
    """Gives a network the weights of another run of the same network, to go on from.

    Args:
        net: The network; its weights are replaced.
        source: A ``.ckpt`` file, whose averaged weights are taken if it has any, a saved pipeline
            of genflow, or ``zoo:NAME``.

    Raises:
        UserError: If there is nothing to read, or it is of another network.
    """

    folder = Path(resolved(source))

    if folder.is_dir():
        file = folder / "net" / "diffusion_pytorch_model.safetensors"
        try:
            theirs = {f"model.{k}": v for k, v in load_file(file).items()}
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"init is '{source}', which is no pipeline of genflow ({error}): give one, or a "
                ".ckpt file."
            ) from None
    else:
        read = read_checkpoint(source)
        theirs = read.average or read.raw

    error = wrong_weights(net.state_dict(), theirs, f"init '{source}'")

    if error is not None:
        raise error

    net.load_state_dict(theirs)


def set_aside(log: Path) -> None:
    """Keeps the log of a run that is gone on with, since a logger begins a new one.

    ``metrics.csv`` becomes ``metrics-000.csv``, and so on.
    """

    if log.exists():
        k = len(list(log.parent.glob(f"{log.stem}-*{log.suffix}")))
        log.rename(log.with_name(f"{log.stem}-{k:03d}{log.suffix}"))
