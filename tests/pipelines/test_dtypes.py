"""Networks in half precision under solvers in float32, from files and from the command line."""

import json

from lightsb import bridge
import numpy as np
from PIL import Image
import pytest
import torch

from genflow.cli import main
from genflow.errors import UserError
from genflow.evaluation import evaluate
from genflow.pipelines import BridgePipeline, Pipeline

HALVES = (torch.float16, torch.bfloat16)


@pytest.fixture
def folder(pipe, tmp_path):
    torch.nn.init.normal_(pipe.denoiser.net.model.conv_out.weight, std=0.1)
    pipe.save(tmp_path / "mine")
    return tmp_path / "mine"


def off(x, y):
    return float((x.double() - y.double()).square().mean().sqrt())


@pytest.mark.parametrize("dtype", HALVES)
def test_the_network_is_in_half_precision_and_the_solver_is_not(folder, dtype):
    plain = Pipeline.from_pretrained(folder)
    half = Pipeline.from_pretrained(folder, dtype=dtype)
    assert (plain.dtype, half.dtype) == (torch.float32, dtype)
    seen = []
    half.denoiser.net.register_forward_pre_hook(lambda net, args: seen.append(args[0].dtype))

    whole, near = (p(16, seed=0, steps=8).x for p in (plain, half))
    assert near.dtype == torch.float32 and set(seen) == {dtype}
    # were states kept in half precision, each of eight steps would round them by up to eps / 2
    assert 0 < off(near, whole) < torch.finfo(dtype).eps


def test_names_and_dtypes_are_the_same(folder):
    drawn = [
        Pipeline.from_pretrained(folder, dtype=d)(4, seed=3, steps=2).x
        for d in ("bfloat16", torch.bfloat16, "float64")
    ]
    assert drawn[0].equal(drawn[1]) and drawn[2].dtype == torch.float64


def test_what_cannot_be_had_is_told(folder, tmp_path):
    with pytest.raises(UserError, match=r"dtype is 'bfloat15'.*did you mean 'bfloat16'"):
        Pipeline.from_pretrained(folder, dtype="bfloat15")
    with pytest.raises(UserError, match="dtype is 'int8'"):
        Pipeline.from_pretrained(folder, dtype=torch.int8)
    BridgePipeline(bridge("full", K=3, d=4), (1, 2, 2)).save(tmp_path / "bridge")
    with pytest.raises(UserError, match="is a bridge, which has no network"):
        Pipeline.from_pretrained(tmp_path / "bridge", dtype="float16")
    with pytest.raises(UserError, match=r"loaded already: say pipe\.to"):
        evaluate(Pipeline.from_pretrained(folder), "digits", n=4, dtype="float16")


def test_a_job_says_its_dtype_and_is_not_gone_on_with_in_another(folder, tmp_path, capsys):
    def generate(output, *more):
        words = ["--output", str(tmp_path / output), "--n", "6", "--steps", "4", *more]
        return main(["generate", str(folder), *words])

    assert generate("plain") == generate("half", "--dtype", "bfloat16") == 0
    for name, dtype in (("plain", "float32"), ("half", "bfloat16")):
        assert json.loads((tmp_path / name / "meta.json").read_text())["dtype"] == dtype
    for k in range(6):
        a, b = (
            np.asarray(Image.open(tmp_path / o / "images" / f"{k:06d}.png")).astype(int)
            for o in ("plain", "half")
        )
        assert np.abs(a - b).max() <= 3

    capsys.readouterr()
    assert generate("half", "--resume") == 2
    assert "another dtype" in capsys.readouterr().err
    assert generate("half", "--resume", "--dtype", "bfloat16") == 0
    assert generate("wrong", "--dtype", "half") == 2
    assert "dtype is 'half'" in capsys.readouterr().err
    assert not (tmp_path / "wrong").exists()


def test_distances_of_half_precision(folder, tmp_path, capsys):
    quick = ["--n", "64", "--feature", "random-conv", "--metrics", "fd", "--halvings", "2"]
    values = {}
    for dtype in ("float32", "bfloat16"):
        file = tmp_path / f"{dtype}.json"
        words = [str(folder), *quick, "--dtype", dtype, "--output", str(file)]
        assert main(["evaluate", *words]) == 0
        report = json.loads(file.read_text())
        values[dtype] = report["measures"]["random-conv"]["metrics"]["frechet"]["value"]
    assert values["bfloat16"] == pytest.approx(values["float32"], rel=0.05)
    assert values["bfloat16"] != values["float32"]

    capsys.readouterr()
    (tmp_path / "images").mkdir()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "images" / "0.png")
    assert main(["evaluate", str(tmp_path / "images"), *quick, "--dtype", "float16"]) == 2
    assert "dtype is given, but the samples are not drawn" in capsys.readouterr().err
