r"""Parents along a Pareto front: quality against cost.

NSGA-II's order of a population with two aims, score and cost. Entries that no other beats in both
are layer 1; those that only layer 1 beats are layer 2, and so on. Inside a layer, entries with
more room around them come first, and the ends of a layer before all others. Parents that are taken
in this order spread over the whole front, where those with the best scores crowd at its dear end.

References:
    A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II
    https://doi.org/10.1109/4235.996017
"""

__all__ = ["layers", "spread"]

from collections.abc import Sequence
import math

from genflow.search.archive import Archive, Entry, front


def layers(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Entries by layers: a Pareto front, the front of the rest, and so on.

    Args:
        entries: Scored entries.

    Returns:
        The layers, each with the cheapest first; of entries alike in both aims the oldest stands
        in the first layer.
    """

    rest, out = list(entries), []

    while rest:
        layer = front(rest)
        taken = {e.number for e in layer}
        rest = [e for e in rest if e.number not in taken]
        out.append(layer)

    return out


def spread(archive: Archive, n: int) -> list[Entry]:
    """The first n entries in NSGA-II's order, for ``Evolution.select``.

    Args:
        archive: What has been scored.
        n: How many.
    """

    chosen: list[Entry] = []

    for layer in layers(archive.kept):
        if len(chosen) >= n:
            break
        room = _room(layer)
        chosen += sorted(layer, key=lambda e, room=room: (-room[e.number], e.number))

    return chosen[:n]


def _room(layer: Sequence[Entry]) -> dict[int, float]:
    """The crowding distance of each entry: half the sides of the box between its neighbours."""

    room = {e.number: math.inf for e in layer}
    cost = layer[-1].cost - layer[0].cost or 1.0
    value = layer[0].value - layer[-1].value or 1.0

    for before, entry, after in zip(layer, layer[1:], layer[2:], strict=False):
        room[entry.number] = (after.cost - before.cost) / cost
        room[entry.number] += (before.value - after.value) / value

    return room
