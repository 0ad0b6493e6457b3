"""One command runs the benchmarks: who runs, where results go, and what is told of failures."""

import json
from pathlib import Path
import sys

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import run  # noqa: E402

GOOD = """
import json, os, sys
from pathlib import Path
folder = Path(os.environ["GENFLOW_RESULTS"])
folder.mkdir(parents=True, exist_ok=True)
images = {"8×8": {"memory": 4, "packed": 4, "files": 4, "torch": 2}}
machine = {"date": "d", "cpu": "c", "cores": 1, "gpu": None, "versions": {}}
record = {"machine": machine, "options": {"line": sys.argv[1:]}, "batch": 1, "images": images}
(folder / "loading.json").write_text(json.dumps(record))
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder of benchmarks: one that works, one that fails, one that lacks its model."""

    (tmp_path / "good.py").write_text(GOOD)
    (tmp_path / "bad.py").write_text("import sys; sys.exit(3)")
    (tmp_path / "README.md").write_text("<!-- table: loading -->\n<!-- end -->\n")
    results = tmp_path / "results"
    results.mkdir()
    jobs = {
        "bad": run.Job(("bad.py",), ("--quick",), (1, 1)),
        "needy": run.Job(("good.py",), (), (1, 1), needs=("no-such-model",)),
        "hungry": run.Job(("good.py",), (), (1, 1), files=("no/such/data",)),
        "loading": run.Job(("good.py",), ("--few",), (2, 1), ("--device", "cuda")),
        "long": run.Job(("good.py",), None, (60, 0)),
        "absent": run.Job(("absent.py",), (), (1, 1)),
    }
    for name, value in {
        "HERE": tmp_path,
        "RESULTS": results,
        "PAGE": tmp_path / "README.md",
        "QUICK": results / "quick",
        "JOBS": jobs,
    }.items():
        monkeypatch.setattr(run, name, value)
    return tmp_path


def called(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
    code = run.main()
    return code, *capsys.readouterr()


def test_failures_are_told_at_the_end_and_the_others_go_on(place, monkeypatch, capsys):
    code, out, _ = called(monkeypatch, capsys, "--cpu")
    assert code == 1
    last = out[out.index("\nbad") :]
    assert "FAILED with exit code 3" in last and "the zoo lacks no-such-model" in last
    assert "left out: no/such/data is not here" in last
    assert "left out of the CPU subset" in last and "absent" not in last and "together" in last
    quick = json.loads((place / "results/quick/loading.json").read_text())
    assert quick["options"]["line"] == ["--few"]
    assert not (place / "results/loading.json").exists()
    assert "4 (2.0×)" in (place / "results/quick/README.md").read_text()
    assert "4 (2.0×)" not in (place / "README.md").read_text()


def test_reduced_results_reach_the_page_only_if_kept(place, monkeypatch, capsys):
    only = ("--only", "loading")
    assert called(monkeypatch, capsys, "--cpu", "--keep", *only)[0] == 0
    assert (place / "results/loading.json").exists()
    assert "4 (2.0×)" in (place / "README.md").read_text()


def test_full_and_gpu_runs_have_their_own_arguments(place, monkeypatch, capsys):
    only = ("--only", "loading")
    file = place / "results/loading.json"
    assert called(monkeypatch, capsys, "--full", *only)[0] == 0
    assert json.loads(file.read_text())["options"]["line"] == []
    assert called(monkeypatch, capsys, "--gpu", *only)[0] == 0
    assert json.loads(file.read_text())["options"]["line"] == ["--device", "cuda"]
    _, out, _ = called(monkeypatch, capsys, "--gpu", "--only", "long")
    assert "left out: it measures the CPU" in out


def test_rendering_and_listing_run_nothing(place, monkeypatch, capsys):
    code, out, _ = called(monkeypatch, capsys, "--render")
    assert code == 0 and "as it was" in out and not list((place / "results").iterdir())
    _, out, _ = called(monkeypatch, capsys, "--list")
    assert "good.py --few  (1 minutes)" in out and "takes about 4 minutes" in out
    (place / "results/lost.json").write_text("{}")
    assert "results/lost.json is in no table" in called(monkeypatch, capsys, "--render")[1]


def test_a_name_that_is_not_there_is_a_sentence(place, monkeypatch, capsys):
    code, _, err = called(monkeypatch, capsys, "--only", "loadin")
    assert code == 2 and "only has 'loadin': did you mean 'loading'" in err


def test_the_real_jobs_fit_into_twenty_minutes_and_name_real_scripts():
    assert all((BENCHMARKS / job.script[0]).exists() for job in run.JOBS.values())
    reduced = [job for job in run.JOBS.values() if job.reduced is not None]
    assert sum(job.minutes[1] for job in reduced) < 20
    from tables import TABLES

    assert {entry.source for entry in TABLES.values()} <= set(run.JOBS)
