"""Runs on augmented images: reproducible, recorded, and sampled without augmentation."""

import json

from lightning.pytorch import Trainer
import pytest
from short_runs import fit, saver, trainer
import torch

from genflow.cli import main
from genflow.data import Digits
from genflow.errors import UserError
from genflow.nn import MLP, UNet
from genflow.pipelines import Pipeline
from genflow.pipelines.exports import export_diffusers, stock_pipeline, trained
from genflow.training import (
    EMA,
    Augmentation,
    RectifiedFlow,
    ema_weights,
    read_checkpoint,
    warp,
)
from genflow.training.line import TRAINER, TrainingLine

HALF = Augmentation(0.5, yflip=0.0)


def tiny(classes=10, augment=HALF, **options):
    torch.manual_seed(7)
    net = UNet(
        8, 1, widths=(8, 8), layers=1, attention=(), classes=classes, groups=4,
        augment=9 if augment else 0,
    )  # fmt: skip
    torch.nn.init.normal_(net.model.conv_out.weight, std=0.1)
    return RectifiedFlow(net, augment=augment, **options)


def batch(n=16):
    g = torch.Generator().manual_seed(0)
    return {"x": torch.rand(n, 1, 8, 8, generator=g) * 2 - 1, "label": torch.arange(n) % 10}


# ------------------------------------------------------------------------------- the loss


def test_the_network_is_told_what_was_done_to_its_image():
    module, b = tiny(label_dropout=0.0).eval(), batch()
    x, z, t, cond = module.draw(b, module._source("train", 3, 0, 0))
    assert torch.equal(x, warp(b["x"], cond["augment"])) and not torch.equal(x, b["x"])
    assert cond["augment"].shape == (16, 9) and torch.equal(cond["label"], b["label"])

    s = t[:, None, None, None]
    v = module.net((1 - s) * x + s * z, 1000 * t, b["label"], augment=cond["augment"])
    torch.testing.assert_close(module.loss(b, step=3), (v - (z - x)).square().mean())


def test_a_validation_sees_the_images_as_they_are():
    module, b = tiny(), batch()
    x, _, _, cond = module.draw(b, module._source("validation", 0), dropout=False)
    assert torch.equal(x, b["x"]) and "augment" not in cond


@pytest.mark.parametrize("other", [{"step": 1}, {"place": 1}])
def test_transforms_are_a_function_of_step_part_and_rank(other):
    module, b = tiny(), batch()
    here = {"step": 0, "place": 0}

    def transforms(**numbers):
        torch.rand(3)  # the global generator has no say
        return module.draw(b, module._source("train", *numbers.values()))[3]["augment"]

    assert torch.equal(transforms(**here), transforms(**here))
    assert not torch.equal(transforms(**here), transforms(**(here | other)))


def test_without_augmentation_nothing_about_a_run_changes():
    one, two, b = tiny(augment=None), tiny(), batch()
    x, z, t, _ = one.draw(b, one._source("train", 0, 0, 0))
    two.augment = None
    assert all(
        torch.equal(p, q)
        for p, q in zip((x, z, t), two.draw(b, two._source("train", 0, 0, 0)), strict=False)
    )


def test_a_resumed_run_is_an_unbroken_one(tmp_path):
    def run(root, steps, **options):
        return fit(root, steps, EMA(0.9), saver(root, 2), module=tiny(), **options)

    whole = run(tmp_path / "whole", 4)
    run(tmp_path / "second", 2)
    second = run(tmp_path / "second", 4, ckpt=tmp_path / "second" / "step=2.ckpt")
    assert [whole[1].train[s] for s in (2, 3)] == [second[1].train[s] for s in (2, 3)]
    a, b = whole[0].state_dict(), second[0].state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert any(k.endswith("augment.weight") for k in a)


# --------------------------------------------------------------------------- what is kept


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    fit(root, 3, EMA(0.9), saver(root, 3), module=tiny(classes=None, lr=0.01))
    return root / "step=3.ckpt"


def test_a_checkpoint_and_a_pipeline_carry_it(checkpoint, tmp_path):
    found = read_checkpoint(checkpoint)
    assert Augmentation(**found.record["augment"]) == HALF
    assert json.dumps(found.record) and found.record["net"]["config"]["augment"] == 9

    pipe = trained(found.record, ema_weights(checkpoint), sampler="euler", steps=3)
    pipe.save(tmp_path / "pipe")
    again = Pipeline.from_pretrained(tmp_path / "pipe")
    moved = torch.zeros(1, 9)
    moved[:, 7] = 1.0
    for options in ({}, {"conditions": {"augment": moved}}):
        ours, theirs = (p(4, seed=0, **options).x for p in (pipe, again))
        assert torch.equal(ours, theirs)
    assert not torch.equal(again(4, seed=0).x, ours), "who asks for moved images gets them"


def test_samples_are_those_of_the_label_zero(checkpoint, tmp_path):
    found = read_checkpoint(checkpoint)
    pipe = trained(found.record, found.raw, sampler="euler", steps=3)
    zero = {"conditions": {"augment": torch.zeros(1, 9)}}
    assert torch.equal(pipe(4, seed=0).x, pipe(4, seed=0, **zero).x)

    grid = {"grid": "uniform", "stop": 1e-3, "final": "zero"}
    sampler = pipe.build(sampler="euler", steps=3, **grid)
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    ours = (sampler(x) / 2 + 0.5).clamp(0, 1)
    twin = stock_pipeline(pipe)
    g = torch.Generator().manual_seed(1)
    theirs = twin(2, g, num_inference_steps=3, output_type="pt").images
    torch.testing.assert_close(torch.as_tensor(theirs), ours, atol=2e-6, rtol=0)

    export_diffusers(pipe, tmp_path / "stock")
    index = json.loads((tmp_path / "stock" / "model_index.json").read_text())
    assert index["unet"] == ["diffusers", "UNet2DModel"]


def test_lightning_loads_the_module_too(checkpoint):
    module = RectifiedFlow.load_from_checkpoint(
        checkpoint, net=tiny(classes=None).net, augment=HALF, weights_only=True
    )
    assert module.augment == HALF


# ---------------------------------------------------------------------------- the config

CONFIG = """
model:
  class_path: RectifiedFlow
  init_args:
    augment: {p: 0.15, rotate: 0.5}
    net: {class_path: UNet, init_args: {size: 8, channels: 1, widths: [32], augment: 9}}
data: {class_path: Digits}
"""


def test_a_config_asks_for_it_in_a_line(tmp_path):
    from genflow.data import DataModule
    from genflow.training.base import GenerativeModule

    (tmp_path / "c.yaml").write_text(CONFIG)
    line = TrainingLine(
        GenerativeModule, DataModule, subclass_mode_model=True, subclass_mode_data=True,
        run=False, args=["-c", str(tmp_path / "c.yaml")], trainer_defaults=TRAINER,
    )  # fmt: skip
    assert line.model.augment == Augmentation(0.15, rotate=0.5)


@pytest.mark.filterwarnings("ignore")
def test_from_a_config_to_samples_on_the_command_line(tmp_path):
    (tmp_path / "c.yaml").write_text(CONFIG)
    run = tmp_path / "run"
    steps = ["--trainer.max_steps", "2", "--trainer.accelerator", "cpu", "--grid.n", "1"]
    steps += ["--checkpoint.every_n_train_steps", "2"]
    assert main(["fit", "-c", str(tmp_path / "c.yaml"), "--run", str(run), *steps]) == 0
    card = Pipeline.from_pretrained(run / "pipeline").card
    assert Augmentation(**card["augment"]) == Augmentation(0.15, rotate=0.5)

    last, out = str(run / "checkpoints" / "last.ckpt"), tmp_path / "again"
    assert main(["export", last, "--output", str(out)]) == 0
    assert Pipeline.from_pretrained(out).card["augment"] == card["augment"]
    assert main(["generate", str(out), "--n", "2", "--output", str(tmp_path / "drawn")]) == 0


# ------------------------------------------------------------------------------ refusals


def test_a_network_that_takes_no_labels_is_refused_before_a_run():
    net = UNet(8, 1, widths=(8,), layers=1, attention=(), groups=4)
    with pytest.raises(UserError, match=r"takes 0 features.*init_args.augment to 9"):
        RectifiedFlow(net, augment=HALF)
    with pytest.raises(UserError, match=r"shape \(2,\): only images can be augmented"):
        RectifiedFlow(MLP(2, augment=9), augment=HALF)


def test_a_network_of_somebody_else_is_told_by_name():
    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, x, time, augment=None):
            seen.append(augment)
            return self.scale * x

    seen = []
    options, callbacks = trainer(".", 1)
    run = Trainer(**options, callbacks=callbacks)
    run.fit(RectifiedFlow(Own(), augment=HALF), Digits(batch_size=4))
    assert seen[0].shape == (4, 9)
