"""What several commands ask for: a device, labels, values of options."""

__all__ = ["Value", "device_named", "labels_of", "pipeline_named"]

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genflow.pipelines import Pipeline

Value = int | float | bool | str
"""The value of a free option on the command line."""


def device_named(name: str | None = None) -> str:
    """The device of a name; without a name a GPU if there is one, else the CPU."""

    if name is not None:
        return name

    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def labels_of(pipe: Any, text: str | None, n: int) -> Any:
    """Class labels from text, gone round in for n samples."""

    if text is None:
        return pipe.labels(None, n)

    names = [part.strip() for part in text.split(",")]
    return pipe.labels([names[i % len(names)] for i in range(n)], n)


def pipeline_named(name: str, device: str | None = None) -> "Pipeline":
    """The pipeline of a folder or of an id, on a device that `device_named` knows."""

    from genflow.pipelines import Pipeline

    return Pipeline.from_pretrained(name, device=device_named(device))
