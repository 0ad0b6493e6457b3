r"""Every metric by one call, each with its floor beside it.

A number alone says nothing: a Fréchet distance from finite samples is never zero, precision never
one, and their units depend on the feature. So each metric :math:`D` is also measured on random
halves :math:`A, B` of the reference, and on as many samples :math:`S` as there are points in
:math:`A`,

.. math:: \text{floor} = D(A, B), \qquad \text{at floor's n} = D(S, B), \qquad
    \text{ratio} = \overline{D(S, B)} \, / \, \overline{D(A, B)}

with a mean and a deviation over some such halvings. A perfect model has a ratio of one, and a
Fréchet ratio well *below* one is a sign of copied training data. If there are fewer samples than
half the reference, :math:`A` is cut to their number. KID's floor is zero on average, so its unit
is the floor's *deviation*: within a few of them samples are not told from real ones.

What is *not* assumed: that the points fit into memory, they may be memory maps; nor that there are
points of the reference at all. Where only its moments are stored, the Fréchet distance is the one
metric that is left, and it has no floor. Metrics of all pairs look at ``most`` points of each
cloud, drawn once; the memorisation check then still reads the whole reference.
"""

__all__ = ["METRICS", "halves", "markdown", "measure", "resolve"]

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from genflow.errors import UserError, nearest
from genflow.metrics.catalogue import METRICS, Found, How, label, resolve, sigma_for
from genflow.metrics.frechet import Moments
from genflow.metrics.inputs import as_table, as_tables

SPLITS, SUBSETS, NOISE, CUTS = range(4)  # independent streams of random numbers from one seed
SETS = 100  # KID's subsets, for the value, and for the floor over all repeats
FEW, LEAST = 10_000, 16  # samples of an FID that is not flagged; points that pairs are made of


def halves(
    samples: int, reference: int, repeats: int, seed: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    r"""Draws halvings of the reference, and as many samples as the first half has points.

    Arguments:
        samples: The number of samples.
        reference: The number of points of the reference.
        repeats: The number of halvings.
        seed: The seed; what is drawn from the reference does not depend on the samples.

    Yields:
        The indices of A, B and S.
    """
    half = reference // 2
    few = min(half, samples)
    splits, subsets = stream(seed, SPLITS), stream(seed, SUBSETS)

    for _ in range(repeats):
        order = torch.randperm(reference, generator=splits)
        chosen = torch.randperm(samples, generator=subsets)[:few]
        yield order[:few], order[half:], chosen


def measure(
    x: Any,
    y: Any,
    names: Iterable[str],
    *,
    prefix: str,
    seed: int = 0,
    repeats: int = 5,
    most: int = 10_000,
) -> dict[str, Any]:
    r"""Measures samples against a reference, by their features.

    Arguments:
        x: The samples' features, with shape :math:`(n, d)`; at least 2, a memory map if large.
        y: The reference's, likewise, at least 4; or their :class:`~genflow.metrics.Moments`; or
            what has both as attributes, a :class:`~genflow.metrics.references.Reference`.
        names: Names of :data:`METRICS`.
        prefix: How the feature calls its Fréchet distance.
        seed: The seed of the halvings, subsets and directions.
        repeats: The number of halvings, 2 or more; 0 for no floors.
        most: The most points that a metric of all pairs looks at, at least 16.

    Returns:
        A dictionary that JSON can hold: ``prefix``, ``width``, ``counts`` (``samples``,
        ``reference``, ``floor`` as the sizes of A and B), ``seed``, ``repeats``, ``most``,
        ``warnings``, and ``metrics``: for each a ``label``, ``better``, ``value``, ``points``,
        ``at_floor_n`` and ``floor`` (each with ``mean``, ``std`` and ``values``, or None) and
        ``ratio`` (None if there is no floor, or it is not positive), and what else it tells; or
        a ``label``, ``better`` and the ``reason`` why it was left out.

    Raises:
        UserError: If a name is unknown, a number is out of range, or there are too few points.
    """
    names = list(dict.fromkeys(names))
    for name in names:
        if name not in METRICS:
            raise UserError(f"metric '{name}'{nearest(name, METRICS)}")
    _check_numbers(repeats, most)

    x, y = _tables(x, y, repeats)
    stored = isinstance(y, Moments)
    possible = [name for name in names if not (stored and METRICS[name].points)]
    how = How(seed, SETS, sigma_for(prefix, y, seed) if "mmd" in possible else 1.0)

    found = _apply(possible, x, y, how, most)
    floors, drawn = [], []
    if repeats and not stored:
        quick = How(seed, max(SETS // repeats, 1), how.sigma)
        for first, second, chosen in halves(len(x), len(y), repeats, seed):
            b = y[second]
            floors.append(_apply(possible, y[first], b, quick, most))
            drawn.append(_apply(possible, x[chosen], b, quick, most))

    m = y.count if stored else len(y)
    half = m // 2
    result = {
        "prefix": prefix,
        "width": x.shape[1],
        "counts": {
            "samples": len(x),
            "reference": m,
            "floor": [min(half, len(x)), m - half] if floors else None,
        },
        "seed": seed,
        "repeats": repeats,
        "most": most,
        "metrics": {name: _entry(name, prefix, found, floors, drawn) for name in names},
    }

    return result | {"warnings": _warnings(result)}


def stream(seed: int, purpose: int) -> torch.Generator:
    """A generator for one purpose, independent of the others of the same seed."""
    return torch.Generator().manual_seed(1_000_003 * seed + purpose)


def _tables(x: Any, y: Any, repeats: int) -> tuple[Tensor, Tensor | Moments]:
    if hasattr(y, "moments"):
        y = y.moments if y.points is None else y.points
    if not isinstance(y, Moments):
        return as_tables(x, as_table("y", y, least=4 if repeats else 2), least=2)

    x = as_table("x", x, least=2)
    if x.shape[1] != len(y.mean):
        raise UserError(
            f"y: moments of width {len(y.mean)} cannot be compared with x of width {x.shape[1]}; "
            "take both from one feature."
        )

    return x, y


def _apply(names: list[str], x: Tensor, y: Any, how: How, most: int) -> Found:
    """Computes metrics, those that share their work at once."""
    found: Found = {}

    for name in names:
        metric = METRICS[name]
        if name in found:
            continue
        rows = _cut(len(x), most, how.seed) if metric.pairs else None
        a = x if rows is None else x[rows]
        if metric.pairs and not metric.whole:
            columns = _cut(len(y), most, how.seed)
            b = y if columns is None else y[columns]
        else:
            b = y
        for other, entry in metric.function(a, b, how).items():
            counted = b.count if isinstance(b, Moments) else len(b)
            found[other] = entry | {"points": [len(a), counted]}
            if rows is not None and "closest" in entry:
                for pair in entry["closest"]:
                    pair["sample"] = int(rows[pair["sample"]])

    return found


def _cut(count: int, most: int, seed: int) -> Tensor | None:
    """The rows that a metric of pairs looks at, in order; None for all."""
    if count <= most:
        return None

    return torch.randperm(count, generator=stream(seed, CUTS))[:most].sort().values


def _entry(
    name: str, prefix: str, found: Found, floors: list[Found], drawn: list[Found]
) -> dict[str, Any]:
    metric = METRICS[name]
    entry = {"label": label(name, prefix), "better": metric.better}
    if name not in found:
        return entry | {
            "reason": "needs the points of the reference, and only their moments are stored; "
            "make the reference again and keep its points."
        }

    floor, at_floor_n = (spread([f[name]["value"] for f in part]) for part in (floors, drawn))
    unit = "std" if metric.unbiased else "mean"
    ratio = at_floor_n["mean"] / floor[unit] if floor and floor[unit] > 0 else None

    return entry | found[name] | {"at_floor_n": at_floor_n, "floor": floor, "ratio": ratio}


def _check_numbers(repeats: int, most: int) -> None:
    if repeats == 1 or repeats < 0:
        raise UserError(
            f"repeats: {repeats} is out of range; give 2 or more, for a spread, or 0 for no floor."
        )
    if most < LEAST:
        raise UserError(f"most: {most} is out of range; give {LEAST} or more.")


def _warnings(result: dict[str, Any]) -> list[str]:
    counts, least, found = result["counts"], 2 * result["width"], []
    sizes = {name: counts[name] for name in ("samples", "reference")}
    if counts["floor"]:
        sizes["floor"] = min(counts["floor"])

    if "frechet" in result["metrics"]:
        found = [
            f"{name}: {size} points are fewer than {least}, twice the feature's width; the "
            "distance is biased upward, give more or read the ratios at equal counts only."
            for name, size in sizes.items()
            if size < least
        ]
        if result["prefix"] == "FID" and counts["samples"] < FEW:
            found.append(
                f"samples: {counts['samples']} are few for an FID; published ones are of 50,000, "
                "and fewer raise it."
            )
    if counts["floor"] and counts["samples"] < counts["reference"] // 2:
        found.append(
            f"samples: {counts['samples']} are fewer than half the reference's "
            f"{counts['reference']}; the floor is measured at their number."
        )
    floor = result["metrics"].get("frechet", {}).get("floor")
    if floor and floor["mean"] == 0:
        found.append("floor: is zero, the reference's points are all alike; no ratio is given.")

    return found


def spread(values: list[float]) -> dict[str, Any] | None:
    """The mean and the deviation of numbers, and they themselves; None for none."""
    if not values:
        return None
    numbers = torch.tensor(values, dtype=torch.float64)

    return {"mean": float(numbers.mean()), "std": float(numbers.std()), "values": values}


def markdown(result: dict[str, Any]) -> str:
    r"""Sets what :func:`measure` returned as a table in Markdown.

    Arguments:
        result: The result.

    Returns:
        The lines of the table, then of the metrics that were left out and of the warnings.
    """
    rows = ["| metric | better | value | at floor's n | floor, real v real | ratio | points |"]
    rows.append("|---|---|---:|---:|---:|---:|---:|")
    notes = []

    for entry in result["metrics"].values():
        if "reason" in entry:
            notes.append(f"* {entry['label']}: left out, {entry['reason']}")
            continue
        cells = [entry["label"], entry["better"], f"{entry['value']:.4g}"]
        for part in (entry["at_floor_n"], entry["floor"]):
            cells.append(f"{part['mean']:.4g} ± {part['std']:.1g}" if part else "-")
        cells.append("-" if entry["ratio"] is None else f"{entry['ratio']:.3g}")
        cells.append(" v ".join(map(str, entry["points"])))
        rows.append(f"| {' | '.join(cells)} |")

    notes += [f"* warning: {warning}" for warning in result["warnings"]]

    return "\n".join(rows + (["", *notes] if notes else []))
