"""Precision, recall, density, coverage and copies: slow loops, closed cases, planted copies."""

import pytest
import torch

from genflow.errors import UserError
from genflow.metrics import memorisation, neighbours, prdc


def cloud(n, d, seed, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) + shift


def slow_prdc(x, y, k):
    def gap(a, b):
        return float((a - b).norm())

    def radii(points):
        return [sorted(gap(p, q) for q in points)[k] for p in points]  # the 0th is itself

    r_x, r_y = radii(x), radii(y)
    near = [[gap(p, q) < r for q, r in zip(y, r_y, strict=True)] for p in x]
    back = [any(gap(p, q) < r for p, r in zip(x, r_x, strict=True)) for q in y]
    return {
        "precision": sum(map(any, near)) / len(x),
        "recall": sum(back) / len(y),
        "density": sum(map(sum, near)) / (k * len(x)),
        "coverage": sum(any(row[j] for row in near) for j in range(len(y))) / len(y),
    }


@pytest.mark.parametrize(("n", "m", "k"), [(21, 34, 5), (40, 17, 3), (9, 9, 1)])
def test_prdc_by_brute_force(n, m, k, monkeypatch):
    x, y = cloud(n, 3, n, 0.7), 1.3 * cloud(m, 3, m + 1)
    truth = slow_prdc(x, y, k)
    assert prdc(x, y, k=k) == pytest.approx(truth, abs=1e-12)
    assert 0 < truth["precision"] < 1 or 0 < truth["recall"] < 1
    monkeypatch.setattr(neighbours, "CHUNK", 4)
    assert prdc(x, y, k=k) == pytest.approx(truth, abs=1e-12)


def test_disjoint_clouds_and_one_cloud():
    x = cloud(50, 4, 0)
    assert set(prdc(x, x + 100).values()) == {0.0}
    # On a grid every number is exact; the k-th neighbour itself lies outside the open ball.
    grid = torch.arange(64, dtype=torch.float64)[:, None].square()
    assert prdc(grid, grid) == {"precision": 1, "recall": 1, "density": 1, "coverage": 1}


def test_new_draws_of_one_law_have_the_expected_coverage_and_density():
    found = prdc(cloud(2000, 3, 1), cloud(2000, 3, 2), k=5)
    assert found["coverage"] == pytest.approx(1 - 2**-5, abs=0.015)
    assert found["density"] == pytest.approx(1, abs=0.05)


def test_missing_modes_cost_recall_and_junk_costs_precision():
    modes = torch.tensor([[0.0, 0.0], [20.0, 0.0]], dtype=torch.float64)
    real = torch.cat([cloud(200, 2, i) + mode for i, mode in enumerate(modes)])
    one_mode = cloud(400, 2, 5) + modes[0]
    missing = prdc(one_mode, real)
    assert missing["precision"] > 0.9 and 0.4 < missing["recall"] < 0.6
    assert 0.4 < missing["coverage"] < 0.6
    junk = torch.cat((real[:200] + 0.01, cloud(200, 2, 6, 500.0)))
    assert prdc(junk, real)["precision"] == pytest.approx(0.5, abs=0.02)


def test_planted_copies_are_found():
    data, fresh = cloud(500, 6, 3), cloud(300, 6, 4)
    x = fresh.clone()
    x[[7, 70, 170]] = data[[400, 3, 3]]
    x[9] = data[11] + 1e-3
    found = memorisation(x, data)
    base = memorisation(fresh, data)
    assert found.copies == 3 and base.copies == 0
    assert found.fraction - base.fraction == pytest.approx(4 / 300, abs=1e-9)
    assert [(i, j) for i, j, _ in found.closest(4)] == [(7, 400), (70, 3), (170, 3), (9, 11)]
    assert found.closest(3)[0][2] == 0 and 0 < found.closest(4)[3][2] < 0.01


def test_memorisation_by_brute_force(monkeypatch):
    x, y = cloud(13, 3, 5), cloud(29, 3, 6)
    monkeypatch.setattr(neighbours, "CHUNK", 4)
    found = memorisation(x, y, threshold=0.8)
    gaps = (x[:, None] - y).norm(dim=2)
    own = (y[:, None] - y).norm(dim=2).fill_diagonal_(torch.inf).min(1).values
    ratios = gaps.min(1).values / own[gaps.argmin(1)]
    torch.testing.assert_close(found.ratios, ratios, rtol=1e-10, atol=0)
    assert torch.equal(found.nearest, gaps.argmin(1))
    assert found.fraction == float((ratios < 0.8).double().mean()) > 0


def test_fresh_draws_have_ratios_around_one():
    ratios = memorisation(cloud(400, 16, 7), cloud(2000, 16, 8)).ratios
    assert 0.9 < ratios.median() < 1.2


def test_duplicates_in_the_data_do_not_hide_a_copy():
    data = cloud(40, 3, 9).repeat(3, 1)
    found = memorisation(data[:5].float(), data)
    assert found.copies == 5 and found.fraction == 1
    near = memorisation(data[:5] + 1e-3, data)
    assert near.copies == 0 and near.fraction == 1
    alike = memorisation(cloud(3, 2, 0), torch.ones(4, 2))
    assert alike.fraction == 0 and alike.ratios.isinf().all()


def test_float32_from_other_batches_is_still_a_copy():
    data = cloud(60, 8, 10, shift=3.0).float()
    assert memorisation(data[:9] * (1 + 2e-7), data).copies == 9


def test_bad_input_is_told_in_one_sentence():
    x = cloud(8, 2, 0)
    for call, sentence in [
        (lambda: prdc(x, x, k=0), "k: 0 is out of range"),
        (lambda: prdc(x[:5], x), "x: 5 points are too few; give at least 6"),
        (lambda: prdc(x, x[:, :1]), "width 1 cannot be compared"),
        (lambda: memorisation(x, x[:1]), "y: 1 points are too few"),
        (lambda: memorisation(x, x, threshold=0), "threshold: 0 is out of range"),
    ]:
        with pytest.raises(UserError, match=sentence):
            call()
