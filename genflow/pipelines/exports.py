r"""Trained models as stock pipelines of diffusers, which load where genflow is not installed.

A stock pipeline is a network and a scheduler that agree on a path, a prediction and a clock. Two
of our models have a stock twin:

=========== ============== ========= ============================== =======================
path        prediction     clock     scheduler                      the same images as
=========== ============== ========= ============================== =======================
`Rectified` flow           thousand  FlowMatchEulerDiscreteScheduler ``euler``, see below
`Discrete`  noise, v, data discrete  DDIMScheduler                  ``ddim``
=========== ============== ========= ============================== =======================

The grids are those of the schedulers. FlowMatchEuler spaces N times evenly from 1 to 1/1000, both
included, and then goes to 0, so its last step is a short one: it is our grid ``uniform`` with stop
1/1000 and final ``"zero"``, not our default :math:`1 - i/N`. DDIM with trailing spacing is our
grid ``trailing`` for every number of steps that divides the number of levels. Where the last level
has an :math:`\bar\alpha` below :math:`2^{-24}`, as that of the cosine β has, `Discrete` keeps it
at that, and the images agree to 3e-4 only.

`DDPMPipeline` knows nothing of classes, and `DiTPipeline` needs a VAE and a thousand classes, so
class-conditional models have no stock twin; their networks can still be loaded on their own from
the folder ``net`` of a pipeline of ours.
"""

__all__ = ["DiffusionPipeline", "export_diffusers", "stock_pipeline", "trained"]

from collections.abc import Callable, Mapping
import math
import os
from typing import Any

from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    SchedulerMixin,
    UNet2DModel,
)
import torch
from torch import Tensor

from genflow.errors import UserError
from genflow.files import replacing
from genflow.models import Discrete, Path
from genflow.nn import Net
from genflow.nn.labels import stock
from genflow.pipelines.folders import make_net, recorded
from genflow.pipelines.pipeline import Pipeline
from genflow.pipelines.scheduler_config import PREDICTION_TYPES
from genflow.version import __version__

_BETAS = (
    {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "squaredcos_cap_v2"},
)
"""The β that a config can name; any others are written out."""


def _euler(path: Path, prediction: str) -> SchedulerMixin:
    return FlowMatchEulerDiscreteScheduler()


def _ddim(path: Discrete, prediction: str) -> SchedulerMixin:
    levels = torch.tensor(path.alphas_cumprod, dtype=torch.float64)

    if levels[-1] < 2.0**-24 and prediction == "noise":
        raise UserError(
            f"the last level of the path has alphas_cumprod {float(levels[-1]):.1e}, hardly any "
            "signal, and the prediction is 'noise': stock schedulers divide by its root and go "
            "astray, train with 'v' or on other levels."
        )

    names = {ours: theirs for theirs, ours in PREDICTION_TYPES.items()}
    common = {
        "num_train_timesteps": path.levels,
        "prediction_type": names[prediction],
        "timestep_spacing": "trailing",
        "clip_sample": False,
    }

    for betas in _BETAS:
        named = DDIMScheduler(**common, **betas)
        if torch.allclose(named.alphas_cumprod.double(), levels, rtol=1e-5, atol=0):
            return named

    kept = levels / torch.cat([levels.new_ones(1), levels[:-1]])
    return DDIMScheduler(**common, trained_betas=(1 - kept).tolist())


_TWINS: dict[tuple[str, str, str], Callable[[Path, str], SchedulerMixin]] = {
    ("Rectified", "flow", "thousand"): _euler,
    ("Discrete", "noise", "discrete"): _ddim,
    ("Discrete", "v", "discrete"): _ddim,
    ("Discrete", "data", "discrete"): _ddim,
}
"""The stock scheduler of a path, a prediction and a clock."""


def stock_pipeline(pipeline: Pipeline) -> DDPMPipeline:
    """The stock twin of a pipeline: it shares the network, and nothing else of genflow.

    Args:
        pipeline: A pipeline with a `UNet2DModel` without classes.

    Returns:
        A `DDPMPipeline`.

    Raises:
        UserError: If there is no stock twin; the message says what stands against it.
    """

    d = pipeline.denoiser
    net = d.net.model if isinstance(d.net, Net) else d.net

    if not isinstance(net, UNet2DModel):
        raise UserError(
            f"net is a {type(net).__name__}: a stock pipeline needs a UNet2DModel (a DiT would "
            "also need a VAE), keep format 'genflow'."
        )
    if pipeline.classes is not None:
        raise UserError(
            f"net has {pipeline.classes} classes, which stock DDPMPipeline cannot be told: keep "
            "format 'genflow', or train without classes."
        )

    key = (type(d.path).__name__, d.prediction, d.clock)
    gaussian = math.isinf(getattr(d.path.noise, "D", math.inf))

    if key not in _TWINS or not gaussian:
        raise UserError(
            f"path {key[0]} with noise {type(d.path.noise).__name__}, prediction '{key[1]}' and "
            f"clock '{key[2]}' have no stock scheduler: Rectified with 'flow' and 'thousand', and "
            "Discrete with 'noise', 'v' or 'data' and 'discrete' have one; keep format 'genflow'."
        )

    return DDPMPipeline(stock(net).eval(), _TWINS[key](d.path, d.prediction))


def trained(record: Mapping[str, Any], state: Mapping[str, Tensor], **options: Any) -> Pipeline:
    """The pipeline of a training run.

    Args:
        record: What a checkpoint says about its network: net, path, prediction, clock, sigma_data.
        state: The weights of the network by its own names.
        options: Other fields of the pipeline: sampler, steps, card.

    Raises:
        UserError: If the network or the path is unknown.
    """

    net = make_net(record["net"]["class"], record["net"]["config"])
    net.load_state_dict(state)
    return Pipeline(recorded(net, record), net.shape, **options)


def export_diffusers(
    pipeline: Pipeline, folder: str | os.PathLike[str], *, overwrite: bool = False
) -> None:
    """Saves the stock twin of a pipeline, with a page that says how to use it.

    Args:
        pipeline: The pipeline.
        folder: Where to.
        overwrite: Whether a pipeline that is there already is replaced.

    Raises:
        UserError: If there is no stock twin, or the folder is taken.

    Example:
        >>> export_diffusers(Pipeline.from_pretrained("assets/mine"), "mine-stock")
        >>> DDPMPipeline.from_pretrained("mine-stock")(num_inference_steps=20).images[0]
    """

    stock = stock_pipeline(pipeline)

    with replacing(folder, overwrite=overwrite, mark="model_index.json") as part:
        stock.save_pretrained(part)
        (part / "README.md").write_text(_page(pipeline, stock), encoding="utf-8")


def _page(pipeline: Pipeline, stock: DDPMPipeline) -> str:
    d, scheduler = pipeline.denoiser, type(stock.scheduler).__name__
    shape = " × ".join(map(str, pipeline.shape))

    return f"""---
library_name: diffusers
---
Images of shape {shape}, values in [-1, 1]. Exported by genflow {__version__}; loads without it.

```python
from diffusers import DDPMPipeline

pipe = DDPMPipeline.from_pretrained("THIS FOLDER")
image = pipe(batch_size=1, num_inference_steps={pipeline.steps}).images[0]
```

- path: {type(d.path).__name__}, prediction: {d.prediction}, scheduler: {scheduler}
- `num_inference_steps` is 1000 unless it is given.
"""
