"""Errors that are the user's to mend: one sentence, exit code 2 on the command line."""

__all__ = ["UserError", "nearest"]

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """A value that the user gave cannot be used.

    The message is one sentence: the field, the value, what is allowed, what to do. The command
    line prints it without a traceback and exits with code 2.
    """


def nearest(name: str, allowed: Iterable[str]) -> str:
    """The tail of a message about an unknown name: the nearest allowed one, then all of them."""

    allowed = sorted(allowed)
    lower = {a.lower(): a for a in allowed}
    close = get_close_matches(name.lower(), lower, n=1, cutoff=0.4)
    hint = f": did you mean '{lower[close[0]]}'? " if close else ", which is unknown. "

    return f"{hint}Allowed: {', '.join(allowed)}."
