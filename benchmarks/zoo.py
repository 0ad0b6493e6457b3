"""The cards of the zoo in one table: distances of presets, searched schedules, tuned tables.

Nothing is measured here: ``assets/zoo/make.py`` measured each model when it made it, and its card
says when and on what; the date and the versions below the table are those of the newest card.

    python benchmarks/zoo.py
"""

import argparse

from measure import machine, write_results

from genflow import zoo
from genflow.shelves import models

WHO = ("preset", "searched", "tuned")


def summary(name, folder):
    """What the table shows of a model."""

    card, size = zoo.card(name), sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    rows = card["distances"]["table"]
    features = list(card["distances"].get("features", {}))
    best = min(rows, key=lambda cell: cell[features[0]]["over_floor"]) if features else None
    return {
        "parameters": card["parameters"],
        "bytes": size,
        "date": card["date"],
        "schedules": {
            nfe: {
                feature: {who: pair[who]["over_floor"] for who in WHO if who in pair}
                for feature, pair in found["measured"].items()
            }
            for nfe, found in card["schedules"].items()
        },
        "best": best
        and {
            "sampler": best["sampler"],
            "nfe": best["nfe"],
            "over_floor": {feature: best[feature]["over_floor"] for feature in features},
        },
        "read": None
        if features
        else [sum(row["read"] for row in rows), sum(row["held_out"] for row in rows)],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options = parser.parse_args()
    found = {name: summary(name, folder) for name, folder in models().items()}
    cards = [zoo.card(name) for name in found]
    newest = max(cards, key=lambda card: card["date"])
    here = machine() | {"date": newest["date"], **newest["machine"]}
    here["versions"] = {k: v for k, v in newest["versions"].items() if k != "python"}
    features = next(list(m["best"]["over_floor"]) for m in found.values() if m["best"])
    features = [feature.split("-1x")[0] for feature in features]
    write_results("zoo", {"features": features, "models": found, "machine": here}, options)


if __name__ == "__main__":
    main()
