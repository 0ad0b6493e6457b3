"""The audit: a bound that binds, failures on the saved image, and chance as the control."""

import json

import pytest
from safetensors.torch import load_file
import torch

from genflow.data.pixels import to_float, to_uint8
from genflow.errors import UserError
from genflow.gradients import Audit, iterate
from genflow.gradients.jobs import run
from genflow.gradients.judges import Judge
from genflow.gradients.shells import SHELL, radius_of

SEEDS, LABEL = range(12), torch.arange(12) % 10


def audit(pipe, classifier, **options):
    common = {
        "label": LABEL,
        "truth": LABEL,
        "iterations": 60,
        "patience": 6,
        "draws": 6,
        "steps": 4,
    }
    return Audit(pipe, classifier, SEEDS, **common | options)


def answers(classifier, x):
    with torch.no_grad():
        return classifier(to_float(to_uint8(x))).argmax(1)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_small_changes_break_what_random_ones_do_not(pipe, classifier, tmp_path, norm):
    task = audit(pipe, classifier, norm=norm)
    record = run(task, tmp_path / "o", {})
    assert record["tested"] >= 10 and record["success"] >= 0.9
    assert record["random_at_same_radius"] < 0.1 < record["success"]
    found = load_file(tmp_path / "o/noise.safetensors")

    for i, each in enumerate(record["each"]):
        if each["radius"] is None:
            continue
        z, z0 = found["found"][i : i + 1], found["noise"][i : i + 1]
        assert radius_of(z, z0, norm).item() == pytest.approx(each["radius"], rel=1e-6)
        assert each["radius"] <= 1.0 + 1e-6
        assert abs(float(z.norm() / z0.norm()) - 1) < (1e-5 if norm == "l2" else 2 * SHELL)
        assert each["rms"] == pytest.approx(float((z - z0).square().mean().sqrt()), rel=1e-5)
        x = pipe.sample(z, label=LABEL[i : i + 1], steps=4)
        assert answers(classifier, x).item() == each["answer"] != each["truth"] == LABEL[i]

    rates = [row["success"] for row in record["table"]]
    assert rates == sorted(rates) and rates[-1] > rates[0]
    assert all(row["random"] <= row["success"] for row in record["table"])


def test_half_the_radius_breaks_far_fewer(pipe, classifier):
    """The radii are minimal in so far as a search that may go half as far mostly fails."""

    task = audit(pipe, classifier)
    iterate(task)
    broken = torch.isfinite(task.best) & (task.best > 0)
    tight = audit(pipe, classifier)
    tight.tried = torch.where(broken, task.best / 2, tight.tried)
    tight.now = tight._begun(torch.arange(len(SEEDS)))
    for k in range(30):
        tight.advance(k)
    assert broken.sum() >= 9
    assert (tight.best[broken] <= task.best[broken] / 2).float().mean() < 0.35


def test_no_state_leaves_the_ball_that_it_is_searched_in(pipe, classifier):
    task = audit(pipe, classifier, radius=0.15, radii=(0.15,), iterations=15)
    for k in range(15):
        rows = task._open()
        task.advance(k)
        r = radius_of(task.now, task.drawn.noise, "l2")
        assert (r[rows] <= task.tried[rows] * (1 + 1e-5)).all() and (task.tried <= 0.15).all()
        done = torch.isfinite(task.best)
        assert (task.lower[done] <= task.best[done]).all()


def test_a_target_is_what_the_classifier_says(pipe, classifier, tmp_path):
    task = audit(pipe, classifier, target=torch.full((12,), 8), iterations=80, radius=1.4)
    record = run(task, tmp_path / "o", {})
    assert record["failed_already"] >= 1 and record["success"] > 0.7
    assert {e["answer"] for e in record["each"] if e["radius"] is not None} == {8}
    assert record["random_at_same_radius"] < 0.3


def test_what_fails_before_is_left_out(pipe, classifier):
    wrong = LABEL.clone()
    wrong[:3] = 9
    task = audit(pipe, classifier, truth=wrong)
    assert task.judge.already[:3].all() and (task.best[:3] == 0).all()
    assert not set(range(3)) & set(task._open().tolist())


def test_without_a_truth_the_answer_before_is_the_truth(pipe, classifier):
    task = audit(pipe, classifier, truth=None)
    assert not task.judge.already.any()
    assert torch.equal(task.judge.truth, answers(classifier, task.before))


def test_failures_count_on_the_eight_bits_of_a_file():
    """0.001 is saved as level 128, which is 0.0039: beyond a threshold of 0.002."""

    net = lambda x: torch.stack([torch.zeros(len(x)), x.amax((1, 2, 3)) - 0.002], 1)  # noqa: E731
    judge = Judge(net, torch.full((1, 1, 8, 8), -1.0))
    x = torch.full((1, 1, 8, 8), 0.001)
    assert judge.margin(x, torch.tensor([0])) > 0, "as a float it holds"
    assert judge.failed(judge.answers(x), torch.tensor([0])).item()


def test_samples_search_side_by_side(pipe, classifier):
    """One sample's radius does not depend on the others, nor on the batch."""

    both = []
    for batch_size in (12, 5):
        task = audit(pipe, classifier, batch_size=batch_size, iterations=12)
        iterate(task)
        both.append(task.best)
    torch.testing.assert_close(*both, rtol=1e-3, atol=1e-6)


def test_slopes_that_are_not_finite_are_counted(pipe, classifier):
    calls = []

    def spoilt(x):
        calls.append(x.requires_grad)
        out = classifier(x)
        if sum(calls) == 2 and x.requires_grad:  # the second of those that are differentiated
            weight = torch.ones(len(x), 1)
            weight[0] = torch.inf
            return out * weight
        return out

    task = audit(pipe, spoilt)
    task.advance(0)
    before = task.now.clone()
    rows = task._open()
    task.advance(1)
    assert task.skipped == 1 and torch.isfinite(task.now).all()
    assert torch.equal(task.now[rows[0]], before[rows[0]])
    assert not torch.equal(task.now[rows[1]], before[rows[1]])


def test_a_job_that_was_killed_goes_on_bit_for_bit(pipe, classifier, tmp_path):
    class Killed(Exception):
        pass

    def kill(done, total):
        if done == 11:
            raise Killed

    def new():
        return audit(pipe, classifier, iterations=20)

    whole = run(new(), tmp_path / "whole", {}, every=3)
    with pytest.raises(Killed):
        run(new(), tmp_path / "part", {}, every=3, report=kill)
    part = run(new(), tmp_path / "part", {}, resume=True)
    for key in ("history", "each", "table"):
        assert json.dumps(part[key]) == json.dumps(whole[key])
    files = [(tmp_path / n / "noise.safetensors").read_bytes() for n in ("whole", "part")]
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"norm": "l1"}, "norm is 'l1'.*l2"),
        ({"radius": 2.5}, r"radius is 2.5: it must lie in \(0, 2\]"),
        ({"radii": (0.1, 3.0)}, r"radii is \[0.1, 3.0\]"),
        ({"patience": 0}, "patience 0"),
        ({"target": torch.full((12,), 10)}, "class 10 is wanted, .* 0 … 9"),
        ({"gradient": "none"}, "no gradient with respect to the noise"),
        ({"classifier": lambda x: x.flatten(1)[:, :1]}, r"answers with shape \(12, 1\)"),
        ({"classifier": lambda x: x.detach().flatten(1)[:, :10]}, "leaves torch"),
    ],
)
def test_bad_values(pipe, classifier, options, words):
    net = options.pop("classifier", classifier)
    with pytest.raises(UserError, match=words):
        iterate(audit(pipe, net, **options))
