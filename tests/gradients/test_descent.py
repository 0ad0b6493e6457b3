"""Descent: torch's own optimisers, and what happens when a step goes wrong."""

import copy
import math

import pytest
import torch

from genflow.errors import UserError
from genflow.gradients import Descent


def bowl(x, scale=1.0):
    def evaluate():
        loss = scale * (x - 3).square().sum()
        loss.backward()
        return float(loss.detach())

    return evaluate


def leaf(*values):
    return torch.tensor(values, requires_grad=True)


def test_steps_are_those_of_torch():
    ours, theirs = leaf(0.0, 1.0), leaf(0.0, 1.0)
    descent = Descent({"x": ours}, lr=0.1)
    adam = torch.optim.Adam([theirs], lr=0.1)
    for _ in range(5):
        numbers = descent.step(bowl(ours))
        adam.zero_grad()
        loss = bowl(theirs)()
        norm = float(theirs.grad.norm())
        adam.step()
        assert numbers == {"loss": loss, "gradient": pytest.approx(norm), "skipped": 0}
    assert torch.equal(ours, theirs)


def test_the_gradient_is_no_longer_than_clip():
    x, y = leaf(0.0, 0.0), leaf(0.0, 0.0)
    numbers = Descent({"x": x}, optimizer="sgd", lr=1.0, clip=0.5).step(bowl(x, 7.0))
    assert numbers["gradient"] == pytest.approx(7 * math.sqrt(72))
    assert float(x.detach().norm()) == pytest.approx(0.5, rel=1e-5)
    Descent({"y": y}, optimizer="sgd", lr=1e-3, clip=1e6).step(bowl(y))
    torch.testing.assert_close(y.detach(), torch.full((2,), 6e-3))


def test_lbfgs_solves_a_bowl_in_a_step_or_two():
    x = leaf(-5.0, 20.0)
    descent = Descent({"x": x}, optimizer="lbfgs", lr=1.0)
    for _ in range(2):
        descent.step(bowl(x))
    torch.testing.assert_close(x.detach(), torch.full((2,), 3.0), atol=1e-4, rtol=0)


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "lbfgs"])
@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_steps_that_are_not_finite_are_skipped_and_counted(optimizer, bad):
    def twice(spoilt):
        x = leaf(0.0, 1.0)
        descent = Descent({"x": x}, optimizer=optimizer, lr=0.1, average=0.5)

        def evaluate():
            loss = bowl(x)()
            if bad == "gradient":
                x.grad[0] = torch.nan
                return loss
            return torch.inf

        first = descent.step(bowl(x))
        if spoilt:
            before, average = x.detach().clone(), descent.averages["x"].clone()
            assert descent.step(evaluate)["skipped"] == 1 and descent.skipped == 1
            assert torch.equal(x.detach(), before)
            assert torch.equal(descent.averages["x"], average)
        second = descent.step(bowl(x))
        assert first["skipped"] == second["skipped"] == 0
        return x.detach(), descent.skipped

    (clean, none), (spoilt, one) = twice(False), twice(True)
    assert (none, one) == (0, 1)
    if optimizer != "lbfgs":  # whose memory is forgotten
        assert torch.equal(clean, spoilt)


def test_ten_skipped_steps_in_a_row_are_enough():
    x = leaf(0.0)

    def evaluate():
        bowl(x)()
        return torch.nan

    descent = Descent({"x": x}, lr=0.25)
    for _ in range(9):
        descent.step(evaluate)
    with pytest.raises(UserError, match=r"10 steps in a row .* lower lr \(0.25\)"):
        descent.step(evaluate)


def test_the_average_follows_the_steps():
    x = leaf(0.0)
    descent = Descent({"x": x}, optimizer="sgd", lr=0.1, average=0.9)
    expected = 0.0
    for _ in range(3):
        descent.step(bowl(x))
        expected = 0.9 * expected + 0.1 * float(x.detach())
    assert float(descent.averages["x"]) == pytest.approx(expected, rel=1e-6)
    assert Descent({"x": x}).averages["x"] is x


def test_a_state_is_all_there_is():
    def new():
        x = leaf(0.0, 1.0)
        return x, Descent({"x": x}, average=0.9)

    x, descent = new()
    for _ in range(3):
        descent.step(bowl(x))
    y, other = new()
    other.restore(copy.deepcopy(descent.state()))
    for _ in range(2):
        descent.step(bowl(x))
        other.step(bowl(y))
    assert torch.equal(x, y) and torch.equal(descent.averages["x"], other.averages["x"])


def test_variables_that_the_loss_does_not_see_are_named():
    x, y = leaf(0.0), leaf(0.0)
    descent = Descent({"x": x, "y": y})
    descent.step(bowl(x))
    assert descent.unreached() == ["y"]
    with pytest.raises(UserError, match="no gradient with respect to 'y': it does not depend"):
        Descent({"y": y}).step(lambda: 0.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"optimizer": "adamm"}, "did you mean 'adam'"),
        ({"lr": 0.0}, "lr is 0.0: it must be above 0"),
        ({"clip": -1.0}, "clip is -1.0"),
        ({"average": 1.0}, r"average is 1.0: it must lie in \[0, 1\)"),
        ({"variables": {}}, "nothing to optimise"),
        ({"variables": {"w": torch.zeros(1, dtype=torch.float16)}}, "'w' is in torch.float16"),
    ],
)
def test_bad_values(options, words):
    with pytest.raises(UserError, match=words):
        Descent(**{"variables": {"x": leaf(0.0)}, **options})
