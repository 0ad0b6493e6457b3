"""Steering: the exact posterior of a Gaussian, both forms, and the Jacobian that is kept."""

from oracles import PATHS, double, mixture
import pytest
import torch
from torch import nn

from genflow.errors import UserError
from genflow.models import Exact, Mixture, Preconditioned, Steered, VariancePreserving
from genflow.solvers import build

PATH = VariancePreserving()


def classifier(one, weights):
    """log p(class | x_t), in closed form."""

    def log_prob(x, t, label):
        alpha, sigma = PATH(t)
        joint = torch.stack([d.mixture.log_prob(x, alpha, sigma) for d in one])
        joint = joint + weights.log()[:, None]
        return joint.log_softmax(0).gather(0, label[None])[0]

    return log_prob


@pytest.fixture
def classes():
    """A mixture of two classes, each class alone, and the classifier of noisy states."""

    means, variances = double([[1.0, 0.5], [-0.5, -1.0]]), double([[0.2, 0.1], [0.3, 0.3]])
    weights = double([0.3, 0.7])
    both = Exact(PATH, Mixture(weights, means, variances))
    one = [Exact(PATH, Mixture(double([1.0]), means[[k]], variances[[k]])) for k in (0, 1)]
    return both, one, classifier(one, weights)


@pytest.mark.parametrize("t", [0.05, 0.4, 0.95])
def test_a_true_classifier_gives_the_true_class(classes, t):
    """Bayes: the estimate of everything, steered to a class, is the estimate of that class."""

    both, one, log_prob = classes
    x, t = torch.randn(6, 2, dtype=torch.float64), double(t)
    for k in (0, 1):
        steered = Steered(both, log_prob, takes=("label",))
        found = steered(x, t, label=torch.full((6,), k))
        torch.testing.assert_close(found, one[k](x, t), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", PATHS)
def test_a_measurement_at_the_estimate(kind):
    r"""For a Gaussian N(0, s²) and log p = −|D − y|²/2v the gradient is (∂D/∂x)(y − D)/v."""

    path, s2, v = PATHS[kind], 0.6, 0.3
    truth = Exact(path, Mixture(double([1.0]), double([[0.0, 0.0]]), double([[s2, s2]])))
    y, x, t = double([0.7, -0.2]), torch.randn(5, 2, dtype=torch.float64), double(0.6)
    steered = Steered(
        truth, lambda data, y: -(data - y).square().sum(1) / (2 * v), 0.8, "estimate", ("y",)
    )
    alpha, sigma = path(t)
    gain = alpha * s2 / (alpha**2 * s2 + sigma**2)
    wanted = gain * x + 0.8 * sigma**2 / alpha * gain * (y - gain * x) / v
    torch.testing.assert_close(steered(x, t, y=y.expand(5, 2)), wanted, rtol=1e-9, atol=1e-9)


def test_times_of_each_sample_and_weights_of_each_sample(classes):
    both, _, log_prob = classes
    x, label = torch.randn(3, 2, dtype=torch.float64), torch.tensor([0, 1, 1])
    t, w = double([0.1, 0.5, 0.9]), double([0.5, 1.0, 2.0])

    def apart(x, t, label):
        return torch.cat(
            [log_prob(a[None], b, c[None]) for a, b, c in zip(x, t, label, strict=True)]
        )

    found = Steered(both, apart, w, takes=("label",))(x, t, label=label)
    for i in range(3):
        alone = Steered(both, log_prob, float(w[i]), takes=("label",))
        one = alone(x[i : i + 1], t[i], label=label[i : i + 1])
        torch.testing.assert_close(found[i : i + 1], one, rtol=1e-12, atol=1e-12)


def test_pure_noise_and_the_interval():
    path = PATHS["rectified"]
    truth = Exact(path, mixture())
    steered = Steered(truth, lambda x, t: -x.square().sum(1), interval=(0.2, 0.8))
    x = torch.randn(4, 2, dtype=torch.float64)
    for t, acts in ((1.0, False), (0.9, False), (0.5, True), (0.1, False)):
        data, plain = steered(x, double(t)), truth(x, double(t))
        assert bool(data.isfinite().all()) and torch.equal(data, plain) != acts
        assert torch.equal(steered.at(t)(x, double(t)), data)
    whole = Steered(truth, lambda x, t: -x.square().sum(1))
    assert torch.equal(whole(x, double(1.0)), truth(x, double(1.0)))


def test_samples_follow_the_measurement():
    """Measured to be near a point, the samples of a mixture are."""

    truth, y = Exact(PATH, mixture()), mixture().means[2]
    steered = Steered(
        truth, lambda data: -(data - y).square().sum(1) / (2 * 0.1**2), at="estimate"
    )
    torch.manual_seed(0)
    x = torch.randn(64, 2, dtype=torch.float64)
    free, bound = (build("ddim", d, 200)(x) for d in (truth, steered))
    far = [(z - y).norm(dim=1).mean() for z in (free, bound)]
    assert far[1] < 0.5 * far[0]


class Net(nn.Module):
    """A small smooth network."""

    def __init__(self, out=2):
        super().__init__()
        self.enter = nn.Linear(3, 8, dtype=torch.float64)
        self.leave = nn.Linear(8, out, dtype=torch.float64)

    def forward(self, x, time):
        """A function of the state and the time."""

        time = (time / 1000).to(x).expand(len(x), 1)
        return self.leave(torch.tanh(self.enter(torch.cat([x, time], 1))))


class Classifier(Net):
    """Its own parameters want gradients, too."""

    def forward(self, x, time):
        """The log-probability of the first class."""

        return super().forward(x, 1000 * time).log_softmax(1)[:, 0]


@pytest.mark.parametrize("at", ["state", "estimate"])
@pytest.mark.parametrize("policy", ["direct", "exact"])
def test_the_jacobian_is_kept(at, policy):
    """Finite differences through a steered sampler see the Hessian of the log-probability."""

    torch.manual_seed(0)
    judge = Classifier() if at == "state" else lambda data: -(data - 0.3).pow(4).sum(1)
    steered = Steered(Preconditioned(Net(), PATH, "v"), judge, 2.0, at)
    sampler = build("dpmpp-2m", steered, 4, start=0.9, gradient=policy)
    x = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(sampler, x, eps=1e-6, atol=1e-6, rtol=1e-5)

    y = sampler(x)
    found = torch.autograd.grad(y.square().sum(), list(steered.parameters()))
    weight, eps = next(iter(steered.denoiser.parameters())), 1e-6
    with torch.no_grad():
        values = []
        for sign in (1, -1):
            weight[0, 0] += sign * eps
            values.append(sampler(x).square().sum())
            weight[0, 0] -= sign * eps
    slope = (values[0] - values[1]) / (2 * eps)
    torch.testing.assert_close(found[0][0, 0], slope, rtol=1e-5, atol=1e-6)
    assert all(g.any() for g in found[: 8 if at == "state" else 4])


def test_both_policies_agree():
    torch.manual_seed(0)
    steered = Steered(Preconditioned(Net(), PATH, "v"), Classifier(), 2.0)
    x, found = torch.randn(3, 2, dtype=torch.float64, requires_grad=True), []
    for policy in ("direct", "exact"):
        y = build("unipc", steered, 5, gradient=policy)(x)
        found.append(torch.autograd.grad(y.square().sum(), [x, *steered.parameters()]))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    steered.requires_grad_(True)
    alone = build("unipc", steered, 5, gradient="exact")(x.detach())
    alone.sum().backward()
    assert all(p.grad.any() for p in steered.parameters())


def test_it_steers_without_recording():
    steered = Steered(Preconditioned(Net(), PATH, "v"), Classifier())
    with torch.no_grad():
        data = steered(torch.randn(3, 2, dtype=torch.float64), double(0.5))
    assert not data.requires_grad


def test_bad_values():
    truth = Exact(PATH, mixture())
    with pytest.raises(UserError, match="at is 'data': 'state' and 'estimate' are allowed"):
        Steered(truth, lambda x, t: x, at="data")
    with pytest.raises(UserError, match=r"interval is \(0.5, 0.5\)"):
        Steered(truth, lambda x, t: x, interval=(0.5, 0.5))
