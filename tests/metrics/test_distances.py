"""Sliced Wasserstein, energy and kernel distances against closed forms and slow oracles."""

import pytest
import scipy.optimize
import scipy.stats
import torch

from genflow.errors import UserError
from genflow.metrics import (
    distances,
    energy_distance,
    gaussian_mmd,
    kernel_distance,
    sliced_wasserstein,
)
from genflow.metrics.distances import median_gap, square_gaps


def cloud(n, d, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64)


def test_sliced_wasserstein_of_a_shift():
    x = cloud(200, 1, 0)
    assert sliced_wasserstein(x, x + 1.5) == pytest.approx(1.5, rel=1e-12)
    assert sliced_wasserstein(x, x) == 0
    # In d dimensions a shift projects to |shift| / sqrt(d) on average over directions.
    x, shift = cloud(100, 4, 1), torch.tensor([1.0, 2.0, -1.0, 0.5])
    value = sliced_wasserstein(x, x + shift, projections=4000)
    assert value == pytest.approx(float(shift.norm()) / 2, rel=0.03)
    assert value == sliced_wasserstein(x, x + shift, projections=4000)


def test_sliced_wasserstein_of_scaled_gaussians():
    x, y = cloud(20000, 3, 2), 3 * cloud(20000, 3, 3)
    assert sliced_wasserstein(x, y, projections=16) == pytest.approx(2, rel=0.03)


@pytest.mark.parametrize(("n", "m"), [(3, 5), (7, 7), (12, 8), (1, 9), (10, 20)])
def test_sliced_wasserstein_is_exact_for_unequal_sizes(n, m):
    x, y = cloud(n, 1, 4), cloud(m, 1, 5)
    cost = (x - y.T).square().numpy()
    # The oracle is optimal transport itself: every point copied until both clouds have n m.
    rows, columns = scipy.optimize.linear_sum_assignment(cost.repeat(m, 0).repeat(n, 1))
    truth = cost[rows // m, columns // n].mean() ** 0.5
    assert sliced_wasserstein(x, y) == pytest.approx(truth, rel=1e-12)


def test_energy_distance_by_brute_force(monkeypatch):
    x, y = cloud(23, 3, 6), cloud(31, 3, 7) + 0.4

    def mean(a, b):
        return sum(float((p - q).norm()) for p in a for q in b) / (len(a) * len(b))

    truth = 2 * mean(x, y) - mean(x, x) - mean(y, y)
    assert energy_distance(x, y) == pytest.approx(truth, rel=1e-12)
    monkeypatch.setattr(distances, "CHUNK", 5)
    assert energy_distance(x, y) == pytest.approx(truth, rel=1e-12)
    assert energy_distance(x, x) == 0


def test_energy_distance_is_the_square_of_scipys():
    x, y = cloud(40, 1, 8), cloud(30, 1, 9) * 2
    truth = scipy.stats.energy_distance(x[:, 0], y[:, 0])
    assert energy_distance(x, y) == pytest.approx(truth**2, rel=1e-10)


def test_kernel_distance_by_definition():
    x, y = cloud(15, 4, 10), cloud(15, 4, 11) + 0.5

    def k(a, b):
        return float((a @ b / 4 + 1) ** 3)

    pairs = [(i, j) for i in range(15) for j in range(15)]
    within = sum(k(x[i], x[j]) + k(y[i], y[j]) for i, j in pairs if i != j) / (15 * 14)
    truth = within - 2 * sum(k(x[i], y[j]) for i, j in pairs) / 15**2
    mean, std = kernel_distance(x, y, subsets=3)
    assert mean == pytest.approx(truth, rel=1e-12)
    assert std == pytest.approx(0, abs=1e-12)


def test_kernel_distance_agrees_with_torchmetrics():
    kid = pytest.importorskip("torchmetrics.image.kid")
    x, y = cloud(60, 8, 12), cloud(60, 8, 13) ** 2
    mean, _ = kernel_distance(x, y, subsets=1)
    assert mean == pytest.approx(float(kid.poly_mmd(x, y)), rel=1e-10)


def test_kernel_distance_is_unbiased_and_repeatable():
    x, y = cloud(3000, 4, 14), cloud(3000, 4, 15)
    mean, std = kernel_distance(x, y, subsets=40, subset_size=100)
    assert abs(mean) < 3 * std / 40**0.5 + 0.02
    assert (mean, std) == kernel_distance(x, y, subsets=40, subset_size=100)
    assert (mean, std) != kernel_distance(x, y, subsets=40, subset_size=100, seed=1)


def test_kernel_distance_agrees_with_clean_fid_on_whole_clouds():
    fid = pytest.importorskip("cleanfid.fid")
    x, y = cloud(60, 8, 22), cloud(60, 8, 23) ** 2
    mean, std = kernel_distance(x, y)  # one subset is all there is, and clean-fid's order is free
    assert mean == pytest.approx(fid.kernel_distance(x.numpy(), y.numpy(), 1), rel=1e-10)
    assert std == 0


def test_gaussian_mmd_by_definition(monkeypatch):
    x, y = cloud(23, 3, 16), cloud(31, 3, 17) + 0.4

    def mean(a, b):
        total = sum(float((-(p - q).square().sum() / (2 * 1.7**2)).exp()) for p in a for q in b)
        return total / (len(a) * len(b))

    truth = mean(x, x) + mean(y, y) - 2 * mean(x, y)
    assert gaussian_mmd(x, y, sigma=1.7) == pytest.approx(truth, rel=1e-10)
    monkeypatch.setattr(distances, "CHUNK", 5)
    assert gaussian_mmd(x, y, sigma=1.7) == pytest.approx(truth, rel=1e-10)
    assert gaussian_mmd(x, x, sigma=1.7) == pytest.approx(0, abs=1e-15)


def test_gaussian_mmd_of_gaussians_has_a_closed_form():
    x, y = cloud(4000, 3, 18), cloud(4000, 3, 19) + torch.tensor([0.6, 0, 0])
    wide = 2.0**2 + 2  # the kernel's variance and those of both laws
    overlap = (2.0**2 / wide) ** 1.5
    truth = 2 * overlap * (1 - torch.tensor(-(0.6**2) / (2 * wide)).exp().item())
    assert gaussian_mmd(x, y, sigma=2.0) == pytest.approx(truth, rel=0.1)


def test_a_wide_kernel_loses_no_digits():
    """Where the kernel is nearly one, the discrepancy is nearly that of the means."""
    x, y = cloud(50, 4, 20), cloud(60, 4, 21) + 0.5
    truth = (x.mean(0) - y.mean(0)).square().sum().item() / 1e5**2
    assert gaussian_mmd(x, y, sigma=1e5) == pytest.approx(truth, rel=1e-6)


def test_square_gaps_and_their_median():
    x, y = cloud(30, 5, 24), cloud(40, 5, 25)
    slow = (x[:, None] - y).square().sum(2)
    torch.testing.assert_close(square_gaps(x, y), slow, rtol=1e-12, atol=1e-12)
    assert median_gap(x) == pytest.approx(torch.pdist(x).median().item(), rel=1e-12)
    assert median_gap(x, most=20) == median_gap(x, most=20) != median_gap(x)


def test_bad_input_is_told_in_one_sentence():
    x = cloud(5, 2, 0)
    for call, sentence in [
        (lambda: sliced_wasserstein(x, x, projections=0), "projections: 0"),
        (lambda: sliced_wasserstein(x, x[:, :1]), "width 1 cannot be compared"),
        (lambda: energy_distance(x[:0], x), "x: 0 points"),
        (lambda: kernel_distance(x, x, subsets=0), "subsets: 0"),
        (lambda: kernel_distance(x, x, subset_size=1), "subset_size: 1"),
        (lambda: kernel_distance(x, x[:1]), "y: 1 points"),
        (lambda: gaussian_mmd(x, x, sigma=0.0), "sigma: 0.0 is out of range"),
        (lambda: median_gap(x[:1]), "y: 1 points"),
        (lambda: median_gap(x, most=1), "most: 1"),
    ]:
        with pytest.raises(UserError, match=sentence):
            call()
