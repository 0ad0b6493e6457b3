"""The command line as a stranger meets it: what is wrong is one sentence and exit code 2."""

import json
import logging

from albums import nhwc, pictures, save
import numpy as np
import pytest

from genflow.cli import main

X = pictures(40)
QUICK = ["--feature", "random-conv", "--metrics", "fd", "--halvings", "2"]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """Good images and bad ones."""

    root = tmp_path_factory.mktemp("shelf")
    save(root / "a", X)
    save(root / "data", pictures(60, seed=1))
    save(root / "grey", X[:, :1])
    save(save(root / "mixed", X[:5]), pictures(1, size=12), start=9)
    save(save(root / "both", X[:5]), pictures(1, channels=1), start=9)
    (save(root / "broken", X[:9]) / "0003.png").write_bytes(b"")
    save(root / "one", X[:1])
    (root / "empty").mkdir()
    np.savez(root / "x.npz", nhwc(X))
    np.save(root / "f.npy", X.float().numpy())
    (root / "no.zip").write_bytes(b"no zip")
    vectors = np.random.default_rng(0).normal(size=(30, 3))
    np.save(root / "v.npy", vectors)
    vectors[2] = np.nan
    np.save(root / "nan.npy", vectors)
    return root


@pytest.fixture
def desk(shelf, monkeypatch):
    monkeypatch.setattr(logging, "raiseExceptions", False)
    monkeypatch.chdir(shelf)


@pytest.mark.parametrize(
    ("samples", "more", "words"),
    [
        ("one", [], "there are 1 samples: a distance needs 2 or more"),
        ("mixed", [], "'0000.png' is 8×8 pixels and '0009.png' 12×12: say --size 8"),
        ("both", [], "'0009.png' is grey and '0000.png' in colour: say --channels 1"),
        ("grey", [], "the samples are grey and the data in colour: say --channels 1"),
        ("broken", [], "1 of 9 images in 'broken' cannot be decoded (0003.png): mend or remove"),
        ("empty", [], "holds no image"),
        ("no.zip", [], "not a zip file"),
        ("gone.zip", [], "samples 'gone.zip' is not there"),
        ("gone", [], "pipeline 'gone' is no folder"),
        ("f.npy", [], "dtype float32: 8-bit images"),
        ("v.npy", [], "vectors against vectors of the same width"),
        ("a", ["--data", "gone"], "data is no folder and no file, but 'gone'"),
        ("nan.npy", ["--data", "v.npy", "--feature", "identity"], "1 of 30 points hold NaN"),
        ("a", ["--n", "50"], "n is 50, but there are 40 samples"),
        ("a", ["--shard", "3/3"], "shard is '3/3'"),
        ("a", ["--shard", "0/3"], "output is no folder"),
        ("a", ["--halvings", "1"], "halvings is 1"),
        ("a", ["--channels", "2"], "channels is 2"),
        ("a", ["--steps", "3"], "steps is given, but the samples are not drawn from a pipeline"),
        ("a", ["--metrics", "fid"], "no feature net is left: feature 'inception': "),
        ("a", ["--metrics", "fid", "--inception_weights", "no.pt"], "'no.pt' is no file"),
        ("a", ["--metrics", "fid", "--inception_weights", "x.npz"], "is not the TorchScript"),
        ("a", ["--feature", "radom-conv"], "did you mean 'random-conv'"),
        ("a", ["--output", "a", "--overwrite"], "holds no evaluation that could be overwritten"),
        ("a", ["--output", "x.npz"], "output 'x.npz' is a file"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(desk, samples, more, words, capsys):
    assert main(["evaluate", samples, "--data", "data", *QUICK, *more]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert words in lines[-1] and lines[-1].startswith("genflow: "), lines


def test_what_the_sentences_propose_helps(desk, tmp_path, capsys):
    for samples, more in (
        ("mixed", ["--size", "8"]),
        ("both", ["--channels", "3"]),
        ("grey", ["--channels", "1"]),
        ("broken", ["--skip_unreadable"]),
        ("x.npz", []),
    ):
        output = tmp_path / f"{samples}.json"
        words = ["evaluate", samples, "--data", "data", *QUICK, *more, "--output", str(output)]
        assert main(words) == 0, capsys.readouterr().err
        entry = json.loads(output.read_text())["measures"]["random-conv"]["metrics"]["frechet"]
        assert entry["floor"]["mean"] > 0 and entry["noise"] > entry["value"]
    out = capsys.readouterr().out
    assert "1 of 9 files cannot be decoded and are left out (0003.png)" in out
    assert "fewer than 128, twice the feature's width" in out


def test_references_are_made_shown_and_refused_where_they_do_not_belong(desk, tmp_path, capsys):
    ref = str(tmp_path / "ref")
    assert main(["reference", "make", "data", "--feature", "random-conv", "--output", ref]) == 0
    assert main(["reference", "show", ref]) == 0
    shown = capsys.readouterr().out
    assert "data: 60 of shape 3 × 8 × 8" in shown and "moments and points" in shown
    assert main(["evaluate", "a", "--data", ref, "--metrics", "fd,coverage"]) == 0
    assert "coverage (random-conv)" in capsys.readouterr().out

    for words, told in (
        (["evaluate", "a", "--data", ref, "--feature", "pixels"], "not with 'pixels'"),
        (["evaluate", "grey", "--data", ref], "samples are grey and the data in colour"),
        (["reference", "show", "data"], "'data' holds no reference: make one by genflow"),
        (["reference", "make", "data", "--feature", "random-conv", "--output", ref], "overwrite"),
    ):
        assert main(words) == 2
        assert told in capsys.readouterr().err.strip().splitlines()[-1]
