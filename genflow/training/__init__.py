"""How it is learned: modules for Lightning, laws of times, couplings, and callbacks.

Randomness is indexed by (seed, step, micro-batch, rank); weights are averaged beside the module,
never in it; files are whole or absent.
"""

from genflow.training.base import GenerativeModule
from genflow.training.callbacks import LossGuard, SampleGrid
from genflow.training.checkpoints import (
    Checkpoint,
    SafeCheckpoint,
    SafeIO,
    ema_weights,
    read_checkpoint,
)
from genflow.training.checks import Diverged
from genflow.training.couplings import Coupling, Independent
from genflow.training.ema import EMA
from genflow.training.lightsb import LightSB
from genflow.training.rectified import RectifiedFlow
from genflow.training.times import LogitNormal, LogNormal, TimeLaw, Uniform

__all__ = [
    "EMA",
    "Checkpoint",
    "Coupling",
    "Diverged",
    "GenerativeModule",
    "Independent",
    "LightSB",
    "LogNormal",
    "LogitNormal",
    "LossGuard",
    "RectifiedFlow",
    "SafeCheckpoint",
    "SafeIO",
    "SampleGrid",
    "TimeLaw",
    "Uniform",
    "ema_weights",
    "read_checkpoint",
]
