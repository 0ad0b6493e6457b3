"""Jobs: one number however the work was cut, killed or shared; refusals before any work."""

import json

from albums import nhwc, pictures, save
import numpy as np
import pytest
import torch

from genflow.errors import UserError
from genflow.evaluation import evaluate
from genflow.evaluation.chunks import cut
from genflow.evaluation.jobs import Job
from genflow.metrics import frechet_from_features
from genflow.metrics.features import extract, features
from genflow.metrics.weights import Absent

DATA = pictures(60, channels=1, seed=1)
QUIET = {"say": lambda text: None, "feature": "random-conv", "metrics": "fd", "halvings": 2}


def fd(report, net="random-conv"):
    return report["measures"][net]["metrics"]["frechet"]["value"]


def run(samples, data=DATA, **options):
    return evaluate(samples, data, **(QUIET | options))


def test_chunks_are_fixed_by_the_job_and_span_no_two_ranges():
    assert [(c.start, c.stop) for c in cut(5, 2, 2)] == [
        (0, 2), (2, 4), (4, 5), (5, 7), (7, 9), (9, 10)
    ]  # fmt: skip
    with pytest.raises(UserError, match="chunk is 0"):
        cut(5, 0)


def test_the_distance_is_that_of_all_features_at_once(pipe):
    report = run(pipe, n=30, chunk=7, batch_size=4)
    net = features("random-conv", (1, 8, 8))
    x = pipe(seeds=range(30)).uint8
    expected = frechet_from_features(extract(net, x), extract(net, DATA))
    assert fd(report) == pytest.approx(expected, rel=1e-4)
    assert report["counts"] == {"samples": 30, "reference": 60}
    assert report["samples"]["nfe"] == 2 and report["samples"]["seeds"] == [[0, 29]]


def test_a_folder_an_array_and_a_tensor_score_the_same(tmp_path):
    x = pictures(30, channels=1)
    np.savez(tmp_path / "x.npz", nhwc(x))
    values = {fd(run(s)) for s in (x, save(tmp_path / "x", x), tmp_path / "x.npz")}
    assert len(values) == 1
    assert values.pop() > 0


def test_the_folder_of_a_job(pipe, tmp_path):
    report = run(pipe, n=20, chunk=8, output=tmp_path / "o", command="genflow evaluate")
    assert json.loads((tmp_path / "o" / "report.json").read_text()) == report
    names = {p.name for p in (tmp_path / "o").iterdir()}
    assert names == {
        "meta.json", "manifest.json", "report.json", "report.md", "grid.png",
        "chunks", "features", "pictures",
    }  # fmt: skip
    assert not list((tmp_path / "o" / "features").glob("*.npy")), "the join is gone"
    manifest = json.loads((tmp_path / "o" / "manifest.json").read_text())
    assert [(c["start"], c["stop"]) for c in manifest["chunks"]] == [(0, 8), (8, 16), (16, 20)]
    shard = np.load(tmp_path / "o" / "features" / "random-conv" / "00001.npy")
    assert shard.shape == (8, 64) and shard.dtype == np.float32


def test_a_job_that_was_cut_short_fills_the_gaps_alone(pipe, tmp_path):
    whole = run(pipe, n=20, chunk=5, output=tmp_path / "whole")
    seen = []

    def kill(done, total):
        seen.append(done)
        if done > 10:
            raise KeyboardInterrupt

    part = {"n": 20, "chunk": 5, "output": tmp_path / "part"}
    with pytest.raises(KeyboardInterrupt):
        run(pipe, report=kill, **part)
    assert not (tmp_path / "part" / "report.json").exists()
    with pytest.raises(UserError, match="--resume true"):
        run(pipe, **part)

    damaged = tmp_path / "part" / "features" / "random-conv" / "00000.npy"
    data = bytearray(damaged.read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)

    said, seen = [], []
    report = run(
        pipe, resume=True, say=said.append, report=lambda d, t: seen.append((d, t)), **part
    )
    assert seen == [(5, 15), (10, 15), (15, 15)], "the damaged chunk and the two that were missing"
    assert "resumed: 5 images were seen before, 15 are left" in said
    assert fd(report) == fd(whole)

    seen = []
    again = run(pipe, resume=True, metrics="swd", report=lambda d, t: seen.append(d), **part)
    assert not seen and "sliced-wasserstein" in again["measures"]["random-conv"]["metrics"]


def test_only_the_same_job_is_gone_on_with(pipe, tmp_path):
    job = {"n": 6, "output": tmp_path / "o"}
    run(pipe, **job)
    for change, word in (
        ({"seed": 1}, "seed"),
        ({"feature": "pixels"}, "nets"),
        ({"label": "0,2,1"}, "labels"),  # as many of each, in another order
    ):
        with pytest.raises(UserError, match=f"another {word}"):
            run(pipe, resume=True, **(job | change))
    with torch.no_grad():
        next(pipe.denoiser.parameters()).add_(1)
    with pytest.raises(UserError, match="another samples"):
        run(pipe, resume=True, **job)
    assert run(pipe, overwrite=True, **job)["counts"]["samples"] == 6


def test_only_an_older_evaluation_is_overwritten(pipe, tmp_path):
    folder = save(tmp_path / "mine", pictures(3))
    (folder / "features").mkdir()
    (folder / "meta.json").write_text('{"sampler": "of a generating job"}')
    before = sorted(folder.rglob("*"))
    with pytest.raises(UserError, match="holds no evaluation that could be overwritten"):
        run(pipe, n=4, output=folder, overwrite=True)
    assert sorted(folder.rglob("*")) == before

    run(pipe, n=8, chunk=2, output=tmp_path / "o")
    report = run(pipe, n=4, chunk=2, output=tmp_path / "o", overwrite=True)
    assert report["counts"]["samples"] == 4
    assert len(list((tmp_path / "o" / "chunks").iterdir())) == 2, "nothing older is left"


def test_shards_that_know_nothing_of_each_other_give_the_same_number(pipe, tmp_path):
    whole = run(pipe, n=20, chunk=4)
    said = []
    job = {"n": 20, "chunk": 4, "output": tmp_path / "o", "say": said.append}
    assert run(pipe, shard=(0, 3), **job) is None
    assert run(pipe, shard=(2, 3), **job) is None
    assert "2 of 5 chunks are left to other shards" in said[-1]
    with pytest.raises(UserError, match="2 of 5 chunks .* missing or damaged"):
        run(pipe, reduce=True, **job)

    report = run(pipe, shard=(1, 3), **job)
    assert fd(report) == fd(whole)
    assert fd(run(pipe, reduce=True, **job)) == fd(whole)

    with pytest.raises(UserError, match="another n: all shards"):
        run(pipe, reduce=True, **(job | {"n": 19, "chunk": 4}))
    mark = tmp_path / "o" / "reducing"
    mark.touch()
    assert run(pipe, shard=(0, 3), resume=True, **job) is None
    assert said[-1].endswith(
        "another shard measures; should it have been stopped, say --reduce true"
    )
    assert fd(run(pipe, reduce=True, **job)) == fd(whole) and not mark.exists()


def test_a_shard_that_was_told_something_else_is_refused_before_it_works(
    pipe, tmp_path, monkeypatch
):
    run(pipe, n=20, chunk=4, shard=(0, 3), output=tmp_path / "o")
    monkeypatch.setattr(Job, "look", lambda *a: pytest.fail("too late"))
    for change, word in (({"seed": 1}, "seed"), ({"n": 19}, "n"), ({"chunk": 5}, "chunks")):
        job = {"n": 20, "chunk": 4, "shard": (1, 3), "output": tmp_path / "o"}
        with pytest.raises(UserError, match=f"another {word}: all shards"):
            run(pipe, **(job | change))
    assert not list((tmp_path / "o").glob("meta-1*"))


def test_what_needs_a_folder_says_so(pipe, tmp_path):
    with pytest.raises(UserError, match="resume is given, but output is no folder"):
        run(pipe, n=4, resume=True, output=tmp_path / "x.json")
    with pytest.raises(UserError, match="shard is given"):
        run(pipe, n=4, shard=(0, 2))
    with pytest.raises(UserError, match="throw away the work of the others"):
        run(pipe, n=4, shard=(0, 2), output=tmp_path, overwrite=True)
    with pytest.raises(UserError, match="holds no evaluation"):
        (tmp_path / "x").mkdir()
        run(pipe, n=4, reduce=True, output=tmp_path / "x", chunk=4)
    with pytest.raises(UserError, match="batch_size is 0"):
        run(pipe, n=4, batch_size=0)


def test_a_file_of_json_is_all_that_is_left_if_that_is_asked_for(pipe, tmp_path):
    report = run(pipe, n=6, output=tmp_path / "sub" / "report.json")
    assert [p.name for p in (tmp_path / "sub").iterdir()] == ["report.json"]
    assert json.loads((tmp_path / "sub" / "report.json").read_text()) == report


def test_ranges_of_seeds_give_the_numbers_of_jobs_of_their_own(pipe):
    three = run(pipe, n=20, repeats=3, chunk=8)
    seeds = three["measures"]["random-conv"]["metrics"]["frechet"]["seeds"]
    alone = [fd(run(pipe, n=20, seed=20 * r, chunk=8)) for r in range(3)]
    assert seeds["values"] == alone and seeds["min"] == min(alone)
    assert seeds["mean"] == pytest.approx(sum(alone) / 3)
    assert three["samples"]["seeds"] == [[0, 19], [20, 39], [40, 59]]
    with pytest.raises(UserError, match="repeats is given, but the samples are not drawn"):
        run(DATA, repeats=2)
    with pytest.raises(UserError, match="steps is given, but"):
        run(DATA, steps=2)


def test_a_subset_of_stored_images_is_random_and_the_same_for_a_seed():
    x = pictures(50, channels=1)
    assert fd(run(x, n=20)) == fd(run(x, n=20)) != fd(run(x[:20]))
    assert fd(run(x, n=20, seed=1)) != fd(run(x, n=20))
    with pytest.raises(UserError, match="n is 51, but there are 50 samples"):
        run(x, n=51)


def test_weights_that_are_absent_are_told_before_any_image_is_drawn(pipe, monkeypatch):
    order, look = [], Job.look
    monkeypatch.setattr(Job, "look", lambda *a: (order.append("look"), look(*a))[1])
    report = run(pipe, n=6, feature="inception,random-conv", say=order.append)
    assert order[0].startswith("skipped: inception (frechet): ") and "look" in order[1:]
    (left,) = report["skipped"]
    assert left["feature"] == "inception" and left["metrics"] == ["frechet"]
    assert "inception-2015-12-05.pt" in left["reason"] and list(report["measures"]) == [
        "random-conv"
    ]

    order.clear()
    with pytest.raises(UserError, match="no feature net is left: .*--feature random-conv"):
        run(pipe, n=6, metrics="fid", say=order.append)
    assert "look" not in order


def test_a_wrong_file_of_weights_is_no_absence(pipe, tmp_path):
    (tmp_path / "w.pt").write_bytes(b"no network")
    with pytest.raises(UserError) as caught:
        run(pipe, n=6, feature="inception,random-conv", inception_weights=tmp_path / "w.pt")
    assert not isinstance(caught.value, Absent)


def test_few_images_are_flagged_and_one_is_refused(monkeypatch):
    report = run(pictures(10, channels=1))
    assert any("samples" in w and "10" in w for w in report["warnings"])
    monkeypatch.setattr(Job, "look", lambda *a: pytest.fail("too late"))
    for x, y, words in ((DATA[:1], DATA, "1 samples"), (DATA, DATA[:1], "1 data")):
        with pytest.raises(UserError, match=f"there are {words}: a distance needs 2"):
            run(x, y)
    for halvings in (1, -1):
        with pytest.raises(UserError, match=f"halvings is {halvings}: 2 or more are needed"):
            run(DATA, halvings=halvings)


def test_a_fresh_reference_has_floors_whatever_the_metric():
    for halvings in (2, 0):
        entry = run(DATA[:30], halvings=halvings)["measures"]["random-conv"]["metrics"]["frechet"]
        assert (entry["floor"] is None) == (entry["ratio"] is None) == (halvings == 0)


def test_files_left_out_are_counted_in_the_report(tmp_path):
    folder = save(tmp_path / "f", pictures(12, channels=1))
    (folder / "0002.png").write_bytes(b"")
    with pytest.raises(UserError, match="1 of 12 images"):
        run(folder)
    report = run(folder, skip_unreadable=True)
    assert report["samples"]["unreadable"] == ["0002.png"] and report["counts"]["samples"] == 11
    left = "samples: 1 of 12 files cannot be decoded and are left out (0002.png)."
    assert left in report["warnings"]
