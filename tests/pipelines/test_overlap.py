"""Writing in the background, and parts by rank: nothing is lost, errors surface."""

import json
import os
from pathlib import Path
import subprocess
import sys
from threading import Event, get_ident
import time

import numpy as np
from PIL import Image
import pytest
import torch

from genflow.commands.choices import device_named
from genflow.errors import UserError
from genflow.pipelines.jobs import generate
from genflow.pipelines.overlap import Writer, behind
from genflow.pipelines.shares import share


def pixels(folder):
    return {p.name: np.asarray(Image.open(p)) for p in sorted((folder / "images").glob("*.png"))}


# ------------------------------------------------------------------------------ the writer


def test_items_are_stored_in_order_by_another_thread():
    stored, threads = [], set()

    def store(k):
        time.sleep(0.001 * (3 - k % 3))
        threads.add(get_ident())
        stored.append(k)

    with Writer(store) as write:
        for k in range(9):
            write(k)
    assert stored == list(range(9)) and len(threads) == 1 and get_ident() not in threads


def test_no_more_than_its_room_waits():
    free, handed = Event(), []

    with Writer(lambda k: free.wait(5), room=2) as write:
        from threading import Thread

        def hand():
            for k in range(6):
                write(k)
                handed.append(k)

        giver = Thread(target=hand)
        giver.start()
        time.sleep(0.2)
        assert len(handed) == 3  # one in the writer's hands, two waiting
        free.set()
        giver.join()
    assert len(handed) == 6


def test_an_error_of_the_writer_surfaces_and_nothing_more_is_stored():
    stored = []

    def store(k):
        if k == 2:
            raise UserError("the disk is full")
        stored.append(k)

    with pytest.raises(UserError, match="the disk is full"), Writer(store, room=1) as write:
        for k in range(20):
            write(k)
            time.sleep(0.001)
    assert stored == [0, 1] and k < 19

    with pytest.raises(UserError, match="full"), Writer(store) as write:
        write(2)  # the last item: the error comes on the way out


def test_what_was_handed_over_is_stored_when_its_maker_fails():
    stored = []

    def slow(k):
        time.sleep(0.01)
        stored.append(k)

    with pytest.raises(KeyboardInterrupt), Writer(slow, room=8) as write:
        for k in range(5):
            write(k)
        raise KeyboardInterrupt
    assert stored == list(range(5))


# ---------------------------------------------------------------------------------- jobs


def test_images_are_drawn_while_others_are_written(pipe, tmp_path, monkeypatch):
    """The second batch is drawn before the first has been stored."""

    drawn, order = Event(), []
    plain, seen = pipe._states, Image.Image.save

    def states(*args):
        for k, item in enumerate(plain(*args)):
            order.append("drawn")
            if k == 1:
                drawn.set()
            yield item

    def save(self, *args, **kwargs):
        assert drawn.wait(10)
        order.append("written")
        return seen(self, *args, **kwargs)

    monkeypatch.setattr(pipe, "_states", states)
    monkeypatch.setattr(Image.Image, "save", save)
    generate(pipe, tmp_path / "o", range(4), label=pipe.labels(0, 4), batch_size=2)
    assert order[:2] == ["drawn", "drawn"] and order.count("written") >= 4
    assert len(pixels(tmp_path / "o")) == 4


def test_a_job_whose_sampler_fails_keeps_what_was_drawn(pipe, tmp_path, monkeypatch):
    plain = pipe._states

    def states(*args):
        for k, item in enumerate(plain(*args)):
            if k == 2:
                raise RuntimeError("out of memory")
            yield item

    with monkeypatch.context() as patch:
        patch.setattr(pipe, "_states", states)
        with pytest.raises(RuntimeError, match="out of memory"):
            generate(pipe, tmp_path / "o", range(6), label=pipe.labels(0, 6), batch_size=2)
    assert len(pixels(tmp_path / "o")) == 4
    again = generate(
        pipe, tmp_path / "o", range(6), label=pipe.labels(0, 6), batch_size=2, resume=True
    )
    assert again["status"] == "done" and len(pixels(tmp_path / "o")) == 6


def test_parts_that_start_anew_leave_each_others_images_alone(pipe, tmp_path):
    """An older job of another kind is thrown away, by parts that need not wait for each other."""

    label = pipe.labels(None, 7)
    generate(pipe, tmp_path / "o", range(100, 107), label=label)
    for i in (1, 0, 2):
        part = {"label": label[:5], "shard": (i, 3), "overwrite": True}
        generate(pipe, tmp_path / "o", range(5), **part)
    generate(pipe, tmp_path / "new", range(5), label=label[:5])
    ours, theirs = pixels(tmp_path / "o"), pixels(tmp_path / "new")
    assert sorted(ours) == sorted(theirs)
    assert all(np.abs(ours[k].astype(int) - theirs[k].astype(int)).max() <= 1 for k in ours)
    left = sorted(p.name for p in (tmp_path / "o").glob("*.json"))
    assert left == [f"meta-{i}-of-3.json" for i in range(3)]


# ------------------------------------------------------------------------------- the parts


def test_the_part_of_a_process(monkeypatch):
    torchrun = {"TORCHELASTIC_RUN_ID": "x", "RANK": "2", "WORLD_SIZE": "4"}
    assert share(None, torchrun) == (2, 4)
    assert share("0/3", torchrun) == (0, 3)
    assert share(None, {}) == share(None, {"RANK": "2", "WORLD_SIZE": "4"}) == (0, 1)
    with pytest.raises(UserError, match="shard is '3/3'"):
        share("3/3", {})

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert device_named() == "cuda" and device_named("cpu") == "cpu"
    monkeypatch.setenv("LOCAL_RANK", "6")
    assert device_named() == "cuda:2"


@pytest.mark.slow
def test_torchrun_shares_the_images_out(pipe, tmp_path):
    pipe.save(tmp_path / "pipe")
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
            str(root / "sample.py"), "generate", str(tmp_path / "pipe"), "--seeds", "0-4",
            "--output", str(tmp_path / "two"), "--device", "cpu", "--batch_size", "2",
        ],
        cwd=root, capture_output=True, text=True, timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    generate(pipe, tmp_path / "one", range(5), label=pipe.labels(None, 5))
    one, two = pixels(tmp_path / "one"), pixels(tmp_path / "two")
    assert sorted(one) == sorted(two)
    assert all(np.abs(one[k].astype(int) - two[k].astype(int)).max() <= 1 for k in one)
    for i, seeds in enumerate(([0, 2, 4], [1, 3])):
        record = json.loads((tmp_path / "two" / f"meta-{i}-of-2.json").read_text())
        assert [e["seed"] for e in record["images"]] == seeds and record["status"] == "done"


# ------------------------------------------------------------------------------ the network


def test_a_compiled_network_draws_the_same_under_the_same_names(vectors):
    plain = vectors(seeds=[3, 4]).x
    before = set(vectors.denoiser.net.state_dict())
    assert vectors.compile(backend="eager") is vectors
    assert vectors.denoiser.net._compiled_call_impl is not None
    assert torch.allclose(vectors(seeds=[3, 4]).x, plain, atol=1e-6)
    assert set(vectors.denoiser.net.state_dict()) == before


def test_what_needs_a_gpu_is_refused_before_a_folder_is_made(pipe, tmp_path):
    options = {"label": pipe.labels(0, 2)}
    with pytest.raises(
        UserError, match="capture records a CUDA graph, and the denoiser is on cpu"
    ):
        generate(pipe, tmp_path / "o", range(2), capture=True, **options)
    with pytest.raises(UserError, match="overlap is True and the device is cpu"):
        generate(pipe, tmp_path / "o", range(2), overlap=True, **options)
    assert not (tmp_path / "o").exists()
    with pytest.raises(UserError, match="a second stream needs a GPU"):
        next(behind(iter(()), lambda x: x, torch.device("cpu")))
    pipe.condition = None
    with pytest.raises(UserError, match="a negative prompt for each sample"):
        next(pipe.batches([0, 1], negative=["a", "b"], capture=True))
