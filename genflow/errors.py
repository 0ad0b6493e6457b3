"""Errors that are the user's to mend: one sentence, exit code 2 on the command line."""

__all__ = ["UserError", "brief", "nearest"]

from collections.abc import Iterable
from difflib import get_close_matches
import re


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


def brief(text: str) -> str:
    """A parser's message in one line, without the alternatives that were never meant."""

    line = " ".join(part.strip() for part in text.strip().splitlines() if part.strip())
    cuts = (
        r"Does not validate against any of the Union subtypes Subtypes: .*?Errors: ",
        r" - Expected a <class 'NoneType'>(?= Given value|$)",
        r"Problem with given class_path '[^']*': ",
        r" Given value type: .*? Given value: NestedArg.*",
        r"Given value type: <class '\w+'> ",
        r"typing\.|collections\.abc\.",
    )

    for cut in cuts:
        line = re.sub(cut, "", line)

    line = re.sub(r'Parser key "([^"]*)": (- )?', r"\1: ", line)
    line = re.sub(r"<class '([\w.]+)'>", r"\1", line).replace(" - ", " ")
    return re.sub(r"(?<!\.) Given value: ", ". Got value: ", line)
