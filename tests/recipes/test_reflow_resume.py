"""A reflow that was killed goes on: the same pairs, the same weights, and no log is lost."""

from lightning.pytorch import Callback
import pytest
import torch

from genflow.data import Digits, Domain, Translation
from genflow.errors import UserError
from genflow.models import Preconditioned, Rectified
from genflow.nn import MLP, UNet
from genflow.pipelines import Pipeline
from genflow.recipes import reflow
from genflow.training import EMA, LossGuard, SafeCheckpoint

HEUN = {"sampler": "heun", "steps": 2}


class Killed(Exception):
    pass


class Kill(Callback):
    """Dies after a step."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == self.step:
            raise Killed


def teacher():
    torch.manual_seed(0)
    return Pipeline(Preconditioned(MLP(2, 16, 1), Rectified()), (2,))


def again(folder, *callbacks):
    keep = SafeCheckpoint(
        dirpath=folder / "checkpoints", every_n_train_steps=2, save_last=True, save_top_k=-1
    )
    trainer = {
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "log_every_n_steps": 1,
        "callbacks": [EMA(0.9), LossGuard(), keep, *callbacks],
    }
    options = {"pairs": 60, "steps": 7, "batch_size": 16, "trainer": trainer}
    return reflow(teacher(), folder, pair_options=HEUN, **options)


def test_a_killed_reflow_goes_on_bit_for_bit(tmp_path):
    whole = again(tmp_path / "whole")
    with pytest.raises(Killed):
        again(tmp_path / "cut", Kill(5))
    assert not (tmp_path / "cut" / "pipeline").exists()
    stamp = (tmp_path / "cut" / "pairs" / "x-00000.npy").stat().st_mtime_ns
    resumed = again(tmp_path / "cut")

    a, b = (p.denoiser.net.state_dict() for p in (whole, resumed))
    assert all(torch.equal(a[k], b[k]) for k in a)
    last = [torch.load(tmp_path / n / "checkpoints/last.ckpt") for n in ("whole", "cut")]
    a, b = (c["state_dict"] for c in last)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert (tmp_path / "cut" / "pairs" / "x-00000.npy").stat().st_mtime_ns == stamp

    def steps(name):
        lines = (tmp_path / "cut" / name).read_text().splitlines()
        at = lines[0].split(",").index("step")
        return [int(line.split(",")[at]) for line in lines[1:]]

    assert set(steps("metrics-000.csv")) | set(steps("metrics.csv")) == set(range(7))


def test_a_flow_between_data_sets_is_straightened_online(tmp_path):
    torch.manual_seed(0)
    net = UNet(8, 1, widths=(8, 8), layers=1, attention=(), groups=4)
    pipe = Pipeline(Preconditioned(net, Rectified()), (1, 8, 8), source="Digits (mirror)")
    data = Translation(Domain(Digits(), changes=["mirror"]), Digits(), batch_size=8)
    quiet = {"accelerator": "cpu", "enable_progress_bar": False, "logger": False}
    made = reflow(pipe, tmp_path / "r", steps=2, online=data, pair_options=HEUN, trainer=quiet)
    assert made.source == "Digits (mirror)" and made.card["rectified"] == 2

    with pytest.raises(UserError, match=r"starts from Digits \(mirror\) and the online data from"):
        reflow(pipe, tmp_path / "x", online=Digits(), trainer=quiet)
    with pytest.raises(UserError, match="starts from noise and the online data from Digits"):
        reflow(teacher(), tmp_path / "x", online=data, trainer=quiet)
