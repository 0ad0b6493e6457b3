"""Exported models: stock pipelines, which load without genflow and draw the same images."""

import json
import os
import subprocess
import sys

from diffusers import DDIMScheduler, DDPMPipeline, FlowMatchEulerDiscreteScheduler
import numpy as np
import pytest
from stock import quiet, stirred
import torch

from genflow.cli import main
from genflow.errors import UserError
from genflow.models import Cosine, Discrete, Preconditioned, Rectified, StudentT
from genflow.nn import MLP, DiT, UNet
from genflow.pipelines import Pipeline
from genflow.pipelines.exports import export_diffusers, stock_pipeline
from genflow.solvers import build

# How the grid of each stock scheduler is called here.
EULER = {"sampler": "euler", "grid": "uniform", "stop": 1e-3, "final": "zero"}
DDIM = {"sampler": "ddim"}

LEVELS = {
    "linear": tuple(DDIMScheduler().alphas_cumprod.tolist()),
    "cosine": tuple(DDIMScheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod.tolist()),
    "others": tuple(np.linspace(0.98, 0.02, 40) ** 2),
}


def made(path, prediction, clock, classes=None):
    torch.manual_seed(0)
    net = UNet(8, 1, widths=(8, 8), layers=1, attention=(), classes=classes, groups=4)
    stirred(net, 0.05)
    return Pipeline(Preconditioned(net, path, prediction, clock), (1, 8, 8), steps=5)


def flow():
    return made(Rectified(), "flow", "thousand")


def drawn(pipe, steps, sampler, **options):
    """Our images, on the noise that a stock pipeline draws with seed 1."""

    x = torch.randn((2, 1, 8, 8), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y = build(sampler, pipe.denoiser.eval(), steps, **options)(x)
    return (y / 2 + 0.5).clamp(0, 1)


def stock_images(pipe, steps):
    g = torch.Generator().manual_seed(1)
    return pipe(2, g, num_inference_steps=steps, output_type="pt").images


def close(ours, theirs, atol=2e-6):
    inside = ((theirs > 0) & (theirs < 1)).float().mean()
    assert inside > 0.3, "images of black and white would agree by accident"
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


@pytest.mark.parametrize("steps", [1, 5, 12])
def test_a_rectified_flow_is_stock_euler(tmp_path, steps):
    pipe = flow()
    export_diffusers(pipe, tmp_path / "p")
    again = quiet(DDPMPipeline.from_pretrained(tmp_path / "p"))
    assert type(again.scheduler) is FlowMatchEulerDiscreteScheduler
    options = EULER if steps > 1 else {"sampler": "euler"}
    close(drawn(pipe, steps, **options), stock_images(again, steps))


@pytest.mark.parametrize(
    ("levels", "prediction"),
    [(k, p) for k in LEVELS for p in ("noise", "v", "data") if (k, p) != ("cosine", "noise")],
)
def test_models_on_levels_are_stock_ddim(levels, prediction, tmp_path):
    pipe = made(Discrete(LEVELS[levels]), prediction, "discrete")
    export_diffusers(pipe, tmp_path / "p")
    again = quiet(DDPMPipeline.from_pretrained(tmp_path / "p"))

    torch.testing.assert_close(
        again.scheduler.alphas_cumprod.double(),
        torch.tensor(LEVELS[levels], dtype=torch.float64),
        rtol=1e-5,
        atol=0,
    )
    assert (again.scheduler.config.trained_betas is not None) == (levels == "others")
    x = torch.randn((2, 1, 8, 8), generator=torch.Generator().manual_seed(1))
    again.scheduler.set_timesteps(10)
    with torch.no_grad():
        for t in again.scheduler.timesteps:
            x = again.scheduler.step(again.unet(x, t).sample, t, x).prev_sample
        z = torch.randn((2, 1, 8, 8), generator=torch.Generator().manual_seed(1))
        ours = build("ddim", pipe.denoiser, 10)(z)
    accuracy = 3e-4 if levels == "cosine" else 3e-5  # its last level is kept above 2^-24
    torch.testing.assert_close(ours, x, rtol=0, atol=accuracy * float(x.abs().max()))


@pytest.mark.parametrize("source", ["folder", "checkpoint"])
def test_the_command_line_exports(source, tmp_path, capsys):
    pipe = flow()
    if source == "folder":
        pipe.save(tmp_path / "source")
    else:
        d = pipe.denoiser
        state = {f"denoiser.net.{k}": v for k, v in d.net.state_dict().items()}
        config = {k: v for k, v in d.net.model.config.items() if not k.startswith("_")}
        net = {"class": "UNet2DModel", "config": config}
        record = {"path": {"class": "Rectified"}, "prediction": "flow", "clock": "thousand"}
        torch.save(
            {
                "state_dict": state,
                "global_step": 3,
                "genflow": {**record, "sigma_data": 0.5, "net": net},
            },
            tmp_path / "source.ckpt",
        )

    name = str(tmp_path / ("source" if source == "folder" else "source.ckpt"))
    out = tmp_path / "out"
    common = ["export", name, "--output", str(out), "--weights", "raw"]
    assert main([*common, "--format", "diffusers"]) == 0, capsys.readouterr().err
    close(drawn(pipe, 5, **EULER), stock_images(quiet(DDPMPipeline.from_pretrained(out)), 5))
    index = json.loads((out / "model_index.json").read_text())
    assert "genflow" not in json.dumps(index)
    assert "num_inference_steps=" in (out / "README.md").read_text()

    assert main([*common, "--format", "diffusers"]) == 2
    assert "exists" in capsys.readouterr().err
    assert main([*common, "--format", "onnx"]) == 2
    code = main([*common, "--overwrite"])
    if source == "checkpoint":
        assert code == 0 and Pipeline.from_pretrained(out).steps == 20
    else:
        assert code == 2 and "a .ckpt file" in capsys.readouterr().err


LOADER = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "genflow":
            raise ModuleNotFoundError("genflow is not installed here")

sys.meta_path.insert(0, Absent())
try:
    import genflow
except ModuleNotFoundError:
    pass
else:
    sys.exit("genflow is here")

import numpy, torch
from diffusers import DiffusionPipeline

torch.set_num_threads(1)
for name in sys.argv[1:]:
    pipe = DiffusionPipeline.from_pretrained(name)
    generator = torch.Generator().manual_seed(1)
    out = pipe(2, generator, num_inference_steps=5, output_type="pt").images
    numpy.save(name + ".npy", out.numpy())
assert not [m for m in sys.modules if m.startswith("genflow")]
"""


def test_exports_load_where_genflow_is_not_installed(tmp_path):
    pipes = {
        "flow": (flow(), EULER),
        "noise": (made(Discrete(LEVELS["others"]), "v", "discrete"), DDIM),
    }
    for name, (pipe, _) in pipes.items():
        export_diffusers(pipe, tmp_path / name)

    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", LOADER, *(str(tmp_path / name) for name in pipes)],
        cwd=tmp_path,
        env=clean,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr

    for name, (pipe, options) in pipes.items():
        theirs = torch.from_numpy(np.load(tmp_path / f"{name}.npy"))
        close(drawn(pipe, 5, **options), theirs, atol=1e-5)


def test_the_network_is_shared_not_copied():
    pipe = flow()
    assert stock_pipeline(pipe).unet is pipe.denoiser.net.model


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: made(Rectified(), "flow", "thousand", classes=3), "net has 3 classes"),
        (lambda: made(Rectified(), "noise", "thousand"), "no stock scheduler"),
        (lambda: made(Rectified(), "flow", "unit"), "clock 'unit' have no stock"),
        (lambda: made(Rectified(StudentT(64.0)), "flow", "thousand"), "noise StudentT"),
        (lambda: made(Cosine(), "v", "thousand"), "path Cosine"),
        (lambda: made(Discrete((0.9, 0.5, 0.0)), "noise", "discrete"), "hardly any signal"),
        (lambda: made(Discrete(LEVELS["cosine"]), "noise", "discrete"), "hardly any signal"),
    ],
)  # fmt: skip
def test_models_without_a_stock_twin_are_refused_in_one_sentence(make, words, tmp_path):
    with pytest.raises(UserError, match=words) as caught:
        export_diffusers(make(), tmp_path / "p")
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_other_networks_are_refused():
    torch.manual_seed(0)
    dit = DiT(8, 1, heads=2, head_width=8, depth=1, classes=3)
    for net, shape in ((dit, (1, 8, 8)), (MLP(2, 16, 1), (2,))):
        with pytest.raises(UserError, match="needs a UNet2DModel"):
            stock_pipeline(Pipeline(Preconditioned(net, Rectified()), shape))
