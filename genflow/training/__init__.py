"""How it is learned: modules for Lightning, laws of times, couplings, and callbacks.

Randomness is indexed by (seed, step, micro-batch, rank); weights are averaged beside the module,
never in it; files are whole or absent.
"""

from genflow.training.augment import Augmentation, warp
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
from genflow.training.diffusion import Diffusion
from genflow.training.ema import EMA
from genflow.training.pfgmpp import PFGMPP
from genflow.training.posthoc import PostHocEMA, reconstruct
from genflow.training.rectified import RectifiedFlow
from genflow.training.targets import StableTarget
from genflow.training.times import LogitNormal, LogNormal, TimeLaw, Uniform
from genflow.training.uncertainty import Uncertainty

__all__ = [
    "EMA",
    "PFGMPP",
    "Augmentation",
    "Checkpoint",
    "Coupling",
    "Diffusion",
    "Diverged",
    "GenerativeModule",
    "Independent",
    "LogNormal",
    "LogitNormal",
    "LossGuard",
    "PostHocEMA",
    "RectifiedFlow",
    "SafeCheckpoint",
    "SafeIO",
    "SampleGrid",
    "StableTarget",
    "TimeLaw",
    "Uncertainty",
    "Uniform",
    "ema_weights",
    "read_checkpoint",
    "reconstruct",
    "warp",
]
