"""Bridges as pipelines: points in and out, seeds, folders without pickles."""

import json

from lightsb import FAMILIES, bridge
import numpy as np
import pytest
from safetensors.torch import load_file, save_file
import torch

from genflow.errors import UserError
from genflow.models import LightBridge
from genflow.pipelines import BridgePipeline, Pipeline

GRID = (1.0, 0.5, 0.0)


@pytest.fixture
def pipe():
    return BridgePipeline(bridge("full", K=3, d=4), (1, 2, 2), card={"data": "two blobs"})


@pytest.fixture
def labelled():
    parts = [bridge("diagonal", K=2, d=2, seed=i) for i in (1, 2)]
    return BridgePipeline(LightBridge.joined(parts), class_names=("up", "down"))


def points(pipe, n=6):
    return torch.randn(n, *pipe.shape, generator=torch.Generator().manual_seed(3))


def test_a_point_depends_on_its_seed_alone(pipe):
    x = points(pipe)
    made = pipe(x, seed=10)
    assert made.x.shape == x.shape and made.x.dtype == x.dtype and made.seeds == [*range(10, 16)]
    alone = pipe.bridge.sample(x[2:3], generator=[torch.Generator().manual_seed(12)])
    torch.testing.assert_close(made.x[2:3], alone)
    torch.testing.assert_close(pipe(x, seed=10, batch_size=4).x, made.x)
    torch.testing.assert_close(pipe(x[[4, 1]], seeds=[14, 11]).x, made.x[[4, 1]])
    assert not torch.equal(pipe(x, seed=11).x, made.x)
    assert pipe(x).seeds != pipe(x).seeds


def test_paths_come_in_batches_too(pipe):
    x = points(pipe)
    path = pipe.trajectory(x, GRID, seed=10)
    assert path.shape == (3, *x.shape) and torch.equal(path[0], x)
    torch.testing.assert_close(pipe.trajectory(x, GRID, seed=10, batch_size=4), path)
    other = pipe.trajectory(x, GRID, seed=10, method="bridge")
    torch.testing.assert_close(other[0], x)
    assert not torch.equal(other, path)


def test_arrays_and_whole_numbers_are_points_too(pipe):
    x = np.ones((3, 1, 2, 2), dtype=np.int64)
    made = pipe(x, seed=0)
    torch.testing.assert_close(made.x, pipe(torch.ones(3, 1, 2, 2), seed=0).x)
    assert pipe(x[:0], seed=0).x.shape == (0, 1, 2, 2)
    assert pipe.trajectory(x[:0], GRID).shape == (3, 0, 1, 2, 2)


def test_classes_by_number_and_by_name(labelled):
    x = points(labelled)
    down = labelled(x, seed=0, label="down")
    torch.testing.assert_close(labelled(x, seed=0, label=1).x, down.x)
    assert down.label.tolist() == [1] * 6
    mixed = labelled(x, seed=0, label=["up", "down"] * 3, batch_size=4)
    torch.testing.assert_close(mixed.x[1::2], down.x[1::2])
    assert not torch.allclose(mixed.x[::2], down.x[::2])


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_folder_gives_the_bridge_back(kind, tmp_path):
    b = bridge(kind, K=3, d=4)
    if kind == "full":
        b.covariance = b.covariance.turning()
        b.covariance.turn.data.normal_()
    pipe = BridgePipeline(b, (2, 2), card={"n": 3})
    x = points(pipe)
    pipe.save(tmp_path / "b")
    assert {f.name for f in (tmp_path / "b").iterdir()} == {
        "model_index.json",
        "bridge.safetensors",
    }

    for load in (BridgePipeline.from_pretrained, Pipeline.from_pretrained):
        again = load(tmp_path / "b")
        assert isinstance(again, BridgePipeline)
        assert again.shape == (2, 2) and again.card == {"n": 3}
        assert again.bridge.epsilon == b.epsilon and again.bridge.covariance.kind == kind
        assert not any(p.requires_grad for p in again.bridge.parameters())
        torch.testing.assert_close(again(x, seed=1).x, pipe(x, seed=1).x)
        torch.testing.assert_close(again.bridge.drift(x, 0.3), b.drift(x, 0.3).detach())


def test_classes_survive_the_folder(labelled, tmp_path):
    labelled.save(tmp_path / "b")
    again = BridgePipeline.from_pretrained(tmp_path / "b", device="cpu")
    x = points(labelled)
    assert again.class_names == ("up", "down")
    assert torch.isneginf(again.bridge.log_weight).any()
    torch.testing.assert_close(again(x, seed=0, label="up").x, labelled(x, seed=0, label="up").x)


def test_a_folder_is_replaced_only_if_asked_to(pipe, tmp_path):
    pipe.save(tmp_path / "b")
    with pytest.raises(UserError, match="exists: give another name"):
        pipe.save(tmp_path / "b")
    pipe.save(tmp_path / "b", overwrite=True)
    assert [f.name for f in tmp_path.iterdir()] == ["b"]


# ------------------------------------------------------------------------------ bad values


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda p, q: BridgePipeline(p.bridge, (3,)), r"shape is \(3,\) and the bridge has 4"),
        (lambda p, q: BridgePipeline(p.bridge, class_names=("a",)), "the bridge has no classes"),
        (lambda p, q: p(torch.zeros(3, 4)), r"x has shape \(3, 4\): \(n, 1, 2, 2\) is needed"),
        (lambda p, q: p(torch.tensor(1.0)), r"x has shape \(\)"),
        (lambda p, q: p(torch.full((2, 1, 2, 2), torch.nan)), "x holds 2 points that are not fin"),
        (lambda p, q: p(torch.zeros(2, 1, 2, 2), seeds=[1]), "1 seeds for 2 points"),
        (lambda p, q: p(torch.zeros(2, 1, 2, 2), batch_size=0), "batch_size is 0"),
        (lambda p, q: p(torch.zeros(2, 1, 2, 2), label=1), "this bridge has no classes"),
        (lambda p, q: q(torch.zeros(2, 2)), "label is missing: this bridge has 2 classes"),
        (lambda p, q: q(torch.zeros(2, 2), label=2), "label is 2: 0 … 1 are allowed"),
        (lambda p, q: q(torch.zeros(2, 2), label="left"), "label is 'left': the classes are up"),
    ],
)
def test_bad_values(call, says, pipe, labelled):
    with pytest.raises(UserError, match=says):
        call(pipe, labelled)


def _record(folder, **changes):
    file = folder / "model_index.json"
    index = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in index.items() if v != "gone"}))


def _tensors(folder, **changes):
    file = folder / "bridge.safetensors"
    tensors = load_file(file) | changes
    save_file({k: v for k, v in tensors.items() if v is not None}, file)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: _record(f, _class_name="Pipeline"), "is a Pipeline and no bridge"),
        (lambda f: _record(f, covariance="fulll"), "did you mean 'full'"),
        (lambda f: _record(f, epsilon=-1.0), "epsilon is -1.0"),
        (lambda f: _record(f, epsilon="gone"), "lacks 'epsilon': save it again"),
        (lambda f: _record(f, components=7), "do not fit its record"),
        (lambda f: _tensors(f, centre=None), "lacks 'centre'"),
        (lambda f: _tensors(f, more=torch.zeros(1)), "do not fit its record"),
        (lambda f: _tensors(f, centre=torch.zeros(2, 4)), r"centre \(2, 4\)"),
        (lambda f: (f / "bridge.safetensors").write_bytes(b"no"), "cannot be loaded"),
        (lambda f: (f / "bridge.safetensors").unlink(), "cannot be loaded"),
    ],
)
def test_damaged_folders(damage, says, pipe, tmp_path):
    pipe.save(tmp_path / "b")
    damage(tmp_path / "b")
    with pytest.raises(UserError, match=says):
        BridgePipeline.from_pretrained(tmp_path / "b")
