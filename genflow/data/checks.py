"""Checks of what a user wrote: one sentence that names the field, quotes it and says the cure."""

from collections.abc import Iterable
from typing import Any

from genflow.errors import UserError, nearest

__all__ = ["at_least", "between", "one_of", "plain", "wrong_ends"]


def at_least(field: str, value: Any, least: int) -> int:
    """Returns a whole number that is large enough.

    Args:
        field: the name that the user knows the number by.
        value: what the user wrote.
        least: the smallest number allowed.

    Raises:
        UserError: if `value` is not a whole number, or is below `least`.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(
            f"{field} is {value!r}, but it must be a whole number of at least {least}: "
            f"set it to {least} or more."
        )
    return value


def between(field: str, value: Any, low: float, high: float) -> float:
    """Returns a number in the half-open interval [low, high).

    Args:
        field: the name that the user knows the number by.
        value: what the user wrote.
        low: the smallest number allowed.
        high: the first number that is too large; may be infinite.

    Raises:
        UserError: if `value` is not a number, or lies outside the interval.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not low <= value < high:
        raise UserError(
            f"{field} is {value!r}, but it must be a number from {low:g} to below {high:g}: "
            f"choose one in that range."
        )
    return float(value)


def one_of(field: str, value: Any, allowed: Iterable[Any]) -> Any:
    """Returns a value that is on the list.

    Args:
        field: the name that the user knows the choice by.
        value: what the user wrote.
        allowed: every choice there is.

    Raises:
        UserError: if `value` is not among them; the message names the nearest that is.
    """
    allowed = list(allowed)
    if value not in allowed:
        raise UserError(f"{field} is {value!r}{nearest(str(value), map(str, allowed))}")
    return value


def wrong_ends(source: tuple[int, ...], target: tuple[int, ...]) -> UserError:
    """The error about a source that is shaped unlike its target."""

    return UserError(
        f"the source has samples of shape {source} and the target of shape {target}: a flow leads "
        "between samples of one shape, resize or convert one of the two."
    )


def plain(field: str, data: Any) -> Any:
    """Returns a data module that is to be read by another, which splits and flips itself.

    Args:
        field: the name that the user knows the inner module by.
        data: the module.

    Raises:
        UserError: if the inner module is told to hold examples out, or to mirror them.
    """
    for option in ("validation", "flip"):
        if getattr(data, option):
            raise UserError(
                f"{field}.{option} is {getattr(data, option)}, but {field} is read by another "
                f"data module: set {option} there, and leave it out here."
            )
    return data
