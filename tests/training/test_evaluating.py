"""Distances while a run goes on: of the averaged weights, on all ranks, unnoticed by the run."""

import json
from pathlib import Path
import random

from lightning.pytorch.loggers import CSVLogger
import numpy as np
import pytest
from ranks import together
from short_runs import fit, saver, tiny
import torch

from genflow import Pipeline
from genflow.data import Digits, Toy
from genflow.errors import UserError
from genflow.evaluation import evaluate
from genflow.evaluation.watching import Watch
from genflow.metrics import frechet_from_features
from genflow.metrics.features import extract, features
from genflow.nn import MLP
from genflow.training import EMA, Evaluate, RectifiedFlow

FEW = {"n": 12, "steps": 2, "batch_size": 5}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GENFLOW_CACHE", str(tmp_path / "cache"))


def state():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()


class Careful(Evaluate):
    """Asks, around each evaluation, whether anything but itself has changed."""

    def evaluate(self, trainer, pl_module):
        ema = next(c for c in trainer.callbacks if isinstance(c, EMA))
        weights = [p.detach().clone() for p in pl_module.parameters()]
        averages = {k: w.clone() for k, w in ema.weights().items()}
        modes = [m.training for m in pl_module.modules()]
        before = state()
        super().evaluate(trainer, pl_module)
        after = state()
        assert before[:2] == after[:2] and torch.equal(before[2], after[2])
        assert all(map(torch.equal, weights, pl_module.parameters()))
        assert all(torch.equal(averages[k], w) for k, w in ema.weights().items())
        assert modes == [m.training for m in pl_module.modules()] and any(modes)
        assert not any(p.requires_grad is False for p in pl_module.net.parameters())


def test_the_averaged_weights_are_measured_and_the_run_does_not_notice(tmp_path):
    plain = fit(tmp_path, 4, EMA(0.9))
    watch = Careful(every=2, **FEW)
    logger = CSVLogger(str(tmp_path), name="", version="run")
    module, losses, ema, trainer = fit(tmp_path, 4, EMA(0.9), watch, logger=logger)

    assert losses.train == plain[1].train
    assert all(map(torch.equal, module.parameters(), plain[0].parameters()))
    assert sorted(watch.history) == [2, 4] and watch.history[2] != watch.history[4]

    # the number is that of a pipeline with the averaged weights, and not of the raw ones
    data, net = Digits(batch_size=16), features("random-conv", (1, 8, 8))
    seen = {}
    for name in ("averaged", "raw"):
        pipe = Pipeline(module.denoiser, (1, 8, 8), sampler="heun", steps=2)
        pipe.denoiser.eval()
        label = torch.arange(12) % 10
        if name == "averaged":
            with ema.average(module):
                x = pipe(seeds=range(12), label=label).uint8
        else:
            x = pipe(seeds=range(12), label=label).uint8
        seen[name] = frechet_from_features(extract(net, x), extract(net, data.reference()))
    assert watch.history[4] == {"fd": pytest.approx(seen["averaged"], rel=1e-4)}
    assert abs(seen["raw"] / seen["averaged"] - 1) > 1e-3

    lines = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("eval/fd")
    logged = [line.split(",")[column] for line in lines[1:]]
    assert [float(v) for v in logged if v] == pytest.approx(
        [h["fd"] for h in watch.history.values()]
    )
    assert float(trainer.callback_metrics["eval/fd"]) == pytest.approx(watch.history[4]["fd"])


def test_a_run_that_was_resumed_measures_the_same(tmp_path):
    whole, again = Evaluate(every=2, **FEW), Evaluate(every=2, keep_best=True, **FEW)
    fit(tmp_path / "a", 4, EMA(0.9), whole, saver(tmp_path / "a", 2))
    fit(tmp_path / "b", 4, EMA(0.9), again, ckpt=tmp_path / "a" / "step=2.ckpt")
    assert sorted(again.history) == [4] and again.history[4] == whole.history[4]


def test_the_best_model_is_kept_as_a_pipeline(tmp_path, monkeypatch):
    values = iter([3.0, 1.0, 2.0])
    monkeypatch.setattr(Watch, "_measured", lambda self, found: {"fd": next(values)})
    watch = Evaluate(every=1, keep_best=True, **FEW)
    *_, ema, _ = fit(tmp_path, 3, EMA(0.9), watch)
    pipe = Pipeline.from_pretrained(tmp_path / "best")
    assert pipe.card["training_steps"] == 2 and pipe.card["eval_fd"] == 1.0
    kept = dict(pipe.denoiser.net.named_parameters())
    assert not all(torch.equal(kept[k], w) for k, w in ema.weights().items()), "of step 3"
    assert watch.state_dict() == {"best": {"step": 2, "value": 1.0}}

    later = Evaluate(every=1, keep_best=True, **FEW)
    later.load_state_dict(watch.state_dict())
    values = iter([1.5])
    fit(tmp_path / "later", 1, EMA(0.9), later)
    assert not (tmp_path / "later" / "best").exists(), "it must beat the number of the checkpoint"


def test_several_nets_and_a_stored_reference(tmp_path):
    np.save(tmp_path / "data.npy", Digits().reference()[:300].numpy())
    watch = Evaluate(
        every=2, feature="pixels,random-conv", metrics="fd,coverage",
        reference=str(tmp_path / "data.npy"), **FEW,
    )  # fmt: skip
    module, *_ = fit(tmp_path, 2, watch)
    names = {f"{m}-{f}" for m in ("fd", "coverage") for f in ("pixels", "random-conv")}
    assert set(watch.history[2]) == names

    module.denoiser.eval()
    pipe = Pipeline(module.denoiser, (1, 8, 8), sampler="heun", steps=2)
    report = evaluate(
        pipe, tmp_path / "data.npy", n=12, feature="pixels", metrics="coverage", halvings=0,
        say=lambda text: None,
    )  # fmt: skip
    same = report["measures"]["pixels"]["metrics"]["coverage"]["value"]
    assert watch.history[2]["coverage-pixels"] == same


def test_a_failure_is_told_and_stops_nothing(tmp_path):
    watch = Evaluate(every=2, **FEW)
    module = tiny()

    class Spoilt(RectifiedFlow):
        def on_train_batch_end(self, *args):
            if self.global_step == 3:
                next(self.net.parameters()).data.fill_(float("nan"))

    spoilt = Spoilt(module.net)
    with pytest.warns(UserWarning, match="the evaluation of step 3 is left out: .*not finite"):
        fit(tmp_path, 3, watch, module=spoilt)
    assert list(watch.history) == [2, 3] and watch.history[2] and not watch.history[3]


def test_what_cannot_be_measured_is_refused_before_training(tmp_path):
    for name, value in (("every", -1), ("n", 1), ("steps", 0), ("batch_size", 0)):
        with pytest.raises(UserError, match=f"{name} is {value}"):
            Evaluate(**{name: value})
    for options, words in (
        ({"sampler": "heum"}, "did you mean 'heun'"),
        ({"feature": "random-cov"}, "did you mean 'random-conv'"),
        ({"metrics": "fdd"}, "fdd"),
        ({"reference": "nowhere"}, "nowhere"),
        ({"feature": "inception"}, "no feature net is left"),
    ):
        with pytest.raises(UserError, match=words):
            fit(tmp_path, 1, Evaluate(**options))
    np.save(tmp_path / "x.npy", np.zeros((9, 16, 16), np.uint8))
    with pytest.raises(UserError, match="8×8 pixels and the data 16×16"):
        fit(tmp_path, 1, Evaluate(reference=str(tmp_path / "x.npy")))
    np.save(tmp_path / "v.npy", np.zeros((9, 3)))
    with pytest.raises(UserError, match="vectors of the same width"):
        toy = {"module": RectifiedFlow(MLP(2, 8, 1)), "data": Toy(batch_size=8)}
        fit(tmp_path, 1, Evaluate(reference=str(tmp_path / "v.npy")), **toy)
    off = Evaluate(every=0)
    fit(tmp_path, 1, off)
    assert off.history == {}


def test_flat_rows_of_weights_are_refused():
    from types import SimpleNamespace

    from lightning.pytorch.strategies import FSDPStrategy

    trainer = SimpleNamespace(strategy=FSDPStrategy())
    with pytest.raises(UserError, match="strategy is FSDPStrategy.*to 0.*fully_shard"):
        Evaluate().setup(trainer, tiny(), "fit")


def work(rank, folder):
    import os

    os.environ |= {"TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}
    os.environ["GENFLOW_CACHE"] = str(folder / "cache")
    watch = Evaluate(every=2, n=600, steps=2, keep_best=True)
    *_, trainer = fit(folder / "two", 2, EMA(0.9), watch, devices=2, strategy="ddp")
    said = {"history": watch.history, "metric": float(trainer.callback_metrics["eval/fd"])}
    (folder / f"{rank}.json").write_text(json.dumps(said))


@pytest.mark.slow
def test_all_ranks_draw_and_all_know_the_number(tmp_path):
    together(2, work, tmp_path, tmp_path)
    one, two = (json.loads((tmp_path / f"{r}.json").read_text()) for r in range(2))
    assert one == two and one["metric"] == pytest.approx(one["history"]["2"]["fd"])
    assert (tmp_path / "two" / "best").is_dir()

    # the model of step 2 alone, in one process, has the same distance
    pipe = Pipeline.from_pretrained(Path(tmp_path / "two" / "best"))
    report = evaluate(
        pipe, "digits", n=600, sampler="heun", steps=2, feature="random-conv", metrics="fd",
        halvings=0, say=lambda text: None,
    )  # fmt: skip
    value = report["measures"]["random-conv"]["metrics"]["frechet"]["value"]
    assert value == pytest.approx(one["history"]["2"]["fd"], rel=1e-4)
