"""The table of what metrics see of known damages."""

__all__ = ["metrics"]

from tables.entries import Record, markdown, table, told

MORE = ("kernel", "mmd", "sliced-wasserstein")
RATES = ("precision", "recall", "density", "coverage", "memorisation")


@table("metrics")
def metrics(record: Record) -> str:
    """What each metric says of known damages: the Fréchet distance of each net, then the rest."""

    parts = []

    for data, nets in record["tables"].items():
        first = next(iter(nets))
        columns = [(net, "frechet") for net in nets] + [(first, m) for m in (*MORE, *RATES)]
        clean = nets[first]["test set"]
        labels = [_short(nets[net]["test set"][m]["label"], first) for net, m in columns]
        rows = [[row, *(_said(m, nets[net][row][m]) for net, m in columns)] for row in nets[first]]
        points = " against ".join(f"{n:,}" for n in clean["frechet"]["points"])
        parts.append(f"**{data}, {points}**\n\n" + markdown(["samples", *labels], rows))

    ratio = (
        "The peer is the data: ratios are to the floor, two real parts at equal numbers; of KD "
        "the number of the floor's deviations, of memorised images the fraction. Columns that "
        f"name no net are of `{first}`."
    )
    return "\n\n".join([*parts, told(record, ratio=ratio)])


def _short(label: str, net: str) -> str:
    """A label without what is in brackets, and but for FD without the net."""

    label = label.split(" (")[0]
    return label if label.startswith("FD") else label.removesuffix(f"-{net}")


def _said(metric: str, numbers: Record) -> str:
    if metric == "memorisation":
        return f"{numbers['value']:.3g}"
    ratio = numbers["ratio"]
    return "–" if ratio is None else f"{ratio:.2f}" if abs(ratio) < 10 else f"{ratio:.0f}"
