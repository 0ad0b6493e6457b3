"""Folders of saved pipelines: found, written, and read without unpickling.

A folder is either genflow's own, whose ``model_index.json`` holds the whole record, or a stock
pipeline of diffusers, which `genflow.pipelines.adapters` translates. Both hold JSON and
safetensors alone.
"""

__all__ = [
    "load_codec",
    "load_model",
    "load_net",
    "locate",
    "make_net",
    "read",
    "read_index",
    "recorded",
    "write",
]

from collections.abc import Mapping
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
from safetensors import SafetensorError
from torch import nn

from genflow.errors import UserError, nearest
from genflow.files import replacing
from genflow.models import Preconditioned
from genflow.models.records import path_from_dict, path_to_dict
from genflow.nn import Net, VectorMLP
from genflow.nn.labels import AugmentedDiT, AugmentedUNet
from genflow.pipelines.codecs import CODECS, Codec
from genflow.shelves import resolved
from genflow.solvers import SolverSchedule, schedule_for
from genflow.version import __version__

if TYPE_CHECKING:
    from genflow.pipelines.pipeline import Pipeline

FORMAT = 1

_INDEX = "model_index.json"

_MODELS = {
    "UNet2DModel": diffusers.UNet2DModel,
    "DiTTransformer2DModel": diffusers.DiTTransformer2DModel,
    "VectorMLP": VectorMLP,
    "AugmentedUNet": AugmentedUNet,
    "AugmentedDiT": AugmentedDiT,
}


# -------------------------------------------------------------------------------- finding


def locate(name: str | os.PathLike[str]) -> Path:
    """The folder of a pipeline: that of the name, of the zoo, or a snapshot of the hub.

    Of a repository of the hub only what the pipeline needs is fetched, and never a pickle.

    Raises:
        UserError: If it is none of them.
    """

    folder = Path(resolved(name))

    if folder.is_dir():
        return folder

    if str(name).count("/") != 1 or str(name).startswith((".", "/")):
        raise UserError(
            f"pipeline '{name}' is no folder: give a saved pipeline, zoo:NAME, or a hub id a/b."
        )

    try:
        return _fetched(str(name))
    except UserError:
        raise
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:160]
        raise UserError(
            f"pipeline '{name}' is no folder here, and the hub did not give it "
            f"({type(error).__name__}: {reason}): check the name, or the network."
        ) from None


def _fetched(name: str) -> Path:
    """A snapshot: the index first, which says what else is needed."""

    from huggingface_hub import snapshot_download

    index = read_index(Path(snapshot_download(name, allow_patterns=[_INDEX])))

    if index.get("_library") == "genflow":
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))

    from genflow.pipelines.adapters import fetch

    return fetch(name, index)


def read_index(folder: Path) -> dict[str, Any]:
    """The record in ``model_index.json``, of a pipeline of genflow or of diffusers.

    Raises:
        UserError: If there is none, or it is damaged, or of a newer format.
    """

    file = folder / _INDEX

    try:
        index = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"folder '{folder}' holds no pipeline: model_index.json is missing."
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"'{file}' cannot be read ({error}): save the pipeline again.") from None

    if not isinstance(index, dict) or "_class_name" not in index:
        raise UserError(f"'{file}' names no class of pipelines: save the pipeline again.")
    if index.get("_library") == "genflow" and index.get("format") != FORMAT:
        raise UserError(
            f"pipeline '{folder}' has format {index.get('format')!r}: this genflow reads format "
            f"{FORMAT}; a newer genflow may read it."
        )

    return index


# ------------------------------------------------------------------------------- networks


def _model(name: str) -> type:
    if name not in _MODELS:
        raise UserError(f"net is '{name}'{nearest(name, _MODELS)}")
    return _MODELS[name]


def make_net(name: str, config: dict[str, Any]) -> Net:
    """A network with fresh weights, from its class and its config.

    Raises:
        UserError: If the class is unknown.
    """

    given = {k: v for k, v in config.items() if not k.startswith("_")}
    return Net(_model(name).from_config(given))


_DIFFERENCES = ("missing_keys", "unexpected_keys")


def load_model(folder: Path, cls: type, differences: tuple[str, ...] = _DIFFERENCES) -> nn.Module:
    """A model of diffusers or transformers from its folder, every weight accounted for.

    Args:
        folder: The folder with ``config.json`` and the weights.
        cls: The class of the model.
        differences: What is refused, as diffusers calls it.

    Raises:
        UserError: If the weights are missing, damaged, or do not fit.
    """

    try:
        model, info = cls.from_pretrained(
            folder,
            use_safetensors=True,
            output_loading_info=True,
            local_files_only=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"the network in '{folder}' cannot be loaded ({reason}): the files are damaged or "
            "incomplete, copy or save them again."
        ) from None

    names = [name for key in differences for name in info[key]]

    if names:
        raise UserError(
            f"the weights in '{folder}' do not fit their config ({len(names)} names differ, "
            f"'{names[0]}' first): the files belong to different networks."
        )

    return model


def load_net(folder: Path, name: str) -> Net:
    """The network in a folder of genflow's own.

    Args:
        folder: The folder with ``config.json`` and the weights.
        name: The class of the network.

    Raises:
        UserError: If the class is unknown, or the weights are missing, damaged, or do not fit.
    """

    return Net(load_model(folder, _model(name)))


def load_codec(folder: Path) -> Codec:
    """The autoencoder in a folder that diffusers wrote.

    Raises:
        UserError: If there is none, its class is unknown, or its files are damaged.
    """

    file = folder / "config.json"

    try:
        name = json.loads(file.read_text(encoding="utf-8")).get("_class_name")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"folder '{folder}' holds no autoencoder ({error}): give one that diffusers saved."
        ) from None

    if name not in CODECS:
        raise UserError(f"the autoencoder in '{folder}' is a {name}{nearest(str(name), CODECS)}")

    return Codec(load_model(folder, CODECS[name])).eval()


# ------------------------------------------------------------------------ whole pipelines


def write(pipe: "Pipeline", folder: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Saves a pipeline: written beside the folder first, then renamed.

    Args:
        pipe: The pipeline.
        folder: Where to.
        overwrite: Whether a pipeline that is there already is replaced.

    Raises:
        UserError: If the pipeline was adapted from one of diffusers, the folder exists and is not
            to be overwritten, or writing fails.
    """

    d = pipe.denoiser
    net = d.net.model if isinstance(d.net, Net) else d.net
    schedule = pipe.schedule

    if pipe.condition is not None or not hasattr(net, "save_pretrained"):
        raise UserError(
            "this pipeline was adapted from one of diffusers, with parts that genflow does not "
            "save: call save_pretrained of the stock pipeline instead."
        )

    if schedule is None:
        made = schedule_for(pipe.sampler, d.path, pipe.steps, **pipe.spacing)
        schedule = made if isinstance(made, SolverSchedule) else None

    index = {
        "_class_name": "Pipeline",
        "_library": "genflow",
        "_genflow_version": __version__,
        "_diffusers_version": diffusers.__version__,
        "format": FORMAT,
        "net": [type(net).__module__.split(".")[0], type(net).__name__],
        "path": path_to_dict(d.path),
        "prediction": d.prediction,
        "clock": d.clock,
        "sigma_data": d.sigma_data,
        "shape": list(pipe.shape),
        "class_names": None if pipe.class_names is None else list(pipe.class_names),
        "sampler": pipe.sampler,
        "steps": pipe.steps,
        "spacing": pipe.spacing,
        "source": pipe.source,
        "card": pipe.card,
    }
    vae = None if pipe.codec is None else pipe.codec.vae

    if vae is not None:
        index["vae"] = ["diffusers", type(vae).__name__]

    with replacing(folder, overwrite=overwrite, mark=_INDEX) as part:
        net.save_pretrained(part / "net")
        if vae is not None:
            vae.save_pretrained(part / "vae")
        if schedule is not None:
            schedule.save(part / "schedule.json")
        text = json.dumps(index, indent=1, ensure_ascii=False, allow_nan=False)
        (part / _INDEX).write_text(text + "\n", encoding="utf-8")


def recorded(net: Net, record: Mapping[str, Any]) -> Preconditioned:
    """A network as the denoiser that a record describes: path, prediction, clock, sigma_data."""

    keys = ("prediction", "clock", "sigma_data")
    return Preconditioned(net, path_from_dict(record["path"]), **{k: record[k] for k in keys})


def read(folder: Path, index: dict[str, Any]) -> dict[str, Any]:
    """The fields of the pipeline that [`write`][genflow.pipelines.folders.write] saved.

    Args:
        folder: The folder.
        index: The record of its ``model_index.json``.

    Raises:
        UserError: If the record lacks a field, or a part of the folder is damaged.
    """

    file = folder / "schedule.json"

    try:
        denoiser = recorded(load_net(folder / "net", index["net"][1]), index)
        names = index["class_names"]
        return {
            "denoiser": denoiser.eval(),
            "shape": tuple(index["shape"]),
            "schedule": SolverSchedule.load(file) if file.exists() else None,
            "sampler": index["sampler"],
            "steps": index["steps"],
            "class_names": None if names is None else tuple(names),
            "spacing": index.get("spacing", {}),
            "card": index.get("card", {}),
            "source": index.get("source"),
            "codec": load_codec(folder / "vae") if "vae" in index else None,
        }
    except KeyError as error:
        raise UserError(
            f"pipeline '{folder}' lacks {error} in model_index.json: save it again."
        ) from None
