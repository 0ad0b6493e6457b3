"""Where models lie, and how they are named: on a small zoo that is made here."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from genflow import Pipeline, zoo
from genflow.cli import main
from genflow.errors import UserError
from genflow.models import LightBridge, Preconditioned, Rectified, path_named
from genflow.nn import MLP
from genflow.pipelines import BridgePipeline
from genflow.shelves import models, places, resolved, shelf
from genflow.solvers import schedule_for
from genflow.solvers.files import read_solver
from genflow.training.checkpoints import begin_with


def stocked(place, name, pipe, **more):
    """A model of a zoo: a saved pipeline with a card, and a schedule."""

    folder = place / name
    pipe.save(folder)
    weights = {
        f.relative_to(folder).as_posix(): hashlib.sha256(f.read_bytes()).hexdigest()
        for f in folder.rglob("*.safetensors")
    }
    card = {"format": 1, "about": f"The model {name}.", "parameters": 12345, "weights": weights}
    (folder / "card.json").write_text(json.dumps(card | more))
    (folder / "README.md").write_text(f"---\nlicense: mit\n---\n\n# {name}\n\nA page.\n")
    return folder


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A zoo with a flow in the plane, and nothing else anywhere."""

    torch.manual_seed(0)
    monkeypatch.setenv("GENFLOW_ZOO", str(tmp_path / "zoo"))
    monkeypatch.setattr("genflow.shelves.__file__", str(tmp_path / "site" / "genflow" / "s.py"))
    monkeypatch.delenv("GENFLOW_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pipe = Pipeline(Preconditioned(MLP(2, 16, 1), Rectified(), "flow"), (2,))
    folder = stocked(tmp_path / "zoo", "plane", pipe)
    (folder / "schedules").mkdir()
    schedule_for("ddim", Rectified(), 3).save(folder / "schedules" / "3.json", Rectified())
    return tmp_path / "zoo"


def test_a_model_is_named_wherever_a_pipeline_is(place, tmp_path, capsys):
    pipe = zoo.load("plane")
    again = Pipeline.from_pretrained("zoo:plane")
    assert zoo.names() == ["plane"] and zoo.card("plane")["parameters"] == 12345
    torch.testing.assert_close(pipe(3, seed=1).x, again(3, seed=1).x, rtol=0, atol=0)
    assert path_named("zoo:plane") == Rectified()
    fresh = MLP(2, 16, 1)
    begin_with(fresh, "zoo:plane")
    ours, theirs = fresh.state_dict(), pipe.denoiser.net.state_dict()
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
    job = ("generate", "zoo:plane", "--n", "5", "--output", str(tmp_path / "out"))
    assert main([*job, "--schedule", "zoo:plane/schedules/3.json"]) == 0
    assert "5 samples, NFE 3" in capsys.readouterr().out
    assert main(["schedule", "show", "zoo:plane/schedules/3.json"]) == 0
    assert read_solver("zoo:plane/schedules/3.json") == zoo.schedule("plane", 3)
    assert resolved("runs/x") == "runs/x" and resolved(Path("zoo:plane")) == place / "plane"


def test_a_bridge_is_loaded_by_both_doors(place):
    cloud = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    bridge = LightBridge.gaussian((torch.zeros(2), torch.eye(2)), (cloud[0], torch.eye(2)), 0.5)
    stocked(place, "way", BridgePipeline(bridge))
    one, two = zoo.load("way"), BridgePipeline.from_pretrained("zoo:way")
    torch.testing.assert_close(one(cloud, seed=0).x, two(cloud, seed=0).x, rtol=0, atol=0)
    assert zoo.trial(one) == zoo.trial(two) and zoo.schedules("way") == {}
    with pytest.raises(UserError, match="schedules of zoo model 'way' have none"):
        zoo.schedule("way", 5)


def test_trials_tell_models_apart():
    first, second = zoo.load("plane"), zoo.load("plane")
    told = zoo.trial(first)
    assert told == zoo.trial(second)
    with torch.no_grad():
        next(second.denoiser.parameters()).mul_(1.01)
    assert told != zoo.trial(second)
    x = first(4, seed=0).x.double().flatten()
    assert told["mean"] == pytest.approx(float(x.mean()), abs=1e-6)
    place = sum(float(v) * float(torch.tensor(float(i)).cos()) for i, v in enumerate(x)) / len(x)
    assert told["cos"] == pytest.approx(place, abs=1e-5)


def test_the_first_place_that_holds_a_model_wins(place, tmp_path, monkeypatch):
    checkout, cache = tmp_path / "site" / "assets" / "zoo", tmp_path / "cache" / "genflow" / "zoo"
    assert places() == (place, checkout, cache)
    pipe = zoo.load("plane")
    for where, name in ((checkout, "plane"), (checkout, "second"), (cache, "second")):
        stocked(where, name, pipe)
    assert models() == {"plane": place / "plane", "second": checkout / "second"}
    monkeypatch.delenv("GENFLOW_ZOO")
    assert models()["plane"] == checkout / "plane"
    monkeypatch.setenv("GENFLOW_CACHE", str(tmp_path / "own"))
    assert places() == (checkout, tmp_path / "own" / "zoo")


def test_what_is_absent_or_broken_is_told_in_a_sentence(place, monkeypatch):
    with pytest.raises(UserError, match="zoo model is 'plain': did you mean 'plane'"):
        zoo.load("plain")
    with pytest.raises(UserError, match=r"schedules of zoo model 'plane' have 3: take one"):
        zoo.schedule("plane", 4)

    weights = place / "plane" / "net" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match="'plane' are missing or damaged: .*copy the folder again"):
        Pipeline.from_pretrained("zoo:plane")
    weights.unlink()
    with pytest.raises(UserError, match="missing or damaged"):
        shelf("plane")

    card = place / "plane" / "card.json"
    card.write_text('{"format": 99, "weights": {}}')
    with pytest.raises(UserError, match="no card of format 1: a newer genflow"):
        zoo.card("plane")
    card.write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        zoo.card("plane")

    card.unlink()
    with pytest.raises(
        UserError, match="'plane' is not here, nor is any other; looked in .*GENFLOW_ZOO"
    ):
        zoo.load("plane")
    monkeypatch.setenv("GENFLOW_ZOO", str(place / "nowhere"))
    with pytest.raises(UserError, match="GENFLOW_ZOO is '.*nowhere', which is no folder"):
        zoo.names()


def run(capsys, *arguments):
    code = main(["zoo", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_command_lists_shows_and_copies(place, tmp_path, capsys, monkeypatch):
    code, out, _ = run(capsys, "list")
    assert code == 0 and out == "plane   0.01 M  The model plane. Schedules: 3 calls.\n"
    code, out, _ = run(capsys, "show", "plane")
    assert code == 0 and out == "# plane\n\nA page.\n"

    copy = tmp_path / "copy"
    code, out, _ = run(capsys, "get", "plane", "--output", str(copy))
    assert code == 0 and out == f"pipeline: {copy}\n"
    same = Pipeline.from_pretrained(copy)
    assert torch.equal(same(2, seed=0).x, zoo.load("plane")(2, seed=0).x)
    assert (copy / "schedules" / "3.json").exists()

    code, _, err = run(capsys, "get", "plane", "--output", str(copy))
    assert code == 2 and "exists: give another name" in err and err.count("\n") == 1
    assert run(capsys, "get", "plane", "--output", str(copy), "--overwrite")[0] == 0
    assert run(capsys, "show", "plan")[0] == 2

    monkeypatch.setenv("GENFLOW_ZOO", str(tmp_path))
    code, out, _ = run(capsys, "list")
    assert code == 0 and "copy" in out  # a copy is a model of the folder that it lies in
    (copy / "card.json").unlink()
    code, out, _ = run(capsys, "list")
    assert code == 0 and out.startswith("No models are here; looked in ")
    assert "clone it, and let the environment variable GENFLOW_ZOO name" in out
