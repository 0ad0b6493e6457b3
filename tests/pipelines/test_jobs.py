"""Generating jobs: numbered images, refusals, shards, resuming."""

import json

import numpy as np
from PIL import Image
import pytest
import torch

from genflow.data.named import images_of
from genflow.errors import UserError
from genflow.pipelines.jobs import generate, parse_seeds, parse_shard


def pixels(folder):
    return {p.name: np.asarray(Image.open(p)) for p in sorted((folder / "images").glob("*.png"))}


def test_a_job_writes_images_a_grid_and_how_each_was_made(pipe, tmp_path):
    label = pipe.labels(None, 5)
    meta = generate(pipe, tmp_path / "o", range(10, 15), label=label, batch_size=2)

    assert sorted(pixels(tmp_path / "o")) == [f"{k:06d}.png" for k in range(5)]
    assert meta == json.loads((tmp_path / "o" / "meta.json").read_text())
    assert [e["seed"] for e in meta["images"]] == [10, 11, 12, 13, 14]
    assert [e["label"] for e in meta["images"]] == [0, 1, 2, 0, 1]
    assert meta["nfe"] == 4 and meta["status"] == "done" and "genflow" in meta
    assert np.array_equal(
        pixels(tmp_path / "o")["000003.png"], np.asarray(pipe(seeds=[13], label=0).images[0])
    )
    assert Image.open(tmp_path / "o" / "grid.png").width > 3 * 48
    assert len(images_of(tmp_path / "o", channels=1)) == 5, "the grid is no sample"


def test_a_folder_that_is_taken_is_refused(pipe, tmp_path):
    label = pipe.labels(0, 2)
    generate(pipe, tmp_path / "o", range(2), label=label)
    with pytest.raises(UserError, match="--overwrite"):
        generate(pipe, tmp_path / "o", range(2), label=label)

    generate(pipe, tmp_path / "o", range(7, 8), label=pipe.labels(0, 1), overwrite=True)
    assert list(pixels(tmp_path / "o")) == ["000000.png"]

    with pytest.raises(UserError, match="another images"):
        generate(pipe, tmp_path / "o", range(2), label=label, resume=True)


def test_a_job_that_cannot_run_leaves_no_folder(pipe, tmp_path):
    with pytest.raises(UserError, match="sampler is 'unipcc'"):
        generate(pipe, tmp_path / "o", range(2), sampler="unipcc")
    assert not (tmp_path / "o").exists()


def test_a_killed_job_goes_on_where_it_stood(pipe, tmp_path):
    label = pipe.labels(None, 6)
    whole = generate(pipe, tmp_path / "whole", range(6), label=label, batch_size=2)

    class Killed(Exception):
        pass

    def kill(done, total):
        if done >= 4:
            raise Killed

    with pytest.raises(Killed):
        generate(pipe, tmp_path / "part", range(6), label=label, batch_size=2, report=kill)
    assert json.loads((tmp_path / "part" / "meta.json").read_text())["status"] == "running"
    assert len(pixels(tmp_path / "part")) == 4

    counts = []
    again = generate(
        pipe, tmp_path / "part", range(6), label=label, batch_size=2, resume=True,
        report=lambda done, total: counts.append(done),
    )  # fmt: skip
    assert counts == [6], "only the two missing images were drawn"
    assert again["images"] == whole["images"]
    for name, image in pixels(tmp_path / "whole").items():
        assert np.abs(image.astype(int) - pixels(tmp_path / "part")[name].astype(int)).max() <= 1


def test_shards_share_the_work_out(pipe, tmp_path):
    label = pipe.labels(None, 5)
    generate(pipe, tmp_path / "one", range(5), label=label)
    for i in range(2):
        generate(pipe, tmp_path / "two", range(5), label=label, shard=(i, 2))

    one, two = pixels(tmp_path / "one"), pixels(tmp_path / "two")
    assert sorted(one) == sorted(two)
    assert all(np.abs(one[k].astype(int) - two[k].astype(int)).max() <= 1 for k in one)
    parts = [json.loads((tmp_path / "two" / f"meta-{i}-of-2.json").read_text()) for i in range(2)]
    assert [len(p["images"]) for p in parts] == [3, 2]


def test_vectors_go_into_one_array(vectors, tmp_path):
    generate(vectors, tmp_path / "o", range(9), batch_size=4)
    x = np.load(tmp_path / "o" / "samples.npy")
    assert np.allclose(x, vectors(9, seed=0).x.numpy(), atol=1e-6)
    assert (tmp_path / "o" / "cloud.png").exists()
    assert torch.equal(images_of(tmp_path / "o"), torch.from_numpy(x))


def test_a_full_disk_stops_the_job_with_a_sentence(pipe, tmp_path, monkeypatch):
    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(UserError, match="No space left"):
        generate(pipe, tmp_path / "o", range(2), label=pipe.labels(0, 2))
    assert not list((tmp_path / "o").rglob("*.png")) and not list((tmp_path / "o").rglob("*.part"))


def test_texts_of_seeds_and_shards():
    assert parse_seeds("0-3,7,9-10") == [0, 1, 2, 3, 7, 9, 10]
    assert parse_shard("1/4") == (1, 4)
    for text in ("4/4", "x", "1", "-1/2"):
        with pytest.raises(UserError, match="shard is"):
            parse_shard(text)
    with pytest.raises(UserError, match="seeds is 'a-b'"):
        parse_seeds("a-b")
