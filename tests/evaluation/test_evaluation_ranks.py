"""Ranks and interruptions: one, two and three processes, and one that was killed, agree exactly."""

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


@pytest.mark.slow
def test_one_two_and_three_processes_give_the_same_numbers_to_the_last_bit(tmp_path):
    saved(tmp_path)
    found = []
    for world in (1, 2, 3):
        (tmp_path / f"store{world}").mkdir()
        output = tmp_path / f"out{world}"
        together(world, share, tmp_path / f"store{world}", tmp_path, output)
        report = json.loads((output / "report.json").read_text())
        assert report["ranks"] == world
        found.append(numbers(report))
    assert found[0] == found[1] == found[2]


@pytest.mark.slow
def test_a_job_killed_by_sigkill_and_resumed_gives_the_number_of_an_unbroken_one(tmp_path):
    saved(tmp_path)
    line = [sys.executable, "sample.py", "evaluate", str(tmp_path / "pipeline")]
    line += ["--data", str(tmp_path / "data.npy"), "--halvings", "2", "--n", "4000"]
    line += ["--chunk", "100", "--feature", "random-conv", "--metrics", "fd,swd"]
    settings = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    settings |= {"GENFLOW_CACHE": str(tmp_path / "cache")}
    options = {"cwd": ROOT, "env": os.environ | settings, "stdout": subprocess.PIPE, "text": True}

    broken, whole = tmp_path / "broken", tmp_path / "whole"
    process = subprocess.Popen([*line, "--output", str(broken)], **options)
    deadline = time.monotonic() + 120
    while not list(broken.glob("chunks/*.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    done = len(list(broken.glob("chunks/*.json")))
    assert 0 < done < 40 and not (broken / "report.json").exists()

    resumed = subprocess.run([*line, "--output", str(broken), "--resume"], check=True, **options)
    assert f"resumed: {100 * done} images were seen before" in resumed.stdout
    subprocess.run([*line, "--output", str(whole)], check=True, **options)
    reports = [json.loads((f / "report.json").read_text()) for f in (broken, whole)]
    assert numbers(reports[0]) == numbers(reports[1])


def test_one_process_needs_no_group():
    ranks = Ranks()
    assert ranks.leads and ranks.agree(lambda: 3) == 3 and ranks.together(lambda: 4) == [4]
