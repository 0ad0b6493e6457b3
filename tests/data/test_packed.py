"""Packed images: the bytes that were decoded, in shards, mapped; jobs that were killed go on."""

import json

import numpy as np
from PIL import Image
import pytest
import torch

from genflow.cli import main
from genflow.data import Digits, ImageFolder, ImageManifest, Packed, Toy, pack
from genflow.errors import UserError


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    for k in range(11):
        file = tmp_path / "photos" / ("ant", "bee")[k % 2] / f"{k:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).save(file)
    return tmp_path / "photos"


def test_what_is_packed_is_what_was_decoded(photos, tmp_path):
    there = ImageFolder(photos, in_memory=False)
    made = pack(there, tmp_path / "packed", shard_size=4)
    assert (made.shards, made.n, made.dtype) == (3, 11, "uint8")
    here = Packed(tmp_path / "packed", batch_size=5, flip=True)
    a, b = ImageFolder(photos).train_set[:], here.train_set[:]
    assert b["x"].dtype == torch.uint8 and here.title == "ImageFolder"
    assert torch.equal(a["x"], b["x"]) and torch.equal(a["label"], b["label"])
    assert here.class_names == ("ant", "bee")
    order = [10, 0, 7, 7]
    assert torch.equal(here.train_set[order]["x"], a["x"][order])


def test_packed_images_are_split_and_streamed_like_any(tmp_path):
    pack(Digits(), tmp_path / "packed", shard_size=500)
    options = {"batch_size": 32, "validation": 0.1, "seed": 3}
    ours, theirs = Packed(tmp_path / "packed", **options), Digits(**options)
    assert torch.equal(ours.val_set[:]["x"], theirs.val_set[:]["x"])
    a, b = (next(iter(d.train_dataloader())) for d in (ours, theirs))
    assert torch.equal(a["x"], b["x"]) and torch.equal(a["label"], b["label"])


def test_parts_and_killed_jobs_make_one_store(tmp_path):
    for i in range(2):
        pack(Digits(), tmp_path / "two", shard_size=500, shard=(i, 2))
    pack(Digits(), tmp_path / "one", shard_size=500)
    (tmp_path / "one" / "x-00002.npy").unlink()
    with pytest.raises(UserError, match="images '.*one' are incomplete: 1 of 4 shards"):
        Packed(tmp_path / "one").setup()
    kept = (tmp_path / "one" / "x-00001.npy").stat().st_mtime_ns
    seen = []
    pack(Digits(), tmp_path / "one", shard_size=500, report=lambda *n: seen.append(n))
    assert (tmp_path / "one" / "x-00001.npy").stat().st_mtime_ns == kept
    assert seen[-1] == (1797, 1797)
    a, b = (Packed(tmp_path / name).train_set[:] for name in ("one", "two"))
    assert torch.equal(a["x"], b["x"])


def test_the_command_reads_files_a_few_at_a_time(photos, tmp_path, capsys):
    out = tmp_path / "packed"
    assert main(["pack", str(photos), str(out), "--size", "4", "--channels", "1"]) == 0
    assert "11 images with shape (1, 4, 4) in 1 shards" in capsys.readouterr().out
    assert ImageManifest.load(out).class_names == ("ant", "bee")
    want = ImageFolder(photos, size=4, channels=1).train_set[:]["x"]
    assert torch.equal(Packed(out).train_set[:]["x"], want)
    assert json.loads((out / "manifest.json").read_text())["shape"] == [1, 4, 4]


def test_only_images_can_be_packed(tmp_path):
    with pytest.raises(UserError, match=r"shape \(2,\) and dtype float32: only images in uint8"):
        pack(Toy("moons"), tmp_path / "x")
    with pytest.raises(UserError, match="shard_size is 0"):
        pack(Digits(), tmp_path / "x", shard_size=0)
    pack(Digits(), tmp_path / "x", shard_size=900)
    with pytest.raises(UserError, match="holds images of another job"):
        pack(Digits(), tmp_path / "x", shard_size=901)
