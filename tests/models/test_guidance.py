"""Guidance and clipping: denoisers around denoisers."""

from functools import partial

from oracles import double, mixture
import pytest
import torch
from torch import nn

from genflow.errors import UserError
from genflow.models import (
    Clipped,
    Exact,
    Guided,
    Karras,
    Preconditioned,
    Rectified,
    VariancePreserving,
)
from genflow.solvers import build, rollout

PATH = VariancePreserving()


class Labelled(nn.Module):
    """A network whose answer depends on a label, and that counts the rows it was shown."""

    rows = 0

    def forward(self, x, time, label, tilt=None):
        self.rows += len(x)
        wide = label.to(x).reshape(-1, *(1,) * (x.ndim - 1))
        return torch.tanh(x + wide) + (0 if tilt is None else tilt)


def labelled(seed=0):
    return Preconditioned(Labelled(), PATH, "noise")


X = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABEL = torch.tensor([1, 2, 3, 4])
NULL = torch.zeros(4, dtype=torch.long)
TIMES = [double(0.4), double([0.1, 0.4, 0.6, 0.9])]


@pytest.mark.parametrize("method", ["forward", "velocity"])
@pytest.mark.parametrize("t", TIMES, ids=["one", "each"])
@pytest.mark.parametrize("w", [0.0, 0.5, 1.0, 2.5])
def test_classifier_free_guidance(method, t, w):
    """w = 0 is unconditional, w = 1 conditional, and it is linear between and beyond."""

    plain = getattr(labelled(), method)
    strong, weak = plain(X, t, label=LABEL), plain(X, t, label=NULL)
    guided = getattr(Guided(labelled(), w, null={"label": 0}), method)(X, t, label=LABEL)
    torch.testing.assert_close(guided, weak + w * (strong - weak), rtol=1e-10, atol=1e-10)


def test_a_weight_for_each_sample():
    w = double([0.0, 1.0, 2.0, 4.0])
    guided = Guided(labelled(), w, null={"label": 0})(X, TIMES[0], label=LABEL)
    for i in range(4):
        one = Guided(labelled(), float(w[i]), null={"label": 0})
        alone = one(X[i : i + 1], TIMES[0], label=LABEL[i : i + 1])
        torch.testing.assert_close(guided[i : i + 1], alone)


def test_both_estimates_go_as_one_batch():
    denoiser = labelled()
    calls = []
    denoiser.net.register_forward_hook(lambda *_: calls.append(1))
    Guided(denoiser, 2.0, null={"label": 0})(X, TIMES[1], label=LABEL)
    assert len(calls) == 1 and denoiser.net.rows == 8


def test_conditions_without_a_null_stay():
    """Only named conditions are voided; a null may be a row of values."""

    tilt = torch.randn(4, 2, dtype=torch.float64)
    plain = labelled()
    strong = plain(X, TIMES[0], label=LABEL, tilt=tilt)
    weak = plain(X, TIMES[0], label=NULL, tilt=tilt)
    guided = Guided(plain, 3.0, null={"label": 0})(X, TIMES[0], label=LABEL, tilt=tilt)
    torch.testing.assert_close(guided, weak + 3 * (strong - weak))
    row = double([0.5, -0.5])
    weak = plain(X, TIMES[0], label=LABEL, tilt=row.expand(4, 2))
    guided = Guided(plain, 3.0, null={"tilt": row})(X, TIMES[0], label=LABEL, tilt=tilt)
    torch.testing.assert_close(guided, weak + 3 * (strong - weak))


@pytest.mark.parametrize("method", ["forward", "velocity"])
def test_autoguidance(method):
    strong = Exact(PATH, mixture())
    weak = fixed(torch.tanh(X), PATH)
    t = TIMES[0]
    guided = getattr(Guided(strong, 2.0, guide=weak), method)(X, t)
    a, b = (getattr(d, method)(X, t) for d in (strong, weak))
    torch.testing.assert_close(guided, b + 2 * (a - b))


def test_velocity_of_guidance_is_that_of_the_guided_data():
    guided = Guided(labelled(), 2.5, null={"label": 0})
    t = TIMES[1]
    data = guided(X, t, label=LABEL)
    alpha, sigma = (c[:, None] for c in PATH(t))
    alpha_dot, sigma_dot = (c[:, None] for c in PATH.rates(t))
    truth = alpha_dot * data + sigma_dot * (X - alpha * data) / sigma
    torch.testing.assert_close(guided.velocity(X, t, label=LABEL), truth)


def test_interval():
    """Inside it guidance acts, outside the answer is the conditional one."""

    plain = labelled()
    guided = Guided(plain, 2.5, null={"label": 0}, interval=(0.3, 0.7))
    always = Guided(plain, 2.5, null={"label": 0})
    t = TIMES[1]
    mixed = guided(X, t, label=LABEL)
    inside = always(X, t, label=LABEL)
    outside = plain(X, t, label=LABEL)
    torch.testing.assert_close(mixed[1:3], inside[1:3])
    torch.testing.assert_close(mixed[[0, 3]], outside[[0, 3]])
    for time, truth in ((0.4, inside), (0.9, outside)):
        at = guided.at(time)
        expected = (always if truth is inside else plain)(X, double(time), label=LABEL)
        torch.testing.assert_close(at(X, double(time), label=LABEL), expected)
        torch.testing.assert_close(guided(X, double(time), label=LABEL), expected)


def test_samplers_skip_the_weak_call_outside_the_interval():
    """Of ten steps four lie inside: 4 × 2B + 6 × B rows go through the network."""

    denoiser = labelled()
    guided = Guided(denoiser, 2.0, null={"label": 0}, interval=(0.25, 0.65))
    sampler = build("ddim", guided, 10, grid="uniform", start=0.95, stop=0.05)
    out = sampler(X, label=LABEL)
    inside = sum(0.25 <= float(t) <= 0.65 for t in sampler.tableau.time)
    assert 0 < inside < 10
    assert denoiser.net.rows == 4 * (10 + inside)

    whole = rollout([partial(guided, label=LABEL)] * 10, X, sampler.tableau)
    torch.testing.assert_close(whole, out)


def test_impossible_guidance_is_refused():
    for options in ({}, {"null": {"label": 0}, "guide": labelled()}):
        with pytest.raises(UserError, match="exactly one of null"):
            Guided(labelled(), 2.0, **options)
    with pytest.raises(UserError, match="guide lives on Karras.*VariancePreserving"):
        Guided(labelled(), 2.0, guide=Exact(Karras(), mixture()))
    with pytest.raises(UserError, match=r"interval is \(0.7, 0.3\)"):
        Guided(labelled(), 2.0, null={"label": 0}, interval=(0.7, 0.3))


# ------------------------------------------------------------------------------- clipping


class Fixed(nn.Module):
    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x, time):
        return self.answer


def fixed(answer, path=None):
    return Preconditioned(Fixed(answer), path or Rectified(), "data")


DATA = 1.7 * torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 1.0), (-3.0, 0.5)])
def test_static_clipping(low, high):
    out = Clipped(fixed(DATA), low, high)(DATA, torch.tensor(0.5))
    assert torch.equal(out, DATA.clamp(low, high))


@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.995, 1.0])
@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 1.0)])
def test_dynamic_thresholding(low, high, quantile):
    """Against Imagen's rule, one sample after the other."""

    data = DATA.clone()
    data[0] *= 0.1  # stays inside: must be left alone
    out = Clipped(fixed(data), low, high, quantile)(data, torch.tensor(0.5))
    middle, half = (high + low) / 2, (high - low) / 2
    for sample, got in zip(data, out, strict=True):
        unit = (sample - middle) / half
        s = max(1.0, float(torch.quantile(unit.abs().flatten(), quantile)))
        torch.testing.assert_close(got, middle + half * unit.clamp(-s, s) / s)
    assert float(out.min()) >= low - 1e-6 and float(out.max()) <= high + 1e-6
    if (low, high) == (-1.0, 1.0):
        torch.testing.assert_close(out[0], data[0])


def test_clipped_velocity_follows_the_clipped_data():
    t = double(0.5)
    data = DATA.double()
    clipped = Clipped(fixed(data))
    truth = (data - data.clamp(-1, 1)) / 0.5
    torch.testing.assert_close(clipped.velocity(data, t), truth)


def test_clipped_keeps_guidance_inside():
    """`at` reaches the denoiser inside, and clips what it answers."""

    guided = Guided(labelled(), 8.0, null={"label": 0}, interval=(0.3, 0.7))
    clipped = Clipped(guided, -0.1, 0.1)
    for t in (0.1, 0.5):
        time = double(t)
        truth = guided(X, time, label=LABEL).clamp(-0.1, 0.1)
        torch.testing.assert_close(clipped(X, time, label=LABEL), truth)
        torch.testing.assert_close(clipped.at(t)(X, time, label=LABEL), truth)


def test_half_precision():
    out = Clipped(fixed(DATA.bfloat16()), quantile=0.9)(DATA.bfloat16(), torch.tensor(0.5))
    assert out.dtype == torch.bfloat16 and float(out.abs().max()) <= 1


def test_impossible_clipping_is_refused():
    with pytest.raises(UserError, match="low is 1.0 and high is 1.0"):
        Clipped(fixed(DATA), 1.0, 1.0)
    for quantile in (0.0, 1.5):
        with pytest.raises(UserError, match=f"quantile is {quantile}"):
            Clipped(fixed(DATA), quantile=quantile)
