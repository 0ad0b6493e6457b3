"""What a table is, where tables are kept by name, and what all of them share."""

__all__ = ["TABLES", "Record", "Table", "found", "markdown", "show", "spread", "table", "told"]

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
import json
from math import floor, log10
from statistics import mean, stdev
from typing import Any

GPU = "-gpu"
"""How the names of results of a GPU, and of their tables, end."""

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """A table of a page.

    Attributes:
        source: The name of the results that it is made of.
        make: Makes the Markdown.
    """

    source: str
    make: Callable[[Record], str]


TABLES: dict[str, Table] = {}
"""The tables by name."""


def table(name: str, source: str | None = None) -> Callable[[Any], Any]:
    """Registers a function as a table."""

    def register(make: Callable[[Record], str]) -> Callable[[Record], str]:
        TABLES[name] = Table(source or name, make)
        return make

    return register


def found(name: str) -> Table:
    """The table of a mark; its results are those of the GPU where the name ends so.

    Raises:
        KeyError: If there is no such table.
    """

    if name in TABLES or not name.endswith(GPU):
        return TABLES[name]

    entry = TABLES[name.removesuffix(GPU)]
    return Table(entry.source + GPU, entry.make)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], below: str = "") -> str:
    """A table in Markdown, with a line below it."""

    lines = ["| " + " | ".join(cells) + " |" for cells in (header, *rows)]
    lines.insert(1, "|" + "---|" * len(header))
    return "\n".join(lines + (["", below] if below else []))


def show(name: str, record: Record) -> None:
    """Prints the tables that are made of a benchmark's results."""

    for entry in TABLES.values():
        if entry.source == name:
            print("\n" + entry.make(_plain(record)))


def _plain(record: Record) -> Record:
    """The record as it is read back from its file: keys are text."""

    return json.loads(json.dumps(record))


def told(record: Record, *peers: str, ratio: str) -> str:
    """The line below a table: day, machine, versions of what is compared, and the ratio."""

    here, device = record["machine"], record["options"].get("device", "cpu")
    where = f"{here['cpu']}, {here['cores']} cores" if device == "cpu" else here["gpu"]
    known = here["versions"]
    versions = ", ".join(f"{name} {known[name]}" for name in ("torch", *peers) if name in known)
    return f"{here['date']}, {where}; {versions}. {ratio}"


def spread(values: Sequence[float], form: str = ".3g") -> str:
    """The mean and the deviation in two figures; the mean alone where there is none."""

    deviation = stdev(values) if len(values) > 1 else 0.0

    if not deviation:
        return f"{mean(values):{form}}"

    places = max(0, 1 - floor(log10(deviation)))
    return f"{mean(values):.{places}f} ± {deviation:.{places}f}"
