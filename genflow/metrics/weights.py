r"""Where the weights of foreign feature nets lie, and what is said when they do not.

A number with a published name, FID say, needs one network's very weights. They are looked for in
the place that the caller gives, then in the cache folder,

    ``$GENFLOW_CACHE``, else ``$XDG_CACHE_HOME/genflow``, else ``~/.cache/genflow``,

and nowhere is anything downloaded: a job that would fail for want of a file must say so before
it samples, not after. :class:`Absent` is that statement, one sentence with the file, where it
comes from, and the folder to put it in; an evaluation records it as the reason of a skipped
metric. What is *not* assumed: that a file with the right name has the right content. Its sha256
goes into every report, and nothing that a user hands in is ever unpickled.
"""

__all__ = ["Absent", "digest_of", "digest_of_file", "find"]

from collections.abc import Iterable, Sequence
import hashlib
import os
from pathlib import Path

from torch import Tensor

from genflow.errors import UserError
from genflow.files import sha256_of


class Absent(UserError):
    """Weights, or a library, that a feature needs are not on this machine."""


def find(
    feature: str,
    files: Sequence[str],
    source: str,
    *,
    given: str | os.PathLike[str] | None = None,
    folder: str | os.PathLike[str] | None = None,
) -> Path:
    """Finds the folder that holds all files of a feature's weights.

    Arguments:
        feature: The feature that needs them.
        files: What they are called.
        source: Where they come from, a URL.
        given: The folder that the caller named, if any.
        folder: The folder to look into otherwise.

    Returns:
        The folder.

    Raises:
        UserError: If the caller named a folder and a file is not in it.
        Absent: If a file is not in the folder to look into.
    """
    place = Path(folder if given is None else given).expanduser()
    missing = [name for name in files if not (place / name).is_file()]

    if missing and given is not None:
        raise UserError(
            f"feature '{feature}': '{place}' holds no {missing[0]}; it comes from {source}."
        )
    if missing:
        raise Absent(
            f"feature '{feature}': '{place / missing[0]}' is not there; get {', '.join(files)} "
            f"from {source} and put {'it' if len(files) == 1 else 'them'} into '{folder}', or "
            "say where it lies."
        )

    return place


def digest_of_file(path: str | os.PathLike[str]) -> str:
    """Gives the sha256 of a file in hexadecimal, reading a block at a time.

    Raises:
        UserError: If it cannot be read.
    """
    try:
        return sha256_of(path)
    except OSError as error:
        raise UserError(f"'{path}' cannot be read ({error.strerror or error}).") from None


def digest_of(name: str, weights: Iterable[Tensor] = ()) -> str:
    """Gives the sha256 of a name and of float32 weights, little end first, in hexadecimal."""
    digest = hashlib.sha256(name.encode())
    for weight in weights:
        digest.update(weight.detach().cpu().numpy().astype("<f4").tobytes())

    return digest.hexdigest()
