"""The exact denoiser of a set of points: golden posteriors, limits, classes, blocks."""

import math

from oracles import PATHS, double, golden
import pytest
import torch

from genflow.errors import UserError
from genflow.models import (
    Empirical,
    Exact,
    Karras,
    Mixture,
    Rectified,
    StudentT,
    VariancePreserving,
)

RECORD, GOLDEN = golden("pfgmpp_empirical")
DEGREES = RECORD["degrees"]


def case(D, name="n2k8", block=3):
    """The denoiser of a golden case, its states and their times."""

    path = Karras(noise=StudentT(float(D)))
    key = f"emp/{name}/D{D}"
    truth = Empirical(path, GOLDEN[f"emp/{name}/Y"], block=block)
    return truth, GOLDEN[f"{key}/x"], path.inverse(-GOLDEN[f"{key}/sigma"].log()), key


@pytest.mark.parametrize(("name", "D"), [("n2k8", D) for D in DEGREES] + [("n64k10", "128")])
def test_golden_posterior(name, D):
    truth, x, t, key = case(D, name)
    close = {"rtol": 1e-11, "atol": 1e-11}
    torch.testing.assert_close(truth.weights(x, t), GOLDEN[f"{key}/weights"], **close)
    torch.testing.assert_close(truth(x, t), GOLDEN[f"{key}/denoised"], **close)
    density = GOLDEN[f"{key}/log_marginal"]  # with lnΓ as it is, good to 1e-9 at D = 1e6
    torch.testing.assert_close(truth.log_prob(x, t), density, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["vp", "rectified", "discrete", "karras"])
def test_gaussian_noise_is_a_mixture_of_points(kind):
    path, points = PATHS[kind], GOLDEN["emp/n2k8/Y"]
    weights = torch.ones(8, dtype=torch.float64)
    mixture = Mixture(weights, points, torch.zeros(8, 2, dtype=torch.float64))
    truth, exact = Empirical(path, points), Exact(path, mixture)
    t = double([0.1, 0.3, 0.6, 0.9])
    x = path.perturb(points[:4], torch.randn(4, 2).double(), t)
    torch.testing.assert_close(truth(x, t), exact(x, t), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(truth.velocity(x, t), exact.velocity(x, t), rtol=1e-8, atol=1e-8)
    alpha, sigma = path(t)
    torch.testing.assert_close(truth.log_prob(x, t), mixture.log_prob(x, alpha, sigma))


def test_a_path_is_only_a_change_of_scale():
    """x_t/α_t and σ_t/α_t alone matter, at finite D too."""

    vp, karras = VariancePreserving(noise=StudentT(3.0)), Karras(noise=StudentT(3.0))
    points, t = GOLDEN["emp/n2k8/Y"], double([0.2, 0.5, 0.8])
    alpha, sigma = vp(t)
    x = vp.perturb(points[:3], torch.randn(3, 2).double(), t)
    other = Empirical(karras, points)(x / alpha[:, None], karras.inverse(-(sigma / alpha).log()))
    torch.testing.assert_close(Empirical(vp, points)(x, t), other, rtol=1e-10, atol=1e-10)


def test_ends_of_a_path():
    """Pure noise tells nothing: the mean. Clean data tell all: the nearest point."""

    points = GOLDEN["emp/n2k8/Y"]
    for D in (0.5, 64.0, math.inf):
        truth = Empirical(Rectified(noise=StudentT(D)), points)
        x = torch.randn(3, 2).double()
        mean = points.mean(0).expand(3, 2)
        torch.testing.assert_close(truth(x, double(1.0)), mean)
        torch.testing.assert_close(truth(points[:3], double(0.0)), points[:3])


def test_far_and_near_weights_do_not_overflow():
    """(d² + r²)^(−(N + D)/2) would be 0 or infinite for an image; its logarithm is neither."""

    g = torch.Generator().manual_seed(0)
    points = torch.rand(6, 3, 32, 32, generator=g) * 2 - 1
    for D in (1.0, 2048.0, 1e8, math.inf):
        path = Karras(noise=StudentT(D))
        truth, t = Empirical(path, points), path.inverse(-double([0.002, 1.0, 80.0]).log())
        z = path.noise.sample((3, 3, 32, 32), generator=g)
        x = path.perturb(points[:3], z, t.float())
        data = truth(x, t)
        assert data.shape == x.shape and data.dtype == torch.float32 and data.isfinite().all()
        torch.testing.assert_close(data[:2], points[:2], rtol=0, atol=1e-4)
        assert truth.log_prob(x, t).isfinite().all()


def test_blocks_change_nothing():
    truth, x, t, _ = case("8")
    for block in (1, 5, 8, 4096):
        other = case("8", block=block)[0]
        torch.testing.assert_close(other(x, t), truth(x, t), rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(other.log_prob(x, t), truth.log_prob(x, t))


def test_classes_are_posteriors_of_their_own():
    points, path = GOLDEN["emp/n2k8/Y"], Karras(noise=StudentT(8.0))
    labels = torch.tensor([0, 1, 0, 2, 1, 0, 2, 2])
    truth, t = Empirical(path, points, labels, block=3), double([0.5, 0.4, 0.6, 0.5])
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(1)).double()
    asked = torch.tensor([0, 1, 2, 3])
    got, w = truth(x, t, label=asked), truth.weights(x, t, label=asked)

    for i in range(3):
        alone = Empirical(path, points[labels == i])
        row = slice(i, i + 1)
        torch.testing.assert_close(got[row], alone(x[row], t[row]))
        torch.testing.assert_close(w[i, labels == i], alone.weights(x[row], t[row])[0])
        torch.testing.assert_close(
            truth.log_prob(x, t, label=asked)[row], alone.log_prob(x[row], t[row])
        )
    torch.testing.assert_close(got[3:], Empirical(path, points)(x[3:], t[3:]))


def test_gradients():
    truth, x, t, _ = case("2")
    few = x[40:43].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: truth(x, t[40:43]), few)


def test_refusals():
    path, points = Karras(), torch.zeros(4, 2)
    for bad, words in (
        (points[:0], "one point or more"), (points[0], "one point or more"),
        (points.long(), "int64"), (points / 0, "not finite"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words):
            Empirical(path, bad)
    with pytest.raises(UserError, match="block is 0"):
        Empirical(path, points, block=0)
    for labels in ([0, 1], [0, 2, 2, 0], [0, -1, 1, 0]):
        with pytest.raises(UserError, match="every class must occur"):
            Empirical(path, points, torch.tensor(labels))
    with pytest.raises(UserError, match="no labels"):
        Empirical(path, points)(points, double(0.5), label=torch.zeros(4).long())
    weights, variances = torch.ones(4), torch.zeros(4, 2)
    with pytest.raises(UserError, match="Empirical"):
        Exact(Karras(noise=StudentT(2.0)), Mixture(weights, points, variances))
