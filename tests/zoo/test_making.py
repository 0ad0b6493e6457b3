"""The maker of the zoo: stages that go on where they were, pages, and sentences."""

import json
from pathlib import Path
import shutil
import subprocess
import sys

import pytest
import torch

from genflow import Pipeline
from genflow.models import Preconditioned, Rectified
from genflow.nn import UNet
from genflow.shelves import card_of
from genflow.solvers.files import load_table

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "assets" / "zoo"))

import cards  # noqa: E402
import make  # noqa: E402
from measuring import UNSEEN, Ruler  # noqa: E402
from recipes import RECIPES  # noqa: E402


def made(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["make.py", *map(str, arguments)])
    return make.main()


@pytest.fixture
def flow(tmp_path):
    """A flow of digits that has learned nothing."""

    torch.manual_seed(0)
    net = UNet(8, 1, widths=(8, 8), layers=1, attention=(), groups=4, classes=10)
    pipe = Pipeline(Preconditioned(net, Rectified(), "flow"), (1, 8, 8), steps=2)
    pipe.card = {"data": "Digits", "training_steps": 1500}
    pipe.save(tmp_path / "flow")
    Pipeline.from_pretrained(tmp_path / "flow").save(tmp_path / "flow", overwrite=True)
    return tmp_path / "flow"


def test_the_ruler_measures_what_compare_does(flow):
    """Kept features of the data give the report's own numbers."""

    from genflow.metrics import compare
    from genflow.metrics.features import features

    data = RECIPES["digits-1rf"].data.reference(None)
    samples = data[:400].flip(-1)
    whole = compare(samples, data, features("random-conv", (1, 8, 8)))
    found = Ruler(data)(samples)
    assert found["distance"] == pytest.approx(whole["distance_at_floor_n"]["mean"], rel=1e-6)
    assert found["floor"] == pytest.approx(whole["floor"]["mean"], rel=1e-6)
    assert found["over_floor"] > 5  # mirrored digits are no digits
    assert Ruler(data).noise(len(data)) / found["floor"] > 100
    assert Ruler(data, UNSEEN).feature.name == "genflow-small" != Ruler(data).feature.name


def test_a_model_without_a_search_is_made_and_gone_on_with(flow, tmp_path, monkeypatch, capsys):
    work, name = tmp_path / "work", "digits-1rf"
    call = [name, "--quick", "--work", work, "--from", f"{name}={flow}"]
    call += ["--stages", "train", "distances", "card"]
    assert made(monkeypatch, *call) == 0
    folder = work / "made" / name
    card = card_of(folder)
    assert "_name_or_path" not in (folder / "net" / "config.json").read_text()
    assert card["made"]["steps"] == 1500 and card["schedules"] == {}
    assert {cell["nfe"] for cell in card["distances"]["table"]} == {1, 2, 4, 8}
    assert set(card["distances"]["features"]) == {"random-conv-1x8-0", "genflow-small"}
    page = (folder / "README.md").read_text()
    assert "No schedule has been searched for it." in page and "`genflow-small`; uniform" in page
    assert (folder / "README.md").read_text().startswith("---\nlicense: apache-2.0\n")
    assert "train" in capsys.readouterr().out

    assert made(monkeypatch, *call) == 0  # nothing is left to do
    assert capsys.readouterr().out == ""
    table = work / name / "distances.json"
    table.write_text(table.read_text().replace('"nfe": 1', '"nfe": 7'))
    assert made(monkeypatch, *call, "--again") == 0
    out = capsys.readouterr().out
    assert "card" in out and "distances" not in out
    assert 7 in {cell["nfe"] for cell in card_of(folder)["distances"]["table"]}


@pytest.mark.slow
def test_a_search_leaves_a_schedule_and_its_report(flow, tmp_path, monkeypatch):
    work, name = tmp_path / "work", "digits-1rf"
    call = [name, "--quick", "--work", work, "--from", f"{name}={flow}"]
    assert made(monkeypatch, *call) == 0
    card = card_of(work / "made" / name)
    found = card["schedules"]["3"]
    assert (work / "made" / name / "schedules" / "3.json").exists()
    assert found["preset"] and found["presets"] > 200
    assert set(found["measured"]) == {"random-conv-1x8-0", "genflow-small"}
    assert all(set(p) == {"searched", "preset", "tuned"} for p in found["measured"].values())
    path = Pipeline.from_pretrained(flow).denoiser.path
    assert load_table(work / "made" / name / "tables" / "3.json", path).nfe == 3
    assert found["tuning"]["steps"] == 1 and found["tuning"]["after"] <= found["tuning"]["before"]
    page = cards.page(card)
    assert "## Searched schedules" in page and 'zoo.table("digits-1rf", 3)' in page
    assert "| tuned | ratio |" in page and "by 1 gradients of the same" in page

    for folder in ("tunings", "tables"):
        shutil.rmtree(work / name / folder)
    assert made(monkeypatch, *call, "--again", "--stages", "card") == 0
    plain = cards.page(card_of(work / "made" / name))
    assert "tuned" not in plain and 'zoo.schedule("digits-1rf", 3)' in plain


@pytest.mark.slow
def test_the_bridge_is_fitted_and_measured(tmp_path):
    script = ROOT / "assets" / "zoo" / "latent.py"
    line = [sys.executable, str(script), str(tmp_path), "--steps", "30"]
    subprocess.run(line, check=True, cwd=ROOT)
    found = json.loads((tmp_path / "distances.json").read_text())
    assert [row["pair"] for row in found["table"]] == ["3 to 8", "1 to 7", "4 to 9", "0 to 6"]
    pipe = Pipeline.from_pretrained(tmp_path / "pipeline")
    assert pipe.event == (1, 8, 8) and pipe.class_names[0] == "3 to 8"


def test_errors_are_sentences(tmp_path, monkeypatch, capsys):
    work = ("--quick", "--work", tmp_path)
    assert made(monkeypatch, "digits-3rf", *work) == 2
    assert "model is 'digits-3rf': did you mean 'digits-2rf'" in capsys.readouterr().err
    assert made(monkeypatch, "digits-2rf", *work) == 2
    assert "starts from 'digits-1rf', which is not in" in capsys.readouterr().err
    assert made(monkeypatch, "fashion-1rf", *work) == 2
    assert "fashion is missing" in capsys.readouterr().err
    assert made(monkeypatch, "--list") == 0
    assert capsys.readouterr().out.count("\n") == len(RECIPES)


def test_a_folder_that_is_too_large_is_refused(flow, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cards, "MOST", 1000)
    call = ["digits-1rf", "--quick", "--work", tmp_path / "w", "--from", f"digits-1rf={flow}"]
    assert made(monkeypatch, *call, "--stages", "train", "distances", "card") == 2
    assert "bytes: 1000 are allowed" in capsys.readouterr().err
    assert not (tmp_path / "w" / "made" / "digits-1rf").exists()
