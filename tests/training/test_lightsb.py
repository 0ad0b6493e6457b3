"""Light bridges under a trainer: the command, a resume, and ends that come early."""

import warnings

from lightning.pytorch import Callback, Trainer
import numpy as np
import pytest
import torch

from genflow.cli import main
from genflow.data import Clouds, Toy, isotropic
from genflow.errors import UserError
from genflow.models import Full, LightBridge
from genflow.models.objectives import dual_loss
from genflow.pipelines import BridgePipeline
from genflow.training import LightSB, SafeCheckpoint

CONFIG = """
model:
  class_path: LightSB
  init_args: {epsilon: 0.1, components: 12, covariance: COVARIANCE}
data:
  class_path: Clouds
  init_args: {source: normal, target: moons, size: 2000, batch_size: 64}
trainer:
  max_steps: 60
  gradient_clip_val: null
  enable_progress_bar: false
  log_every_n_steps: 10
  accelerator: cpu
"""


def trained(root, steps, *callbacks, data=None, ckpt=None, **options):
    module = LightSB(**{"epsilon": 0.5, "components": 6, **options})
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(c, SafeCheckpoint) for c in callbacks),
        use_distributed_sampler=False,
        default_root_dir=str(root),
        callbacks=list(callbacks),
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*validation_step.*")
        trainer.fit(
            module, data or Clouds(target="moons", size=1000, batch_size=64), ckpt_path=ckpt
        )
    return module, trainer


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_the_command_leaves_a_bridge_that_loads(tmp_path, capsys, covariance):
    (tmp_path / "c.yaml").write_text(CONFIG.replace("COVARIANCE", covariance))
    run = tmp_path / "run"
    assert main(["fit", "--config", str(tmp_path / "c.yaml"), "--run", str(run)]) == 0
    assert f"pipeline: {run / 'pipeline'}" in capsys.readouterr().out
    pipe = BridgePipeline.from_pretrained(run / "pipeline")
    assert pipe.bridge.covariance.kind == covariance and pipe.card["training_steps"] == 60
    x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    y = pipe(x, seed=0).x
    moons = Clouds(target="moons", size=2000).train_set[:]["x"]
    assert float(torch.cdist(y, moons).min(1).values.mean()) < 0.15
    assert float((y.mean(0) - moons.mean(0)).abs().max()) < 0.2
    log = (run / "metrics.csv").read_text().splitlines()
    assert "objective" in log[0] and "loss" in log[0] and len(log) > 6
    assert main(["fit", "--config", str(tmp_path / "c.yaml"), "--run", str(run)]) == 2

    last, out = str(run / "checkpoints" / "last.ckpt"), str(tmp_path / "out")
    assert main(["export", last, "--output", out]) == 0
    again = BridgePipeline.from_pretrained(out).bridge
    gap = dual_loss(again, x, moons) - dual_loss(pipe.bridge, x, moons)
    assert float(gap.abs()) < 0.05  # the last look came after the checkpoint
    assert main(["export", last, "--format", "diffusers"]) == 2
    assert "is of a bridge, which has no network" in capsys.readouterr().err


def test_a_trainer_reaches_what_a_fit_reaches(tmp_path):
    problem = isotropic(3, 1.0)
    g = torch.Generator().manual_seed(0)
    for name in ("source", "target"):
        np.save(tmp_path / f"{name}.npy", getattr(problem, name)(20_000, generator=g))
    data = Clouds(f"{tmp_path}/source.npy", f"{tmp_path}/target.npy", batch_size=256)
    module, _ = trained(tmp_path, 400, data=data, epsilon=1.0, components=10)
    x, y = problem.pairs(5000, generator=g)
    log_a, r, S = problem.potential()
    truth = LightBridge(log_a, r, Full.of(S), 1.0).requires_grad_(False)
    assert float(dual_loss(module.fitted(), x, y) - dual_loss(truth, x, y)) < 0.02


class Break(Callback):
    def on_train_batch_start(self, trainer, module, *args):
        if trainer.global_step == 25:
            raise KeyboardInterrupt


@pytest.mark.parametrize("loss", ["dual", "matching"])
def test_a_resumed_run_repeats_an_unbroken_one(tmp_path, loss):
    options = {"loss": loss, "covariance": "full", "components": 3}

    def saver(folder):
        return SafeCheckpoint(
            dirpath=str(folder), filename="{step}", every_n_train_steps=20, save_top_k=-1
        )

    whole, _ = trained(tmp_path, 40, saver(tmp_path / "whole"), **options)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        trained(tmp_path, 40, saver(tmp_path / "part"), Break(), **options)
    kept = tmp_path / "part" / "step=20.ckpt"
    assert torch.load(kept, weights_only=True)["genflow"]["module"] == "LightSB"
    resumed, _ = trained(tmp_path, 40, ckpt=kept, **options)
    assert resumed._watch.objective == whole._watch.objective
    assert resumed._watch.kept == whole._watch.kept
    for a, b in zip(resumed.bridge.parameters(), whole.bridge.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_rate_goes_round_once_or_stays(tmp_path):
    class Rates(Callback):
        def __init__(self):
            self.seen = []

        def on_train_batch_end(self, trainer, *args):
            self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])

    cycle, flat = Rates(), Rates()
    trained(tmp_path, 20, cycle, lr=0.1)
    trained(tmp_path, 20, flat, lr=0.1, decay="none")
    assert max(cycle.seen) == pytest.approx(0.1) and cycle.seen[-1] < 1e-9
    assert flat.seen == [0.1] * 20


def test_runaway_covariances_end_the_run(tmp_path):
    atoms = np.random.default_rng(0).normal(size=(3, 2))
    np.save(tmp_path / "atoms.npy", atoms[np.arange(600) % 3])
    data = Clouds(target=f"{tmp_path}/atoms.npy", size=600, batch_size=64)
    options = {"components": 3, "lr": 0.5, "start": "k-means", "width": 0.01, "patience": 20}
    with pytest.warns(UserWarning, match="a covariance runs to 0"):
        module, trainer = trained(tmp_path, 400, data=data, **options)
    assert trainer.global_step < 400
    assert all(bool(p.isfinite().all()) for p in module.fitted().parameters())


def test_what_cannot_be_trained_is_told_in_one_sentence(tmp_path):
    with pytest.raises(UserError, match="epsilon is -1"):
        LightSB(epsilon=-1.0)
    with pytest.raises(UserError, match="seed is -1"):
        LightSB(epsilon=1.0, seed=-1)
    with pytest.raises(UserError, match="not been fitted"):
        LightSB(epsilon=1.0).fitted()
    with pytest.raises(UserError, match="Toy, which has no source"):
        trained(tmp_path, 5, data=Toy(size=100))
    with pytest.raises(UserError, match="components is 6 and source has 3 points"):
        trained(tmp_path, 5, data=Clouds(target="moons", size=4, validation=0.25))
    with pytest.raises(UserError, match="max_steps is -1"):
        trained(tmp_path, -1)
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.6.6"}, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match="of no bridge"):
        trained(tmp_path, 5, ckpt=tmp_path / "x.ckpt")
