r"""What a scheduler's config says about the network that it was saved with.

What a network of diffusers predicts, on which path, and what it is told about time, is not written
in the network but in the config of the scheduler that it was saved with. Solvers share the keys
that say so, so that whichever one a checkpoint names (DDPM, DDIM, PNDM, Euler, DPM-Solver++, UniPC
…) the model is the same:

======== ==================================== ======================= ==============
kind     marked by                            path                    clock
======== ==================================== ======================= ==============
levels   ``beta_schedule`` or                 `Discrete`              1000 t − 1
         ``trained_betas``
flow     ``prediction_type`` flow_prediction, `Rectified`             1000 t
         or a ``shift`` and no β
karras   ``sigma_data``                       `Karras`                ¼ log σ
======== ==================================== ======================= ==============

Level i of N, which diffusers calls timestep i, is our time :math:`t = (i + 1)/N`. The shift of a
flow model changes neither path nor clock: it says where a sampler should spend its steps and
becomes the default spacing of the grid.

Many code bases train flows with noise at 0 and data at 1. A network of theirs, read by our clock,
draws nonsense without any error, so such a clock is never guessed: it is refused where a config
admits to it (``invert_sigmas``), and taken where the caller names it (``reverse``). Behind the
door there is one clock.
"""

__all__ = ["KINDS", "Kind", "discrete_path", "kind_of"]

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
import math
from typing import Any

from genflow.errors import UserError
from genflow.models import Discrete, Karras, Path, Rectified
from genflow.models.predictions import TURNED
from genflow.pipelines.scheduler_config import PREDICTION_TYPES, read_path

Config = Mapping[str, Any]


def discrete_path(scheduler_config: Config) -> Discrete:
    """The path of a network that was trained at discrete levels.

    Args:
        scheduler_config: The config of any scheduler of diffusers that holds β; keys that it lacks
            have the defaults of diffusers.

    Returns:
        The path; the same one for every class of schedulers.

    Raises:
        UserError: If the config is that of a flow model, or names an unknown schedule of β.
    """

    path = read_path(scheduler_config)

    if not isinstance(path, Discrete):
        raise UserError("prediction_type is 'flow_prediction': a flow model has no levels of β.")

    return path


def _flow_path(config: Config) -> Rectified:
    path = read_path({**config, "prediction_type": "flow_prediction"})
    assert isinstance(path, Rectified)
    return path


def _karras_path(config: Config) -> Karras:
    return Karras(config["sigma_min"], config["sigma_max"], config["rho"])


def _flow_spacing(config: Config, tokens: int) -> dict[str, Any]:
    """The shift, which on a config with dynamic shifting grows with the number of tokens."""

    if not config.get("use_dynamic_shifting"):
        shift = config.get("shift", config.get("flow_shift", 1.0))
        return {} if shift == 1 else {"shift": float(shift)}

    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    first, last = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    mu = first + (tokens - low) * (last - first) / (high - low)
    linear = config.get("time_shift_type") == "linear"
    return {"shift": mu if linear else math.exp(mu)}


@dataclass(frozen=True)
class Kind:
    """A row: what a scheduler's config says about the network, and how to sample by default.

    Attributes:
        fits: Whether a config is of this kind.
        path: The path that it describes.
        clock: What the network is told about time, a name in ``CLOCKS``.
        predictions: What ``prediction_type`` may say, and the rows of ``PREDICTIONS`` it means.
        usual: What it says where it is silent.
        sampler: The default sampler.
        steps: Its number of steps.
        spacing: Options of the grid, from the config and the number of tokens of a state.
    """

    fits: Callable[[Config], bool]
    path: Callable[[Config], Path]
    clock: str
    predictions: Mapping[str, str]
    usual: str
    sampler: str
    steps: int
    spacing: Callable[[Config, int], dict[str, Any]] = lambda config, tokens: {}


_STRAIGHT = "flow_prediction"


def _is_flow(config: Config) -> bool:
    told = config.get("prediction_type")
    return told == _STRAIGHT or ("shift" in config and "beta_schedule" not in config)


def _has_levels(config: Config) -> bool:
    return "beta_schedule" in config or config.get("trained_betas") is not None


KINDS = (
    Kind(
        fits=_is_flow,
        path=_flow_path,
        clock="thousand",
        predictions={_STRAIGHT: "flow"},
        usual=_STRAIGHT,
        sampler="euler",
        steps=28,
        spacing=_flow_spacing,
    ),
    Kind(
        fits=lambda config: "sigma_data" in config,
        path=_karras_path,
        clock="log-sigma",
        predictions={"epsilon": "karras"},
        usual="epsilon",
        sampler="karras-heun",
        steps=18,
    ),
    Kind(
        fits=_has_levels,
        path=discrete_path,
        clock="discrete",
        predictions={k: v for k, v in PREDICTION_TYPES.items() if k != _STRAIGHT},
        usual="epsilon",
        sampler="dpmpp-2m",
        steps=20,
    ),
)
"""The kinds of networks, each a row; the first that fits a config is its kind."""


def kind_of(config: Config, *, reverse: bool = False) -> Kind:
    """The row of a config.

    Args:
        config: The config of a scheduler.
        reverse: Whether the network was trained with noise at 0 and data at 1.

    Raises:
        UserError: If no row fits, the config says what no row means, or its clock runs the other
            way and the caller does not say so.
    """

    if config.get("timestep_type") == "continuous":
        raise UserError(
            "the scheduler has timestep_type 'continuous': networks of that kind are unknown."
        )
    if config.get("invert_sigmas") and not reverse:
        raise UserError(
            "the scheduler has invert_sigmas True: the clock of the network runs from noise at 0 "
            "to data at 1, say reverse=True to import it as such."
        )

    for kind in KINDS:
        if kind.fits(config):
            return _turned(kind) if reverse else kind

    raise UserError(
        "the scheduler's config says nothing about the network: beta_schedule or trained_betas "
        "(diffusion), shift (flow) or sigma_data (EDM) is needed."
    )


def _turned(kind: Kind) -> Kind:
    """The row of networks that were trained with noise at 0."""

    if kind.clock not in TURNED:
        raise UserError(
            "reverse is True, but the scheduler's config is not that of a flow: leave it out."
        )

    predictions = {name: TURNED[ours] for name, ours in kind.predictions.items()}
    return replace(kind, clock=TURNED[kind.clock], predictions=predictions)
