"""What samples are compared with: data, or references that were stored of them.

A reference is what one feature net made of a data set. It is kept in the user's cache folder under
the content of the data and of the net, so the same data are never looked at twice; or it is stored
with ``genflow reference make --output`` and given in place of the data, which then need not be
there at all. References of several nets lie beside each other in one folder::

    digits-reference/random-conv/reference.json
    digits-reference/genflow-small/reference.json
"""

__all__ = ["References", "is_reference", "reference_of"]

from collections.abc import Callable
from pathlib import Path
from typing import Any

from genflow.errors import UserError
from genflow.evaluation.sources import Source
from genflow.files import cache_folder
from genflow.metrics.features import Features
from genflow.metrics.references import Reference

RECORD = "reference.json"


def _folders(what: Path) -> list[Path]:
    if (what / RECORD).is_file():
        return [what]
    return sorted(file.parent for file in what.glob(f"*/{RECORD}"))


def is_reference(what: str | Path) -> bool:
    """Whether a name is that of a folder with a stored reference, or with several."""

    return bool(_folders(Path(what)))


class References:
    """Stored references of one data set.

    Args:
        what: The folder of one, or of several side by side.

    Attributes:
        what: The folder.
        held: The references.
        shape: The shape of one of the data.
        sha256: The digest of the data.

    Raises:
        UserError: If one cannot be read, or they are of different data.
    """

    def __init__(self, what: str | Path) -> None:
        self.what = str(what)
        self.held = [Reference.load(folder) for folder in _folders(Path(what))]
        first = self.held[0]
        self.shape, self.sha256 = tuple(first.shape), first.data

        for other in self.held:
            if other.data != first.data:
                raise UserError(
                    f"'{what}' holds references of different data ('{first.feature}' and "
                    f"'{other.feature}'): keep those of one data set in one folder."
                )

    def __len__(self) -> int:
        return self.held[0].count

    @property
    def features(self) -> str:
        """The names of the nets, with commas."""

        return ",".join(reference.feature for reference in self.held)

    def of(self, net: Features) -> Reference:
        """The reference of a net.

        Raises:
            UserError: If there is none; the message says which there are.
        """

        same = [r for r in self.held if r.digest == net.digest]
        return (same or self.held)[0].of(net)

    def record(self) -> dict[str, Any]:
        """What a report says about the data, as JSON values."""

        return {
            "what": self.what,
            "kind": "reference",
            "count": len(self),
            "shape": list(self.shape),
            "sha256": self.sha256,
            "unreadable": [],
        }


def reference_of(
    data: Source | References,
    net: Features,
    *,
    points: bool,
    say: Callable[[str], None] = print,
) -> Reference:
    """The reference of data on a net: the stored one, that of the cache, or a new one.

    Args:
        data: The data.
        net: The net.
        points: Whether the features themselves are needed, and not their moments alone.
        say: Told where the reference comes from.

    Raises:
        UserError: If a stored reference is of another net, or there are too few data.
    """

    if isinstance(data, References):
        return data.of(net)

    place = cache_folder() / "references"
    before = {folder.name for folder in place.glob("*")}

    try:
        found = Reference.cached(data, net, points=points)
    except OSError as error:
        say(f"reference: '{place}' cannot be written ({error.strerror}), nothing is kept there")
        return Reference.make(data, net, points=points)

    where = "from the cache" if found.key in before else f"made, and kept in '{place}'"
    say(f"reference: {len(data)} data on {net.name}, {where}")
    return found
