import os
from pathlib import Path
import signal
import subprocess
import sys

import pytest
from short_runs import fit, saver, tiny
import torch

from genflow.errors import UserError
from genflow.nn import UNet
from genflow.training import (
    EMA,
    RectifiedFlow,
    ema_weights,
    read_checkpoint,
)


def gap(a, b):
    assert a.keys() == b.keys()
    return max(float((a[k] - b[k]).abs().max()) for k in a)


def agree(first, second, steps):
    (module, losses, ema, _), (module_2, losses_2, ema_2, _) = first, second
    assert [losses.train[s] for s in steps] == [losses_2.train[s] for s in steps]
    assert gap(module.state_dict(), module_2.state_dict()) == 0.0
    assert gap(ema.weights(), ema_2.weights()) == 0.0


def test_a_resumed_run_is_an_unbroken_one(tmp_path, unbroken):
    fit(tmp_path, 3, EMA(0.9), saver(tmp_path, 3))
    second = fit(tmp_path, 6, EMA(0.9), saver(tmp_path, 3), ckpt=tmp_path / "step=3.ckpt")
    assert list(second[1].train) == [3, 4, 5]
    agree(unbroken, second, [3, 4, 5])


def test_a_run_goes_on_from_a_checkpoint_in_its_middle(tmp_path, unbroken):
    second = fit(tmp_path, 6, EMA(0.9), ckpt=tmp_path / "whole" / "step=3.ckpt")
    agree(unbroken, second, [3, 4, 5])


def test_a_resume_with_accumulation_a_schedule_and_validation(tmp_path):
    from genflow.data import Digits

    def run(root, steps, **options):
        return fit(
            root, steps, EMA(0.9), saver(root, 2), accumulate_grad_batches=2,
            module=tiny(warmup=3, decay="cosine"), val_check_interval=4, max_steps=4,
            data=Digits(batch_size=16, validation=0.02, flip=True), **options,
        )  # fmt: skip

    whole = run(tmp_path / "whole", 4)
    second = run(tmp_path / "second", 4, ckpt=tmp_path / "whole" / "step=2.ckpt")
    agree(whole, second, [2, 3])


SCRIPT = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from short_runs import fit, saver
from genflow.training import EMA
from lightning.pytorch import Callback

class Slow(Callback):
    def on_train_batch_end(self, trainer, *args):
        print(trainer.global_step, flush=True)
        time.sleep(0.2 if trainer.global_step > 3 else 0)

fit(Path(sys.argv[1]), 6, EMA(0.9), saver(Path(sys.argv[1])), Slow())
"""


@pytest.mark.slow
def test_a_killed_run_is_resumed_exactly(tmp_path, unbroken):
    root = Path(__file__).parent
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path), str(root)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=root.parents[1],
    )  # fmt: skip
    while process.stdout.readline().strip() != "5":
        assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL

    last = max(tmp_path.glob("step=*.ckpt"), key=os.path.getmtime)
    start = read_checkpoint(last).step
    assert start in (4, 5)
    second = fit(tmp_path, 6, EMA(0.9), ckpt=last)
    agree(unbroken, second, range(start, 6))


# ---------------------------------------------------------------------------------- files


def test_a_checkpoint_is_plain_and_says_what_it_holds(tmp_path, unbroken):
    module, _, ema, _ = unbroken
    path = tmp_path / "whole" / "step=6.ckpt"
    content = torch.load(path, weights_only=True)
    assert content["hyper_parameters"]["betas"] == [0.9, 0.999]

    found = read_checkpoint(path)
    assert found.step == 6
    assert found.record["path"] == {"class": "Rectified"}
    assert (found.record["prediction"], found.record["clock"]) == ("flow", "thousand")
    assert found.record["net"]["class"] == "UNet2DModel"
    assert gap(found.raw, module.net.state_dict()) == 0.0

    average = ema_weights(path)
    tiny().net.load_state_dict(average)
    assert all(torch.equal(average[k], a) for k, a in ema.weights().items())


def test_a_module_is_loaded_by_lightning_too(tmp_path, unbroken):
    path = tmp_path / "whole" / "step=6.ckpt"
    module = RectifiedFlow.load_from_checkpoint(path, net=tiny().net, weights_only=True)
    assert gap(module.state_dict(), unbroken[0].state_dict()) == 0.0


def test_corrupt_foreign_and_missing_files(tmp_path, unbroken):
    whole = (tmp_path / "whole" / "step=6.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.ckpt").write_text("hello")
    (tmp_path / "empty.ckpt").write_bytes(b"")
    torch.save({"state_dict": {"a.b": torch.zeros(1)}}, tmp_path / "foreign.ckpt")
    torch.save([1, 2], tmp_path / "list.ckpt")
    torch.save({"state_dict": {"denoiser.net.a": torch.zeros(1)}}, tmp_path / "bare.ckpt")

    for name, words in {
        "cut": "cut short",
        "text": "cut short",
        "empty": "cut short",
        "foreign": "of another program",
        "list": "no 'state_dict'",
        "bare": "no averaged weights",
        "missing": "is no file",
        ".": "is a folder",
    }.items():
        path = tmp_path / (name if name == "." else f"{name}.ckpt")
        with pytest.raises(UserError, match=words) as caught:
            ema_weights(path)
        assert "\n" not in str(caught.value)

    for name, words in {
        "cut": "cut short", "missing": "is no file", "foreign": "not written by a training run"
    }.items():  # fmt: skip
        with pytest.raises(UserError, match=words):
            fit(tmp_path, 6, saver(tmp_path), ckpt=tmp_path / f"{name}.ckpt")


def test_resuming_with_another_network_is_one_sentence(tmp_path, unbroken):
    net = UNet(8, 1, widths=(16, 8), layers=1, attention=(), classes=10, groups=4)
    with pytest.raises(UserError, match=r"of another network: 'denoiser.net.*\(8.* \(16.*differ"):
        fit(tmp_path, 8, module=RectifiedFlow(net), ckpt=tmp_path / "whole" / "step=6.ckpt")


FULL = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from short_runs import fit, saver
from genflow.training import EMA
from genflow.errors import UserError
from lightning.pytorch import Callback

class Fill(Callback):
    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000))

try:
    fit(Path(sys.argv[1]), 6, EMA(0.9), Fill(), saver(Path(sys.argv[1])))
except UserError as error:
    print(error)
"""


def test_a_full_disk_stops_in_one_sentence_and_leaves_no_half_file(tmp_path):
    root = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path), str(root)],
        capture_output=True, text=True, cwd=root.parents[1],
    )  # fmt: skip
    assert "step=2.ckpt' cannot be written (File too large)" in done.stdout, done.stderr[-2000:]
    assert [p.name for p in tmp_path.iterdir()] == ["step=1.ckpt"]
    assert read_checkpoint(tmp_path / "step=1.ckpt").step == 1
