"""The report on real digits: noise, missing classes, light damage and the floor in their order."""

import json

import pytest
from sklearn.datasets import load_digits
import torch
from torch.nn import functional as F

from genflow.errors import UserError
from genflow.metrics import Identity, Pixels, RandomConv, compare, table


def to_bytes(x):
    return (x.clamp(0, 1) * 255).round().to(torch.uint8)


@pytest.fixture(scope="module")
def digits():
    """Two disjoint halves, as numbers in [0, 1], and the classes of the first."""
    data = load_digits()
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    x = torch.tensor(data.images)[order, None] / 16
    return x[:898], x[898:], torch.tensor(data.target)[order][:898]


@pytest.fixture(scope="module")
def ratios(digits):
    """The distance of each damaged half to the other half, over that of the whole half."""
    first, second, target = digits
    generator = torch.Generator().manual_seed(1)
    kernel = torch.full((1, 1, 3, 3), 1 / 9, dtype=first.dtype)
    blurred = F.conv2d(F.pad(first, (1, 1, 1, 1), mode="replicate"), kernel)
    grain = torch.randn(first.shape, generator=generator, dtype=first.dtype)
    damaged = {
        "real": first,
        "grain": first + 0.05 * grain,
        "blur": 0.95 * first + 0.05 * blurred,
        "five classes": first[target < 5],
        "one class": first[target == 3],
        "copies": first[:90].repeat(10, 1, 1, 1),
    }
    feature = RandomConv(1, 8)
    reports = {
        name: compare(to_bytes(x), to_bytes(second), feature, repeats=2)
        for name, x in damaged.items()
    }
    unit = reports["real"]["distance"]
    found = {name: report["distance"] / unit for name, report in reports.items()}
    return found | {"noise": reports["real"]["noise"] / unit}


def test_order_on_digits(ratios):
    assert 1 < ratios["grain"] < ratios["five classes"] < ratios["one class"] < ratios["noise"]
    assert 1 < ratios["blur"] < ratios["five classes"]
    assert ratios["copies"] > 2
    assert ratios["noise"] > 100


def test_new_real_digits_are_at_the_floor(digits):
    first, second, _ = digits
    report = compare(to_bytes(first), to_bytes(second), RandomConv(1, 8))
    assert report["counts"] == {
        "samples": 898,
        "reference": 899,
        "noise": 898,
        "floor": [449, 450],
    }
    assert report["ratios"]["distance_at_floor_n_over_floor"] == pytest.approx(1, abs=0.25)
    assert report["ratios"]["noise_over_floor"] > 20
    assert report["distance"] < report["distance_at_floor_n"]["mean"]  # the bias falls with n
    assert report["floor"]["std"] < 0.5 * report["floor"]["mean"]
    assert report["warnings"] == []


def test_report_is_plain_json_and_repeatable(digits):
    first, second = map(to_bytes, digits[:2])
    one, two, other = (compare(first, second, Pixels(), repeats=3, seed=s) for s in (0, 0, 1))
    assert json.loads(json.dumps(one, allow_nan=False)) == one == two
    assert one["floor"] != other["floor"] and one["distance"] == other["distance"]
    fewer = compare(first[:600], second, Pixels(), repeats=3)
    assert fewer["floor"] == one["floor"]  # the floor knows nothing of the samples


def test_features_are_computed_once():
    class Counting(Identity):
        seen = 0

        def __call__(self, images):
            self.seen += len(images)
            return super().__call__(images)

    feature = Counting()
    compare(torch.randn(30, 2), torch.randn(40, 2), feature, repeats=5)
    assert feature.seen == 30 + 40 + 30


def test_few_points_are_flagged_and_few_samples_shrink_the_floor():
    reference, samples = torch.randn(100, 3), torch.randn(20, 3)
    report = compare(samples, reference, Identity(), repeats=4)
    assert report["counts"]["floor"] == [20, 50]
    assert any("fewer than half" in warning for warning in report["warnings"])
    report = compare(torch.randn(7, 4), torch.randn(30, 4), Identity(), repeats=2)
    assert sum("twice the feature's width" in warning for warning in report["warnings"]) == 2
    assert "warning: samples: 7 points are fewer than 8" in table(report)


def test_constant_reference_has_no_ratio():
    report = compare(torch.randn(8, 2), torch.ones(8, 2), Identity(), repeats=2)
    assert report["ratios"]["distance_over_floor"] is None
    assert any("floor: is zero" in warning for warning in report["warnings"])
    assert table(report).splitlines()[2].endswith("  -")


def test_table_is_aligned(digits):
    lines = table(compare(*map(to_bytes, digits[:2]), Pixels(), repeats=2)).splitlines()
    assert len({len(line) for line in lines[:7]}) == 1
    assert lines[1] == lines[6] == "-" * len(lines[0])
    assert lines[2].startswith("samples ") and "898 v 899" in lines[2]
    assert "pixels (64 wide" in lines[7]


def test_bad_input_is_told_in_one_sentence():
    x = torch.randn(9, 2)
    for call, sentence in [
        (lambda: compare(x[:1], x, Identity()), "samples: 1 are too few"),
        (lambda: compare(x, x[:3], Identity()), "reference: 3 are too few"),
        (lambda: compare(x, x, Identity(), repeats=1), "repeats: 1"),
        (lambda: compare(x, x[:, :1], Identity()), r"shape \(2,\) of one differs"),
    ]:
        with pytest.raises(UserError, match=sentence):
            call()
