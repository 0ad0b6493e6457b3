"""A small run of rectified flow on the digits, with everything that could break a resume."""

import logging
from pathlib import Path
import warnings

from lightning.pytorch import Callback, Trainer
import torch

from genflow.data import Digits
from genflow.nn import UNet
from genflow.training import EMA, RectifiedFlow, SafeCheckpoint

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", category=UserWarning, module="lightning")


class Losses(Callback):
    """Keeps what training and validation saw."""

    def __init__(self):
        self.train, self.val = {}, []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.train[trainer.global_step - 1] = float(outputs["loss"])

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, *args):
        self.val.append(float(outputs))


def tiny(dropout=0.1, classes=10, **options):
    torch.manual_seed(7)
    net = UNet(
        8, 1, widths=(8, 8), layers=1, attention=(), classes=classes, dropout=dropout, groups=4
    )
    torch.nn.init.normal_(net.model.conv_out.weight, std=0.1)  # else it answers zero at first
    return RectifiedFlow(net, **options)


def trainer(root: Path, steps: int, *callbacks, **options):
    options = {
        "max_steps": steps,
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": any(isinstance(c, SafeCheckpoint) for c in callbacks),
        "use_distributed_sampler": False,
        "check_val_every_n_epoch": None,
        "val_check_interval": 10**6,
        "num_sanity_val_steps": 0,
        "gradient_clip_val": 1.0,
        "default_root_dir": str(root),
    }
    return options, list(callbacks)


def fit(root, steps, *callbacks, module=None, data=None, ckpt=None, **options):
    """Runs, and hands out (module, losses, ema, trainer)."""

    module = module or tiny()
    losses = Losses()
    ema = next((c for c in callbacks if isinstance(c, EMA)), None)
    settings, callbacks = trainer(root, steps, *callbacks, losses)
    run = Trainer(**(settings | options), callbacks=callbacks)
    run.fit(module, data or Digits(batch_size=16), ckpt_path=ckpt)
    return module, losses, ema, run


def saver(root, every=1, **options):
    return SafeCheckpoint(
        dirpath=str(root), filename="{step}", every_n_train_steps=every, save_top_k=-1, **options
    )
