"""Paths as plain JSON values, for configs and for saved pipelines."""

__all__ = ["path_from_dict", "path_named", "path_to_dict"]

import ast
from dataclasses import fields
import json
import math
from pathlib import Path as FilePath
from typing import Any

from genflow.errors import UserError, nearest
from genflow.models.noise import StudentT
from genflow.models.paths import (
    Brownian,
    Cosine,
    Discrete,
    Karras,
    Path,
    Rectified,
    VariancePreserving,
)
from genflow.shelves import resolved

_NAMES: dict[str, type[Path]] = {
    cls.__name__: cls
    for cls in (VariancePreserving, Cosine, Discrete, Rectified, Karras, Brownian)
}


def path_to_dict(path: Path) -> dict[str, Any]:
    """A path as plain JSON values: its class name and its fields."""

    values = {f.name: getattr(path, f.name) for f in fields(path) if f.name != "noise"}
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
    D = getattr(path.noise, "D", None)

    if D is not None:
        values["D"] = "inf" if math.isinf(D) else D

    return {"class": type(path).__name__, **values}


def path_from_dict(record: dict[str, Any]) -> Path:
    """The path that [`path_to_dict`][genflow.models.records.path_to_dict] wrote.

    Raises:
        UserError: If the class or a field is unknown.
    """

    values = dict(record)
    name = values.pop("class", None)

    if name not in _NAMES:
        raise UserError(f"path.class is '{name}'{nearest(str(name), _NAMES)}")

    D = values.pop("D", None)
    allowed = {f.name for f in fields(_NAMES[name])} - {"noise"}

    for key in values:
        if key not in allowed:
            raise UserError(f"path.{key} is no field of {name}{nearest(key, allowed)}")

        if isinstance(values[key], bool) or not isinstance(values[key], (int, float, list, tuple)):
            raise UserError(f"path.{key} is {values[key]!r}: a number is needed.")

    if D is not None:
        values["noise"] = StudentT(_degrees(D))

    return _NAMES[name](**values)


def _degrees(D: Any) -> float:
    """The degrees of freedom in a record, where infinity is text, as JSON has no number for it."""

    try:
        return float(D)
    except (TypeError, ValueError):
        raise UserError(f"path.D is {D!r}: a number above 0, or 'inf', is needed.") from None


def path_named(text: str) -> Path:
    """The path that a text names.

    Args:
        text: A class, as in ``Karras``; with its numbers, as in ``Karras(sigma_max=40)``; a saved
            pipeline or ``zoo:NAME``; or a JSON file that holds the record of a path, or notes it
            as "path".

    Raises:
        UserError: If it names none.
    """

    file = FilePath(resolved(text))

    if file.is_dir() or file.suffix == ".json":
        return path_from_dict(_record(file))

    try:
        call = ast.parse(text, mode="eval").body
        name = call.func.id if isinstance(call, ast.Call) else call.id
        given = call.keywords if isinstance(call, ast.Call) else []
        values = {str(k.arg): _literal(k.value) for k in given}
        if isinstance(call, ast.Call) and call.args:
            raise ValueError
    except (AttributeError, SyntaxError, ValueError):
        raise UserError(
            f"path is '{text}': a name as in Karras, with numbers as in 'Karras(sigma_max=40)', "
            "or a saved pipeline is needed."
        ) from None

    known = {k.lower(): k for k in _NAMES}

    try:
        return path_from_dict({"class": known.get(name.lower(), name), **values})
    except TypeError as error:
        raise UserError(f"path is '{text}': {error}; a saved pipeline names it whole.") from None


def _literal(node: ast.expr) -> Any:
    """A number as Python writes it, and inf."""

    infinite = isinstance(node, ast.Name) and node.id == "inf"
    return "inf" if infinite else ast.literal_eval(node)


def _record(file: FilePath) -> dict[str, Any]:
    """The record of a path that a pipeline, a schedule or a file of its own holds."""

    source = file / "model_index.json" if file.is_dir() else file

    try:
        record = json.loads(source.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"path '{file}' cannot be read ({error}).") from None

    found = record.get("path", record) if isinstance(record, dict) else None

    if not isinstance(found, dict) or "class" not in found:
        raise UserError(f"'{file}' notes no path: name one, as in Karras, or a saved pipeline.")

    return found
