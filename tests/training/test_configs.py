"""Every config file of the repository is understood, and the published ones are what they say."""

from importlib import import_module
from pathlib import Path

from lightning.pytorch import LightningModule
import pytest
import torch
import yaml

from genflow.data import DataModule
from genflow.models import Karras, StudentT
from genflow.training import PFGMPP, Augmentation, Evaluate, LightSB
from genflow.training.line import NAMED, TRAINER, TrainingLine

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
