r"""The way in: stock pipelines of diffusers as denoisers.

Three tables say what is needed, and nothing is guessed. The scheduler's config says what the
network predicts, on which path, and what it is told about time (`genflow.pipelines.kinds`); the
network's class says how it is called (`genflow.pipelines.families`); and the pipeline's class, in
the table below, where its parts are and how its prompts are encoded. Everything else about
sampling is the same for all.

What a stock pipeline decides about *solving* is not taken over: the sampler, its steps, the
clipping of samples, and the safety checker of Stable Diffusion 1, which is not even loaded.
"""

__all__ = ["PIPELINES", "adapt", "denoiser_of", "discrete_path", "fetch", "load"]

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path as FilePath
from typing import Any

import diffusers
from safetensors import SafetensorError
from torch import Tensor, nn

from genflow.errors import UserError, nearest
from genflow.models import Preconditioned
from genflow.pipelines.codecs import Codec
from genflow.pipelines.conditions import Prompts
from genflow.pipelines.families import FAMILIES, Family, family_of
from genflow.pipelines.folders import load_model
from genflow.pipelines.kinds import Config, discrete_path, kind_of
from genflow.pipelines.pipeline import Pipeline


def denoiser_of(
    module: nn.Module, scheduler_config: Config, *, reverse: bool = False
) -> Preconditioned:
    """A network of diffusers as a denoiser.

    Args:
        module: A network of one of the `FAMILIES`.
        scheduler_config: The config of the scheduler that it was saved with.
        reverse: Whether it is a flow that was trained with noise at 0 and data at 1.

    Returns:
        The denoiser; its network refuses conditions that it does not know.

    Raises:
        UserError: If the network's class is unknown, or the config says nothing about it.

    Example:
        >>> unet = UNet2DModel.from_pretrained("google/ddpm-cat-256")
        >>> denoiser = denoiser_of(unet, DDPMScheduler.load_config("google/ddpm-cat-256"))
    """

    kind = kind_of(scheduler_config, reverse=reverse)
    told = scheduler_config.get("prediction_type") or kind.usual

    if told not in kind.predictions:
        raise UserError(f"prediction_type is '{told}'{nearest(str(told), kind.predictions)}")

    path, net = kind.path(scheduler_config), family_of(module).net(module)
    sigma_data = scheduler_config.get("sigma_data", 0.5)
    return Preconditioned(net, path, kind.predictions[told], kind.clock, sigma_data)


# ------------------------------------------------------------------------- whole pipelines


def _encode_sd(pipeline: Any, prompts: list[str]) -> dict[str, Tensor]:
    embeds, _ = pipeline.encode_prompt(prompts, pipeline.device, 1, False)
    return {"prompt_embeds": embeds}


def _encode_xl(pipeline: Any, prompts: list[str]) -> dict[str, Tensor]:
    embeds, _, pooled, _ = pipeline.encode_prompt(
        prompts, device=pipeline.device, do_classifier_free_guidance=False
    )
    return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}


def _encode_sd3(pipeline: Any, prompts: list[str]) -> dict[str, Tensor]:
    embeds, _, pooled, _ = pipeline.encode_prompt(
        prompts, None, None, device=pipeline.device, do_classifier_free_guidance=False
    )
    return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}


def _encode_flux(pipeline: Any, prompts: list[str]) -> dict[str, Tensor]:
    embeds, pooled, _ = pipeline.encode_prompt(prompts, None, device=pipeline.device)
    return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}


def _time_ids(pipeline: Any, size: tuple[int, int]) -> dict[str, Any]:
    """SDXL is told the original size, where the picture was cropped, and the size to draw."""

    return {"time_ids": [[*map(float, size), 0.0, 0.0, *map(float, size)]]}


def _embedded_guidance(pipeline: Any, size: tuple[int, int]) -> dict[str, Any]:
    return {"embedded_guidance": 3.5} if pipeline.transformer.config["guidance_embeds"] else {}


@dataclass(frozen=True)
class _Stock:
    """A row: where a stock pipeline has its network, and how it encodes prompts."""

    network: str
    encode: Callable[[Any, list[str]], dict[str, Tensor]] | None = None
    constants: Callable[[Any, tuple[int, int]], dict[str, Any]] = lambda pipeline, size: {}
    default: int | None = None
    without: Mapping[str, Any] = field(default_factory=dict)


_PICTURES = {"image_encoder": None, "feature_extractor": None}
_SAFETY = {"safety_checker": None, "requires_safety_checker": False}

PIPELINES: dict[str, _Stock] = {
    "DDPMPipeline": _Stock("unet"),
    "DDIMPipeline": _Stock("unet"),
    "DiTPipeline": _Stock("transformer"),
    "StableDiffusionPipeline": _Stock("unet", _encode_sd, without=_PICTURES | _SAFETY),
    "StableDiffusionXLPipeline": _Stock("unet", _encode_xl, _time_ids, without=_PICTURES),
    "StableDiffusion3Pipeline": _Stock("transformer", _encode_sd3, without=_PICTURES),
    "FluxPipeline": _Stock(
        "transformer", _encode_flux, _embedded_guidance, default=128, without=_PICTURES
    ),
}
"""The stock pipelines that are known here, by class."""


def _row(name: str) -> _Stock:
    if name not in PIPELINES:
        raise UserError(f"the pipeline is a {name}: {', '.join(PIPELINES)} are known here.")
    return PIPELINES[name]


def adapt(
    pipeline: Any, *, size: tuple[int, int] | None = None, reverse: bool = False
) -> Pipeline:
    """A pipeline of diffusers as one of genflow; the two share their networks.

    Args:
        pipeline: A stock pipeline of one of the classes in `PIPELINES`.
        size: The height and the width of the pictures in pixels; the pipeline's own if None.
        reverse: Whether it is a flow that was trained with noise at 0 and data at 1.

    Returns:
        The pipeline. On Flux ``guidance`` is classifier-free guidance proper, two calls a step;
        the guidance that the network was distilled for is the condition ``embedded_guidance``,
        3.5 by default.

    Raises:
        UserError: If its class is unknown, a part is missing, or the size does not fit.

    Example:
        >>> pipe = adapt(StableDiffusionPipeline.from_pretrained("a/b"), size=(512, 768))
        >>> pipe("a cat", guidance=5, sampler="unipc", steps=8).images[0].show()
    """

    name = type(pipeline).__name__
    row = _row(name)

    for part in (row.network, "scheduler"):
        if getattr(pipeline, part, None) is None:
            raise UserError(f"the {name} has no {part}: it was made or saved without one.")

    net, config = getattr(pipeline, row.network), pipeline.scheduler.config
    kind, family = kind_of(config, reverse=reverse), family_of(net)
    vae = getattr(pipeline, "vae", None)
    codec = None if vae is None else Codec(vae).eval()
    factor = 1 if codec is None else codec.factor
    sides = _sides(net.config, row.default, size, factor, family.patch(net.config))
    condition = None

    if row.encode is not None and getattr(pipeline, "text_encoder", None) is not None:
        pixels = (sides[0] * factor, sides[1] * factor)
        condition = Prompts(pipeline, row.encode, row.constants(pipeline, pixels))

    return Pipeline(
        denoiser_of(net, config, reverse=reverse).eval(),
        shape=(family.channels(net.config), *sides),
        sampler=kind.sampler,
        steps=kind.steps,
        class_names=_class_names(pipeline, net),
        card={"adapted_from": name},
        codec=codec,
        condition=condition,
        spacing=kind.spacing(config, _tokens(family, net.config, sides)),
    )


def _sides(
    config: Config, default: int | None, size: tuple[int, int] | None, factor: int, patch: int
) -> tuple[int, int]:
    """The height and the width of the state."""

    if size is not None:
        unit = factor * patch
        if any(side % unit or side < unit for side in size):
            raise UserError(
                f"size is {tuple(size)}: both sides must be multiples of {unit} pixels."
            )
        return size[0] // factor, size[1] // factor

    own = config.get("sample_size") if default is None else default

    if own is None:
        raise UserError("the network does not say its size: give size=(height, width) in pixels.")

    return (own, own) if isinstance(own, int) else (own[0], own[1])


def _tokens(family: Family, config: Config, sides: tuple[int, int]) -> int:
    patch = family.patch(config)
    return (sides[0] // patch) * (sides[1] // patch)


def _class_names(pipeline: Any, net: nn.Module) -> tuple[str, ...] | None:
    """The names of a DiT's classes, if all are known; the first of several that mean the same."""

    names: dict[int, str] = {}

    for name, number in (getattr(pipeline, "labels", None) or {}).items():
        names.setdefault(number, name)

    whole = bool(names) and sorted(names) == list(range(net.config["num_embeds_ada_norm"]))
    return tuple(names[i] for i in sorted(names)) if whole else None


def fetch(name: str, index: Mapping[str, Any]) -> FilePath:
    """A snapshot of a stock pipeline on the hub: the files that `load` reads, and no pickle.

    Args:
        name: The id of the repository.
        index: The record of its ``model_index.json``.

    Raises:
        UserError: If the class of the pipeline is unknown.
    """

    row = _row(str(index["_class_name"]))
    fetched = diffusers.DiffusionPipeline.download(name, use_safetensors=True, **row.without)
    return FilePath(fetched)


def load(folder: FilePath, index: Mapping[str, Any]) -> Any:
    """A stock pipeline from its folder, through diffusers: nothing is unpickled or downloaded.

    Args:
        folder: The folder.
        index: The record of its ``model_index.json``.

    Returns:
        The pipeline of diffusers.

    Raises:
        UserError: If its class is unknown, a file is missing or damaged, or weights do not fit.
    """

    name = str(index["_class_name"])
    row = _row(name)
    where = f"the {name} in '{folder}'"
    _check_parts(folder, index, row, where)

    try:
        parts = {
            part: load_model(folder / part, cls, differences=("missing_keys",))
            for part, cls in _models(index)
        }
        return getattr(diffusers, name).from_pretrained(
            folder, use_safetensors=True, local_files_only=True, **parts, **row.without
        )
    except UserError:
        raise
    except ImportError as error:
        raise UserError(
            f"{where} needs a library that is not installed ({_first_line(error)}): "
            "pip install 'genflow[sd]' brings transformers."
        ) from None
    except (
        OSError,
        ValueError,
        RuntimeError,
        TypeError,
        AttributeError,
        SafetensorError,
    ) as error:
        raise UserError(
            f"{where} cannot be loaded ({_first_line(error)}): a file is missing or damaged, save "
            "the pipeline again, with safetensors."
        ) from None


_CODECS = ("AutoencoderKL",)
_ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel")


def _models(index: Mapping[str, Any]) -> Iterator[tuple[str, type]]:
    """The parts with weights, and their classes."""

    for part, entry in index.items():
        library, cls = entry if isinstance(entry, list) and len(entry) == 2 else (None, None)
        if library == "diffusers" and cls in (*FAMILIES, *_CODECS):
            yield part, getattr(diffusers, cls)
        elif library == "transformers" and cls in _ENCODERS:
            yield part, getattr(import_module("transformers"), cls)


def _check_parts(folder: FilePath, index: Mapping[str, Any], row: _Stock, where: str) -> None:
    """Refuses parts that are not there, before a library falls back on something else."""

    for part, entry in index.items():
        if part.startswith("_") or part in row.without or not isinstance(entry, list):
            continue
        if entry != [None, None] and not (folder / part).is_dir():
            raise UserError(f"{where} has no folder {part}: copy it, or save the pipeline again.")

    for part, known in ((row.network, tuple(FAMILIES)), ("scheduler", None), ("vae", _CODECS)):
        entry = index.get(part)
        if part == "vae" and entry in (None, [None, None]):
            continue
        if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str)):
            raise UserError(f"{where} names no {part} in model_index.json: save it again.")
        if known is not None and entry[1] not in known:
            raise UserError(
                f"the {part} of {where} is a {entry[1]}: {', '.join(known)} are known here."
            )


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]
