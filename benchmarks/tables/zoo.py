"""The table of the models of the zoo."""

__all__ = ["zoo"]

from tables.entries import Record, markdown, table, told

COUNTS = ("3", "5", "8", "10")


@table("zoo")
def zoo(record: Record) -> str:
    """Size, and the best preset beside the searched schedule and its tuned table at few calls."""

    rows = []

    for name, model in record["models"].items():
        size = f"{model['parameters'] / 1e6:.2f} M, {model['bytes'] / 2**20:.1f} MB"
        rows.append([f"`{name}`", size, *(_cell(model, n) for n in COUNTS), _more(model)])

    features = " / ".join(f"`{name}`" for name in record["features"])
    ratio = (
        f"Distance ÷ floor on {features}: the best preset, which is the peer → the searched "
        "schedule → its table with tuned weights, at so many calls; 1 is the distance between "
        "two parts of the data; a dash where none was searched."
    )
    header = [
        "model",
        "parameters, size",
        *(f"{n} calls" for n in COUNTS),
        "best of its own table",
    ]
    return markdown(header, rows, told(record, "diffusers", ratio=ratio))


def _cell(model: Record, count: str) -> str:
    """On each feature, the preset and what was searched."""

    found = model["schedules"].get(count)

    if found is None:
        return "–"

    return " / ".join(" → ".join(f"{v:.3g}" for v in pair.values()) for pair in found.values())


def _more(model: Record) -> str:
    """What its own table has at any number of calls; how many digits a bridge has carried over."""

    if model["read"] is not None:
        hits, of = model["read"]
        return f"{hits} of {of} unseen digits read as the target"

    best = model["best"]
    values = " / ".join(f"{v:.3g}" for v in best["over_floor"].values())
    calls = "1 call" if best["nfe"] == 1 else f"{best['nfe']} calls"
    return f"{values} ({best['sampler']}, {calls})"
