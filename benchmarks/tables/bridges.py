"""The table of bridges between clouds whose plan is known."""

__all__ = ["bridges"]

from statistics import mean

from tables.entries import Record, markdown, table, told

CONTESTANTS = {
    "published": "published",
    "same, ours": "same settings, our loss",
    "fit": "`fit`, diagonal",
    "full": "full covariances",
    "sinkhorn": "Sinkhorn (POT)",
}


@table("bridges")
def bridges(record: Record) -> str:
    """A row a case, a column a contestant: cBW₂-UVP / KL gap / CPU seconds."""

    cases: dict[str, dict[str, list[Record]]] = {}
    for cell in record["cells"]:
        cases.setdefault(cell["case"], {}).setdefault(cell["name"], []).append(cell)

    rows = []
    for case in sorted(cases, key=_order):
        found = cases[case]
        means = {n: [_mean(cells, k) for k in KEYS] for n, cells in found.items()}
        ratios = ["–", "–"]
        if {"fit", "published"} <= set(means):
            pairs = zip(means["fit"], means["published"], strict=True)
            cbw, _, seconds = (a / b if a and b else 0.0 for a, b in pairs)
            ratios = [f"{cbw:.3f}", f"{seconds:.2f}"]
        rows.append(
            [
                case.replace("-", ", "),
                *(_cell(*means[n]) if n in means else "–" for n in CONTESTANTS),
                *ratios,
            ]
        )

    header = ["family, D, ε", *CONTESTANTS.values(), "`fit` ÷ published: cBW", "time"]
    ratio = (
        "Cells: cBW₂-UVP in per cent / KL gap in nats / CPU seconds of the fit. The peers are the "
        "published settings on the same points, and POT's Sinkhorn."
    )
    return markdown(header, rows, told(record, "POT", ratio=ratio))


KEYS = ("cbw", "gap", "seconds")


def _order(case: str) -> tuple[int, str, float]:
    family, dimension, eps = case.split("-", 2)
    return int(dimension), family, float(eps)


def _mean(cells: list[Record], key: str) -> float | None:
    values = [c[key] for c in cells]
    return None if None in values else mean(values)


def _cell(cbw: float, gap: float | None, seconds: float) -> str:
    return f"{cbw:.2g} / {'–' if gap is None else f'{gap:.2g}'} / {seconds:.1f}"
