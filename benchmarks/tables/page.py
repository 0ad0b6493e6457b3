"""Pages with tables between marks, made anew from results."""

__all__ = ["MARK", "plain", "rendered", "stale", "written"]

import json
from pathlib import Path
import re

from tables.entries import TABLES, found

MARK = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.S)
"""A mark, its name, and its end."""


def rendered(page: str, results: Path) -> str:
    """A page with the tables between its marks made anew, of what results there are.

    Args:
        page: The page; tables without results stay as they are.
        results: The folder of the results.

    Raises:
        KeyError: If a mark names no table.
    """

    def made(mark: re.Match[str]) -> str:
        entry = found(mark[2])
        file = results / f"{entry.source}.json"
        if not file.exists():
            return mark[0]
        record = json.loads(file.read_text(encoding="utf-8"))
        return f"{mark[1]}{entry.make(record)}\n{mark[3]}"

    return MARK.sub(made, page)


def plain(results: Path) -> str:
    """A page of nothing but the tables that there are results for.

    Args:
        results: The folder of the results.
    """

    there = [n for n, entry in TABLES.items() if (results / f"{entry.source}.json").exists()]
    marks = [f"## {n}\n\n<!-- table: {n} -->\n<!-- end -->" for n in there]
    return rendered("\n\n".join(["# Benchmarks with reduced options", *marks]) + "\n", results)


def stale(page: str, results: Path) -> list[str]:
    """The results that no mark of a page shows."""

    shown = {found(name).source for _, name, _ in MARK.findall(page)}
    return sorted({f.stem for f in results.glob("*.json")} - shown)


def written(file: Path, results: Path) -> bool:
    """Makes the tables of a page anew; says whether anything changed."""

    old = file.read_text(encoding="utf-8")
    new = rendered(old, results)
    file.write_text(new, encoding="utf-8")
    return new != old
