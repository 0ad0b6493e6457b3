"""Paths as plain JSON values, for configs and for saved pipelines."""

__all__ = ["path_from_dict", "path_to_dict"]

from dataclasses import fields
import math
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
    """The path that [`path_to_dict`][genflow.models.paths.path_to_dict] wrote.

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

    if D is not None:
        values["noise"] = StudentT(float(D))

    return _NAMES[name](**values)
