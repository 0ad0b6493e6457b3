"""The training command: a config file, a run folder, and Lightning between them.

A run folder holds everything about a run: ``config.yaml`` (fully resolved), ``metrics.csv``,
TensorBoard events, ``samples/``, and ``checkpoints/``. The callbacks that every run wants are not
repeated in every config: their settings are sections of it (``ema``, ``grid``, ``evaluate``,
``checkpoint``).
"""

__all__ = ["TrainingLine", "train"]

from collections.abc import Sequence
from importlib import import_module
import logging
import os
from pathlib import Path
from typing import Any
import warnings

from jsonargparse import ArgumentError, Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
import torch

from genflow.data.base import DataModule
from genflow.errors import UserError, brief
from genflow.training.callbacks import LossGuard, SampleGrid
from genflow.training.checkpoints import SafeCheckpoint, SafeIO, begin_with, set_aside
from genflow.training.ema import EMA
from genflow.training.evaluating import Evaluate
from genflow.training.launch import launched

# A config may name these classes without their modules, once they are imported.
SETS = ("images", "toy", "given", "domains", "translation", "pairs", "latents", "packed", "clouds")
NAMED = (*(f"genflow.data.{name}" for name in SETS), "genflow.nn", "genflow.training")

TRAINER = {
    "accelerator": "auto",
    "devices": 1,
    "max_epochs": -1,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 50,
    "gradient_clip_val": 1.0,
    "enable_model_summary": False,
    "use_distributed_sampler": False,
    "check_val_every_n_epoch": None,
}
"""What differs from Lightning's own defaults."""

ABOUT = """\
Train a model from a config file, then save it as a pipeline. Complete configs are in the folder
configs; --model.help NAME and --data.help NAME list what a model or a data set takes."""


SECTIONS = {
    "trainer": "Lightning's trainer",
    "model": "The model: a network, and how it is trained",
    "data": "The data",
    "ema": "The average of the weights, from which the pipeline is made",
    "grid": "Grids of samples: samples/step-000001000.png and so on, and in TensorBoard",
    "evaluate": 'Distances of samples to the data, logged as "eval/fd" and the like',
    "guard": "The guard, which stops a run whose loss is no longer finite",
    "checkpoint": "Checkpoints",
}
"""What the sections of a config are called in the help."""


class TrainingLine(LightningCLI):
    """LightningCLI with a run folder, and with the callbacks of this package."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the run folder, the sections of the callbacks, and the default sampler."""

        parser.add_argument("--run", type=str, default="runs/run", help="The folder of the run.")
        parser.add_argument(
            "--resume", type=bool, default=False, help="Go on from the last checkpoint, if any."
        )
        parser.add_argument(
            "--overwrite", type=bool, default=False, help="Throw away a run that is there already."
        )
        parser.add_argument(
            "--init",
            type=str | None,
            default=None,
            help="Begin with the weights of a saved pipeline, or the averaged ones of a .ckpt.",
        )
        parser.add_argument(
            "--sampler", type=str, default="dpmpp-2m", help="The pipeline's default sampler."
        )
        parser.add_argument(
            "--steps", type=int, default=20, help="The number of steps of the default sampler."
        )
        parser.add_lightning_class_args(EMA, "ema")
        parser.add_lightning_class_args(SampleGrid, "grid")
        parser.add_lightning_class_args(Evaluate, "evaluate")
        parser.add_lightning_class_args(LossGuard, "guard")
        parser.add_lightning_class_args(SafeCheckpoint, "checkpoint")
        parser.set_defaults({"checkpoint.every_n_train_steps": 1000, "checkpoint.save_last": True})
        parser.set_defaults({"evaluate.every": 0})  # only where a config asks for it

        for section, title in SECTIONS.items():
            parser.groups[section].title = title

    def before_instantiate_classes(self) -> None:
        """Points loggers and checkpoints at the run folder, and counts who was launched."""

        config = self.config
        run = Path(config.run)
        config.checkpoint.dirpath = str(run / "checkpoints")
        config.trainer.default_root_dir = str(run)

        found = launched(os.environ)
        if found is not None and (config.trainer.devices, config.trainer.num_nodes) == (1, 1):
            config.trainer.devices, config.trainer.num_nodes = found

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Adds loggers that write into the run folder, unless the config names its own."""

        run = Path(self.config.run)

        if kwargs.get("logger") is None and self.config.trainer.logger in (None, True):
            kwargs["logger"] = [
                CSVLogger(run, name="", version="", flush_logs_every_n_steps=50),
                TensorBoardLogger(run, name="", version="tensorboard"),
            ]

        kwargs.setdefault("plugins", [SafeIO()])
        trainer = super().instantiate_trainer(**kwargs)

        if trainer.progress_bar_callback is not None:
            trainer.callbacks.remove(trainer.progress_bar_callback)
            trainer.callbacks.append(Progress())

        return trainer


class Progress(RichProgressBar):
    """The bar of a run, without the version of its logger."""

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The loss alone."""

        metrics = super().get_metrics(trainer, pl_module)
        return {k: v for k, v in metrics.items() if k != "v_num"}


def _claim(run: Path, resume: bool, overwrite: bool, first: bool = True) -> Path | None:
    """The checkpoint to go on from; refuses a run folder that is taken.

    Args:
        run: The folder.
        resume: Whether a run that is there is gone on with.
        overwrite: Whether it is thrown away.
        first: Whether this is the first process of the run; the others come when the folder may
            be taken already, by this very run, and leave files as they are.

    Raises:
        UserError: If there is a run already and neither flag was given.
    """

    last = run / "checkpoints" / "last.ckpt"
    log = run / "metrics.csv"

    if not first:
        return last if resume and last.exists() else None

    if not last.exists() and not log.exists():
        return None

    if resume:
        set_aside(log)
        return last if last.exists() else None

    if overwrite:
        for file in [*run.glob("checkpoints/*.ckpt"), *run.glob("metrics*.csv")]:
            file.unlink()
        return None

    raise UserError(
        f"run '{run}' exists: say --resume to go on with it, --overwrite to start again, or give "
        "another --run."
    )


def train(arguments: Sequence[str]) -> tuple[LightningModule, DataModule, Trainer, Namespace]:
    """Trains as the arguments say.

    Args:
        arguments: ``--config FILE`` and what overrides it.

    Returns:
        The module, its data, the trainer, and the config.

    Raises:
        UserError: If a value of the config or of the data cannot be used.
    """

    warnings.filterwarnings("ignore", ".*args parameter is intended to run.*")
    warnings.filterwarnings("ignore", ".*exists and is not empty.*")
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*Total length of `list` across ranks is zero.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*")
    warnings.filterwarnings("ignore", ".*but have no `validation_step`.*")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_plain)
    warnings.filterwarnings("ignore", ".*You called `self.log.*on_step.*")
    torch.set_float32_matmul_precision("high")

    for module in NAMED:
        import_module(module)

    try:
        line = TrainingLine(
            LightningModule,
            DataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            run=False,
            args=list(arguments),
            trainer_defaults=TRAINER,
            seed_everything_default=0,
            save_config_callback=SaveConfigCallback,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"exit_on_error": False, "prog": "genflow fit", "description": ABOUT},
            auto_configure_optimizers=False,  # the modules know theirs
        )
    except (ArgumentError, MisconfigurationException, ValueError) as error:
        raise _meant(error) from None

    config = line.config

    shape = getattr(line.model.net, "shape", ())
    if len(shape) != 3 or shape[0] not in (1, 3):  # neither vectors nor latents have a grid
        callbacks = line.trainer.callbacks
        line.trainer.callbacks = [c for c in callbacks if not isinstance(c, SampleGrid)]
    if isinstance(line.trainer.strategy, FSDPStrategy):
        without = (EMA, SampleGrid, Evaluate)
        rank_zero_warn(
            "the weights are in flat rows: no average of them is kept, and nothing is drawn; "
            "the strategy fully_shard does both."
        )
        kept = [c for c in line.trainer.callbacks if not isinstance(c, without)]
        line.trainer.callbacks = kept
    first = line.trainer.is_global_zero
    checkpoint = _claim(Path(config.run), config.resume, config.overwrite, first)
    if config.init is not None and checkpoint is None:
        begin_with(line.model.net, config.init)
    line.trainer.fit(line.model, line.datamodule, ckpt_path=checkpoint)

    return line.model, line.datamodule, line.trainer, config


def _plain(record: logging.LogRecord) -> bool:
    """Drops the advertisements among Lightning's messages."""

    return "Tip:" not in record.getMessage() and "TPU available" not in record.getMessage()


def _meant(error: BaseException) -> UserError:
    """The sentence behind an error of the parser: the one of a class it built, or its own."""

    link: BaseException | None = error

    while link is not None:
        if isinstance(link, UserError):
            return link
        link = link.__cause__ or link.__context__

    return UserError(brief(str(error)))
