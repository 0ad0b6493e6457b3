"""The room as a config file speaks to it."""

from lightning.pytorch.cli import LightningCLI
import pytest
import torch
import yaml

from genflow.data import Digits
from genflow.training import LogitNormal, RectifiedFlow, SafeIO, ema_weights

CONFIG = """
trainer:
  max_steps: 3
  accelerator: cpu
  use_distributed_sampler: false
  logger: {class_path: CSVLogger, init_args: {save_dir: ROOT, name: "", version: run}}
  gradient_clip_val: 1.0
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - {class_path: genflow.training.EMA, init_args: {decay: 0.9}}
    - {class_path: genflow.training.LossGuard}
    - {class_path: genflow.training.SampleGrid, init_args: {every: 2, n: 4, steps: 1}}
    - class_path: genflow.training.SafeCheckpoint
      init_args: {filename: "{step}", every_n_train_steps: 2, save_last: link}
model:
  lr: 0.002
  warmup: 2
  decay: cosine
  times: {class_path: genflow.training.LogitNormal, init_args: {std: 0.7, stratified: true}}
  net:
    class_path: genflow.nn.UNet
    init_args:
      {size: 8, channels: 1, widths: [8, 8], layers: 1, attention: [], classes: 10, groups: 4}
data: {batch_size: 8}
"""


@pytest.mark.filterwarnings("ignore")
def test_a_config_file_trains_and_its_checkpoint_is_plain(tmp_path):
    (tmp_path / "c.yaml").write_text(CONFIG.replace("ROOT", str(tmp_path)))
    args = ["fit", "-c", str(tmp_path / "c.yaml"), "--model.betas", "[0.9, 0.99]"]
    cli = LightningCLI(RectifiedFlow, Digits, args=args, seed_everything_default=0)

    assert cli.model.times == LogitNormal(std=0.7, stratified=True)
    assert isinstance(cli.trainer.strategy.checkpoint_io, SafeIO)
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert saved["model"]["lr"] == 0.002

    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    assert content["global_step"] == 2
    cli.model.net.load_state_dict(ema_weights(last))
    pictures = sorted(p.name for p in (tmp_path / "run" / "samples").iterdir())
    assert pictures == ["step-000000002.png", "step-000000003.png"]

    (tmp_path / "c.yaml").write_text((tmp_path / "c.yaml").read_text().replace("run}", "resumed}"))
    again = LightningCLI(RectifiedFlow, Digits, args=[*args, f"--ckpt_path={last}"])
    assert again.trainer.global_step == 3
