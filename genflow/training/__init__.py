"""How it is learned: modules for Lightning, laws of times, couplings, and callbacks.

Randomness is indexed by (seed, step, place of the batch); weights are averaged beside the module,
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
from genflow.training.couplings import Coupling, Independent, OptimalTransport, Taught
from genflow.training.diffusion import Diffusion
from genflow.training.ema import EMA
from genflow.training.evaluating import Evaluate
from genflow.training.lightsb import LightSB
from genflow.training.losses import (
    FeatureWeighted,
    Loss,
    Perceptual,
    PseudoHuber,
    SquaredError,
)
from genflow.training.pfgmpp import PFGMPP
from genflow.training.posthoc import PostHocEMA, reconstruct
from genflow.training.rectified import RectifiedFlow
from genflow.training.sharding import FullyShard
from genflow.training.targets import StableTarget
from genflow.training.times import (
    CosMap,
    Grid,
    LogitNormal,
    LogNormal,
    Mode,
    TimeLaw,
    Uniform,
    UShaped,
)
from genflow.training.uncertainty import Uncertainty

__all__ = [
    "EMA",
    "PFGMPP",
    "Augmentation",
    "Checkpoint",
    "CosMap",
    "Coupling",
    "Diffusion",
    "Diverged",
    "Evaluate",
    "FeatureWeighted",
    "FullyShard",
    "GenerativeModule",
    "Grid",
    "Independent",
    "LightSB",
    "LogNormal",
    "LogitNormal",
    "Loss",
    "LossGuard",
    "Mode",
    "OptimalTransport",
    "Perceptual",
    "PostHocEMA",
    "PseudoHuber",
    "RectifiedFlow",
    "SafeCheckpoint",
    "SafeIO",
    "SampleGrid",
    "SquaredError",
    "StableTarget",
    "Taught",
    "TimeLaw",
    "UShaped",
    "Uncertainty",
    "Uniform",
    "ema_weights",
    "read_checkpoint",
    "reconstruct",
    "warp",
]
