"""The zoo from the command line: what is there, how it was made, and a copy of it."""

__all__ = ["VERBS", "get", "show", "stock"]

from collections.abc import Callable


def stock() -> None:
    """List the models that are here, with their parameters and what they are."""

    from genflow import zoo
    from genflow.shelves import card_of, models, nothing

    cards = {name: card_of(folder) for name, folder in models().items()}

    if not cards:
        print(f"No models are here; {nothing()}")
        return

    width = max(map(len, cards))

    for name, card in cards.items():
        counts = ", ".join(map(str, zoo.schedules(name)))
        tuned = ", ".join(map(str, zoo.tables(name)))
        tail = f" Schedules: {counts} calls." if counts else ""
        tail += f" Tables: {tuned} calls." if tuned else ""
        print(f"{name:<{width}}  {card['parameters'] / 1e6:5.2f} M  {card['about']}{tail}")


def show(name: str) -> None:
    """Print the card of a model: data, making, parameters, licence, distances, limits.

    Args:
        name: The model, as "genflow zoo list" names it.
    """

    from genflow import zoo

    print(zoo.text(name))


def get(name: str, output: str | None = None, overwrite: bool = False) -> None:
    """Copy the folder of a model: pipeline, schedules and tables, card and picture.

    Args:
        name: The model, as "genflow zoo list" names it.
        output: The folder to copy to; one of the model's name by default.
        overwrite: Whether a model that is there already is replaced.
    """

    from genflow import zoo

    zoo.copy(name, output or name, overwrite=overwrite)
    print(f"pipeline: {output or name}")


VERBS: dict[str, Callable[..., None]] = {"list": stock, "show": show, "get": get}
"""The verbs of ``genflow zoo``."""
