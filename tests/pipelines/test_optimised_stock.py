"""The applications of gradients on stock pipelines: the same code, through text and latents."""

import foreign
import pytest
import torch

from genflow.gradients import (
    Audit,
    Classified,
    Drawn,
    FineTuning,
    Gram,
    Inversion,
    Pixel,
    beginning,
    iterate,
)
from genflow.gradients.jobs import run
from genflow.gradients.targets import pictures
from genflow.metrics.features import RandomConv
from genflow.pipelines import Pipeline
from genflow.pipelines.adapters import adapt

torch.set_num_threads(1)

SEEDS = range(2)
OPTIONS = {"sampler": "ddim", "steps": 2}


@pytest.fixture
def stable():
    return adapt(foreign.stable())


def halves(x):
    """A classifier without parameters: which part of the image is brightest."""

    parts = x.mean(1).flatten(1).unflatten(1, (4, -1)).mean(2)
    return 10 * (parts - parts.mean(1, keepdim=True))


def test_the_padding_of_a_prompt_is_optimised(stable, tmp_path):
    """The embeddings of the prompt stay; those behind it make another prompt's samples."""

    target = pictures("prompt:dog", stable, SEEDS, guidance=2.0, **OPTIONS)
    task = Inversion(
        stable,
        Pixel(target),
        SEEDS,
        start=beginning(stable, "a cat"),
        rows=range(6, 12),
        guidance=2.0,
        negative="bad",
        iterations=15,
        lr=0.1,
        **OPTIONS,
    )
    record = run(task, tmp_path / "o", {})
    assert record["loss_after"] < record["loss_before"] / 5
    found = task.found()["prompt_embeds"]
    assert found.shape == (1, 12, 16)
    words = stable.condition(["a cat"])["prompt_embeds"]
    assert torch.equal(found[:, :6], words[:, :6])
    assert (found[:, 6:] - words[:, 6:]).abs().amax(2).min() > 1e-3
    x = stable(seeds=SEEDS, conditions=task.found(), guidance=2.0, negative="bad", **OPTIONS).x
    assert task._mean(x) == pytest.approx(record["loss_after"], rel=1e-3)


def test_gradients_of_an_embedding_are_those_of_autograd(stable):
    found = []
    for gradient in ("exact", "direct"):
        drawn = Drawn(stable, SEEDS, prompt="a cat", gradient=gradient, guidance=2.0, **OPTIONS)
        e = drawn.cond["prompt_embeds"][:1].clone().requires_grad_()
        drawn(torch.arange(2), prompt_embeds=e).square().sum().backward()
        found.append(e.grad)
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)
    assert found[0].abs().min() > 0


@pytest.mark.slow
def test_the_noise_behind_a_prompt_is_audited(stable):
    task = Audit(
        stable, halves, range(4), prompt="a cat", iterations=25, patience=5, draws=4, **OPTIONS
    )
    iterate(task)
    broken = torch.isfinite(task.best)
    assert broken.float().mean() >= 0.75
    rate, _ = task._random(torch.where(broken, task.best, 0.0))
    assert rate[broken].mean() < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["style", "class"])
def test_stock_pipelines_are_fine_tuned_and_stay_stock(stable, tmp_path, metric):
    if metric == "style":
        pale = pictures("prompt:dog", stable, range(20, 24), **OPTIONS) / 2
        loss = Gram(RandomConv(3, 16).maps, pale)
    else:
        loss = Classified(halves, torch.tensor([2]))

    task = FineTuning(
        stable,
        loss,
        range(4),
        range(10, 14),
        prompt="a cat",
        rank=2,
        layers="attn|conv",
        batch=2,
        iterations=15,
        lr=1e-2,
        **OPTIONS,
    )
    record = run(task, tmp_path / "o", {})
    assert record["loss_after"] < 0.7 * record["loss_before"]
    again = Pipeline.from_pretrained(tmp_path / "o/pipeline")
    ask = {"seeds": [10, 11], "prompt": "a cat", **OPTIONS}
    torch.testing.assert_close(again(**ask).x, stable(**ask).x, rtol=1e-4, atol=1e-5)
    assert (again(**ask).x - adapt(foreign.stable())(**ask).x).abs().max() > 1e-3
