"""``genflow search`` from end to end, on a tiny pipeline."""

import json
from statistics import mean

import numpy as np
import pytest
import torch

pytest.importorskip("optuna")

from genflow.cli import main
from genflow.commands.search_report import _loading
from genflow.models import Preconditioned, Rectified
from genflow.nn import MLP, UNet
from genflow.pipelines import Pipeline, SearchedScheduler
from genflow.solvers import SolverSchedule, Step
from genflow.solvers.files import load_table

SMALL = ["--samples", "24", "--report_samples", "16", "--teacher_steps", "8"]


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("pipes") / "vectors"
    net = MLP(features=2, width=16, depth=1, classes=3)
    Pipeline(Preconditioned(net, Rectified()), (2,)).save(folder)
    return str(folder)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("pipes") / "images"
    net = UNet(size=8, channels=1, widths=[32], layers=1, attention=[], classes=10)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.1)
    Pipeline(Preconditioned(net, Rectified()), (1, 8, 8)).save(folder)
    return str(folder)


def run(pipeline, output, *arguments):
    return main(["search", pipeline, "--nfe", "3", "--output", str(output), *SMALL, *arguments])


def check(folder, pipeline, calls=3):
    """A schedule that the pipeline runs, and a report that needs no other file."""

    pipe = Pipeline.from_pretrained(pipeline)
    schedule = SolverSchedule.load(folder / "schedule.json", pipe.denoiser.path)
    assert schedule.nfe == calls and len(pipe(4, seed=0, schedule=schedule).x) == 4
    page = (folder / "report.html").read_text()
    assert "SearchedScheduler" in page or "schedule=" in page
    assert 'src="http' not in page and page.count("data:image/png;base64,") >= 3
    result = json.loads((folder / "result.json").read_text())
    assert len(result["held_out"]) == 3 and result["nfe"] == calls
    assert "best preset" in (folder / "report.md").read_text()
    spent = [range(*s) for s in [result["seeds"], *result["held_out_seeds"]]]
    assert len({s for r in spent for s in r}) == sum(map(len, spent))
    return result


@pytest.mark.slow
def test_s3_with_refinement_and_going_on(vectors, tmp_path, capsys):
    out = tmp_path / "s3"
    assert run(vectors, out, "--budget", "70", "--refine", "20") == 0
    result = check(out, vectors)
    assert result["scored"] == 70 and result["taus"] and result["refined"]
    said = capsys.readouterr()
    assert "fresh seeds" in said.out and "70/70: best" in said.err
    assert (out / "tau.png").exists()

    assert run(vectors, out, "--budget", "70") == 2
    assert "--resume true" in capsys.readouterr().err
    assert run(vectors, out, "--budget", "80", "--resume", "true") == 0
    assert check(out, vectors)["scored"] == 80
    assert run(vectors, out, "--budget", "80", "--resume", "--score", "rfid") == 2
    assert 'score ("error" there, "rfid" here)' in capsys.readouterr().err
    assert run(vectors, out, "--budget", "85", "--join") == 0
    assert check(out, vectors)["scored"] == 85


def test_evolution(vectors, tmp_path):
    assert run(vectors, tmp_path / "o", "--method", "evolve", "--budget", "30") == 0
    check(tmp_path / "o", vectors)


def test_weights_are_tuned_on_the_score_itself(vectors, tmp_path, capsys):
    """The data are wide, which no schedule of this network is, and a table can be."""

    out, pictures, wide = tmp_path / "o", tmp_path / "samples", tmp_path / "wide.npy"
    np.save(wide, 3 * np.random.default_rng(0).standard_normal((500, 2), dtype=np.float32))
    arguments = ["--method", "evolve", "--budget", "12", "--score", "frechet"]
    arguments += ["--data", str(wide), "--samples", "96"]
    arguments += ["--report_samples", "128", "--refine", "30", "--free", "times,relax,weights"]
    assert run(vectors, out, *arguments) == 0
    result = check(out, vectors)
    said = capsys.readouterr().out
    assert "table.json" in said and "The table:" in said
    before, after = result["refined"]
    assert after < before and result["free"] == ["times", "relax", "weights"]
    assert mean(result["held_out_table"]) < 0.9 * mean(result["held_out"])
    assert "tuned weights" in (out / "report.md").read_text() and (out / "table.png").exists()

    table = ["--schedule", str(out / "table.json"), "--n", "4", "--output", str(pictures)]
    assert main(["generate", vectors, *table]) == 0
    meta = json.loads((pictures / "meta.json").read_text())
    assert meta["nfe"] == 3 and meta["sampler"]["schedule"]["format"] == "genflow-table"
    pipe = Pipeline.from_pretrained(vectors)
    read = load_table(out / "table.json", pipe.denoiser.path)
    assert not torch.equal(pipe(8, seed=0, schedule=read).x, pipe(8, seed=0, steps=3).x)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["random", "gradient", "tpe"])
def test_other_methods(method, vectors, tmp_path):
    assert run(vectors, tmp_path / "o", "--method", method, "--budget", "30") == 0
    check(tmp_path / "o", vectors)


@pytest.mark.slow
@pytest.mark.parametrize("score", ["rfid", "frechet", "kernel"])
def test_other_scores_on_images(score, images, tmp_path):
    arguments = ["--method", "evolve", "--budget", "12", "--score", score, "--data", "digits"]
    assert run(images, tmp_path / "o", *arguments) == 0
    result = check(tmp_path / "o", images)
    assert result["score"] == score and result["feature"].startswith("random-conv")


@pytest.mark.slow
def test_autodiffusion_leaves_blocks_out(images, tmp_path):
    arguments = ["--method", "autodiffusion", "--budget", "45", "--share", "0.8"]
    assert run(images, tmp_path / "o", *arguments) == 0
    check(tmp_path / "o", images)
    schedule = SolverSchedule.load(tmp_path / "o" / "schedule.json")
    assert any(step.change.drop or step.change.reuse for step in schedule.steps)


@pytest.mark.slow
def test_earlier_results_are_begun_with(vectors, tmp_path):
    assert run(vectors, tmp_path / "a", "--method", "gradient", "--budget", "60") == 0
    known = ["--known", str(tmp_path / "a" / "schedule.json")]
    assert run(vectors, tmp_path / "b", "--method", "evolve", "--budget", "20", *known) == 0
    before, after = (json.loads((tmp_path / k / "result.json").read_text()) for k in "ab")
    assert after["best_so_far"][-1] <= before["best_so_far"][-1] * 1.05


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--method", "s4"], "did you mean 's3'"),
        (["--score", "eror"], "did you mean 'error'"),
        (["--budget", "0"], "budget 0"),
        (["--refine", "2", "--free", "weight"], "did you mean 'weights'"),
        (["--refine", "2", "--free", ","], "free is ''"),
        (["--free", "weights"], "refine is 0"),
        (["--score", "frechet"], "give --data"),
        (["--method", "gradient", "--resume"], "resume and join need a ledger"),
        (["--resume"], "holds no search to go on with"),
        (["--teacher", "rk5"], "rk4"),
        (["--method", "autodiffusion", "--share", "0.5"], "blocks"),
    ],
)
def test_bad_arguments(arguments, words, vectors, tmp_path, capsys):
    assert run(vectors, tmp_path / "o", *arguments) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1


def test_a_missing_optuna_is_told(vectors, tmp_path, capsys, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "optuna", None)
    assert run(vectors, tmp_path / "o", "--budget", "5") == 2
    assert "pip install 'genflow[search]'" in capsys.readouterr().err


@pytest.mark.parametrize("source", ["model", "noise"])
def test_what_the_report_says_about_diffusers_is_true(source):
    """Stock pipelines call the network at each stage, so the number differs if one is saved."""

    found = SolverSchedule((0.9, 0.5, 0.2, 0.0), (Step(source=source), Step(), Step()))
    line = next(x for x in _loading(found).splitlines() if "from_schedules" in x)
    held = int(line.split("{")[1].split(":")[0])
    scheduler = SearchedScheduler.from_schedules({held: found})
    scheduler.set_timesteps(held)
    assert len(scheduler.timesteps) == held == 3
    assert ("does without" in _loading(found)) == (found.nfe == 2)
