"""What several commands ask for: a device, a pipeline, labels, options, a gradient policy."""

__all__ = ["Value", "device_named", "labels_of", "pipeline_named", "policy_of"]

import os
from typing import TYPE_CHECKING, Any

from genflow.errors import UserError

if TYPE_CHECKING:
    from genflow.pipelines import Pipeline


Value = int | float | bool | str
"""The value of a free option on the command line."""


def device_named(name: str | None = None) -> str:
    """The device of a name; without a name a GPU if there is one, else the CPU.

    Of the processes that torchrun starts on a machine, each takes a GPU of its own, also where
    ``cuda`` is said without a number.
    """

    if name not in (None, "cuda"):
        return name

    import torch

    if not torch.cuda.is_available():
        return name or "cpu"

    local = os.environ.get("LOCAL_RANK")
    return "cuda" if local is None else f"cuda:{int(local) % torch.cuda.device_count()}"


def pipeline_named(name: str, device: str | None = None, **options: Any) -> "Pipeline":
    """A pipeline that draws samples, of a folder, of the zoo or a hub id.

    Args:
        name: The folder, the id, or ``zoo:NAME``.
        device: A device that `device_named` knows.
        options: As in `Pipeline.from_pretrained`.

    Raises:
        UserError: If it is a bridge, which carries data to data.
    """

    from genflow.pipelines import BridgePipeline, Pipeline

    pipe = Pipeline.from_pretrained(name, device=device_named(device), **options)

    if isinstance(pipe, BridgePipeline):
        raise UserError(f"'{name}' is a bridge from data to data: use genflow bridge translate.")

    return pipe


def labels_of(pipe: Any, text: str | None, n: int) -> Any:
    """Class labels from text, gone round in for n samples."""

    from genflow.pipelines.conditions import round_in

    return pipe.labels(round_in(text, n), n)


def policy_of(text: str) -> Any:
    """A gradient policy from text: a name, or truncated with K or a range, as in truncated:1-5."""

    from genflow.solvers.adjoint import Truncated, policy

    name, _, last = text.partition(":")

    if name != "truncated" or not last:
        return policy(text)

    low, _, high = last.partition("-")

    if not (low.isdigit() and (high or low).isdigit()):
        raise UserError(f"gradient is '{text}': write truncated:K or truncated:LOW-HIGH.")

    return Truncated((int(low), int(high)) if high else int(low))
