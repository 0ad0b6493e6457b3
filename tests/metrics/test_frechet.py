"""Fréchet distance: closed forms, two foreign oracles, and sums that do not depend on order."""

import numpy as np
import pytest
import scipy.linalg
import torch

from genflow.errors import UserError
from genflow.metrics import (
    Moments,
    MomentSum,
    frechet_distance,
    frechet_from_features,
    frechet_loss,
)


def cloud(n, d, seed, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=generator, dtype=torch.float64)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) @ mix / d**0.5 + shift


def summed(x, size=None, order=None):
    total = MomentSum()
    batches = x.split(size or len(x))
    for i in order if order is not None else range(len(batches)):
        total.update(batches[i])
    return total


def moments(x):
    return summed(x).moments()


def sqrtm_oracle(a, b):
    root = scipy.linalg.sqrtm((a.covariance @ b.covariance).numpy()).real
    shift = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace()
    return float(shift) - 2 * np.trace(root)


def test_commuting_gaussians_have_a_closed_form():
    basis = torch.linalg.qr(cloud(12, 12, 0)).Q
    u, v = torch.rand(2, 12, dtype=torch.float64) + 0.1
    mu, nu = torch.randn(2, 12, dtype=torch.float64)
    a = Moments(9, mu, basis @ u.diag() @ basis.T)
    b = Moments(9, nu, basis @ v.diag() @ basis.T)
    truth = (mu - nu).square().sum() + (u.sqrt() - v.sqrt()).square().sum()
    assert frechet_distance(a, b) == pytest.approx(float(truth), rel=1e-12)


@pytest.mark.parametrize(("n", "d"), [(400, 16), (40, 64), (64, 64), (2, 5)])
def test_identical_clouds_are_at_distance_zero(n, d):
    x = 10 * cloud(n, d, 1, shift=3.0)
    assert frechet_from_features(x, x) == pytest.approx(0, abs=1e-8)
    assert frechet_distance(moments(x), moments(x)) == pytest.approx(0, abs=1e-8)


def test_agrees_with_the_matrix_square_root_of_scipy():
    a, b = moments(cloud(300, 20, 2)), moments(cloud(500, 20, 3, shift=0.3))
    truth = sqrtm_oracle(a, b)
    assert frechet_distance(a, b) == pytest.approx(truth, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(truth, rel=1e-9)


def test_agrees_with_torchmetrics_on_the_same_features():
    fid = pytest.importorskip("torchmetrics.image.fid")

    class Flat(torch.nn.Module):
        num_features = 12

        def forward(self, x):
            return x.flatten(1)

    x, y = torch.rand(2, 200, 3, 2, 2)
    y = y**2
    metric = fid.FrechetInceptionDistance(feature=Flat(), normalize=True).set_dtype(torch.float64)
    metric.update(x, real=True)
    metric.update(y, real=False)
    ours = frechet_from_features(x.flatten(1), y.flatten(1))
    assert ours == pytest.approx(float(metric.compute()), rel=1e-6)


def test_agrees_with_clean_fid_on_the_same_features():
    theirs = pytest.importorskip("cleanfid.fid").frechet_distance
    a, b = moments(cloud(300, 20, 12)), moments(cloud(500, 20, 13, shift=0.3))
    raw = [part.numpy() for m in (a, b) for part in (m.mean, m.covariance)]
    try:
        truth = theirs(*raw)
    except TypeError:  # SciPy 1.18 took an argument away that it passes
        truth = sqrtm_oracle(a, b)
    assert frechet_distance(a, b) == pytest.approx(truth, rel=1e-5)


def test_points_and_moments_may_be_mixed():
    x, y = cloud(300, 8, 14), cloud(200, 8, 15, shift=0.2)
    truth = frechet_from_features(x, y)
    assert frechet_from_features(x, moments(y)) == pytest.approx(truth, rel=1e-9)
    assert frechet_from_features(moments(x), y) == pytest.approx(truth, rel=1e-9)


def test_a_memory_map_in_many_chunks_equals_one_go(tmp_path):
    x, y = cloud(9001, 6, 16, shift=5.0).float(), cloud(5000, 6, 17).float()
    np.save(tmp_path / "x.npy", x.numpy())
    mapped = torch.from_numpy(np.load(tmp_path / "x.npy", mmap_mode="c"))
    full = frechet_distance(moments(x), moments(y))
    assert frechet_from_features(mapped, y) == pytest.approx(full, rel=1e-9)
    assert frechet_from_features(mapped, mapped) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("n", "m", "d"), [(30, 40, 64), (30, 200, 64), (200, 30, 64), (99, 70, 9)]
)
def test_low_rank_path_equals_full_path(n, m, d):
    x, y = cloud(n, d, 4), cloud(m, d, 5, shift=0.2)
    full = frechet_distance(moments(x), moments(y))
    assert frechet_from_features(x, y) == pytest.approx(full, rel=1e-7)


def test_streaming_equals_one_go_in_any_order():
    x = cloud(1000, 10, 6, shift=1e4)
    once = moments(x)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0)).tolist()
    for other in (summed(x, 7), summed(x, 1), summed(x, 64, order)):
        other = other.moments()
        assert other.count == 1000
        torch.testing.assert_close(other.mean, once.mean, rtol=1e-14, atol=0)
        torch.testing.assert_close(other.covariance, once.covariance, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(once.covariance, x.T.cov(), rtol=1e-10, atol=1e-10)


def test_merging_is_associative_and_knows_empty_sums():
    parts = cloud(90, 6, 7).split([50, 1, 39])
    left, right = summed(parts[0]), summed(parts[1])
    left.merge(summed(parts[1]))
    left.merge(MomentSum())
    left.merge(summed(parts[2]))
    right.merge(summed(parts[2]))
    nested = MomentSum()
    nested.merge(summed(parts[0]))
    nested.merge(right)
    a, b, c = left.moments(), nested.moments(), moments(torch.cat(parts))
    for other in (b, c):
        assert other.count == a.count == 90
        torch.testing.assert_close(other.mean, a.mean, rtol=0, atol=1e-14)
        torch.testing.assert_close(other.covariance, a.covariance, rtol=0, atol=1e-13)


def test_moments_survive_the_disk(tmp_path):
    total = MomentSum(feature="pixels", digest="ab" * 32)
    total.update(cloud(20, 4, 8))
    made = total.moments()
    made.save(tmp_path / "m.safetensors")
    read = Moments.load(tmp_path / "m.safetensors")
    assert (read.count, read.feature, read.digest) == (20, "pixels", "ab" * 32)
    assert torch.equal(read.mean, made.mean) and torch.equal(read.covariance, made.covariance)
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_files_that_are_no_moments_are_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"w": torch.ones(1)}, tmp_path / "foreign.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"not a tensor")
    for name, sentence in [
        ("foreign", "holds no moments"),
        ("broken", "cannot be read"),
        ("absent", "cannot be read"),
    ]:
        with pytest.raises(UserError, match=sentence):
            Moments.load(tmp_path / f"{name}.safetensors")
    with pytest.raises(UserError, match="cannot be written"):
        moments(cloud(5, 2, 0)).save(tmp_path / "broken.safetensors" / "inside.safetensors")


def test_bad_input_is_told_in_one_sentence():
    x = cloud(10, 4, 9)
    broken = x.clone()
    broken[3, 1] = torch.nan
    for call, sentence in [
        (lambda: frechet_from_features(x, x[:, :3]), "width 3 cannot be compared .* width 4"),
        (lambda: frechet_from_features(x[:1], x), "x: 1 points are too few"),
        (lambda: frechet_from_features(x, broken), "y: 1 of 10 points hold NaN"),
        (lambda: frechet_from_features(x.view(2, 5, 4), x), "is not a table"),
        (lambda: frechet_distance(moments(x), moments(x[:, :2])), "width 2"),
        (lambda: summed(x[:1]).moments(), "count: 1 points"),
        (lambda: MomentSum().moments(), "count: 0 points"),
        (lambda: Moments(5, x[0], x), r"shape \(10, 4\) does not go"),
        (lambda: summed(x).update(x[:, :2]), "width 2 differs from the width 4"),
    ]:
        with pytest.raises(UserError, match=sentence):
            call()


def test_moments_of_different_features_are_not_compared():
    x = cloud(10, 4, 9)
    one, two = MomentSum("a", "1" * 64), MomentSum("b", "2" * 64)
    one.update(x)
    two.update(x)
    with pytest.raises(UserError, match="made with feature 'b'"):
        frechet_distance(one.moments(), two.moments())
    with pytest.raises(UserError, match="make both with the same feature"):
        one.merge(two)


@pytest.mark.parametrize(("n", "d"), [(60, 7), (9, 16)])
def test_the_loss_is_the_distance_and_has_its_slope(n, d):
    """Also with fewer points than dimensions, where neither covariance has full rank."""

    x, y = cloud(n, d, 4), cloud(80, d, 5, shift=0.2)
    loss = frechet_loss(moments(y))
    assert float(loss(x)) == pytest.approx(frechet_from_features(x, y), rel=1e-9)
    assert loss(x.float()).dtype == torch.float64

    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss(leaf), leaf)
    towards = cloud(n, d, 6)
    step = 1e-6
    rise = (loss(x + step * towards) - loss(x - step * towards)) / (2 * step)
    assert float((slope * towards).sum()) == pytest.approx(float(rise), rel=1e-5)


def test_following_the_loss_downhill_makes_the_moments_equal():
    y = cloud(400, 3, 7, shift=1.0)
    loss, x = frechet_loss(moments(y)), cloud(300, 3, 8).requires_grad_()
    optimiser = torch.optim.LBFGS([x], max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        value = loss(x)
        value.backward()
        return value

    optimiser.step(closure)
    torch.testing.assert_close(x.detach().mean(0), y.mean(0), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(x.detach().T.cov(), y.T.cov(), rtol=1e-2, atol=1e-2)
    with pytest.raises(UserError, match="width 3 cannot be compared|width 2 cannot be compared"):
        loss(cloud(5, 2, 0))
