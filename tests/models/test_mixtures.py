"""Gaussian-mixture algebra, against torch.distributions, autograd and quadrature."""

from oracles import double, mixture
import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from genflow.errors import UserError
from genflow.models import Mixture

TIMES = [(1.0, 1e-3), (0.9, 0.3), (0.5, 0.8), (0.01, 1.0), (1.0, 80.0), (0.0, 1.0)]


def diagonal():
    return Mixture(
        double([0.2, 0.5, 0.3]),
        double([[0.0, 1.0, -1.0], [2.0, 0.3, 0.0], [-1.5, 0.0, 0.5]]),
        double([[0.1, 0.2, 0.0], [1.0, 0.5, 0.3], [0.05, 0.05, 2.0]]),
    )


LAWS = {"full": mixture, "diagonal": diagonal}
EVERY_LAW = pytest.mark.parametrize("name", LAWS)


def covariances(law):
    if law.basis is None:
        return torch.diag_embed(law.variances)
    return torch.einsum("kde,ke,kfe->kdf", law.basis, law.variances, law.basis)


def noisy(law, alpha, sigma):
    """torch's law of αX + σZ."""

    eye = torch.eye(law.means.shape[1], dtype=torch.float64)
    parts = MultivariateNormal(alpha * law.means, alpha**2 * covariances(law) + sigma**2 * eye)
    return MixtureSameFamily(Categorical(law.weights), parts)


def points(law, n=12):
    return 1.5 * torch.randn(n, law.means.shape[1], dtype=torch.float64)


def test_full_covariances_survive_the_eigenbasis():
    covs = double([[[2.0, 0.5], [0.5, 1.0]], [[1.0, 0.0], [0.0, 0.0]]])
    law = Mixture(double([1.0, 3.0]), torch.zeros(2, 2).double(), covs)
    torch.testing.assert_close(covariances(law), covs)
    torch.testing.assert_close(law.weights, double([0.25, 0.75]))


@EVERY_LAW
@pytest.mark.parametrize(("alpha", "sigma"), TIMES)
def test_log_prob(name, alpha, sigma):
    law = LAWS[name]()
    x = points(law)
    truth = noisy(law, alpha, sigma).log_prob(x)
    ours = law.log_prob(x, double(alpha), double(sigma))
    torch.testing.assert_close(ours, truth, rtol=1e-9, atol=1e-9)


def test_log_prob_of_the_data_is_the_default():
    law = mixture()
    x = points(law)
    torch.testing.assert_close(law.log_prob(x), noisy(law, 1.0, 0.0).log_prob(x))


@EVERY_LAW
@pytest.mark.parametrize(("alpha", "sigma"), TIMES)
def test_posterior_means_are_the_score(name, alpha, sigma):
    """E[Z|x] = −σ ∇ log p and α E[X|x] + σ E[Z|x] = x."""

    law = LAWS[name]()
    x = points(law).requires_grad_()
    (score,) = torch.autograd.grad(noisy(law, alpha, sigma).log_prob(x).sum(), x)
    data, noise = law.posterior(x.detach(), double(alpha), double(sigma))
    torch.testing.assert_close(noise, -sigma * score, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(alpha * data + sigma * noise, x.detach(), rtol=1e-9, atol=1e-9)


def test_posterior_by_quadrature():
    """E[X|x] = ∫ X p(X) N(x; αX, σ²) dX / p(x) on a fine grid of the plane."""

    law, alpha, sigma = mixture(), 0.7, 0.4
    axis = torch.linspace(-3, 3, 601, dtype=torch.float64)
    X = torch.cartesian_prod(axis, axis)
    density = law.log_prob(X).exp()
    for x in points(law, 5):
        weight = density * torch.exp(-(x - alpha * X).square().sum(1) / (2 * sigma**2))
        truth = (weight[:, None] * X).sum(0) / weight.sum()
        data, _ = law.posterior(x[None], double(alpha), double(sigma))
        torch.testing.assert_close(data[0], truth, rtol=1e-6, atol=1e-6)


@EVERY_LAW
def test_times_for_each_point(name):
    law = LAWS[name]()
    x = points(law, len(TIMES))
    alpha, sigma = double(TIMES).T
    together = (*law.posterior(x, alpha, sigma), law.log_prob(x, alpha, sigma))
    for i in range(len(TIMES)):
        row = x[i : i + 1]
        alone = (*law.posterior(row, alpha[i], sigma[i]), law.log_prob(row, alpha[i], sigma[i]))
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a[i : i + 1], b)


@EVERY_LAW
def test_moments_and_samples(name):
    law = LAWS[name]()
    mean, covariance = law.moments()
    truth = noisy(law, 1.0, 1e-9)
    torch.testing.assert_close(mean, truth.mean)
    torch.testing.assert_close(covariance.diagonal(), truth.variance, rtol=1e-6, atol=1e-9)
    x = law.sample(200_000, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=0.02)
    torch.testing.assert_close(torch.cov(x.T), covariance, rtol=0, atol=0.03)
    again = law.sample(5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again, law.sample(5, generator=torch.Generator().manual_seed(0)))


def test_samples_have_the_density():
    """The mean log-density of samples is that of torch's own samples."""

    law = mixture()
    ours = law.log_prob(law.sample(50_000))
    theirs = law.log_prob(noisy(law, 1.0, 1e-9).sample((50_000,)))
    assert float(ours.mean()) == pytest.approx(float(theirs.mean()), abs=0.03)


def test_diracs():
    """A variance of 0 is allowed: the posterior mean is a softmax over the points."""

    data = torch.randn(7, 3, dtype=torch.float64)
    law = Mixture(torch.ones(7), data, torch.zeros(7, 3))
    x, sigma = torch.randn(4, 3, dtype=torch.float64), 0.8
    weight = (-(x[:, None] - data).square().sum(-1) / (2 * sigma**2)).softmax(1)
    got, noise = law.posterior(x, double(1.0), double(sigma))
    torch.testing.assert_close(got, weight @ data)
    torch.testing.assert_close(noise, (x - weight @ data) / sigma)


def test_moves_with_its_module():
    law = mixture().float()
    data, _ = law.posterior(torch.zeros(2, 2), torch.ones(()), torch.ones(()))
    assert data.dtype == torch.float32
    assert set(law.state_dict()) >= {"weights", "means", "variances"}


REFUSED = {
    "shapes": (torch.ones(2), torch.zeros(3, 2), torch.ones(3, 2), r"\(2,\), \(3, 2\)"),
    "covariances": (torch.ones(3), torch.zeros(3, 2), torch.ones(3, 3), "covariances have shapes"),
    "means": (torch.ones(3), torch.zeros(3), torch.ones(3), "shapes"),
    "weights": (torch.tensor([1.0, 0.0]), torch.zeros(2, 1), torch.ones(2, 1), "above 0"),
    "variances": (torch.ones(1), torch.zeros(1, 2), torch.tensor([[1.0, -0.1]]), "negative"),
    "eigenvalues": (
        torch.ones(1),
        torch.zeros(1, 2),
        torch.tensor([[[1.0, 2.0], [2.0, 1.0]]]),
        "negative",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_impossible_mixtures_are_refused(name):
    *arguments, message = REFUSED[name]
    with pytest.raises(UserError, match=message):
        Mixture(*arguments)
