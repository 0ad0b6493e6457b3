"""Ranks and interruptions: one, two and three processes, and a killed one, agree exactly."""

import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

from albums import pictures
import numpy as np
import pytest
from ranks import together
import torch

from genflow.errors import UserError
from genflow.evaluation import evaluate
from genflow.evaluation.ranks import Ranks
from genflow.models import Preconditioned, Rectified
from genflow.nn import UNet
from genflow.pipelines import Pipeline

ROOT = Path(__file__).parents[2]
JOB = {"n": 60, "chunk": 8, "batch_size": 8, "feature": "random-conv", "metrics": "fd,swd"}


def saved(folder):
    torch.manual_seed(1)
    net = UNet(8, 1, widths=(8, 8), layers=1, attention=(), classes=3, groups=4)
    torch.nn.init.normal_(net.model.conv_out.weight, std=0.1)
    pipe = Pipeline(Preconditioned(net, Rectified()), (1, 8, 8), sampler="euler", steps=2)
    pipe.save(folder / "pipeline")
    np.save(folder / "data.npy", pictures(80, channels=1, seed=1).numpy())
    return folder


def numbers(report):
    metrics = report["measures"]["random-conv"]["metrics"]
    return {k: (m["value"], m["at_floor_n"]["values"]) for k, m in metrics.items()}


def share(rank, folder, output):
    report = evaluate(
        folder / "pipeline", folder / "data.npy", output=output, halvings=2, resume=True, **JOB
    )
    assert (report is None) == (rank > 0)

    with pytest.raises(UserError, match="batch_size is 0"):
        evaluate(folder / "pipeline", folder / "data.npy", **(JOB | {"batch_size": 0}))
    (folder / "f").mkdir(exist_ok=True)
    with pytest.raises(UserError, match="holds no image"):  # found by rank 0, raised by all
        evaluate(folder / "f", folder / "data.npy", **JOB)


@pytest.fixture
def alone(tmp_path):
    """One thread, as the processes of a group have."""

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield saved(tmp_path)
    torch.set_num_threads(before)


@pytest.mark.slow
def test_one_two_and_three_processes_give_the_same_numbers_to_the_last_bit(alone):
    one = numbers(evaluate(alone / "pipeline", alone / "data.npy", halvings=2, **JOB))

    for world in (2, 3):
        (alone / f"store{world}").mkdir()
        output = alone / f"out{world}"
        together(world, share, alone / f"store{world}", alone, output)
        report = json.loads((output / "report.json").read_text())
        assert report["ranks"] == world
        assert numbers(report) == one


@pytest.mark.slow
def test_a_job_killed_by_sigkill_and_resumed_gives_the_number_of_an_unbroken_one(
    alone, monkeypatch
):
    job = JOB | {"n": 3000, "chunk": 50, "halvings": 2}
    broken = alone / "broken"
    line = [sys.executable, str(ROOT / "sample.py"), "evaluate", "pipeline", "--data", "data.npy"]
    line += ["--output", str(broken)]
    line += [part for k, v in job.items() for part in (f"--{k}", str(v))]
    settings = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(line, cwd=alone, env=os.environ | settings)
    deadline = time.monotonic() + 200

    while not list(broken.glob("chunks/*.json")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)

    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = len(list(broken.glob("chunks/*.json")))
    assert 0 < done < 60 and not (broken / "report.json").exists()

    monkeypatch.chdir(alone)
    said = []
    again = evaluate("pipeline", "data.npy", output=broken, resume=True, say=said.append, **job)
    assert f"resumed: {50 * done} images were seen before, {3000 - 50 * done} are left" in said
    assert numbers(again) == numbers(evaluate("pipeline", "data.npy", **job))


def test_one_process_needs_no_group():
    ranks = Ranks()
    assert ranks.leads and ranks.agree(lambda: 3) == 3 and ranks.together(lambda: 4) == [4]
