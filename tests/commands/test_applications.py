"""``genflow invert``, ``audit`` and ``finetune``: from a config file to a folder with a report."""

import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

from PIL import Image
import pytest
import torch

from genflow.cli import main
from genflow.commands import gradients
from genflow.errors import UserError
from genflow.models import Preconditioned, Rectified
from genflow.nn import MLP
from genflow.pipelines import Pipeline

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs" / "gradients"
CLASSIFIER = "applied_nets:bright"


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    """A pipeline without training, and a classifier of one's own in the folder of the job."""

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    torch.manual_seed(0)
    denoiser = Preconditioned(MLP(64, 32, 1, classes=3), Rectified())
    pipe = Pipeline(
        denoiser, (1, 8, 8), sampler="euler", steps=2, class_names=("ant", "bee", "cat")
    )
    pipe.save("p")
    (tmp_path / "applied_nets.py").write_text(
        "import torch\n"
        "def bright():\n"
        "    half = lambda x, k: x.flatten(1)[:, 32 * k : 32 * k + 32].mean(1)\n"
        "    return lambda x: torch.stack([half(x, 0), half(x, 1), 0 * half(x, 0)], 1)\n"
        "broken = None\n"
    )


def run(capsys, *arguments):
    code = main(list(map(str, arguments)))
    out, err = capsys.readouterr()
    return code, out, err


def report(folder):
    return json.loads((Path(folder) / "report.json").read_text())


def test_invert_and_generate(capsys):
    job = ["invert", "p", "label:cat", "--n", 4, "--iterations", 40, "--lr", 0.1, "--output", "o"]
    code, out, err = run(capsys, *job, "--guidance", 1.5)
    assert code == 0, err
    record = report("o")
    assert record["loss_after"] < record["loss_before"] / 5 and record["guidance"] == 1.5
    assert record["application"] == "invert" and record["status"] == "done"
    assert Image.open("o/grid.png").height > 3 * 48, "target, before and after"

    made = ["generate", "p", "--n", 3, "--embedding", "o/embedding.safetensors"]
    assert run(capsys, *made, "--output", "a")[0] == 0
    assert run(capsys, *made, "--output", "b", "--guidance", 1.5)[0] == 0
    assert run(capsys, *made, "--output", "c", "--guidance", 1.0)[0] == 0
    assert run(capsys, "generate", "p", "--n", 3, "--label", "cat", "--output", "d")[0] == 0
    a, b, c, d = (
        [Path(f"{k}/images/00000{i}.png").read_bytes() for i in range(3)] for k in "abcd"
    )
    assert a == b and a != c and a != d, "the weight that was found is that of the file"
    meta = json.loads(Path("a/meta.json").read_text())
    assert meta["images"][0]["label"] is None and len(meta["sampler"]["conditions"]) == 1

    assert run(capsys, *job, "--guidance", 1.5)[0] == 2
    assert run(capsys, *job, "--guidance", 1.5, "--resume")[0] == 0
    assert "another guidance" in run(capsys, *job, "--resume")[2]


@pytest.mark.parametrize("target", ["picture", "folder", "gram"])
def test_targets_from_files(capsys, target):
    run(capsys, "generate", "p", "--n", 2, "--label", "bee", "--output", "g", "--seed", 7)
    name = "g/images/000001.png" if target == "picture" else "g"
    loss = "gram" if target == "gram" else "pixel"
    common = ["--n", 2, "--iterations", 3, "--loss", loss]
    code, _, err = run(capsys, "invert", "p", name, *common)
    assert code == 0, err
    assert report("out/invert")["loss_after"] < report("out/invert")["loss_before"]


def test_audit(capsys):
    job = ["audit", "p", CLASSIFIER, "--n", 6, "--iterations", 40, "--truth", "answer"]
    code, out, err = run(capsys, *job, "--radii", "[0.3,0.9]", "--patience", 5)
    assert code == 0, err
    record = report("out/audit")
    assert record["broken"] >= 4 and record["success"] > record["random_at_same_radius"]
    assert [r["radius"] for r in record["table"]] == [0.3, 0.9] and len(record["each"]) == 6
    assert out.splitlines()[0].split() == ["radius", "broken", "at", "random"]
    assert Path("out/audit/noise.safetensors").exists()
    assert run(capsys, *job[:-1], "label", "--target", "bee", "--overwrite")[0] == 0
    assert {e["answer"] for e in report("out/audit")["each"] if e["radius"]} <= {1}


def test_finetune_and_use(capsys):
    job = ["finetune", "p", "--loss", "classifier", "--classifier", CLASSIFIER, "--n", 8]
    more = ["--held", 8, "--batch", 4, "--iterations", 30, "--lr", 0.02, "--target", "bee"]
    code, out, err = run(capsys, *job, *more, "--gradient", "truncated:1", "--average", 0.5)
    assert code == 0, err
    record = report("out/finetune")
    assert record["loss_after"] < 0.8 * record["loss_before"] and record["drift"] > 0
    assert out.splitlines()[-1] == "pipeline: out/finetune/pipeline"
    assert run(capsys, "generate", "out/finetune/pipeline", "--output", "s")[0] == 0
    full = [*job, *more, "--rank", "null", "--overwrite"]
    assert run(capsys, *full)[0] == 0
    assert report("out/finetune")["trained"] > record["trained"]


@pytest.mark.parametrize("name", ["invert", "audit", "finetune"])
def test_the_configs_are_complete(capsys, name, monkeypatch):
    """They are read without complaint; what follows on the line wins over them."""

    asked = []

    def loaded(pipeline, device):
        asked.append(pipeline)
        raise UserError("enough.")

    monkeypatch.setattr(gradients, "_loaded", loaded)
    config = ["--config", CONFIGS / f"{name}.yaml"]
    assert run(capsys, name, *config)[2] == run(capsys, name, *config, "other")[2]
    assert asked == ["runs/digits/pipeline", "other"]


def test_a_config_for_any_command(capsys):
    Path("c.yaml").write_text("pipeline: p\nn: 2\nlabel: cat\n")
    assert run(capsys, "generate", "--config", "c.yaml", "--n", 3)[0] == 0
    meta = json.loads(Path("out/meta.json").read_text())
    assert [e["label"] for e in meta["images"]] == [2, 2, 2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["invert", "p", "nothing.png"], "no picture that can be read"),
        (["invert", "p", "label:dog"], "label is 'dog'"),
        (["invert", "p", "label:cat", "--rows", "1-3"], "the embedding has the rows 0 … 0"),
        (["invert", "p", "label:cat", "--optimizer", "adamm"], "did you mean 'adam'"),
        (["invert", "p", "label:cat", "--gradient", "exakt"], "did you mean 'exact'"),
        (["invert", "p", "label:cat", "--gradient", "truncated:x"], "write truncated:K"),
        (["invert", "p", "label:cat", "--gradient", "none"], "no gradient"),
        (["invert", "p", "label:cat", "--every", "0"], "every is 0"),
        (["invert", "--config", "no.yaml"], "no.yaml"),
        (["audit", "p", "digitz"], "neither a labelled data set"),
        (["audit", "p", "applied_nets:dark"], "has no attribute 'dark'"),
        (["audit", "p", "applied_nets:broken"], "'broken' is no function"),
        (["audit", "p", CLASSIFIER, "--target", "7"], "class 7 is wanted"),
        (["audit", "p", CLASSIFIER, "--radius", "3"], "radius is 3.0"),
        (["audit", "p", CLASSIFIER, "--gradient", "truncated:1"], "truncated"),
        (["finetune", "p"], "target is missing: loss gram needs a picture"),
        (["finetune", "p", "--loss", "classifier"], "classifier is missing"),
        (["finetune", "p", "--target", "label:ant", "--batch", "300"], "batch is 300"),
        (["finetune", "p", "--target", "label:ant", "--layers", "xyz"], "layers is 'xyz'"),
        (["generate", "p", "--embedding", "none.safetensors"], "conditions 'none.safetensors'"),
        (["generate", "p", "--embedding", "x", "--label", "1"], "label and embedding"),
    ],
)
def test_bad_arguments_get_one_sentence_and_exit_code_2(capsys, arguments, words):
    code, out, err = run(capsys, *arguments)
    assert code == 2 and words in err and err.count("\n") == 1 and not out


@pytest.mark.slow
def test_a_job_killed_by_sigkill_resumes_as_if_it_had_not_been():
    """The whole program, killed once there is a state, and started again with --resume."""

    code = "import sys; from genflow.cli import main; sys.exit(main(sys.argv[1:]))"
    job = [sys.executable, "-c", code, "invert", "p", "label:cat", "--every", "1", "--n", "4"]
    job += ["--iterations", "400", "--output"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([*job, "whole"], check=True, env=environment, timeout=300)

    process = subprocess.Popen([*job, "part"], env=environment)
    state, deadline = Path("part/state.safetensors"), time.monotonic() + 200
    while not state.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert state.exists() and not Path("part/embedding.safetensors").exists()

    subprocess.run([*job, "part", "--resume"], check=True, env=environment, timeout=300)
    assert report("part")["history"] == report("whole")["history"]
    name = "embedding.safetensors"
    assert (Path("whole") / name).read_bytes() == (Path("part") / name).read_bytes()
