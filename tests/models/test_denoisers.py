"""Predictions as denoisers: each row of the table on each path, the loss, the exact truth."""

import dataclasses

from oracles import PATHS, double, linear_path, mixture
import pytest
import torch
from torch import nn

from genflow.errors import UserError
from genflow.models import (
    CLOCKS,
    PREDICTIONS,
    Denoiser,
    Exact,
    Gaussian,
    Karras,
    Mixture,
    Preconditioned,
    Rectified,
    StudentT,
    VariancePreserving,
)

EVERY_PATH = pytest.mark.parametrize("kind", PATHS)
EVERY_PREDICTION = pytest.mark.parametrize("prediction", PREDICTIONS)


class Told(nn.Module):
    """A network that returns what it was told, and remembers what it was shown."""

    def __init__(self, answer=None):
        super().__init__()
        self.answer = answer

    def forward(self, x, time, **cond):
        self.seen = (x, time, cond)
        return x if self.answer is None else self.answer


def example(shape=(5, 2, 3), seed=0):
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed)).double()


def target(prediction, path, x, z, t, sigma_data=0.5):
    """What the network should say, from the definitions."""

    def wide(c):
        return c.reshape(-1, *(1,) * (x.ndim - 1))

    alpha, sigma = map(wide, path(t))
    alpha_dot, sigma_dot = map(wide, path.rates(t))
    s, D = sigma / alpha, getattr(path.noise, "D", float("inf"))
    v = s**2 if prediction == "karras" else s**2 / (1 - 2 / D)
    skip = sigma_data**2 / (v + sigma_data**2)
    out = v.sqrt() * sigma_data / (v + sigma_data**2).sqrt()
    return {
        "data": x,
        "noise": z,
        "v": alpha * z - sigma * x,
        "flow": alpha_dot * x + sigma_dot * z,
        "reverse-flow": -alpha_dot * x - sigma_dot * z,
        "karras": (x - skip * (x + s * z)) / out,
        "karras-moment": (x - skip * (x + s * z)) / out,
    }[prediction]


@pytest.mark.parametrize("noise", [Gaussian(), StudentT(5.0)], ids=["gaussian", "student"])
@EVERY_PREDICTION
@EVERY_PATH
def test_the_true_target_gives_data_noise_and_velocity(kind, prediction, noise):
    """If F is the true target of one (x, z), so are the data, the noise and the velocity."""

    path, (x, z) = dataclasses.replace(PATHS[kind], noise=noise), example()
    t = double([0.05, 0.3, 0.5, 0.8, 0.95]) + 1e-4
    net = Told(target(prediction, path, x, z, t, 0.7))
    denoiser = Preconditioned(net, path, prediction, sigma_data=0.7)
    x_t = path.perturb(x, z, t)
    close = {"rtol": 1e-7, "atol": 1e-7}

    torch.testing.assert_close(denoiser(x_t, t), x, **close)
    c = denoiser.coefficients(t)
    a, b = (torch.as_tensor(v).double().expand(5).reshape(5, 1, 1) for v in c.noise)
    torch.testing.assert_close(a * x_t + b * net.answer, z, **close)

    alpha_dot, sigma_dot = (c.reshape(5, 1, 1) for c in path.rates(t))
    velocity = alpha_dot * x + sigma_dot * z
    torch.testing.assert_close(denoiser.velocity(x_t, t), velocity, **close)
    torch.testing.assert_close(Denoiser.velocity(denoiser, x_t, t), velocity, **close)


@EVERY_PREDICTION
@EVERY_PATH
def test_the_loss_is_that_of_the_target(kind, prediction):
    """Zero at the target, and the mean square of the difference elsewhere."""

    path, (x, z) = PATHS[kind], example()
    t = double([0.05, 0.3, 0.5, 0.8, 0.95]) + 1e-4
    truth = target(prediction, path, x, z, t)
    denoiser = Preconditioned(Told(truth), path, prediction)
    assert float(denoiser.loss(x, z, t).abs().max()) < 1e-14
    away = torch.randn_like(truth)
    denoiser.net.answer = truth + away
    torch.testing.assert_close(denoiser.loss(x, z, t), away.square().mean((1, 2)))


@EVERY_PREDICTION
@EVERY_PATH
def test_at_a_known_time(kind, prediction):
    """`at` answers as the denoiser does, for data and velocity."""

    path, (x, _) = PATHS[kind], example()
    denoiser = Preconditioned(Told(), path, prediction)
    for t in (0.1003, 0.5003, 0.9003):
        time = double(t)
        timed = denoiser.at(t)
        assert timed.path == path
        torch.testing.assert_close(timed(x, time), denoiser(x, time))
        torch.testing.assert_close(timed.velocity(x, time), denoiser.velocity(x, time))


def test_published_preconditioning():
    """EDM's c_skip, c_out, c_in and c_noise."""

    path, sd = Karras(), 0.5
    t = torch.linspace(0.25, 1, 9, dtype=torch.float64)
    s = path(t)[1]
    c = Preconditioned(Told(), path, "karras").coefficients(t)
    torch.testing.assert_close(c.data[0], sd**2 / (s**2 + sd**2))
    torch.testing.assert_close(c.data[1], s * sd / (s**2 + sd**2).sqrt())
    torch.testing.assert_close(c.scale, 1 / (s**2 + sd**2).sqrt())
    net = Told()
    denoiser = Preconditioned(net, path, "karras")
    x = torch.randn(9, 4, dtype=torch.float64)
    denoiser(x, t)
    torch.testing.assert_close(net.seen[0], c.scale[:, None] * x)
    torch.testing.assert_close(net.seen[1], s.log() / 4)
    # On data of deviation σ_data the input and the target have unit variance.
    big = torch.randn(2, 400_000, 1, dtype=torch.float64)
    for i in (0, 4, 8):
        many = t[i].expand(1)
        c = denoiser.coefficients(many)
        shown = c.scale * (sd * big[0] + s[i] * big[1])
        wanted = c.target[0] * sd * big[0] + c.target[1] * big[1]
        assert float(shown.var()) == pytest.approx(1, abs=0.01)
        assert float(wanted.var()) == pytest.approx(1, abs=0.01)


def test_flow_is_the_difference_on_the_straight_path():
    x, z = example()
    t = double([0.0, 0.1, 0.5, 0.9, 1.0])
    denoiser = Preconditioned(Told(z - x), Rectified(), "flow")
    x_t = (1 - t[:, None, None]) * x + t[:, None, None] * z
    assert torch.equal(denoiser.loss(x, z, t), torch.zeros(5).double())
    assert torch.equal(denoiser.velocity(x_t, t), z - x)
    torch.testing.assert_close(denoiser(x_t, t), x)


@pytest.mark.parametrize(
    ("prediction", "clock", "told"),
    [
        ("flow", None, 250.0),
        ("noise", None, 250.0),
        ("noise", "unit", 0.25),
        ("noise", "discrete", 249.0),
        ("data", "log-sigma", None),
        ("karras", None, None),
    ],
)
def test_clocks(prediction, clock, told):
    net, path = Told(), linear_path()
    Preconditioned(net, path, prediction, clock)(torch.zeros(2, 3).double(), double([0.25, 0.25]))
    if told is None:
        told = float(-path.lam(double(0.25)) / 4)
    assert net.seen[1].tolist() == pytest.approx([told, told])


def test_conditions_reach_the_network_by_name():
    net = Told()
    labels = torch.tensor([1, 2])
    denoiser = Preconditioned(net, Rectified(), "flow")
    for call in (denoiser, denoiser.velocity, denoiser.at(0.5), denoiser.at(0.5).velocity):
        call(torch.zeros(2, 3), torch.tensor(0.5), labels=labels)
        assert net.seen[2] == {"labels": labels}
    denoiser.loss(torch.zeros(2, 3), torch.zeros(2, 3), torch.rand(2), labels=labels)
    assert net.seen[2] == {"labels": labels}


class Linear(nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.layer = nn.Linear(3, 3).to(dtype)

    def forward(self, x, time):
        assert x.dtype == self.layer.weight.dtype
        return self.layer(x)


@EVERY_PREDICTION
@pytest.mark.parametrize("net", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("state", [torch.float32, torch.float64])
def test_dtypes(prediction, net, state):
    """The network computes in its dtype, the answer comes in that of the state."""

    denoiser = Preconditioned(Linear(net), VariancePreserving(), prediction)
    x, t = torch.randn(4, 3, dtype=state), torch.rand(4, dtype=state) * 0.8 + 0.1
    for answer in (denoiser(x, t), denoiser.velocity(x, t), denoiser.at(0.5)(x, t[0])):
        assert answer.dtype == state and bool(answer.isfinite().all())
    loss = denoiser.loss(x, torch.randn_like(x), t)
    assert loss.shape == (4,) and loss.dtype == state
    loss.sum().backward()
    assert denoiser.net.layer.weight.grad.isfinite().all()


def test_refusals():
    with pytest.raises(UserError, match="prediction is 'epsilon'.*noise"):
        Preconditioned(Told(), Rectified(), "epsilon")
    with pytest.raises(UserError, match="prediction is 'flwo': did you mean 'flow'"):
        Preconditioned(Told(), Rectified(), "flwo")
    with pytest.raises(UserError, match="clock is 'thousnd': did you mean 'thousand'"):
        Preconditioned(Told(), Rectified(), "flow", "thousnd")
    with pytest.raises(UserError, match="sigma_data is 0"):
        Preconditioned(Told(), Karras(), "karras", sigma_data=0.0)
    with pytest.raises(UserError, match="needs Gaussian noise"):
        Exact(Karras(noise=StudentT(8.0)), mixture())
    assert set(CLOCKS) >= {"unit", "thousand", "discrete", "log-sigma"}


# ------------------------------------------------------------------------------ the truth


@EVERY_PATH
def test_exact_velocity_is_the_general_formula(kind):
    path = PATHS[kind]
    truth = Exact(path, mixture())
    t = double([0.05, 0.3, 0.5, 0.8, 0.95]) + 1e-4
    x = torch.randn(5, 2, dtype=torch.float64) * torch.hypot(*path(t))[:, None]
    general = Denoiser.velocity(truth, x, t)
    torch.testing.assert_close(truth.velocity(x, t), general, rtol=1e-7, atol=1e-7)


@EVERY_PATH
def test_the_flow_carries_the_density(kind):
    """∂ log p/∂t + ∇·v + v·∇ log p = 0 along the probability-flow velocity."""

    path, law = PATHS[kind], mixture()
    truth, t = Exact(path, law), double(0.4003)
    x = torch.randn(6, 2, dtype=torch.float64) * torch.hypot(*path(t))

    def log_p(x, t):
        return law.log_prob(x[None], *path(t))[0]

    for point in x:
        change = torch.func.grad(log_p, argnums=1)(point, t)
        score = torch.func.grad(log_p)(point, t)
        v = truth.velocity(point[None], t)[0]
        spread = torch.func.jacrev(lambda y: truth.velocity(y[None], t)[0])(point).trace()
        total = change + spread + v @ score
        assert float(total) == pytest.approx(0, abs=1e-8 * float(change.abs() + spread.abs() + 1))


def test_exact_is_regular_at_data():
    """On the straight path at t = 0 the estimate is x, and the velocity −x there."""

    truth, x = Exact(Rectified(), mixture()), torch.randn(4, 2, dtype=torch.float64)
    torch.testing.assert_close(truth(x, double(0.0)), x)
    torch.testing.assert_close(truth.velocity(x, double(0.0)), -x)


def test_exact_of_images():
    law = Mixture(torch.ones(2), torch.randn(2, 12), torch.rand(2, 12))
    truth = Exact(VariancePreserving(), law)
    x, t = torch.randn(5, 3, 2, 2), torch.rand(5)
    flat = truth(x.flatten(1), t)
    torch.testing.assert_close(truth(x, t), flat.view(5, 3, 2, 2))
    assert truth.velocity(x, t).shape == x.shape


@EVERY_PREDICTION
def test_the_truth_minimises_the_loss(prediction):
    """On data of a mixture no constant shift of the true target lowers the mean loss."""

    path, law = VariancePreserving(), mixture()
    truth, t = Exact(path, law), double(0.35)
    generator = torch.Generator().manual_seed(0)
    x = law.sample(20_000, generator=generator)
    z = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    x_t, times = path.perturb(x, z, t), t.expand(len(x))
    data, noise = law.posterior(x_t, *path(t))
    denoiser = Preconditioned(Told(), path, prediction)
    best = target(prediction, path, data, noise, times)
    denoiser.net.answer = best
    least = denoiser.loss(x, z, times).mean()
    torch.testing.assert_close(denoiser(x_t, times), truth(x_t, times), rtol=1e-6, atol=1e-6)
    for shift in (0.05, -0.05):
        denoiser.net.answer = best + shift
        assert denoiser.loss(x, z, times).mean() > least
