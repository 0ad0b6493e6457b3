"""Tables of what training costs, and of what trained models draw."""

__all__ = ["digits", "flows", "loading", "robustness", "training"]

from collections.abc import Sequence
from statistics import mean

from tables.entries import Record, markdown, table, told


@table("training")
def training(record: Record) -> str:
    """A full step ÷ bare forward and backward pass, with quartiles."""

    cases = record["cases"]
    names = {
        "step": "genflow, no trainer",
        "trainer": "genflow, Lightning",
        "torchcfm": "torchcfm recipe",
    }
    rows = [
        [
            told_,
            *(
                "{:.3f} ({:.3f} to {:.3f})".format(found[n]["ratio"], *found[n]["quartiles"])
                for found in cases.values()
            ),
        ]
        for n, told_ in names.items()
    ]
    header = ["", *(f"{c}, {f['parameters'] / 1e6:.2f} M" for c, f in cases.items())]
    rounds = next(iter(cases.values()))["rounds"]
    ratio = f"Ratios are to the bare step of the same round: medians of {rounds}, with quartiles."
    return markdown(header, rows, told(record, "lightning", "torchcfm", ratio=ratio))


@table("loading")
def loading(record: Record) -> str:
    """Images a second, and the ratio to torch's loader."""

    told_ = {
        "memory": "in memory",
        "packed": "packed",
        "files": "files, a batch at a time",
        "torch": "torch's DataLoader",
    }
    rows = [
        [size, *(f"{row[n]:,} ({row[n] / row['torch']:.1f}×)" for n in told_)]
        for size, row in record["images"].items()
    ]
    ratio = (
        f"Images a second of CPU time in float batches of {record['batch']}, one thread, no "
        "workers; in brackets the ratio to the peer, torch's `DataLoader` over torchvision's "
        "`ImageFolder` with Pillow on the same folder of PNGs."
    )
    header = ["images", *told_.values()]
    return markdown(header, rows, told(record, "torchvision", "pillow", ratio=ratio))


@table("digits")
def digits(record: Record) -> str:
    """The samples of a pipeline against all the data, and against as many as the floor has."""

    report = record["report"]
    counts, floor = report["counts"], report["floor"]
    whole, half = (
        f"{counts['samples']} v {counts['reference']}",
        "{} v {}".format(*counts["floor"]),
    )

    def row(what: str, points: str, value: float, tail: str = "") -> list[str]:
        over = value / floor["mean"]
        shown = "1" if over == 1 else f"{over:.2f}" if over < 100 else f"{over:.0f}"
        return [what, points, f"{value:.4f}{tail}", shown]

    fair = report["distance_at_floor_n"]
    rows = [
        row("samples", whole, report["distance"]),
        row("samples, as many as the floor has", half, fair["mean"], f" ± {fair['std']:.4f}"),
        row("floor: one half of the digits v the other", half, floor["mean"], _pm(floor)),
        row("uniform noise", f"{counts['noise']} v {counts['reference']}", report["noise"]),
    ]
    ratio = (
        f"{record['sampler']}; Fréchet distance of `{report['feature']['name']}` ÷ floor. The "
        "peer is the data: one half against the other."
    )
    return markdown(["", "points", "distance", "÷ floor"], rows, told(record, ratio=ratio))


def _pm(entry: Record) -> str:
    return f" ± {entry['std']:.4f}"


@table("flows")
def flows(record: Record) -> str:
    """Distance ÷ floor of flows at few Euler steps, and how straight they are."""

    found = record["flows"]
    counts = [k for k in next(iter(found.values()))["distances"] if k != "rk45"]
    rows = []

    for name, flow in found.items():
        over = [f"{flow['distances'][k]['over_floor']:.1f}" for k in counts]
        last = flow["distances"]["rk45"]
        report = flow["report"]
        rows.append(
            [
                *(name, *over, f"{last['over_floor']:.1f} ({last['nfe']})"),
                *(f"{report['straightness']:.3g}", f"{report['error']['1']:.3g}"),
            ]
        )

    header = ["flow", *(f"{k} NFE" for k in counts)]
    header += ["RK45 (NFE)", "straightness", "1-step error"]
    ratio = "Distances are in units of that between two halves of the data; RK45 is torchdiffeq's."
    return markdown(header, rows, told(record, "torchdiffeq", ratio=ratio))


@table("robustness")
def robustness(record: Record) -> str:
    """Distance ÷ floor by stressor, D and strength: mean, smallest to largest over seeds."""

    parts = []

    for title, curves in record["ratios"].items():
        strengths = sorted({float(s) for curve in curves.values() for s in curve})
        keys = {float(s): s for curve in curves.values() for s in curve}
        rows = [[D, *(_range(curve[keys[s]]) for s in strengths)] for D, curve in curves.items()]
        parts.append(f"**{title}**\n\n" + markdown(["", *(f"{s:g}" for s in strengths)], rows))

    ratio = (
        "The peer is D = ∞, which is EDM; ratios are distances to that of two halves of the data, "
        "the mean, and smallest to largest, over training seeds."
    )
    return "\n\n".join([*parts, told(record, ratio=ratio)])


def _range(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"
