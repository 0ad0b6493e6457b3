"""Inversion: an embedding that was hidden is found, and is used like any other condition."""

import copy
import json

import pytest
import torch

from genflow.errors import UserError
from genflow.gradients import Drawn, Gram, Inversion, Pixel, beginning, iterate
from genflow.gradients.jobs import run
from genflow.gradients.targets import pictures
from genflow.metrics.features import RandomConv
from genflow.models import Preconditioned, Rectified
from genflow.nn import DiT
from genflow.pipelines import Pipeline
from genflow.pipelines.conditions import load_conditions

SEEDS = range(6)


def target(pipe, label, seeds=SEEDS, **options):
    return pipe(seeds=list(seeds), label=label, **options).x


def inversion(pipe, **options):
    common = {"iterations": 30, "lr": 0.1, "steps": 4}
    loss = options.pop("loss", None) or Pixel(target(pipe, 3, steps=4))
    return Inversion(pipe, loss, SEEDS, **common | options)


def test_samples_are_those_of_the_pipeline(pipe):
    """Fresh noise on the way, guidance and batches included."""

    options = {"sampler": "ddpm", "steps": 5, "guidance": 1.5}
    drawn = Drawn(pipe, [3, 9, 4], label=torch.tensor([1, 2, 7]), batch_size=2, **options)
    theirs = pipe(seeds=[3, 9, 4], label=[1, 2, 7], **options).x
    torch.testing.assert_close(drawn.all(), theirs, rtol=0, atol=1e-5)
    torch.testing.assert_close(drawn(torch.tensor([2, 0]))[0], theirs[2], rtol=0, atol=1e-5)


def test_the_embedding_of_a_class_is_found(pipe):
    """From no class to the samples of threes; what was found holds for other noise too."""

    task = inversion(pipe, iterations=60)
    history = iterate(task)
    assert task.descent.skipped == 0 and len(history) == 60
    report = task._mean(task.drawn.all(embedding=task.embedding().detach()))
    assert history[0]["loss"] == pytest.approx(task.loss_before, rel=1e-5)
    assert report < task.loss_before / 20

    fresh = range(100, 116)
    true, none = target(pipe, 3, fresh), pipe(seeds=fresh, conditions=beginning(pipe)).x
    ours = pipe(seeds=fresh, conditions=task.found())
    assert ours.label is None
    assert (ours.x - true).square().mean() < (none - true).square().mean() / 5


def test_the_style_of_a_class_is_approached(pipe):
    style = Gram(RandomConv(1, 8).maps, target(pipe, 1, range(50, 80)))
    task = inversion(pipe, loss=style, iterations=40)
    iterate(task)
    after = task._mean(task.drawn.all(embedding=task.embedding().detach()))
    assert after < task.loss_before / 2


def test_gradients_are_those_of_finite_differences(pipe):
    pipe.to(torch.float64)
    task = inversion(pipe, loss=Pixel(target(pipe, 3, steps=4).double()), keep=0.3)
    task.start = task.start.double()
    e = task.free.data = task.free.data.double()
    with torch.no_grad():
        task.free += 0.1
    task._evaluate()
    direction = torch.randn(e.shape, generator=torch.Generator().manual_seed(0)).double()
    slope = float((task.free.grad * direction).sum())

    def at(h):
        with torch.no_grad():
            x = task.drawn.all(embedding=task.embedding() + h * direction)
            pull = (task.embedding() + h * direction - task.start).square().sum() / 128
            return task._mean(x) + 0.3 * float(pull)

    assert (at(1e-4) - at(-1e-4)) / 2e-4 == pytest.approx(slope, rel=1e-5)


def test_parts_add_up_to_the_whole(pipe):
    grads = []
    for batch_size in (6, 4, 1):
        task = inversion(pipe, batch_size=batch_size)
        task._evaluate()
        grads.append(task.free.grad)
    for g in grads[1:]:
        torch.testing.assert_close(g, grads[0], rtol=1e-4, atol=1e-7)


def test_only_chosen_rows_move():
    torch.manual_seed(0)
    net = DiT(8, 1, heads=2, head_width=8, depth=3, classes=4)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.1)
    pipe = Pipeline(Preconditioned(net, Rectified()), (1, 8, 8), sampler="euler", steps=2)
    start = beginning(pipe)
    assert start["embedding"].shape == (1, 3, 16)
    task = Inversion(pipe, Pixel(target(pipe, 2)), SEEDS, rows=[1], iterations=3)
    iterate(task)
    moved = (task.embedding() - start["embedding"]).abs().sum((0, 2))
    assert moved[0] == moved[2] == 0 < moved[1]


def test_the_weight_of_guidance_is_found(pipe):
    """Samples of a class at weight 2.5, from its embedding and weight 1: w alone must move."""

    loss = Pixel(target(pipe, 3, steps=4, guidance=2.5))
    task = inversion(
        pipe,
        loss=loss,
        start=beginning(pipe, 3),
        learn_guidance=True,
        optimizer="lbfgs",
        lr=1.0,
        iterations=8,
        keep=100.0,
    )
    history = iterate(task)
    assert history[-1]["guidance"] == pytest.approx(2.5, abs=0.05)


def test_the_weights_are_left_alone(pipe):
    before = copy.deepcopy(pipe.denoiser.state_dict())
    iterate(inversion(pipe, iterations=3))
    assert all(torch.equal(v, before[k]) for k, v in pipe.denoiser.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in pipe.denoiser.parameters())


def test_a_pull_towards_the_start(pipe):
    near, far = inversion(pipe, keep=10.0), inversion(pipe)
    iterate(near), iterate(far)
    near, far = ((t.embedding() - t.start).norm() for t in (near, far))
    assert near < far / 3


# ------------------------------------------------------------------------------------ jobs


class Killed(Exception):
    pass


def test_a_job_that_was_killed_goes_on_bit_for_bit(pipe, tmp_path):
    whole = run(inversion(pipe), tmp_path / "whole", {"a": 1}, every=4)

    def kill(done, total):
        if done == 14:
            raise Killed

    with pytest.raises(Killed):
        run(inversion(pipe), tmp_path / "part", {"a": 1}, every=4, report=kill)
    assert json.loads((tmp_path / "part/report.json").read_text())["status"] == "running"

    with pytest.raises(UserError, match="another a"):
        run(inversion(pipe), tmp_path / "part", {"a": 2}, resume=True)

    seen = []
    part = run(
        inversion(pipe),
        tmp_path / "part",
        {"a": 1},
        resume=True,
        report=lambda done, total: seen.append(done),
    )
    assert seen[0] == 13 and part["history"] == whole["history"]
    files = [tmp_path / name / "embedding.safetensors" for name in ("whole", "part")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert not (tmp_path / "part/state.safetensors").exists()
    assert run(inversion(pipe), tmp_path / "part", {"a": 1}, resume=True) == json.loads(
        (tmp_path / "part/report.json").read_text()
    )

    with pytest.raises(UserError, match="--overwrite"):
        run(inversion(pipe), tmp_path / "part", {"a": 1})
    again = run(inversion(pipe, iterations=1), tmp_path / "part", {"a": 3}, overwrite=True)
    assert len(again["history"]) == 1


def test_what_is_saved_makes_the_samples_that_were_reported(pipe, tmp_path):
    task = inversion(pipe, guidance=1.5)
    record = run(task, tmp_path / "o", {})
    found = load_conditions(tmp_path / "o/embedding.safetensors")
    assert float(found.pop("guidance")) == 1.5
    x = pipe(seeds=SEEDS, conditions=found, guidance=1.5, steps=4).x
    assert task._mean(x) == pytest.approx(record["loss_after"], rel=1e-4)
    assert record["loss_after"] < record["loss_before"]
    assert (tmp_path / "o/grid.png").exists()


def test_numbers_that_are_not_finite_are_counted_in_the_report(pipe, tmp_path):
    loss = Pixel(target(pipe, 3, steps=4))

    class Spoilt(Pixel):
        calls = 0

        def __call__(self, x, rows):
            self.calls += 1
            return super().__call__(x, rows) * (torch.nan if self.calls == 4 else 1.0)

    record = run(inversion(pipe, loss=Spoilt(loss.target), iterations=5), tmp_path / "o", {})
    assert record["skipped"] == 1 and [h["skipped"] for h in record["history"]] == [0, 0, 1, 0, 0]
    assert json.loads((tmp_path / "o/report.json").read_text())["history"][2]["loss"] is None


# ------------------------------------------------------------------------------- bad input


def rounded(x, rows):
    return x.detach().round().flatten(1).mean(1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"iterations": 0}, "iterations is 0"),
        ({"keep": -1.0}, "keep is -1.0"),
        ({"rows": [1]}, r"rows is \[1\]: the embedding has the rows 0 … 0"),
        ({"rows": []}, "at least one is to be optimised"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"sampler": "dopri5", "steps": None}, "a solver that chooses its steps allows"),
        ({"gradient": "none"}, "no gradient with respect to 'embedding'"),
        ({"loss": rounded}, "no gradient with respect to 'embedding'.*rounds"),
    ],
)
def test_bad_values(pipe, options, words):
    with pytest.raises(UserError, match=words):
        iterate(inversion(pipe, **options))


def test_pipelines_that_have_nothing_to_invert(pipe, tmp_path):
    torch.manual_seed(0)
    from genflow.nn import MLP, UNet

    plain = UNet(8, 1, widths=(8,), layers=1, attention=(), groups=4)
    with pytest.raises(UserError, match="takes no condition"):
        beginning(Pipeline(Preconditioned(plain, Rectified()), (1, 8, 8)))
    vectors = Pipeline(Preconditioned(MLP(2, 8, 1, classes=2), Rectified()), (2,))
    with pytest.raises(UserError, match=r"vectors of shape \(2,\)"):
        Inversion(vectors, Pixel(torch.zeros(1)), SEEDS)
    with pytest.raises(UserError, match="n is 0"):
        Inversion(pipe, Pixel(torch.zeros(1)), [])
    with pytest.raises(UserError, match="no picture that can be read"):
        pictures(str(tmp_path / "nothing.png"), pipe, SEEDS)
