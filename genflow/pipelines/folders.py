"""Folders of saved pipelines: found, and read without unpickling."""

__all__ = ["load_net", "locate", "make_net", "read_index"]

import json
import os
from pathlib import Path
from typing import Any

import diffusers
from safetensors import SafetensorError

from genflow.errors import UserError, nearest
from genflow.nn import Net, VectorMLP

_MODELS = {
    "UNet2DModel": diffusers.UNet2DModel,
    "DiTTransformer2DModel": diffusers.DiTTransformer2DModel,
    "VectorMLP": VectorMLP,
}


def locate(name: str | os.PathLike[str]) -> Path:
    """The folder of a pipeline: the one of that name, or a snapshot of a repository of the hub.

    Raises:
        UserError: If it is neither.
    """

    folder = Path(name)

    if folder.is_dir():
        return folder

    if str(name).count("/") != 1 or str(name).startswith((".", "/")):
        raise UserError(f"pipeline '{name}' is no folder: give a saved pipeline, or a hub id a/b.")

    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(name), allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:
        raise UserError(
            f"pipeline '{name}' is no folder here, and the hub did not give it "
            f"({type(error).__name__}): check the name, or the network."
        ) from None


def read_index(folder: Path, version: int) -> dict[str, Any]:
    """The record in ``model_index.json``.

    Raises:
        UserError: If there is none, or it is damaged, foreign, or of a newer format.
    """

    file = folder / "model_index.json"

    try:
        index = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"folder '{folder}' holds no pipeline: model_index.json is missing."
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"'{file}' cannot be read ({error}): save the pipeline again.") from None

    if not isinstance(index, dict) or index.get("_library") != "genflow":
        found = index.get("_class_name") if isinstance(index, dict) else None
        raise UserError(
            f"folder '{folder}' holds a pipeline of class {found!r}, not one that genflow saved."
        )
    if index.get("format") != version:
        raise UserError(
            f"pipeline '{folder}' has format {index.get('format')!r}: this genflow reads format "
            f"{version}; a newer genflow may read it."
        )

    return index


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


def load_net(folder: Path, name: str) -> Net:
    """The network in a folder.

    Args:
        folder: The folder with ``config.json`` and the weights.
        name: The class of the network.

    Raises:
        UserError: If the class is unknown, or the weights are missing, damaged, or do not fit.
    """

    try:
        model, info = _model(name).from_pretrained(
            folder,
            use_safetensors=True,
            low_cpu_mem_usage=False,
            output_loading_info=True,
            local_files_only=True,
        )
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"the network in '{folder}' cannot be loaded ({reason}): the files are damaged or "
            "incomplete, copy or save them again."
        ) from None

    missing = [*info["missing_keys"], *info["unexpected_keys"]]

    if missing:
        raise UserError(
            f"the weights in '{folder}' do not fit their config ({len(missing)} names differ, "
            f"'{missing[0]}' first): the files belong to different networks."
        )

    return Net(model)
