"""Where the models of the zoo lie: found by name and checked, without loading anything.

A model of the zoo is a folder NAME with a saved pipeline and a ``card.json``, which says among
other things what the sha256 of every file of weights is. It is looked for in the folder that the
environment variable ``GENFLOW_ZOO`` names, in ``assets/zoo`` of the checkout that the package
belongs to, and in ``zoo`` of the user's cache (`genflow.files.cache_folder`); the first that
holds it wins. Nothing is fetched from a network.

Wherever a pipeline is named, ``zoo:NAME`` is one of these; a file of its folder is
``zoo:NAME/FILE``, as in ``zoo:digits-1rf/schedules/5.json``.
"""

__all__ = ["CARD", "PREFIX", "card_of", "models", "nothing", "places", "resolved", "shelf"]

import json
import os
from pathlib import Path
from typing import Any

from genflow.errors import UserError, nearest
from genflow.files import cache_folder, sha256_of

CARD, PREFIX = "card.json", "zoo:"

FORMAT = 1
"""The format of cards that is read here."""


def places() -> tuple[Path, ...]:
    """The folders in which models are looked for, in their order.

    Raises:
        UserError: If ``GENFLOW_ZOO`` is set and is no folder.
    """

    own = os.environ.get("GENFLOW_ZOO")

    if own and not Path(own).is_dir():
        raise UserError(
            f"GENFLOW_ZOO is '{own}', which is no folder: give one that holds models, or unset it."
        )

    checkout = Path(__file__).resolve().parents[1] / "assets" / "zoo"
    return (*([Path(own)] if own else []), checkout, cache_folder() / "zoo")


def models() -> dict[str, Path]:
    """The folders of all models that are here, by name."""

    found: dict[str, Path] = {}

    for place in places():
        for card in sorted(place.glob(f"*/{CARD}")):
            found.setdefault(card.parent.name, card.parent)

    return dict(sorted(found.items()))


def nothing() -> str:
    """Where was looked, and what to do, for one who finds no models."""

    where = " and ".join(f"'{place}'" for place in places())
    return (
        f"looked in {where}. Models come with the repository of genflow, not with the installed "
        "package: clone it, and let the environment variable GENFLOW_ZOO name its folder "
        f"assets/zoo, or copy models of it to '{places()[-1]}'."
    )


def shelf(name: str) -> Path:
    """The folder of a model, its weights checked against its card.

    Args:
        name: The name, as in ``digits-1rf``.

    Raises:
        UserError: If there is no such model, or a file of weights is missing or damaged.
    """

    known = models()

    if not known:
        raise UserError(f"zoo model '{name}' is not here, nor is any other; {nothing()}")
    if name not in known:
        raise UserError(f"zoo model is '{name}'{nearest(name, known)}")

    folder = known[name]

    for file, digest in card_of(folder)["weights"].items():
        if _sha256(folder / file) != digest:
            raise UserError(
                f"the weights of zoo model '{name}' are missing or damaged: '{folder / file}' has "
                "not the sha256 that its card gives, copy the folder again."
            )

    return folder


def resolved(name: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """The folder of a model for ``zoo:NAME``, a file in it for ``zoo:NAME/FILE``, or as it is.

    Raises:
        UserError: As `shelf` does.
    """

    if os.fspath(name).startswith(PREFIX):
        model, _, file = os.fspath(name).removeprefix(PREFIX).partition("/")
        return shelf(model) / file

    return name


def card_of(folder: Path) -> dict[str, Any]:
    """The card of a model.

    Raises:
        UserError: If it cannot be read, or has another format.
    """

    file = folder / CARD

    try:
        card = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"'{file}' cannot be read ({error}): copy the folder again.") from None

    if not isinstance(card, dict) or card.get("format") != FORMAT or "weights" not in card:
        raise UserError(
            f"'{file}' is no card of format {FORMAT}: a newer genflow may read it, or copy the "
            "folder again."
        )

    return card


def _sha256(file: Path) -> str | None:
    """The digest of a file; None if it cannot be read."""

    try:
        return sha256_of(file)
    except OSError:
        return None
