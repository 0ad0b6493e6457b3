"""Weights cut over two processes: the run of one process, in half of its memory each."""

import os
from pathlib import Path
from types import SimpleNamespace

from diffusers import UNet2DModel
from lightning.pytorch import Callback
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
import pytest
from ranks import together, torchrun
from safetensors.torch import load_file
from short_runs import fit, saver, tiny
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torchvision.io import read_image

from genflow.cli import main
from genflow.data import Digits
from genflow.errors import UserError
from genflow.nn import DiT
from genflow.pipelines import Pipeline
from genflow.training import (
    EMA,
    PFGMPP,
    Evaluate,
    FullyShard,
    PostHocEMA,
    SampleGrid,
    ema_weights,
)
from genflow.training.base import PREFIX
from genflow.training.sharding import gathered, like, shard, sharded

STEPS = 4


def module(**net):
    return PFGMPP(tiny(dropout=0.0, **net).net, lr=1e-3, lot=8, uncertainty=True)


class Grids(Callback):
    """Draws the average in the middle of a run, twice, as a validation or a grid would."""

    def on_train_batch_end(self, trainer, pl_module, *args):
        if trainer.global_step == 3:
            for folder in ("grid", "again"):
                grid = SampleGrid(n=4, steps=2)
                grid.on_fit_start(trainer, pl_module)
                grid._folder = Path(trainer.default_root_dir) / folder
                grid.draw(trainer, pl_module)


def run(root, *, size, steps=STEPS, ckpt=None, **options):
    """A run with averages and a checkpoint every two steps; hands out what it ended with."""

    made, ema, hoc = module(), EMA(0.9), PostHocEMA((0.1,), every=2)
    watch = Evaluate(every=2, n=40, steps=2, batch_size=16, keep_best=True)
    data = Digits(batch_size=size, flip=True)
    settings = {"module": made, "data": data, "ckpt": ckpt, **options}
    _, losses, _, trainer = fit(root, steps, ema, hoc, Grids(), watch, saver(root, 2), **settings)
    moments = [s["exp_avg"] for s in trainer.optimizers[0].state.values()]
    averages = {"ema": ema.weights(), "posthoc": hoc.averages(0.1)}
    held = [*made.parameters(), *moments, *ema.weights().values(), *hoc.averages(0.1).values()]
    kept = sum((t.to_local() if isinstance(t, DTensor) else t).numel() for t in held)
    whole = {"raw": gathered({n: p.detach() for n, p in made.named_parameters()})}
    for kind, kept_apart in averages.items():
        whole[kind] = {PREFIX + n: a for n, a in gathered(kept_apart).items()}
    return {"whole": whole, "kept": kept, "losses": losses.train, "history": watch.history}


def work(rank, folder):
    os.environ["GENFLOW_CACHE"] = str(folder / "cache")
    os.environ |= {"TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}
    cut = {"devices": 2, "size": 8}
    for name, ckpt in (("two", None), ("grown", "one"), ("back", "two")):
        file = None if ckpt is None else folder / ckpt / "step=2.ckpt"
        ended = run(folder / name, ckpt=file, strategy=FullyShard(), **cut)
        torch.save(ended, folder / f"{name}-{rank}.pt")

    for net, blocks in ((module(), ["CrossAttention"]), (module(classes=3), None)):
        options = {"module": net, "data": Digits(batch_size=8), "devices": 2}
        file = folder / "two" / "step=2.ckpt" if blocks is None else None
        with pytest.raises(UserError) as error:
            fit(folder / "bad", 3, strategy=FullyShard(blocks), ckpt=file, **options)
        (folder / f"error-{rank}-{blocks is None}").write_text(str(error.value))


def off(mine, theirs, begun):
    """How far two runs of one beginning have come apart, in units of how far they have come."""

    def length(a, b):
        return sum(float((a[n] - b[n]).square().sum()) for n in b) ** 0.5

    return length(mine, theirs) / length(begun, theirs)


@pytest.mark.slow
def test_two_parts_are_one_run(tmp_path, monkeypatch):
    monkeypatch.setenv("GENFLOW_CACHE", str(tmp_path / "cache"))
    one = run(tmp_path / "one", size=16)
    together(2, work, tmp_path, tmp_path)
    two, grown, back = (torch.load(tmp_path / f"{n}-0.pt") for n in ("two", "grown", "back"))
    other = torch.load(tmp_path / "two-1.pt")
    begun = module().state_dict()

    # Weights and averages are those of one process, up to the order of sums; had the raw weights
    # not come back after the average was drawn from in the third step, the fourth would differ.
    for ended in (two, grown, back):
        for kind, theirs in one["whole"].items():
            assert ended["whole"][kind].keys() == theirs.keys()
            assert off(ended["whole"][kind], theirs, begun) < 1e-3
    assert "uncertainty.weight" in one["whole"]["raw"]
    assert sorted(grown["losses"]) == sorted(back["losses"]) == [2, 3]

    # Each process holds half of the weights, the averages and the moments, nearly to the number.
    assert two["kept"] + other["kept"] == one["kept"]
    assert max(two["kept"], other["kept"]) < 0.52 * one["kept"]

    # The file is that of one process, to go on from and to make a pipeline of.
    files = [tmp_path / folder / f"step={STEPS}.ckpt" for folder in ("one", "two")]
    single, cut = (torch.load(f, weights_only=True) for f in files)
    assert single["genflow"] == cut["genflow"]
    assert single["state_dict"].keys() == cut["state_dict"].keys()
    averages = [{PREFIX + n: w for n, w in ema_weights(f).items()} for f in files]
    assert off(*averages, begun) < 1e-3
    snapshots = [
        load_file(tmp_path / folder / f"posthoc/width-0.1-step-{STEPS:09d}.safetensors")
        for folder in ("one", "two")
    ]
    assert snapshots[0].keys() == snapshots[1].keys()
    assert all((a - snapshots[1][n]).abs().max() < 1e-3 for n, a in snapshots[0].items())
    onward = run(tmp_path / "onward", size=16, ckpt=tmp_path / "two" / "step=2.ckpt")
    assert off(onward["whole"]["raw"], one["whole"]["raw"], begun) < 1e-3

    # Both processes know what was measured, and one wrote the pipeline that did best.
    assert two["history"] == other["history"] and list(two["history"]) == [2, STEPS]
    for step, found in one["history"].items():
        assert two["history"][step]["fd"] == pytest.approx(found["fd"], rel=1e-3)
    best = [Pipeline.from_pretrained(tmp_path / folder / "best") for folder in ("one", "two")]
    assert best[0].card["training_steps"] == best[1].card["training_steps"]
    samples = [pipe(8, seed=0, steps=2).x for pipe in best]
    assert (samples[0] - samples[1]).abs().max() < 1e-2 and samples[0].std() > 0.1

    # One process wrote what both drew.
    for folder in ("grid", "again"):
        pictures = [
            read_image(tmp_path / run / folder / "step-000000003.png") for run in ("one", "two")
        ]
        assert (pictures[0].int() - pictures[1].int()).abs().max() <= 1
        assert pictures[0].float().std() > 10

    blocks, foreign = ((tmp_path / f"error-0-{kind}").read_text() for kind in (False, True))
    assert "blocks is ['CrossAttention']" in blocks and "ResnetBlock2D" in blocks
    assert "classes" in foreign or "shape" in foreign


CONFIG = """
run: {run}
model:
  class_path: RectifiedFlow
  init_args:
    gradient_checkpointing: true
    net:
      class_path: genflow.nn.DiT
      init_args: {{size: 8, channels: 1, patch: 2, heads: 2, head_width: 8, depth: 2, classes: 10}}
data:
  class_path: Digits
  init_args: {{batch_size: 8}}
trainer:
  max_steps: 2
  accelerator: cpu
  enable_progress_bar: false
  strategy: fully_shard
  precision: bf16-mixed
checkpoint: {{every_n_train_steps: 2}}
grid: {{n: 4, steps: 2}}
steps: 2
"""


@pytest.mark.slow
def test_a_config_names_it_and_a_pipeline_comes_of_it(tmp_path):
    from genflow import Pipeline

    (tmp_path / "c.yaml").write_text(CONFIG.format(run=tmp_path / "run"))
    torchrun(tmp_path / "c.yaml")
    pipe = Pipeline.from_pretrained(tmp_path / "run" / "pipeline")
    average = ema_weights(tmp_path / "run" / "checkpoints" / "last.ckpt")
    saved = pipe.denoiser.net.state_dict()
    assert saved.keys() == average.keys() and all(saved[n].equal(average[n]) for n in saved)
    assert pipe.card["training_steps"] == 2 and len(pipe.class_names) == 10
    assert (tmp_path / "run" / "samples" / "step-000000002.png").exists()


# ----------------------------------------------------------------- without any other process


def test_which_strategies_leave_parts():
    assert sharded(FullyShard()) and sharded(ModelParallelStrategy()) and sharded(FSDPStrategy())
    assert not sharded(SimpleNamespace())


def test_tensors_that_are_not_cut_stay_what_they_are():
    value, other = torch.arange(3.0), torch.zeros(3)
    assert like(value, other) is value
    assert gathered({"a": value})["a"] is value


def test_a_bridge_has_no_network_to_cut(capsys, tmp_path):
    config = Path(__file__).parents[2] / "configs" / "lightsb" / "swiss_roll.yaml"
    words = ["--trainer.strategy", "fully_shard", "--trainer.accelerator", "cpu"]
    assert main(["fit", "-c", str(config), "--run", str(tmp_path / "run"), *words]) == 2
    assert "fully_shard, and a LightSB has no network to cut" in capsys.readouterr().err


def test_flat_rows_are_refused_by_the_average():
    with pytest.raises(UserError, match="strategy is FSDPStrategy.*fully_shard"):
        EMA().on_fit_start(SimpleNamespace(strategy=FSDPStrategy()), tiny())


@pytest.fixture
def alone(tmp_path):
    """A group of one process."""

    store = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    yield torch.distributed.init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def dit():
    torch.manual_seed(0)
    net = DiT(8, 1, 2, heads=2, head_width=8, depth=2, classes=10)
    nn.init.normal_(net.model.proj_out_2.weight)  # else it answers zero at first
    return net


@pytest.mark.parametrize("make", [lambda: module().net, dit])
def test_what_is_cut(alone, make):
    net = make()
    x, t, label = torch.randn(2, 1, 8, 8), torch.rand(2), torch.tensor([0, 1])
    model, kind = net.model, type(net.model)
    with torch.no_grad():
        plain = net(x, t, label=label)
        shard(net, alone)
        shard(net, alone)  # a second fit of the same module
        torch.testing.assert_close(net(x, t, label=label), plain)
    assert plain.std() > 0.01
    if isinstance(model, UNet2DModel):
        middle = model.mid_block
        levels = {*model.down_blocks, *model.up_blocks}
        units = {*levels, *middle.resnets, *middle.attentions, net}
    else:
        units = {*model.transformer_blocks, *(b.norm1.emb for b in model.transformer_blocks), net}
    assert units == {m for m in net.modules() if isinstance(m, FSDPModule)}
    assert type(model) is kind
    # nothing is left whole between two calls: else EMA's change of the parts would go unseen
    assert all(isinstance(p, DTensor) for p in net.parameters())


def test_blocks_by_name(alone):
    net = module().net
    shard(net, alone, ["ResnetBlock2D", "DownBlock2D"])
    cut = {type(m).__mro__[2].__name__ for m in net.modules() if isinstance(m, FSDPModule)}
    assert cut == {"ResnetBlock2D", "DownBlock2D", type(net).__mro__[2].__name__}
    with pytest.raises(UserError, match="blocks is.*'Block'.*name some of .*ResnetBlock2D"):
        shard(nn.Sequential(module().net), alone, ["Block"])
