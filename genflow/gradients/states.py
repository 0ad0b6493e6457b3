"""The state of a run in one file: numbers and tensors, nested as they come, nothing pickled.

Tensors are stored by safetensors; what holds them (mappings, lists, numbers, texts, None) is JSON
in the header of the same file, where a tensor is an object ``{"tensor": "3"}`` and a mapping an
object ``{"items": [[key, value], ...]}``, so that keys keep their type. Python writes every float
with as many digits as it needs, so a state that is read back is the same bit for bit. The file is
whole or absent: a process that is killed leaves the state before.
"""

__all__ = ["load_state", "save_state"]

from collections.abc import Mapping
import json
import os
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
import torch
from torch import Tensor

from genflow.errors import UserError
from genflow.files import writing


def save_state(file: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Writes a state.

    Args:
        file: The file.
        state: Tensors, numbers, texts, booleans and None in mappings and lists.

    Raises:
        UserError: If writing fails.
    """

    tensors: dict[str, Tensor] = {}
    text = json.dumps(_packed(state, tensors))

    with writing(file) as part:
        save_file(tensors, part, metadata={"state": text})


def load_state(file: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a state, its tensors on the CPU; tuples come back as lists.

    Args:
        file: The file.

    Raises:
        UserError: If the file is missing, damaged, or of another kind.
    """

    try:
        with safe_open(file, "pt") as stored:
            tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
            return _unpacked(json.loads(stored.metadata()["state"]), tensors)
    except (OSError, SafetensorError, TypeError, KeyError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise UserError(
            f"state '{file}' cannot be read ({reason}): begin again with overwrite."
        ) from None


def _packed(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"items": [[k, _packed(v, tensors)] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        return [_packed(v, tensors) for v in value]
    return value


def _unpacked(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpacked(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return torch.clone(tensors[value["tensor"]])
    return {k: _unpacked(v, tensors) for k, v in value["items"]}
