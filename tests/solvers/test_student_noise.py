"""Samplers on paths whose noise is Student-t: churn, presets, guidance, limits, refusals."""

from dataclasses import replace
import math

from oracles import PATHS, double
import pytest
from scipy import stats
import torch

from genflow.errors import UserError
from genflow.models import (
    Clipped,
    Empirical,
    Guided,
    Karras,
    Rectified,
    StudentT,
    VariancePreserving,
    path_from_dict,
    path_to_dict,
)
from genflow.solvers import (
    PRESETS,
    Sampler,
    SolverSchedule,
    Step,
    build,
    schedule_for,
    stack,
    tabulate,
)
from genflow.solvers.tableau import Kick

OTHER = ("ddpm", "dpm-v3", "dopri5", "euler-maruyama", "reinterpolate", "usf", "autodiffusion")
OTHER += ("adjoint-dpm",)  # the points of ddim
ODE = [n for n in PRESETS if n not in OTHER]
LABEL = torch.tensor([0, 1, 0, 1, 2])


def cloud(path, n=6, N=4, labels=False):
    """The truth of a few points, perhaps of two classes."""

    g = torch.Generator().manual_seed(2)
    data = 0.5 * torch.randn(n, N, generator=g, dtype=torch.float64)
    return Empirical(path, data, torch.arange(n) % 2 if labels else None)


def smooth(path, steps):
    """Times between σ/α = 8 and 0.5, where the points are not told apart yet."""

    return path.inverse(-torch.linspace(math.log(8), math.log(0.5), steps + 1).double()).tolist()


def start(path, n=5):
    """States of noise at the first of these times."""

    g = torch.Generator().manual_seed(9)
    _, sigma = path(double(smooth(path, 1)[0]))
    return sigma * path.noise.sample((n, 4), generator=g, dtype=torch.float64)


def solved(name, denoiser, steps, x, **cond):
    return build(name, denoiser, steps, times=smooth(denoiser.path, steps))(x, **cond)


# ----------------------------------------------------------------------------------- churn


def churned(N, D, law):
    """KS distances of the states at each step from the law that they should have."""

    path = Karras(noise=StudentT(D))
    truth = Empirical(path, torch.full((1, N), 0.3, dtype=torch.float64))
    table = schedule_for("karras-heun", path, 6, churn=4.0, churn_law=law)
    sampler, seen = Sampler(truth, table), []
    g = torch.Generator().manual_seed(4)
    x = sampler.init((2000, N), generator=g)
    sampler(x, generator=g, observe=lambda i, x, _: seen.append(x))
    _, sigma = path(table.time)
    found = []

    for i in range(0, len(seen), 2):  # the first call of each step
        radius = (seen[i] - 0.3).norm(dim=1).double()
        found.append(stats.kstest(radius, path.noise.radius(N, float(sigma[i])).cdf).statistic)

    return found


@pytest.mark.parametrize(
    ("N", "D", "most", "least"), [(64, 64.0, 0.06, 0.1), (768, 64.0, 0.035, 0.25)]
)
def test_churn_keeps_the_law_of_the_path(N, D, most, least):
    """The estimate of the call before is exact here, so only κ stands between it and the law."""

    assert max(churned(N, D, "path")) < most
    assert max(churned(N, D, "gaussian")) > least


def test_churn_factor_by_hand():
    """κ² = (D + R²/σ²)/(N + D), with the last estimate of the data, and none at first."""

    law, sigma = StudentT(7.0), double([4.0, 0.5])
    kick = Kick(law, sigma)
    g = torch.Generator().manual_seed(0)
    x, data = torch.randn(2, 3, 2, 5, generator=g).double()
    for i, centre in ((0, None), (1, data)):
        square = (x - (0 if centre is None else centre)).square().sum((1, 2)) / sigma[i] ** 2
        by_hand = torch.sqrt((7 + square) / (10 + 7)).reshape(3, 1, 1)
        torch.testing.assert_close(kick.factor(i, x, centre), by_hand)


def test_levels_before_each_draw():
    """σ before a draw, and the deviation of the draw, add up to the level of the call."""

    path = Karras(noise=StudentT(20.0))
    table = schedule_for("karras-heun", path, 8, churn=3.0, churn_min=0.01, churn_max=50.0)
    drawn = table.noise > 0
    _, called = path(table.time)
    before = table.kick.sigma
    assert 3 < int(drawn.sum()) < 8
    torch.testing.assert_close(torch.hypot(before[drawn], table.noise[drawn]), called[drawn[:-1]])


def test_churn_without_degrees_is_the_old_one():
    def run(path, law):
        g = torch.Generator().manual_seed(1)
        sampler = build("karras-heun", cloud(path), 8, churn=5.0, churn_law=law)
        return sampler(80 * torch.ones(3, 4).double(), generator=g)

    limit = Karras(noise=StudentT(math.inf))
    runs = [run(Karras(), "gaussian"), run(Karras(), "path"), run(limit, "path")]
    assert torch.equal(runs[0], runs[1]) and torch.equal(runs[0], runs[2])


def test_churned_populations():
    path = Karras(noise=StudentT(9.0))
    tables = [schedule_for("karras-heun", path, 5, churn=c) for c in (2.0, 6.0)]
    truth, x = cloud(path), start(path, n=4)

    def streams():
        return [torch.Generator().manual_seed(i) for i in range(4)]

    together = Sampler(truth, stack(tables, 2))(x, generator=streams())
    alone = [
        Sampler(truth, t)(x[k : k + 2], generator=streams()[k : k + 2])
        for k, t in zip((0, 2), tables)
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-12)
    plain = schedule_for("karras-heun", path, 5, churn=2.0, churn_law="gaussian")
    with pytest.raises(UserError, match="law of fresh noise"):
        stack([tables[0], plain], 1)


def test_churn_needs_no_further_call():
    path = Karras(noise=StudentT(9.0))
    assert build("karras-heun", cloud(path), 9, churn=5.0).nfe == 17


# --------------------------------------------------------------------- presets and limits


@pytest.mark.parametrize("name", ODE)
@pytest.mark.parametrize("kind", ["karras", "vp", "rectified"])
def test_every_preset_solves_the_ode_at_finite_degrees(kind, name):
    """More steps come closer to the exact solution, on every path, at D = 5."""

    path = replace(PATHS[kind], noise=StudentT(5.0))
    truth, x = cloud(path), start(path)
    exact = solved("rk4", truth, 300, x)
    errors = [float((solved(name, truth, n, x) - exact).abs().max()) for n in (24, 96)]
    assert errors[1] < 0.35 * errors[0] < 0.1


@pytest.mark.parametrize("kind", ["karras", "vp", "rectified"])
@pytest.mark.parametrize("name", ["karras-heun", "dpmpp-2m", "unipc"])
def test_infinite_degrees_are_gaussian(kind, name):
    """Bit for bit at infinity, and nearly at 1e8."""

    usual = PATHS[kind]
    limit, near = (replace(usual, noise=StudentT(D)) for D in (math.inf, 1e8))
    runs = [solved(name, cloud(path), 10, start(path)) for path in (usual, limit, near)]
    assert torch.equal(runs[0], runs[1])
    assert 0 < (runs[0] - runs[2]).abs().max() < 1e-3
    first = build(name, cloud(usual), 6).init((3, 4), generator=torch.Generator().manual_seed(0))
    again = build(name, cloud(limit), 6).init((3, 4), generator=torch.Generator().manual_seed(0))
    assert torch.equal(first, again)


def test_laws_of_noise_live_on_every_path():
    """A single point: the ODE is a dilation, so the Student-t start is carried to the end."""

    for path in (Karras(), VariancePreserving(), Rectified()):
        path = replace(path, noise=StudentT(3.0))
        truth = Empirical(path, torch.full((1, 4), 0.5, dtype=torch.float64))
        sampler = build("ddim", truth, 12, grid="logsnr", stop=0.3, final="min")
        g = torch.Generator().manual_seed(0)
        t, s = sampler.schedule.times[0], sampler.schedule.times[-1]
        (alpha_t, sigma_t), (alpha_s, sigma_s) = path(double(t)), path(double(s))
        z = path.noise.sample((3000, 4), generator=g, dtype=torch.float64)
        end = sampler(alpha_t * 0.5 + sigma_t * z)
        torch.testing.assert_close(end, alpha_s * 0.5 + sigma_s * z, rtol=1e-9, atol=1e-9)


# ------------------------------------------------------------------------------- guidance


def test_guidance_at_finite_degrees():
    """Weight 1 is none; weight 0 the guide; an interval is guidance inside and none outside."""

    path = Karras(noise=StudentT(6.0))
    strong, weak = cloud(path, labels=True), cloud(path, n=4)
    x, cond = start(path), {"label": LABEL}

    def run(denoiser, **cond):
        return solved("karras-heun", denoiser, 8, x, **cond)

    plain, free = run(strong, **cond), run(strong, label=torch.full((5,), 2))
    null, same = {"label": 2}, {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(run(Guided(strong, 1.0, null), **cond), plain, **same)
    torch.testing.assert_close(run(Guided(strong, 0.0, null), **cond), free, **same)
    guided = run(Guided(strong, 2.5, null), **cond)

    alone = cloud(path)
    torch.testing.assert_close(run(Guided(alone, 0.0, guide=weak)), run(weak), **same)
    torch.testing.assert_close(run(Guided(alone, 1.0, guide=weak)), run(alone), **same)
    doubled = run(Guided(alone, 2.0, guide=weak))

    results = [plain, guided, run(alone), run(weak), doubled]
    assert all((a - b).abs().max() > 1e-3 for i, a in enumerate(results) for b in results[:i])


def test_guidance_in_an_interval_at_finite_degrees():
    """Guided below a time only: the bare denoiser down to it, and then the guided one."""

    path = Karras(noise=StudentT(6.0))
    truth, x, times = cloud(path, labels=True), start(path), smooth(path, 8)
    guided = Guided(truth, 2.5, {"label": 2}, interval=(0.0, 0.5 * (times[3] + times[4])))
    whole = build("ddim", guided, 8, times=times)(x, label=LABEL)
    half = build("ddim", truth, 4, times=times[:5])(x, label=LABEL)
    always = Guided(truth, 2.5, {"label": 2})
    rest = build("ddim", always, 4, times=times[4:])(half, label=LABEL)
    torch.testing.assert_close(whole, rest, rtol=1e-12, atol=1e-12)
    assert (whole - build("ddim", always, 8, times=times)(x, label=LABEL)).abs().max() > 1e-3


def test_guidance_is_the_mixed_field():
    """One Euler step of the guided field, by hand."""

    path = Karras(noise=StudentT(6.0))
    truth, x = cloud(path, labels=True), start(path)
    t, s = double(0.8), double(0.5)
    (_, a), (_, b) = path(t), path(s)
    strong, weak = truth(x, t, label=LABEL), truth(x, t, label=torch.full((5,), 2))
    data = weak + 3.0 * (strong - weak)
    by_hand = data + (b / a) * (x - data)
    guided = Guided(truth, 3.0, {"label": 2})
    got = Sampler(guided, SolverSchedule((0.8, 0.5), [Step()]))(x, label=LABEL)
    torch.testing.assert_close(got, by_hand)
    clipped = Clipped(guided, -0.1, 0.1)
    got = Sampler(clipped, SolverSchedule((0.8, 0.5), [Step()]))(x, label=LABEL)
    torch.testing.assert_close(got, data.clamp(-0.1, 0.1) * (1 - b / a) + (b / a) * x)


# ---------------------------------------------------------------------- records, refusals


@pytest.mark.parametrize("kind", ["karras", "vp", "rectified", "cosine", "discrete", "brownian"])
@pytest.mark.parametrize("D", [0.5, 128.0, math.inf])
def test_records_keep_the_degrees(kind, D):
    import json

    path = replace(PATHS[kind], noise=StudentT(D))
    text = json.dumps(path_to_dict(path), allow_nan=False)  # infinity is no number in JSON
    assert path_from_dict(json.loads(text)) == path


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"class": "Karras", "D": "many"}, "path.D is 'many'"),
        ({"class": "Karras", "D": [3]}, r"path.D is \[3\]"),
        ({"class": "Karras", "D": -1}, "D is -1.0"),
        ({"class": "Karras", "D": "nan"}, "D is nan"),
        ({"class": "Karras", "D": 0}, "D is 0.0"),
        ({"class": "Karras", "sigma_max": "80"}, "path.sigma_max is '80'"),
        ({"class": "Karras", "sigma_min": 80, "sigma_max": 80}, "sigma_min is 80 and sigma_max"),
    ],
)
def test_records_of_nonsense(record, words):
    with pytest.raises(UserError, match=words):
        path_from_dict(record)


def test_steps_along_the_score_are_refused():
    """Tweedie's formula does not hold, and (D − x)/σ² is not the score: by autograd."""

    path = Karras(noise=StudentT(4.0))
    truth, t = cloud(path), double(0.4)
    x = (0.3 * torch.ones(1, 4)).double().requires_grad_()
    (score,) = torch.autograd.grad(truth.log_prob(x, t).sum(), x)
    _, sigma = path(t)
    tweedie = (truth(x, t) - x) / sigma**2
    assert (score - tweedie).abs().max() > 0.1 * score.abs().max()
    usual = cloud(Karras())
    (score,) = torch.autograd.grad(usual.log_prob(x, t).sum(), x)
    torch.testing.assert_close(score, (usual(x, t) - x) / sigma**2)

    with pytest.raises(UserError, match="step 0 has eta 1.0 .*StudentT.* Langevin .*the score"):
        tabulate(SolverSchedule((1.0, 0.5), [Step(eta=1.0)]), path)
    with pytest.raises(UserError, match="follow the score"):
        build("ddpm", truth, 5)
    assert tabulate(SolverSchedule((1.0, 0.5), [Step(eta=1.0)]), Karras(noise=StudentT(math.inf)))


def test_refusals_of_churn():
    with pytest.raises(UserError, match="churn_law is 'normal'"):
        schedule_for("karras-heun", Karras(), 4, churn=1.0, churn_law="normal")
    for noise in (StudentT(3.0), StudentT(math.inf)):
        with pytest.raises(UserError, match="churn is 1.0: it needs a path with α = 1"):
            schedule_for("karras-heun", Rectified(noise=noise), 4, churn=1.0)
