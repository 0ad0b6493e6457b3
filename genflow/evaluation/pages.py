"""A report as a page for an appendix, and as lines for a terminal."""

__all__ = ["lines", "page"]

from collections.abc import Mapping, Sequence
from typing import Any

from genflow.metrics.suite import markdown

NOTE = (
    "Value: all samples against all data. Floor: one random half of the data against the other, "
    "with its deviation over several halvings. At floor's n: as many samples as that half, "
    "against the other. Ratio: that number over the floor, 1 for a perfect model; where the floor "
    "is zero on average, as for kernel distances, over its deviation. Numbers of different "
    "feature nets cannot be compared."
)
CAPTIONS = {
    "grid": "![samples beside data](grid.png)",
    "closest": "The samples most like copies, above the data that they are nearest to:\n\n"
    "![samples above data](closest.png)",
}


def lines(report: Mapping[str, Any]) -> str:
    """A report as plain text for a terminal: a table a feature net, then what to know of it."""

    blocks = []

    for measure in report["measures"].values():
        counts, feature = measure["counts"], measure["feature"]
        rows = [["", "value", "real v real", "÷", "points"]]
        rows += [_row(numbers) for numbers in measure["metrics"].values()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        table = [
            "  ".join(
                c.rjust(w) if i else c.ljust(w)
                for i, (c, w) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        rule = "-" * max(map(len, table))
        foot = f"feature {feature['name']} (sha256 {feature['sha256'][:12]}), "
        foot += f"{counts['samples']} samples, {counts['reference']} data"
        noise = measure["metrics"].get("frechet", {}).get("noise")
        foot += "" if noise is None else f", noise scores {measure['prefix']} {noise:.4g}"
        blocks.append("\n".join([table[0], rule, *table[1:], rule, foot]))

    blocks.append(
        "real v real: two halves of the data; ÷: samples at that floor's number, over it"
    )
    left = ", ".join(s["feature"] for s in report["skipped"])
    told = [f"left out: {left}; the report says why"] if left else []
    told += [f"warning: {text}" for text in report["warnings"]]
    return "\n\n".join([*blocks, *(["\n".join(told)] if told else [])])


def page(report: Mapping[str, Any], pictures: Sequence[str] = ()) -> str:
    """A report in Markdown: the numbers, and all that is needed to repeat them.

    Args:
        report: What `assembled` returned.
        pictures: The names of the pictures that lie beside the page, "grid" and "closest".
    """

    samples, data = report["samples"], report["data"]
    parts = [f"# {samples['what']} against {data['what']}"]

    for measure in report["measures"].values():
        parts.append(f"## {measure['feature']['name']}")
        parts.append(markdown({**measure, "warnings": []}))
        noise = measure["metrics"].get("frechet", {}).get("noise")
        if noise is not None:
            parts.append(f"Uniform noise scores {measure['prefix']} {noise:.4g}.")
        if report["repeats"] > 1:
            parts.append(_spreads(measure, report["repeats"]))

    parts.append(NOTE)
    for title, said in (
        ("Left out", [f"{s['feature']}: {s['reason']}" for s in report["skipped"]]),
        ("Warnings", report["warnings"]),
    ):
        if said:
            parts += [f"## {title}", "\n".join(f"- {text}" for text in said)]

    if pictures:
        parts += ["## Pictures", *(CAPTIONS[name] for name in pictures)]
    parts += ["## How it was measured", _table(["what", "how"], _facts(report))]
    return "\n\n".join(parts) + "\n"


def _spreads(measure: Mapping[str, Any], repeats: int) -> str:
    rows = [
        [m["label"], f"{_best(m):.4g}", _plus(m["seeds"]), _listed(m["seeds"]["values"])]
        for m in measure["metrics"].values()
        if "seeds" in m
    ]
    return _table([f"over {repeats} ranges of seeds", "best", "mean", "each"], rows)


def _best(numbers: Mapping[str, Any]) -> float:
    return numbers["seeds"]["min" if numbers["better"] == "lower" else "max"]


def _facts(report: Mapping[str, Any]) -> list[list[str]]:
    """What was measured, and how, as rows of a table."""

    samples, data, versions = report["samples"], report["data"], report["versions"]
    seconds = report["seconds"]
    facts = {
        "samples": f"{report['counts']['samples']} from `{samples['what']}` ({samples['kind']}), "
        f"{_shape(samples['shape'])}",
        "weights sha256": samples.get("weights"),
        "samples sha256": samples["sha256"],
        "seeds": ", ".join(f"{a} to {b}" for a, b in samples.get("seeds", [])),
        "sampler": _sampler(samples.get("sampler")),
        "NFE": samples.get("nfe"),
        "guidance": samples.get("guidance"),
        "classes": _classes(samples.get("classes")),
        "data": f"{data['count']} from `{data['what']}`, {_shape(data['shape'])}",
        "data sha256": data["sha256"],
    }
    for name, measure in report["measures"].items():
        feature = measure["feature"]
        facts[f"{name} sha256"] = feature["sha256"]
        facts[f"{name} resize"] = feature["resize"]
    for side in ("samples", "data"):
        facts[f"unreadable {side}"] = ", ".join(report[side]["unreadable"]) or None
    facts |= {
        "seed of the metrics": report["seed"],
        "batch size": report["batch_size"],
        "device": f"{report['device']}, processes: {report['ranks']}",
        "wall time": f"{seconds['total']:.1f} s; images {seconds['images']:.1f} s, features "
        f"{seconds['features']:.1f} s, measuring {seconds['measuring']:.1f} s",
        "images a second": report["images_per_second"],
        "versions": ", ".join(
            f"{k} {v}" for k, v in {"genflow": report["genflow"], **versions}.items()
        ),
        "command": None if report["command"] is None else f"`{report['command']}`",
    }
    return [[k, str(v)] for k, v in facts.items() if v not in (None, "")]


def _shape(shape: Sequence[int]) -> str:
    if len(shape) != 3:
        return f"vectors of width {shape[0]}"
    return f"{shape[2]}×{shape[1]}, {'grey' if shape[0] == 1 else 'colour'}"


def _sampler(sampler: Mapping[str, Any] | None) -> str | None:
    """The sampler in a few words; of a schedule the number of its steps."""

    if sampler is None:
        return None

    told = dict(sampler)
    schedule = told.pop("schedule", None)
    words = [str(told.pop("sampler", "schedule"))]
    if schedule is not None:
        table = "time" in schedule
        n = len(schedule["time"]) if table else len(schedule["times"]) - 1
        words.append(f"{n} calls of a table" if table else f"{n} steps of a schedule")
    return ", ".join(words + [f"{k} {v}" for k, v in told.items()])


def _classes(counts: Mapping[str, int] | None) -> str | None:
    if not counts:
        return None
    low, high = min(counts.values()), max(counts.values())
    each = f"{low}" if low == high else f"{low} to {high}"
    return f"{len(counts)}, {each} of each"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _plus(spread: Mapping[str, Any]) -> str:
    return f"{spread['mean']:.4g} ± {spread['std']:.1g}"


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{v:.4g}" for v in values)


def _row(numbers: Mapping[str, Any]) -> list[str]:
    if "value" not in numbers:
        return [numbers["label"], "-", "", "", numbers["reason"].split(",")[0]]

    seeds, floor, ratio = (numbers.get(k) for k in ("seeds", "floor", "ratio"))
    value = f"{numbers['value']:.4g}"
    if seeds is not None:
        value = f"{_plus(seeds)}, best {_best(numbers):.4g}"
    real = "" if floor is None else f"{floor['mean']:.3g} ± {floor['std']:.1g}"
    points = " v ".join(map(str, numbers["points"]))
    return [numbers["label"], value, real, "" if ratio is None else f"{ratio:.3g}", points]
