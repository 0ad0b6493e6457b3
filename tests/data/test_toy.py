"""Toy sets: their scale, their classes, and that the seed alone decides."""

import pytest
import torch

from genflow.data import Toy, draw_toy
from genflow.data.toy import LAWS
from genflow.errors import UserError

CLASSES = {
    "moons": 2,
    "eight-gaussians": 8,
    "checkerboard": 8,
    "swiss-roll": None,
    "rings": 2,
    "pinwheel": 5,
    "two-squares": 2,
}


@pytest.mark.parametrize("name", CLASSES)
def test_sets_are_centred_scaled_and_labelled(name):
    data = Toy(name, size=8000, noise=0.0)
    x = data.reference()
    assert x.shape == (8000, 2)
    assert x.dtype == torch.float32
    assert x.isfinite().all()
    assert x.mean(0).abs().max() < 0.04
    assert abs(x.var(0).mean() - 1) < 0.03
    assert (data.shape, data.classes) == ((2,), CLASSES[name])
    label = data.train_set.label
    assert (label is None) == (CLASSES[name] is None)
    if label is not None:
        assert label.bincount().min() > 0.8 * 8000 / CLASSES[name]


def test_every_set_is_tested():
    assert set(CLASSES) == set(LAWS)


@pytest.mark.parametrize("name", CLASSES)
def test_the_seed_decides(name):
    one, again, other = (draw_toy(name, 64, seed=seed).x for seed in (3, 3, 4))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_noise_has_the_size_that_was_asked_for():
    clean = draw_toy("eight-gaussians", 5000, noise=0.0)
    noisy = draw_toy("eight-gaussians", 5000, noise=0.2)
    assert abs((noisy.x - clean.x).std() - 0.2) < 0.01
    assert len(clean.x.mul(1e3).round().unique(dim=0)) == 8


def test_shapes_are_what_they_are_called():
    rings = draw_toy("rings", 500, noise=0.0)
    radius = rings.x.norm(dim=1)
    outer, inner = radius[rings.label == 0], radius[rings.label == 1]
    assert torch.allclose(outer, 2 * inner[0], atol=1e-4)
    board = draw_toy("checkerboard", 4000, noise=0.0).x * LAWS["checkerboard"].variance ** 0.5
    column, row = (board + 2).floor().unbind(1)
    assert ((column + row) % 2 == 0).all()
    assert (board.abs() <= 2).all()
    squares = draw_toy("two-squares", 500, noise=0.0)
    assert (squares.x.sign() == (2 * squares.label - 1)[:, None]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "mons"}, "name is 'mons'.*'moons'"),
        ({"size": 0}, "size is 0"),
        ({"noise": -1.0}, "noise is -1.0"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(UserError, match=message):
        Toy(**options)
