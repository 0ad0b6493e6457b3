"""Fine-tuning: the metric improves where it was not trained, and the drift is told."""

import copy
import json

import pytest
import torch

from genflow.errors import UserError
from genflow.gradients import Classified, FineTuning, Pixel, iterate
from genflow.gradients.jobs import run
from genflow.pipelines import Pipeline
from genflow.solvers.adjoint import Truncated

POOL, HELD = range(48), range(1000, 1032)
LABEL = torch.arange(80) % 10


def tuning(pipe, classifier, **options):
    common = {"label": LABEL, "iterations": 20, "batch": 16, "lr": 2e-3, "steps": 5}
    loss = options.pop("loss", None) or Classified(classifier, LABEL)
    return FineTuning(pipe, loss, POOL, HELD, **common | options)


@pytest.mark.parametrize(("rank", "lr"), [(4, 2e-3), (None, 5e-4)])
def test_held_out_samples_improve(pipe, classifier, tmp_path, rank, lr):
    before = copy.deepcopy(pipe.denoiser.net.state_dict())
    record = run(tuning(pipe, classifier, rank=rank, lr=lr), tmp_path / "o", {})
    assert record["loss_after"] < record["loss_before"] / 2
    assert record["right_after"] >= record["right_before"] and record["skipped"] == 0
    assert 0 < record["drift"] < 0.1

    saved = Pipeline.from_pretrained(tmp_path / "o/pipeline")
    seeds, label = list(HELD), LABEL[48:].tolist()
    x = saved(seeds=seeds, label=label, steps=5).x
    torch.testing.assert_close(x, pipe(seeds=seeds, label=label, steps=5).x)
    loss = float(Classified(classifier, LABEL)(x, torch.arange(48, 80)).mean())
    assert loss == pytest.approx(record["loss_after"], rel=1e-4)
    after = pipe.denoiser.net.state_dict()
    assert after.keys() == before.keys()
    kept = {k for k in after if torch.equal(after[k], before[k])}
    biases = {k for k in after if k.endswith("bias") or before[k].ndim == 1}
    if rank:  # what is no matrix is as it was
        assert biases <= kept and record["trained"] < sum(v.numel() for v in before.values())
    else:
        assert not biases & kept


def test_only_low_rank_changes_move(pipe, classifier):
    task = tuning(pipe, classifier, layers="enter|leave")
    before = {n: p.detach().clone() for n, p in pipe.denoiser.net.named_parameters()}
    iterate(task)
    now = dict(pipe.denoiser.net.named_parameters())
    moved = {n for n in before if not torch.equal(now[n], before[n])}
    assert moved and all(n.endswith((".down", ".up")) for n in moved)
    assert all("enter" in n or "leave" in n for n in moved)


def test_merged_is_unmerged(pipe, classifier):
    task = tuning(pipe, classifier)
    iterate(task)
    laid = task._measured()
    task.finish()
    torch.testing.assert_close(task._measured(), laid, rtol=0, atol=1e-6)
    assert all(p.requires_grad and p.grad is None for p in pipe.denoiser.net.parameters())
    assert not any("parametrizations" in n for n in pipe.denoiser.net.state_dict())


def test_a_pull_holds_the_samples(pipe, classifier, tmp_path):
    free = run(tuning(copy.deepcopy(pipe), classifier), tmp_path / "a", {})
    held = run(tuning(pipe, classifier, keep=30.0), tmp_path / "b", {})
    assert held["drift"] < free["drift"] / 2
    assert held["loss_after"] < held["loss_before"]


def test_the_last_calls_alone(pipe, classifier):
    """Truncated to all calls it is the exact gradient; to one it is another, and cheaper."""

    grads = []
    for gradient in ("exact", "direct", Truncated(5), Truncated(1)):
        task = tuning(copy.deepcopy(pipe), classifier, gradient=gradient, rank=None)
        task._evaluate(torch.arange(16))
        grads.append(torch.cat([p.grad.flatten() for p in task.descent.variables.values()]))
    assert torch.equal(grads[0], grads[1])
    torch.testing.assert_close(grads[2], grads[0])
    cosine = torch.cosine_similarity(grads[3], grads[0], dim=0)
    assert 0 < cosine < 0.99


def test_parts_add_up_to_the_whole(pipe, classifier):
    grads = []
    for batch_size in (16, 5):
        task = tuning(copy.deepcopy(pipe), classifier, rank=None, batch_size=batch_size, keep=1.0)
        task._evaluate(torch.arange(3, 19))
        grads.append(torch.cat([p.grad.flatten() for p in task.descent.variables.values()]))
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-6)


def test_the_average_is_what_is_saved(pipe, classifier):
    task = tuning(pipe, classifier, average=0.9, rank=None, iterations=4)
    iterate(task)
    expected = {k: v.clone() for k, v in task.descent.averages.items()}
    raw = {k: v.detach().clone() for k, v in task.descent.variables.items()}
    task.finish()
    now = dict(pipe.denoiser.net.named_parameters())
    assert all(torch.equal(now[k], expected[k]) for k in expected)
    assert any(not torch.equal(now[k], raw[k]) for k in raw)


def test_parameters_that_the_loss_does_not_reach_are_named(pipe, tmp_path):
    """Of a model asked for no class alone, under truncation or not, all is reached but nothing."""

    net = pipe.denoiser.net.model
    net.spare = torch.nn.Linear(3, 3)
    task = tuning(pipe, None, loss=Pixel(torch.zeros(1, 1, 8, 8)), rank=None, iterations=1)
    iterate(task)
    assert set(task.descent.unreached()) == {"model.spare.weight", "model.spare.bias"}


@pytest.mark.parametrize("options", [{}, {"gradient": Truncated((1, 4)), "average": 0.5}])
def test_a_job_that_was_killed_goes_on_bit_for_bit(pipe, classifier, tmp_path, options):
    class Killed(Exception):
        pass

    def kill(done, total):
        if done == 5:
            raise Killed

    def new():
        return tuning(copy.deepcopy(pipe), classifier, iterations=8, **options)

    torch.manual_seed(7)
    whole = run(new(), tmp_path / "whole", {}, every=2)
    torch.manual_seed(8)
    with pytest.raises(Killed):
        run(new(), tmp_path / "part", {}, every=2, report=kill)
    part = run(new(), tmp_path / "part", {}, resume=True)
    assert json.dumps(part["history"]) == json.dumps(whole["history"])
    name = "pipeline/net/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "part" / name).read_bytes()


def test_a_pipeline_that_was_refused_is_left_as_it_was(pipe, classifier):
    before = copy.deepcopy(pipe.denoiser.net.state_dict())
    for options in ({"lr": -1.0}, {"sampler": "unipcc"}):
        with pytest.raises(UserError):
            tuning(pipe, classifier, **options)
        after = pipe.denoiser.net.state_dict()
        assert after.keys() == before.keys()
        assert all(p.requires_grad for p in pipe.denoiser.net.parameters())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"iterations": 0}, "iterations is 0"),
        ({"keep": -1.0}, "keep is -1.0"),
        ({"batch": 49}, "batch is 49: it must be 1 … 48"),
        ({"rank": 0}, "rank is 0"),
        ({"rank": None, "layers": "nothing"}, "none of the parameters"),
        ({"gradient": "none"}, "no gradient with respect to the weights"),
        ({"loss": lambda x, rows: x.detach().flatten(1).mean(1)}, "leaves torch"),
    ],
)
def test_bad_values(pipe, classifier, options, words):
    with pytest.raises(UserError, match=words):
        iterate(tuning(pipe, classifier, **options))


def test_seeds_to_measure_on_are_others(pipe, classifier):
    with pytest.raises(UserError, match="shares seeds with the pool"):
        FineTuning(pipe, Classified(classifier, LABEL), range(4), range(3, 6), batch=2)
