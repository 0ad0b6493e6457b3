"""What a checkpoint says of its denoiser: plain values, from which it can be built again."""

__all__ = ["denoiser_record", "network_record"]

import json
from typing import Any

from torch import nn

from genflow.models import Preconditioned, path_to_dict


def denoiser_record(denoiser: Preconditioned) -> dict[str, Any]:
    """What a denoiser does around its network."""

    return {
        "path": path_to_dict(denoiser.path),
        "prediction": denoiser.prediction,
        "clock": denoiser.clock,
        "sigma_data": denoiser.sigma_data,
    }


def network_record(net: nn.Module) -> dict[str, Any] | None:
    """The class and the config of a network's model; None if it has no config."""

    model = getattr(net, "model", None)
    config = getattr(model, "config", None) or {}
    # diffusers' own notes differ with the process, and with whether the model was ever saved
    config = {k: v for k, v in config.items() if not k.startswith("_")}

    if not config:
        return None

    return {"class": type(model).__name__, "config": json.loads(json.dumps(config, default=str))}
