"""Every config file of the repository is understood, and the published ones are what they say."""

from importlib import import_module
from pathlib import Path

from lightning.pytorch import LightningModule
import pytest
import torch
import yaml

from genflow.data import DataModule
from genflow.data.examples import Tensors
from genflow.models import Karras, StudentT
from genflow.training import PFGMPP, Augmentation, Evaluate, LightSB
from genflow.training.line import NAMED, TRAINER, TrainingLine, train

ROOT = Path(__file__).parents[2] / "configs"
FILES = sorted(f for f in ROOT.rglob("*.yaml") if "model" in yaml.safe_load(f.read_text()))


def name(file):
    return str(file.relative_to(ROOT))


def built(file, *more):
    """The module, the data and the trainer of a config; weights without memory."""

    for module in NAMED:
        import_module(module)

    with torch.device("meta"):
        return TrainingLine(
            LightningModule,
            DataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            run=False,
            args=["--config", str(file), "--trainer.accelerator", "cpu", *more],
            trainer_defaults=TRAINER,
            seed_everything_default=0,
            parser_kwargs={"exit_on_error": False},
        )


@pytest.mark.parametrize("file", FILES, ids=name)
@pytest.mark.filterwarnings("ignore")
def test_every_config_builds_what_it_names(file):
    line = built(file)
    assert line.trainer.max_steps > 0
    if not isinstance(line.model, LightSB):  # a bridge takes its shape from its data
        assert sum(p.numel() for p in line.model.net.parameters()) > 10_000
    first = file.read_text().splitlines()[0]
    assert first.startswith("# ") and len(max(file.read_text().splitlines(), key=len)) <= 100


NETS = {
    "UNet": {"widths": [8], "layers": 1, "groups": 4, "attention": []},
    "DiT": {"heads": 1, "head_width": 8, "depth": 1},
    "MLP": {"width": 8},
}
HERE = ("Clouds", "Digits", "Toy")
"""Data that need no files."""


class Random(DataModule):
    """Images or vectors of a shape, with classes of which the last is there."""

    def __init__(self, shape: list[int], classes: int | None = None) -> None:
        super().__init__(batch_size=4)
        x = torch.rand(8, *shape)
        self.x = (256 * x).byte() if len(shape) == 3 else x
        self.label = None if classes is None else classes - 1 - torch.arange(8)

    def load(self):
        return Tensors(self.x, self.label)


@pytest.mark.parametrize("file", FILES, ids=name)
@pytest.mark.filterwarnings("ignore")
def test_every_config_trains_with_its_own_settings(file, tmp_path):
    """A smaller network and fewer steps; precision, clipping, layout and averages are its own."""

    config = yaml.safe_load(file.read_text())
    model, data = (config[part].setdefault("init_args", {}) for part in ("model", "data"))
    config["run"] = str(tmp_path / "run")
    config["trainer"] |= {"max_steps": 2, "accelerator": "cpu", "enable_progress_bar": False}
    config["grid"] = config.get("grid", {}) | {"n": 2, "steps": 2}
    config["evaluate"] = {"every": 0}

    if "net" in model:
        net = model["net"]
        net["init_args"] |= NETS[net["class_path"].rpartition(".")[2]]
    if "lot" in model:
        model["lot"] = 2
    if model.get("compile"):
        model["compile"] = "eager"
    if config["data"]["class_path"].rpartition(".")[2] not in HERE:
        init = model["net"]["init_args"]
        images = "size" in init
        shape = [init["channels"], *2 * [init["size"]]] if images else [init["features"]]
        made = {"shape": shape, "classes": init.get("classes")}
        config["data"] = {"class_path": f"{__name__}.Random", "init_args": made}
    else:
        data["batch_size"] = 4

    small = tmp_path / "small.yaml"
    small.write_text(yaml.safe_dump(config))
    module, _, trainer, _ = train(["--config", str(small)])
    assert trainer.global_step == 2
    moments = [s["exp_avg"] for s in trainer.optimizers[0].state.values()]
    assert moments and all(m.isfinite().all() for m in moments)
    assert any(m.any() for m in moments)
    assert all(p.isfinite().all() for p in module.parameters())


@pytest.mark.filterwarnings("ignore")
def test_a_config_evaluates_while_it_trains_and_others_do_not():
    for file, every in (("fashion_mnist", 4000), ("digits", 0)):
        callbacks = built(ROOT / "rectified" / f"{file}.yaml").trainer.callbacks
        (found,) = [c for c in callbacks if isinstance(c, Evaluate)]
        assert found.every == every


def test_all_families_are_looked_at():
    assert {"lightsb", "pfgmpp", "rectified"} <= {f.parent.name for f in FILES}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "stem, D, p, size, parameters",
    [("cifar10", 2048, 0.12, 512, 59e6), ("ffhq64", 128, 0.15, 256, 59e6)],
)
def test_published_settings_count_images_as_published(stem, D, p, size, parameters):
    line = built(ROOT / "pfgmpp" / f"{stem}.yaml")
    module, config = line.model, line.config
    assert isinstance(module, PFGMPP) and module.augment == Augmentation(p)
    assert module.denoiser.path == Karras(0.002, 80.0, noise=StudentT(D))
    assert line.datamodule.batch_size == size and not line.datamodule.flip
    assert size * line.trainer.max_steps == pytest.approx(200e6, rel=1e-3)
    assert size * config.model.init_args.warmup == pytest.approx(10e6, rel=1e-3)
    assert config.ema.decay ** (0.5e6 / size) == pytest.approx(0.5, rel=1e-2)
    count = sum(w.numel() for w in module.net.parameters())
    assert count == pytest.approx(parameters, rel=0.02)


@pytest.mark.filterwarnings("ignore")
def test_d_is_set_on_the_command_line_and_infinity_is_gaussian():
    file = ROOT / "pfgmpp" / "cifar10_jpeg.yaml"
    line = built(file, "--model.init_args.D", ".inf")
    assert line.model.denoiser.path.noise == StudentT(float("inf"))
