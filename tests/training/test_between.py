"""Training between two data sets, from a YAML file; beginning with other weights."""

import numpy as np
from PIL import Image
import pytest
from short_runs import Losses, tiny
import torch

from genflow.data import Digits, Domain, Translation
from genflow.errors import UserError
from genflow.models import Preconditioned, Rectified
from genflow.nn import MLP, UNet
from genflow.pipelines import Pipeline
from genflow.training import EMA, SafeCheckpoint, SampleGrid
from genflow.training.checkpoints import begin_with, ema_weights, set_aside


def fit(root, steps, ckpt=None):
    from lightning.pytorch import Trainer

    losses = Losses()
    keep = SafeCheckpoint(
        dirpath=root, filename="{step}", every_n_train_steps=2, save_top_k=-1, save_last=True
    )
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=root,
        callbacks=[EMA(0.9), SampleGrid(every=100, n=8, sampler="euler", steps=1), keep, losses],
    )
    halves = [Domain(Digits(), classes=c) for c in (range(5), range(5, 10))]
    data = Translation(*halves, batch_size=16, flip=True, seed=4)
    module = tiny(classes=None)
    trainer.fit(module, data, ckpt_path=ckpt)
    return module, losses.train, data


def test_a_translation_resumes_bit_for_bit_and_shows_itself(tmp_path):
    whole, seen, data = fit(tmp_path / "a", 4)
    resumed, rest, _ = fit(tmp_path / "b", 4, tmp_path / "a" / "step=2.ckpt")
    assert [seen[2], seen[3]] == [rest[2], rest[3]]
    a, b = whole.state_dict(), resumed.state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)

    grid = np.asarray(Image.open(tmp_path / "a" / "samples" / "step-000000004.png").convert("L"))
    first = grid[2:34, 2:34][2::4, 2::4]
    before = ((data.starts(4)[0, 0] + 1) * 127.5).round().numpy()
    assert grid.shape == (2 * 34 + 2, 4 * 34 + 2) and np.array_equal(first, before)


def test_a_network_begins_with_other_weights(tmp_path):
    fit(tmp_path, 2)
    fresh = tiny(classes=None).net
    begin_with(fresh, tmp_path / "last.ckpt")
    average = ema_weights(tmp_path / "last.ckpt")
    assert all(torch.equal(v, average[k]) for k, v in fresh.state_dict().items())

    Pipeline(Preconditioned(fresh, Rectified()), (1, 8, 8)).save(tmp_path / "p")
    other = tiny(classes=None).net
    begin_with(other, tmp_path / "p")
    assert all(torch.equal(v, average[k]) for k, v in other.state_dict().items())

    wide = UNet(8, 1, widths=(16, 8), layers=1, attention=(), groups=4)
    for net, source, words in (
        (wide, tmp_path / "p", r"init '.*p' is of another network: .*\(8.* \(16"),
        (MLP(2), tmp_path / "last.ckpt", "is of another network"),
        (wide, tmp_path, "is no pipeline of genflow"),
        (wide, tmp_path / "none.ckpt", "is no file"),
    ):
        with pytest.raises(UserError, match=words):
            begin_with(net, source)


CONFIG = """
model:
  class_path: RectifiedFlow
  init_args:
    net: {class_path: genflow.nn.MLP, init_args: {features: 2, width: 16, depth: 1}}
    coupling: {class_path: genflow.training.OptimalTransport, init_args: {power: 1}}
data:
  class_path: Translation
  init_args:
    source: {class_path: Toy, init_args: {name: rings, size: 200}}
    target: {class_path: Toy, init_args: {name: moons, size: 200}}
    batch_size: 32
trainer: {max_steps: 3, accelerator: cpu, enable_progress_bar: false, logger: false}
"""


def test_a_config_file_says_both_ends_and_where_to_begin(tmp_path, monkeypatch):
    from genflow.commands.train import fit as command

    (tmp_path / "c.yaml").write_text(CONFIG)
    arguments = ["-c", str(tmp_path / "c.yaml"), "--run"]
    command([*arguments, str(tmp_path / "a")])
    pipe = Pipeline.from_pretrained(tmp_path / "a" / "pipeline")
    assert (pipe.source, pipe.card["data"]) == ("rings", "moons")

    more = ["--init", str(tmp_path / "a" / "pipeline"), "--model.init_args.lr", "1e-12"]
    command([*arguments, str(tmp_path / "b"), *more])
    a, b = (
        Pipeline.from_pretrained(tmp_path / k / "pipeline").denoiser.net.state_dict() for k in "ab"
    )
    assert max(float((a[k] - b[k]).abs().max()) for k in a) < 1e-7


def test_logs_are_set_aside_in_order(tmp_path):
    for text in ("one", "two"):
        (tmp_path / "metrics.csv").write_text(text)
        set_aside(tmp_path / "metrics.csv")
    set_aside(tmp_path / "metrics.csv")
    found = {p.name: p.read_text() for p in tmp_path.iterdir()}
    assert found == {"metrics-000.csv": "one", "metrics-001.csv": "two"}
