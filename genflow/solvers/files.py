"""Solvers in files: a schedule, or a table that has none.

What a search finds is a schedule, which says in words what each step does. A table whose weights
were tuned one by one (`genflow.search.refine`) has no such words: it is saved as its numbers. Both
are JSON, and say which path they are for; `read_solver` reads either.
"""

__all__ = [
    "is_table",
    "load_table",
    "noted_path",
    "read_solver",
    "save_table",
    "solver_record",
    "table_of",
]

from collections.abc import Mapping
import json
import math
import os
from pathlib import Path as FilePath
from typing import Any

import torch

from genflow.errors import UserError, nearest
from genflow.files import write_text
from genflow.models.paths import Path
from genflow.models.records import path_from_dict, path_to_dict
from genflow.shelves import resolved
from genflow.solvers.schedules import SolverSchedule
from genflow.solvers.tableau import Tableau

FORMAT, VERSION = "genflow-table", 1
KINDS = {"reads": ("data", "velocity"), "source": ("model", "noise", "mean")}


def save_table(table: Tableau, file: str | os.PathLike[str], path: Path) -> None:
    """Writes a table as JSON, whole or not at all.

    Args:
        table: The table, with weights of shape (N, 2K + 1).
        file: The file.
        path: The path that it is for.

    Raises:
        UserError: If the weights differ between samples or elements, the network is altered, or
            writing fails.
    """

    record = solver_record(table, path)
    rows = ",\n  ".join(json.dumps(row, allow_nan=False) for row in record.pop("weight"))
    head = json.dumps(record, allow_nan=False)[1:-1]
    write_text(file, f'{{{head},\n "weight": [\n  {rows}\n ]}}\n')


def solver_record(solver: SolverSchedule | Tableau, path: Path | None = None) -> dict[str, Any]:
    """A schedule or a table as JSON values.

    Args:
        solver: The schedule; or the table, with weights of shape (N, 2K + 1).
        path: The path that it is for, to be noted beside it.

    Raises:
        UserError: If the weights of a table differ between samples or elements, or the network is
            altered.
    """

    if isinstance(solver, SolverSchedule):
        return json.loads(solver.to_json(path))

    if solver.weight.ndim != 2 or solver.changes:
        raise UserError(
            f"the table has weights of shape {tuple(solver.weight.shape)} and "
            f"{len(solver.changes)} alterations: only a plain table, (N, 2K + 1), is saved."
        )

    return {
        "format": FORMAT,
        "version": VERSION,
        **({} if path is None else {"path": path_to_dict(path)}),
        "reads": solver.reads,
        "source": solver.source,
        "time": solver.time.tolist(),
        "noise": solver.noise.tolist(),
        **({} if solver.start is None else {"start": float(solver.start)}),
        "weight": solver.weight.tolist(),
    }


def load_table(file: str | os.PathLike[str], path: Path | None = None) -> Tableau:
    """Reads a table.

    Args:
        file: The file.
        path: The path that it is wanted for.

    Raises:
        UserError: If there is no such file, it holds no table, or one of another path.
    """

    record = _record(file)

    if record.get("format") != FORMAT or record.get("version") != VERSION:
        raise UserError(
            f"'{file}' is no table: its format is {record.get('format')!r}, version "
            f"{record.get('version')!r}, and {FORMAT!r}, version {VERSION} is needed."
        )

    table, known = table_of(record, f"'{file}'"), _path_of(record, file)

    if path is not None and path != known:
        raise UserError(
            f"table '{file}' is for {type(known).__name__}, and wanted for {type(path).__name__} "
            "or for other parameters: a table cannot be moved, search one for this path."
        )

    return table


def is_table(file: str | os.PathLike[str]) -> bool:
    """Whether a file holds a table.

    Raises:
        UserError: If the file cannot be read, or is no JSON.
    """

    return _record(file).get("format") == FORMAT


def noted_path(file: str | os.PathLike[str]) -> Path:
    """The path that the file of a table notes.

    Raises:
        UserError: If it notes none, or no path.
    """

    return _path_of(_record(file), file)


def _path_of(record: Mapping[str, Any], file: str | os.PathLike[str]) -> Path:
    try:
        return path_from_dict(record["path"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"table '{file}' lacks a field or has a wrong one: {error}.") from None


def table_of(record: Mapping[str, Any], name: str) -> Tableau:
    """The table of a record that [`solver_record`][genflow.solvers.files.solver_record] made.

    Args:
        record: The record.
        name: What error messages call it.

    Raises:
        UserError: If a field is missing, or has not the shape or the kind that it must have.
    """

    try:
        weight, time, noise = (
            torch.tensor(record[k], dtype=torch.float64) for k in ("weight", "time", "noise")
        )
        start = record.get("start")
        table = Tableau(
            time,
            weight,
            noise,
            reads=record["reads"],
            source=record["source"],
            start=None if start is None else torch.tensor(start, dtype=torch.float64),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"table {name} lacks a field or has a wrong one: {error}.") from None

    for field, value in (("reads", table.reads), ("source", table.source)):
        if value not in KINDS[field]:
            raise UserError(f"table {name}: {field} is '{value}'{nearest(value, KINDS[field])}")

    N = len(time)
    sized = weight.ndim == 2 and weight.shape[0] == N and weight.shape[1] % 2 == 1

    if not sized or noise.shape != (N + 1,) or not all(map(_finite, (weight, time, noise))):
        raise UserError(
            f"table {name} has {N} times, weights of shape {tuple(weight.shape)} and "
            f"{len(noise)} noises: N, (N, 2K + 1) and N + 1 finite numbers are needed."
        )

    return table


def read_solver(
    file: str | os.PathLike[str], path: Path | None = None
) -> SolverSchedule | Tableau:
    """Reads a schedule or a table, whichever the file holds.

    Args:
        file: The file.
        path: The path that it is wanted for.

    Raises:
        UserError: If there is no such file, it holds neither, or is for another path.
    """

    if is_table(file):
        return load_table(file, path)
    return SolverSchedule.load(file, path)


def _record(file: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        record = json.loads(FilePath(resolved(file)).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"schedule '{file}' cannot be read ({error}).") from None
    except ValueError as error:
        raise UserError(f"schedule '{file}': the schedule is not JSON ({error}).") from None

    return record if isinstance(record, dict) else {}


def _finite(values: torch.Tensor) -> bool:
    return all(math.isfinite(v) for v in values.flatten().tolist())
