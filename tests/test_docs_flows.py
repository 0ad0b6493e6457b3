"""What docs/flows.md shows runs as it stands, in order, on tiny pipelines and for fewer steps."""

from pathlib import Path
import re

import numpy as np
import pytest
import torch
import yaml

from genflow.cli import COMMANDS, main
from genflow.models import Preconditioned, Rectified
from genflow.nn import UNet
from genflow.pipelines import Pipeline
from genflow.solvers import PRESETS

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "flows.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
FEWER = {"pairs=8192": "pairs=16", "steps=1500": "steps=2", "steps=300": "steps=2"}


def tiny(classes, **options):
    torch.manual_seed(0)
    net = UNet(8, 1, widths=(8, 8), layers=1, attention=(), classes=classes, groups=4)
    return Pipeline(Preconditioned(net, Rectified()), (1, 8, 8), steps=2, **options)


@pytest.mark.filterwarnings("ignore")
def test_the_blocks_run_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny(10).save("runs/digits/pipeline")
    tiny(None, source="Digits").save("runs/translate-digits/pipeline")
    names: dict = {}

    for block in BLOCKS:
        for text, fewer in FEWER.items():
            block = block.replace(text, fewer)
        exec(compile(block, "flows.md", "exec"), names)

    assert names["code"].shape == (4, 1, 8, 8) and names["back"].x.shape == (16, 1, 8, 8)
    assert len(BLOCKS) >= 7


def test_the_commands_and_the_names_exist():
    lines = re.findall(r"^(?:genflow|python train.py) (\S+)", TEXT, flags=re.MULTILINE)
    assert set(lines) <= set(COMMANDS) and {"reflow", "translate", "encode"} <= set(lines)
    assert {"euler-maruyama", "reinterpolate"} <= set(PRESETS)
    links = re.findall(r"\]\(\.\./([^)]+)\)", TEXT)
    assert all((ROOT / link).exists() for link in links)


def test_the_config_of_features_trains_and_carries(tmp_path, monkeypatch):
    """The features of a classifier, from files to files."""

    monkeypatch.chdir(tmp_path)
    Path("features").mkdir()
    for name, mean in (("known", 0.0), ("shifted", 3.0)):
        x = np.random.default_rng(0).normal(mean, 1.0, size=(200, 32))
        np.save(f"features/{name}.npy", x)
    config = yaml.safe_load((ROOT / "configs/rectified/adapt_features.yaml").read_text())
    quick = ["--trainer.max_steps", "150", "--trainer.accelerator", "cpu"]
    quick += ["--trainer.enable_progress_bar", "false", "--ema.decay", "0.9"]
    quick += ["--model.init_args.net.init_args.width", "32", "--model.init_args.lr", "0.01"]
    file = str(ROOT / "configs/rectified/adapt_features.yaml")
    assert main(["fit", "-c", file, *quick]) == 0
    pipeline = f"{config['run']}/pipeline"
    carry = ["translate", pipeline, "features/shifted.npy", "--output", "carried"]
    assert main([*carry, "--device", "cpu"]) == 0
    made = np.load("carried/samples.npy")
    assert made.shape == (200, 32) and abs(made.mean()) < 1.0
