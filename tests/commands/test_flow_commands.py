"""The commands about flows, from end to end on tiny pipelines; what is refused exits with 2."""

import json

import numpy as np
import pytest
import torch

from genflow.cli import main
from genflow.data import PairStore
from genflow.models import Preconditioned, Rectified
from genflow.nn import MLP, UNet
from genflow.pipelines import Pipeline

QUICK = ["--sampler", "heun", "--sampler_steps", "4", "--device", "cpu", "--batch_size", "32"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A flow on vectors, one on images with classes, and one between data sets."""

    root = tmp_path_factory.mktemp("flows")
    torch.manual_seed(0)
    net = MLP(2, width=16, depth=1)
    Pipeline(Preconditioned(net, Rectified()), (2,), sampler="heun", steps=3).save(root / "v")
    unet = UNet(8, 1, widths=(8, 8), layers=1, attention=(), classes=10, groups=4)
    flow = Preconditioned(unet, Rectified())
    Pipeline(flow, (1, 8, 8), sampler="heun", steps=2).save(root / "i")
    plain = UNet(8, 1, widths=(8, 8), layers=1, attention=(), groups=4)
    Pipeline(
        Preconditioned(plain, Rectified()), (1, 8, 8), sampler="euler", steps=2, source="Digits"
    ).save(root / "t")
    return root


def run(*arguments):
    return main([str(a) for a in arguments])


def test_pairs_reflow_and_distill(folder, tmp_path, capsys):
    made = tmp_path / "pairs"
    common = ["--n", 20, "--shard_size", 8, "--sampler", "heun", "--steps", 3, "--device", "cpu"]
    assert run("pairs", folder / "v", made, *common) == 0
    assert "20 pairs in 3 shards" in capsys.readouterr().out
    teacher = Pipeline.from_pretrained(folder / "v")
    batch = PairStore(made)[[4]]
    x = teacher(seeds=batch["seed"].tolist(), sampler="heun", steps=3).x
    torch.testing.assert_close(batch["x"], x, rtol=0, atol=1e-5)

    second = tmp_path / "second"
    assert run("reflow", folder / "v", second, "--pairs", 64, "--steps", 6, *QUICK) == 0
    student = tmp_path / "student"
    options = ["--k", 2, "--pairs", 64, "--steps", 6, "--loss", "pseudo-huber", *QUICK]
    assert run("distill", second / "pipeline", student, *options) == 0
    card = Pipeline.from_pretrained(student / "pipeline").card
    assert (card["rectified"], card["distilled_for"]) == (3, 2)
    assert card["pairs"] == {"sampler": "heun", "steps": 4}


def test_online_reflow_by_name(folder, tmp_path):
    options = ["--steps", 2, "--online", "digits", "--sampler", "euler", "--sampler_steps", 1]
    options += ["--device", "cpu", "--batch_size", 8, "--times", "uniform"]
    assert run("reflow", folder / "i", tmp_path / "o", *options) == 0
    assert not (tmp_path / "o" / "pairs").exists()


def test_reports(folder, tmp_path, capsys):
    report = tmp_path / "r.json"
    names = f"{folder / 'v'},{folder / 'i'}"
    options = ["--n", 8, "--steps", 3, "--euler", "1,3", "--output", report, "--device", "cpu"]
    assert run("flow-report", names, *options) == 0
    found = json.loads(report.read_text())
    assert len(found) == 2 and all(set(r["error"]) == {"1", "3"} for r in found.values())
    assert "straightness" in capsys.readouterr().out

    bits = tmp_path / "l.json"
    options = ["--n", 3, "--rtol", 0.01, "--atol", 0.01, "--output", bits, "--device", "cpu"]
    assert run("likelihood", folder / "i", *options) == 0
    found = json.loads(bits.read_text())
    assert found["dimensions"] == 64 and 0 < found["bits_per_dim"] < 20 and found["n"] == 3


def test_translate(folder, tmp_path, capsys):
    out = tmp_path / "t"
    common = ["translate", folder / "t", "digits", "--output", out, "--device", "cpu"]
    options = ["--n", 6, "--classes", "3,8", "--changes", "invert"]
    assert run(*common, *options) == 0
    meta = json.loads((out / "meta.json").read_text())
    assert len(meta["images"]) == len(list(out.glob("images/*.png"))) == 6
    assert meta["data"] == "Digits (classes 3, 8; invert)" and meta["status"] == "done"
    assert (out / "grid.png").exists()

    assert run(*common, *options) == 2
    assert "not empty" in capsys.readouterr().err
    assert run(*common, *options, "--resume") == 0
    assert run(*common, *options, "--overwrite", "--reverse") == 0
    assert json.loads((out / "meta.json").read_text())["reverse"] is True

    from PIL import Image

    for label in "ab":
        (tmp_path / "data" / label).mkdir(parents=True)
        for i in range(3):
            Image.new("L", (12, 10), 40 * i).save(tmp_path / "data" / label / f"{i}.png")
    options = ["--classes", 1, "--size", 8, "--channels", 1, "--output", tmp_path / "b"]
    assert run("translate", folder / "t", tmp_path / "data", *options, "--device", "cpu") == 0
    assert len(list((tmp_path / "b").glob("images/*.png"))) == 3

    np.save(tmp_path / "z.npy", np.zeros((4, 2), dtype=np.float32))
    made = tmp_path / "n"
    options = ["--output", made, "--reverse", "--device", "cpu"]
    assert run("translate", folder / "v", tmp_path / "z.npy", *options) == 0
    assert np.load(made / "samples.npy").shape == (4, 2)


def test_encode_and_train_on_latents(folder, tmp_path, capsys):
    from diffusers import AutoencoderKL
    from PIL import Image

    for label in "ab":
        for i in range(4):
            (tmp_path / "data" / label).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 16), (40 * i, 9, 9)).save(tmp_path / "data" / label / f"{i}.png")
    AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=2,
    ).save_pretrained(tmp_path / "vae")
    arguments = ["encode", tmp_path / "data", tmp_path / "vae", tmp_path / "l", "--size", 16]
    assert run(*arguments, "--device", "cpu") == 0
    assert "8 latents with shape (4, 8, 8)" in capsys.readouterr().out

    config = tmp_path / "latent.yaml"
    net = "{size: 8, channels: 4, widths: [8, 8], layers: 1, attention: [], groups: 4, classes: 2}"
    config.write_text(
        "model: {class_path: RectifiedFlow, init_args: {net: {class_path: UNet, init_args: "
        f"{net}}}}}}}\ndata: {{class_path: Latents, init_args: {{root: {tmp_path / 'l'}, "
        "batch_size: 4}}\ntrainer: {max_steps: 2, enable_progress_bar: false, accelerator: cpu}\n"
    )
    assert run("fit", "-c", config, "--run", tmp_path / "run") == 0
    pipe = Pipeline.from_pretrained(tmp_path / "run" / "pipeline")
    assert pipe(2, seed=0, steps=1).images[0].size == (16, 16)
    assert pipe.card["data"] == "latents of ImageFolder" and pipe.class_names == ("a", "b")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pairs", "v", "out", "--n", "0"], "n is 0"),
        (["pairs", "v", "out", "--sampler", "hein"], "did you mean 'heun'"),
        (["pairs", "t", "out"], "does not start from noise"),
        (["reflow", "v", "out", "--steps", "0"], "steps is 0"),
        (["reflow", "t", "out", "--online", "digits"], "starts from Digits and the online data"),
        (["reflow", "v", "out", "--times", "u"], "times"),
        (["distill", "v", "out", "--k", "0"], "steps is 0"),
        (["flow-report", "v", "--euler", "1,x"], "euler is '1,x'"),
        (["flow-report", "t"], "does not start from noise"),
        (["likelihood", "i", "--n", "0"], "n is 0"),
        (["likelihood", "t"], "does not start from noise"),
        (["generate", "t", "--output", "out"], "pipe.translate"),
        (["translate", "t", "digits", "--classes", "a"], "classes is 'a'"),
        (["translate", "t", "digits", "--n", "9999"], "n is 9999"),
        (["translate", "t", "moons", "--output", "out"], "carries (1, 8, 8)"),
        (["translate", "t", "nowhere"], "no folder and no file"),
        (["encode", "digits", "v", "out"], "holds no autoencoder"),
    ],
)
def test_what_cannot_be_is_one_sentence(folder, tmp_path, arguments, words, capsys):
    paths = {k: str(folder / k) for k in "vit"} | {"out": str(tmp_path / "out")}
    command, *rest = arguments
    assert main([command, *(paths.get(a, a) for a in rest), "--device", "cpu"]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()
