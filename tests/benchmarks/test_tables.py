"""The page of the benchmarks is what its tables say of the results, and nothing else."""

import json
from pathlib import Path
import re
import sys

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RESULTS, PAGE = BENCHMARKS / "results", (BENCHMARKS / "README.md").read_text(encoding="utf-8")
sys.path.insert(0, str(BENCHMARKS))

from tables import TABLES, found, markdown, plain, rendered, stale, written  # noqa: E402
from tables.entries import spread, told  # noqa: E402
from tables.page import MARK  # noqa: E402

HERE = {
    "date": "2026-01-02",
    "cpu": "a CPU",
    "cores": 3,
    "gpu": "a GPU",
    "versions": {"torch": "2.0", "POT": "0.9"},
}


def test_the_page_is_what_the_results_say():
    assert rendered(PAGE, RESULTS) == PAGE, "run: python benchmarks/run.py --render"


def test_every_result_is_shown_and_every_table_has_a_mark():
    assert stale(PAGE, RESULTS) == []
    marks = [name for _, name, _ in MARK.findall(PAGE)]
    assert len(marks) == len(set(marks)) and PAGE.count("<!-- table:") == len(marks)
    with_results = {n for n, e in TABLES.items() if (RESULTS / f"{e.source}.json").exists()}
    assert with_results <= set(marks)


def test_no_table_of_the_page_is_written_by_hand():
    bare = MARK.sub("", PAGE)
    assert not re.search(r"^\|", bare, re.M)


@pytest.mark.parametrize("name", [n for _, n, _ in MARK.findall(PAGE)])
def test_a_table_names_its_day_machine_versions_and_peer(name):
    file = RESULTS / f"{found(name).source}.json"
    if not file.exists():
        return
    record = json.loads(file.read_text(encoding="utf-8"))
    last = found(name).make(record).splitlines()[-1]
    machine = record["machine"]
    assert last.startswith(f"{machine['date']}, ") and "torch 2." in last
    assert machine["cpu"] in last or machine["gpu"] in last
    words = ("ratio", "÷", "peer", "in units", "for one of ours", "of autograd")
    assert any(word in last.lower() for word in words), last


def test_names_of_a_gpu_are_the_same_tables():
    plain_, gpu = found("sampling"), found("sampling-gpu")
    assert gpu.make is plain_.make and gpu.source == "sampling-gpu"
    with pytest.raises(KeyError):
        found("sampled")
    with pytest.raises(KeyError):
        found("sampled-gpu")


def test_the_line_below_names_the_device_that_ran():
    record = {"machine": HERE, "options": {"device": "cpu"}}
    line = "2026-01-02, a CPU, 3 cores; torch 2.0, POT 0.9. Ratios."
    assert told(record, "POT", "absent", ratio="Ratios.") == line
    assert told({**record, "options": {"device": "cuda"}}, ratio="x").startswith(
        "2026-01-02, a GPU; torch 2.0"
    )


def test_a_spread_has_the_decimals_of_its_deviation():
    assert spread([0.0773, 0.0791, 0.0785]) == "0.07830 ± 0.00092"
    assert spread([25.26, 9.0, 9.5]) == "14.6 ± 9.2"
    assert spread([1.0, 1.0]) == "1" and spread([0.5]) == "0.5"


def test_pages_without_results_stay_and_quick_ones_are_made(tmp_path):
    page = tmp_path / "page.md"
    empty = "a\n<!-- table: loading -->\nkept\n<!-- end -->\nb\n"
    page.write_text(empty)
    assert not written(page, tmp_path) and page.read_text() == empty
    images = {"8×8": {"memory": 900, "packed": 600, "files": 150, "torch": 300}}
    record = {"machine": HERE, "options": {}, "batch": 4, "images": images}
    (tmp_path / "loading.json").write_text(json.dumps(record))
    assert written(page, tmp_path) and not written(page, tmp_path)
    row = "| 8×8 | 900 (3.0×) | 600 (2.0×) | 150 (0.5×) | 300 (1.0×) |"
    assert row in page.read_text() and "kept" not in page.read_text()
    assert page.read_text().startswith("a\n") and page.read_text().endswith("<!-- end -->\nb\n")
    assert row in plain(tmp_path) and plain(tmp_path).count("## ") == 1
    (tmp_path / "lost.json").write_text("{}")
    assert stale(page.read_text(), tmp_path) == ["lost"]


def test_bridges_are_ordered_and_compared_by_means(tmp_path):
    def cell(case, name, seed, cbw, seconds):
        return {
            "case": case,
            "name": name,
            "seed": seed,
            "cbw": cbw,
            "gap": None,
            "seconds": seconds,
        }

    cells = [cell("A-16-1", "fit", k, 0.1 * (k + 1), 2.0) for k in range(3)]
    cells += [cell("A-16-1", "published", 0, 0.4, 8.0), cell("A-2-10", "fit", 0, 1.0, 1.0)]
    text = TABLES["bridges"].make({"machine": HERE, "options": {}, "cells": cells})
    rows = [line for line in text.splitlines() if line.startswith("| A")]
    assert rows[0].startswith("| A, 2, 10 | – | – | 1 / – / 1.0 |")
    assert rows[1].endswith("| 0.4 / – / 8.0 | – | 0.2 / – / 2.0 | – | – | 0.500 | 0.25 |")


def test_a_table_is_aligned():
    lines = markdown(["a", "b"], [["1", "2"]], "below").splitlines()
    assert lines == ["| a | b |", "|---|---|", "| 1 | 2 |", "", "below"]
