r"""The zoo: small trained models that come with the repository.

A model is a folder with a saved pipeline, schedules that were searched for it (one for each
number of calls), their tables with tuned weights, a card that says how it was made and what was
measured on it, and a picture. All of it is JSON, safetensors and PNG; nothing is unpickled, and
the weights are checked against the digests of the card before they are read.
``assets/zoo/make.py`` of the repository makes them all.

    >>> from genflow import zoo
    >>> pipe = zoo.load("digits-1rf")
    >>> pipe(16, label=3, schedule=zoo.schedule("digits-1rf", 5)).images[0].show()

What is *not* assumed: a network connection, or that models travel with an installed package: they
lie where `genflow.shelves` says. They are small models of small pictures, there to try things on.
"""

__all__ = [
    "card",
    "copy",
    "load",
    "names",
    "schedule",
    "schedules",
    "table",
    "tables",
    "text",
    "trial",
]

import os
from pathlib import Path
import shutil
from typing import Any

import torch

from genflow.errors import UserError
from genflow.files import replacing
from genflow.pipelines import BridgePipeline, Pipeline
from genflow.shelves import CARD, PREFIX, card_of, models, shelf
from genflow.solvers import SolverSchedule, Tableau
from genflow.solvers.files import load_table


def names() -> list[str]:
    """The names of the models that are here."""

    return list(models())


def card(name: str) -> dict[str, Any]:
    """What is known about a model: data, making, parameters, licence, digests, distances.

    Args:
        name: The name of the model.

    Raises:
        UserError: If there is no such model, or it is damaged.
    """

    return card_of(shelf(name))


def text(name: str) -> str:
    """The card of a model to read, in Markdown.

    Args:
        name: The name of the model.

    Raises:
        UserError: If there is no such model, or it is damaged.
    """

    page = (shelf(name) / "README.md").read_text(encoding="utf-8")
    return page.split("\n---\n", 1)[-1].strip()


def load(name: str, *, device: str | torch.device | None = None) -> Pipeline | BridgePipeline:
    """Loads a model; ``Pipeline.from_pretrained("zoo:NAME")`` does the same.

    Args:
        name: The name of the model.
        device: Where the networks go.

    Raises:
        UserError: If there is no such model, or it is damaged.
    """

    return Pipeline.from_pretrained(f"{PREFIX}{name}", device=device)


def schedules(name: str) -> dict[int, SolverSchedule]:
    """The schedules that were searched for a model, by their number of calls.

    Args:
        name: The name of the model.

    Raises:
        UserError: If there is no such model, or it is damaged.
    """

    return {nfe: SolverSchedule.load(file) for nfe, file in _files(name, "schedules").items()}


def tables(name: str) -> dict[int, Tableau]:
    """The tables of those schedules with tuned weights, by their number of calls.

    Args:
        name: The name of the model.

    Raises:
        UserError: If there is no such model, or it is damaged.
    """

    return {nfe: load_table(file) for nfe, file in _files(name, "tables").items()}


def _files(name: str, folder: str) -> dict[int, Path]:
    files = {int(file.stem): file for file in (shelf(name) / folder).glob("*.json")}
    return dict(sorted(files.items()))


def schedule(name: str, nfe: int) -> SolverSchedule:
    """The schedule that was searched for a model and a number of calls.

    Args:
        name: The name of the model.
        nfe: The number of calls of the network.

    Raises:
        UserError: If there is no such model or schedule, or it is damaged.
    """

    return SolverSchedule.load(_file(name, nfe, "schedules"))


def table(name: str, nfe: int) -> Tableau:
    """The table with tuned weights for a model and a number of calls.

    Args:
        name: The name of the model.
        nfe: The number of calls of the network.

    Raises:
        UserError: If there is no such model or table, or it is damaged.
    """

    return load_table(_file(name, nfe, "tables"))


def _file(name: str, nfe: int, folder: str) -> Path:
    found = _files(name, folder)

    if nfe not in found:
        known = ", ".join(map(str, found)) or "none"
        raise UserError(
            f"nfe is {nfe}, and the {folder} of zoo model '{name}' have {known}: take one of "
            "them, or search one with 'genflow search'."
        )

    return found[nfe]


def copy(name: str, output: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Copies the folder of a model.

    Args:
        name: The name of the model.
        output: Where to.
        overwrite: Whether a model that is there already is replaced.

    Raises:
        UserError: If there is no such model, the folder is taken, or writing fails.
    """

    with replacing(output, overwrite=overwrite, mark=CARD) as part:
        shutil.copytree(shelf(name), part, dirs_exist_ok=True)


def trial(pipe: Pipeline | BridgePipeline) -> dict[str, float]:
    r"""Numbers that a sound copy of a model gives again, up to rounding.

    Four samples of the seeds 0 … 3 by the model's own sampler; a bridge carries four grey images.

    Args:
        pipe: The model.

    Returns:
        The mean and the deviation of their values, and the mean of their products with
        :math:`\cos i` over the index i, which depends on where each value stands.
    """

    if isinstance(pipe, BridgePipeline):
        label = (
            None if pipe.bridge.classes is None else [i % pipe.bridge.classes for i in range(4)]
        )
        x = pipe(torch.zeros(4, *pipe.event), seed=0, label=label).x
    else:
        x = pipe(4, seed=0).x

    values = x.double().flatten()
    place = torch.arange(len(values), dtype=torch.float64).cos()
    numbers = {"mean": values.mean(), "std": values.std(), "cos": (values * place).mean()}
    return {key: round(float(value), 6) for key, value in numbers.items()}
