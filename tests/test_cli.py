"""The command line: help without torch, one sentence and exit code 2, a run from end to end."""

import json
import logging
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

import pytest

from genflow.cli import COMMANDS, main

ROOT = Path(__file__).parent.parent

TOY = """
model:
  class_path: RectifiedFlow
  init_args:
    net:
      class_path: genflow.nn.MLP
      init_args: {features: 2, width: 32, depth: 1, classes: 8}
data:
  class_path: Toy
  init_args: {name: eight-gaussians, size: 1000, batch_size: 64}
trainer: {max_steps: 30, log_every_n_steps: 5, enable_progress_bar: false}
checkpoint: {every_n_train_steps: 10}
grid: {every: 1000, n: 4, steps: 2}
sampler: heun
steps: 3
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setattr(logging, "raiseExceptions", False)  # its stream was captured elsewhere
    (tmp_path / "toy.yaml").write_text(TOY)
    return tmp_path / "toy.yaml"


def said(capsys):
    out = capsys.readouterr()
    return out.out, out.err


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["generate", "--help"], []])
def test_help_and_version_do_not_import_torch(arguments):
    code = (
        "import sys\nfrom genflow.cli import main\n"
        f"try: main({arguments!r})\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'lightning', 'diffusers', 'matplotlib', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "genflow" in done.stdout


def test_the_help_of_training_is_ours(capsys):
    """Its name and its sections; and no optimiser beside the one of the model."""

    with pytest.raises(SystemExit, match="0"):
        main(["fit", "--help"])
    text = capsys.readouterr().out
    assert text.startswith("usage: genflow fit ") and "Train a model from a config" in text
    assert "The model: a network" in text and "<class" not in text
    assert "--optimizer" not in text and "--lr_scheduler" not in text


def test_help_names_every_command(capsys):
    assert main(["--help"]) == 0
    out, _ = said(capsys)
    assert all(name in out for name in COMMANDS)
    assert main([]) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generat"], "did you mean 'generate'"),
        (["generate", "nowhere"], "pipeline 'nowhere' is no folder"),
        (["generate", "p", "--stepz", "3"], "unrecognized arguments: --stepz"),
        (["generate", "p", "--steps", "many"], "steps: Expected a int. Got value: many (see"),
        (["generate", "p", "--n", "3", "--seeds", "1-3"], "n and seeds are both given"),
        (["evaluate", "p", "--data", "cifar"], "did you mean 'CIFAR10'"),
        (["evaluate", "p", "--data", "FashionMNIST:nowhere"], "nowhere"),
        (["export", "nothing.ckpt"], "nothing.ckpt"),
    ],
)
def test_bad_arguments_get_one_sentence_and_exit_code_2(arguments, words, capsys):
    assert main(arguments) == 2
    out, err = said(capsys)
    assert words in err and err.count("\n") == 1 and not out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--model.init_args.net.init_args.widht", "3"], "widht"),
        (["--model.init_args.lr", "-1"], "lr is -1"),
        (["--model.init_args.net.init_args.features", "3"], "features to 2"),
        (["--data.init_args.name", "moon"], "moons"),
        (["--ema.decay", "2"], "decay is 2"),
        (["--trainer.gradient_clip_algorithm", "max"], "max is invalid"),
        (["--trainer.max_stepz", "2"], "max_stepz"),
    ],
)
def test_bad_configs_get_one_sentence_and_exit_code_2(config, tmp_path, change, words, capsys):
    arguments = ["fit", "-c", str(config), "--run", str(tmp_path / "run"), *change]
    assert main(arguments) == 2
    _, err = said(capsys)
    line = err.strip().splitlines()[-1]
    assert line.startswith("genflow: ") and words in line
    assert "Traceback" not in err


def test_a_run_from_training_to_a_report(config, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["fit", "-c", str(config), "--run", str(run)]) == 0
    assert {"config.yaml", "metrics.csv", "checkpoints", "pipeline"} <= {
        p.name for p in run.iterdir()
    }

    assert main(["fit", "-c", str(config), "--run", str(run)]) == 2
    assert "--resume" in said(capsys)[1]

    out = tmp_path / "samples"
    common = ["generate", str(run / "pipeline"), "--output", str(out), "--n", "12"]
    assert main([*common, "--label", "0,3", "--sampler", "unipc", "--options.order", "3"]) == 0
    meta = json.loads((out / "meta.json").read_text())
    assert [e["label"] for e in meta["vectors"][:4]] == [0, 3, 0, 3]
    assert meta["sampler"] | {"order": 3, "sampler": "unipc"} == meta["sampler"]
    assert meta["nfe"] == 3 and meta["status"] == "done" and meta["command"]

    assert main(common) == 2
    assert "--overwrite" in said(capsys)[1]
    assert main([*common, "--overwrite"]) == 0

    report = tmp_path / "report.json"
    data = ["--data", "eight-gaussians", "--output", str(report)]
    assert main(["evaluate", str(run / "pipeline"), *data, "--n", "500"]) == 0
    assert json.loads(report.read_text())["counts"]["samples"] == 500
    assert "floor" in said(capsys)[0]

    last = run / "checkpoints" / "last.ckpt"
    assert main(["export", str(last), "--output", str(tmp_path / "p"), "--steps", "3"]) == 0
    weights = "net/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "p" / weights).read_bytes() == (run / "pipeline" / weights).read_bytes()


def test_samplers_lists_all_of_them(capsys):
    from genflow.solvers import PRESETS

    assert main(["samplers"]) == 0
    out, _ = said(capsys)
    assert all(any(line.startswith(f"{n} ") for line in out.splitlines()) for n in PRESETS)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_an_output_without_a_reader_ends_the_command_without_a_traceback(unbuffered):
    """As in ``genflow samplers | head -1``: the pipe is closed before anything is written."""

    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "genflow", "samplers"],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_another_broken_pipe_is_not_kept_quiet(monkeypatch, capsys):
    def broken():
        raise BrokenPipeError("a worker has gone")

    monkeypatch.setitem(COMMANDS, "doctor", broken)
    with pytest.raises(BrokenPipeError, match="a worker"):
        main(["doctor"])


def losses(run):
    rows = {}
    for file in sorted(run.glob("metrics*.csv")):
        header, *lines = file.read_text().splitlines()
        names = header.split(",")
        for line in lines:
            row = dict(zip(names, line.split(","), strict=True))
            if row.get("loss"):
                rows[int(row["step"])] = row["loss"]
    return rows


@pytest.mark.slow
def test_a_run_killed_by_sigkill_resumes_with_the_losses_of_an_unbroken_one(config, tmp_path):
    """The whole program, killed after a checkpoint and started again with --resume."""

    longer = ["--trainer.max_steps", "400", "--checkpoint.every_n_train_steps", "100"]
    command = [sys.executable, str(ROOT / "train.py"), "fit", "-c", str(config), *longer]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    whole, broken = tmp_path / "whole", tmp_path / "broken"

    subprocess.run([*command, "--run", str(whole)], check=True, env=environment, timeout=300)

    process = subprocess.Popen([*command, "--run", str(broken)], env=environment)
    last = broken / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 200
    while not last.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert last.exists()

    resumed = [*command, "--run", str(broken), "--resume"]
    subprocess.run(resumed, check=True, env=environment, timeout=300)

    one, two = losses(whole), losses(broken)
    assert two and {k: one[k] for k in two if k in one} == two
    assert max(two) == max(one) == 399
    weights = "pipeline/net/diffusion_pytorch_model.safetensors"
    assert (whole / weights).read_bytes() == (broken / weights).read_bytes()
