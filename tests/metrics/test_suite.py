"""The suite: each metric is its function, each floor two halves of the real data."""

import json

import numpy as np
import pytest
import torch

from genflow.errors import UserError
from genflow.metrics import (
    METRICS,
    MomentSum,
    Pixels,
    Reference,
    catalogue,
    energy_distance,
    frechet_from_features,
    gaussian_mmd,
    kernel_distance,
    markdown,
    measure,
    prdc,
    resolve,
    sliced_wasserstein,
)
from genflow.metrics.catalogue import label
from genflow.metrics.distances import median_gap
from genflow.metrics.suite import halves


def cloud(n, seed, d=3, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator) + shift


X, Y = cloud(90, 0, shift=0.3), cloud(200, 1)


@pytest.fixture(scope="module")
def everything():
    return measure(X, Y, METRICS, prefix="FD-mine", repeats=3, seed=4)


def test_values_are_those_of_the_functions(everything):
    sigma = median_gap(Y, seed=4)
    truth = {
        "frechet": frechet_from_features(X, Y),
        "kernel": kernel_distance(X, Y, seed=4)[0],
        "mmd": 1000 * gaussian_mmd(X, Y, sigma=sigma),
        "sliced-wasserstein": sliced_wasserstein(X, Y, seed=4),
        "energy": energy_distance(X, Y),
        **prdc(X, Y),
    }
    found = {name: entry["value"] for name, entry in everything["metrics"].items()}
    assert {name: found[name] for name in truth} == pytest.approx(truth, rel=1e-12)
    assert set(found) == set(METRICS) == {*truth, "memorisation"}
    assert everything["metrics"]["mmd"]["sigma"] == sigma


def test_floors_are_halves_of_the_reference_at_equal_numbers(everything):
    assert everything["counts"] == {"samples": 90, "reference": 200, "floor": [90, 100]}
    cuts = list(halves(90, 200, 3, 4))
    for name, function in (("frechet", frechet_from_features), ("energy", energy_distance)):
        entry = everything["metrics"][name]
        floor = [function(Y[a], Y[b]) for a, b, _ in cuts]
        drawn = [function(X[s], Y[b]) for _, b, s in cuts]
        assert entry["floor"]["values"] == pytest.approx(floor, rel=1e-12)
        assert entry["at_floor_n"]["values"] == pytest.approx(drawn, rel=1e-12)
        assert entry["floor"]["std"] == pytest.approx(np.std(floor, ddof=1))
        assert entry["ratio"] == pytest.approx(np.mean(drawn) / np.mean(floor))
    kernel = everything["metrics"]["kernel"]
    expected = kernel["at_floor_n"]["mean"] / kernel["floor"]["std"]
    assert kernel["ratio"] == pytest.approx(expected)  # its floor is zero on average


def test_halvings_are_disjoint_and_do_not_depend_on_the_samples():
    for (a, b, s), (c, d, _) in zip(halves(90, 201, 3, 0), halves(500, 201, 3, 0), strict=True):
        assert len(a) == len(s) == 90 and len(b) == 101 and len(c) == 100
        assert torch.equal(b, d) and torch.equal(a, c[:90])
        assert not set(a.tolist()) & set(b.tolist()) and len(set(s.tolist())) == 90


def test_real_samples_are_at_one_and_shifted_ones_are_not(everything):
    real = measure(cloud(200, 2), Y, METRICS, prefix="FD-mine")["metrics"]
    for name in ("frechet", "energy", "mmd", "sliced-wasserstein", "precision", "coverage"):
        assert real[name]["ratio"] == pytest.approx(1, abs=0.35), name
    assert abs(real["kernel"]["ratio"]) < 4
    far = measure(cloud(200, 3, shift=2.0), Y, METRICS, prefix="FD-mine", repeats=2)["metrics"]
    for name in ("frechet", "energy", "mmd", "sliced-wasserstein", "kernel"):
        assert far[name]["ratio"] > 8, name
    for name in ("precision", "recall", "density", "coverage"):
        assert far[name]["ratio"] < 0.6, name


def test_a_result_is_plain_json_and_repeatable(everything):
    again = measure(X, Y, METRICS, prefix="FD-mine", repeats=3, seed=4)
    assert json.loads(json.dumps(everything, allow_nan=False)) == everything == again
    other = measure(X, Y, METRICS, prefix="FD-mine", repeats=3, seed=5)
    assert other["metrics"]["frechet"]["floor"] != again["metrics"]["frechet"]["floor"]


def test_without_repeats_there_are_no_floors():
    result = measure(X, Y, ["frechet", "recall"], prefix="FID", repeats=0)
    assert result["counts"]["floor"] is None
    for entry in result["metrics"].values():
        assert entry["floor"] is entry["at_floor_n"] is entry["ratio"] is None


def test_metrics_of_pairs_look_at_so_many_points_only():
    copies = torch.cat((cloud(60, 5, shift=50), Y[[7, 9]]))
    result = measure(copies, Y, ["precision", "memorisation", "frechet"], prefix="F", most=40)
    found = {name: entry["points"] for name, entry in result["metrics"].items()}
    assert found == {"precision": [40, 40], "memorisation": [40, 200], "frechet": [62, 200]}
    for seed in range(9):  # some cut keeps a copy, and names it by its place among all samples
        entry = measure(copies, Y, ["memorisation"], prefix="F", most=40, seed=seed, repeats=0)
        entry = entry["metrics"]["memorisation"]
        pairs = {(c["sample"], c["training"]) for c in entry["closest"][: entry["copies"]]}
        assert pairs <= {(60, 7), (61, 9)} and len(pairs) == entry["copies"]
        if entry["copies"] == 2:
            return
    raise AssertionError("no cut kept both copies")


def test_shared_work_is_done_once(monkeypatch):
    calls = []
    monkeypatch.setattr(catalogue, "prdc", lambda x, y, k: calls.append(k) or prdc(x, y, k=k))
    names = ["precision", "recall", "density", "coverage"]
    measure(X, Y, [*names, "recall"], prefix="F", repeats=0)
    assert calls == [5]


def test_moments_alone_leave_the_frechet_distance(tmp_path):
    images = (Y[:, :2].clamp(-2, 2) * 60 + 128).to(torch.uint8).reshape(200, 1, 2, 1)
    x = Pixels()(images[:90])
    total = MomentSum()
    total.update(Pixels()(images))
    bare = measure(x, total.moments(), ["frechet", "recall"], prefix="FD-pixels")
    truth = frechet_from_features(x, Pixels()(images))
    assert bare["metrics"]["frechet"]["value"] == pytest.approx(truth, rel=1e-9)
    assert "only their moments are stored" in bare["metrics"]["recall"]["reason"]
    assert bare["metrics"]["frechet"]["points"] == [90, 200]
    assert "value" not in bare["metrics"]["recall"] and bare["counts"]["floor"] is None
    kept = Reference.make(images, Pixels(), points=True)
    assert "value" in measure(x, kept, ["recall"], prefix="FD-pixels")["metrics"]["recall"]
    light = Reference.make(images, Pixels())
    assert measure(x, light, ["frechet", "recall"], prefix="FD-pixels") == bare
    with pytest.raises(UserError, match="moments of width 2 cannot be compared"):
        measure(X, total.moments(), ["frechet"], prefix="F")


def test_published_names_are_one_networks_only():
    assert label("frechet", "FID") == "FID" and label("kernel", "FID") == "KID"
    assert label("mmd", "FD-CLIP") == "CMMD" and label("mmd", "FID") == "MMD-Inception"
    assert label("frechet", "FD-genflow-small") == "FD-genflow-small"
    assert label("kernel", "FD-DINOv2") == "KD-DINOv2"
    assert label("recall", "FID") == "recall (Inception)"
    clip = measure(X, Y, ["mmd"], prefix="FD-CLIP", repeats=0)["metrics"]["mmd"]
    assert (clip["sigma"], clip["scale"], clip["label"]) == (10, 1000, "CMMD")


def test_names_as_users_write_them():
    assert resolve("fid", "pixels") == ("inception", "frechet")
    assert resolve("KID", "pixels") == ("inception", "kernel")
    assert resolve("cmmd", "pixels") == ("clip", "mmd")
    assert resolve("fd-dinov2", "pixels") == ("dinov2", "frechet")
    assert resolve("clip:coverage", "pixels") == ("clip", "coverage")
    assert resolve("recall", "pixels") == ("pixels", "recall")
    for text in ("recal", "clip:recal"):
        with pytest.raises(UserError, match="metric 'recal': did you mean 'recall'"):
            resolve(text, "pixels")


def test_markdown_has_a_row_a_metric_and_tells_what_is_left_out(everything):
    lines = markdown(everything).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + len(METRICS) and len({line.count("|") for line in table}) == 1
    assert table[2].startswith("| FD-mine | lower |") and "90 v 200" in table[2]
    assert lines[-1].startswith("* warning: samples: 90 are fewer than half")
    total = MomentSum()
    total.update(Y)
    bare = markdown(measure(X, total.moments(), ["frechet", "energy"], prefix="FID"))
    assert "* energy (Inception): left out, needs the points" in bare and "| - | - |" in bare
    assert "warning: samples: 90 are few for an FID" in bare


def test_bad_input_is_told_in_one_sentence():
    for call, sentence in [
        (lambda: measure(X, Y, ["frechett"], prefix="F"), "did you mean 'frechet'"),
        (lambda: measure(X, Y, ["frechet"], prefix="F", repeats=1), "repeats: 1 is out of"),
        (lambda: measure(X, Y, ["frechet"], prefix="F", most=15), "most: 15 is out of range"),
        (lambda: measure(X[:1], Y, ["frechet"], prefix="F"), "x: 1 points are too few"),
        (lambda: measure(X, Y[:3], ["frechet"], prefix="F"), "y: 3 points .* at least 4"),
        (lambda: measure(X, Y[:, :2], ["frechet"], prefix="F"), "width 2 cannot be compared"),
    ]:
        with pytest.raises(UserError, match=sentence):
            call()
