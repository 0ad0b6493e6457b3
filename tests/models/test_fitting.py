"""Fits: what they recover, when they end, and what they refuse."""

import warnings

import pytest
from scipy.optimize import linear_sum_assignment
import torch

from genflow.data import anisotropic, isotropic
from genflow.errors import UserError
from genflow.metrics import cbw_uvp
from genflow.models import Full, LightBridge
from genflow.models.covariances import entropic_map
from genflow.models.fitting import fit_bridge
from genflow.models.objectives import dual_loss
from genflow.models.steps import BridgeAdam, growth, one_cycle, variances
from genflow.models.watches import Watch


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def judged(problem, bridge, n=4000):
    """cBW2-UVP in per cent, and the KL gap in nats."""

    x, y = problem.pairs(n, generator=seeded(99))
    log_a, r, S = problem.potential()
    truth = LightBridge(log_a, r, Full.of(S), problem.epsilon).requires_grad_(False)
    plan, true = bridge.plan(x[:300].double()), problem.moments(x[:300])
    variance = float(y.var(0).sum())
    cbw = cbw_uvp(plan.mean, plan.covariance, *true, variance=variance)
    return cbw, float(dual_loss(bridge, x, y) - dual_loss(truth, x, y))


@pytest.fixture(scope="module")
def small():
    """Clouds of a problem whose truth is isotropic."""

    problem = isotropic(4, 1.0)
    return (
        problem,
        problem.source(20_000, generator=seeded(1)),
        problem.target(20_000, generator=seeded(2)),
    )


def test_a_short_fit_recovers_the_plan(small):
    problem, x, y = small
    fit = fit_bridge(x, y, epsilon=1.0, components=10, steps=500)
    cbw, gap = judged(problem, fit.bridge)
    assert cbw < 0.05 and gap < 0.01
    assert fit.steps == 500 and fit.stopped == ""
    assert fit.objective[fit.kept] < min(fit.objective.values()) + 0.01 < fit.objective[0]
    assert len(fit.objective) == 21 and fit.kept > 400
    assert fit.bridge.centre.dtype == torch.float64
    assert not any(p.requires_grad for p in fit.bridge.parameters())


def test_the_one_liner_and_the_seed(small):
    _, x, y = small
    options = {"epsilon": 1.0, "components": 5, "steps": 40}
    one = LightBridge.fit(x.numpy(), y.numpy(), **options)
    same = fit_bridge(x, y, **options).bridge
    other = fit_bridge(x, y, seed=1, **options).bridge
    assert torch.equal(one.centre, same.centre)
    assert not torch.equal(one.centre, other.centre)


def test_units_and_origins_do_not_matter(small):
    _, x, y = small
    x, y = x.double(), y.double()
    options = {"components": 5, "steps": 60, "dtype": torch.float64}
    plain = fit_bridge(x, y, epsilon=1.0, **options).bridge
    moved = fit_bridge(100 * x + 50, 100 * y - 70, epsilon=1e4, **options).bridge
    probe = x[:50]
    mean = moved.plan(100 * probe + 50).mean
    assert torch.allclose((mean + 70) / 100, plain.plan(probe).mean, atol=1e-6)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_one_component_is_closed_and_takes_no_steps(covariance):
    g = seeded()
    root = torch.randn(3, 3, generator=g, dtype=torch.float64)
    x = torch.randn(3000, 3, generator=g, dtype=torch.float64) + 2
    y = torch.randn(5000, 3, generator=g, dtype=torch.float64) @ root - 1
    fit = fit_bridge(x, y, epsilon=0.7, components=1, covariance=covariance)
    assert fit.steps == 0
    V0, V1 = (v.T.cov(correction=0) for v in (x, y))
    if covariance == "diagonal":
        S = torch.diag_embed(entropic_map(V0.diagonal()[None], V1.diagonal()[None], 0.7))
    else:
        S = entropic_map(V0[None], V1[None], 0.7)
        assert torch.allclose(S @ V0 @ S + 0.7 * S, V1[None], atol=1e-8)
    assert torch.allclose(fit.bridge.covariance.dense(), S, atol=1e-8)
    assert torch.allclose(fit.bridge.centre[0], y.mean(0) - S[0] @ x.mean(0), atol=1e-8)


def test_families_with_axes_of_their_own_are_better_where_it_counts():
    problem = anisotropic(4, 1.0)
    x, y = problem.source(20_000, generator=seeded(1)), problem.target(20_000, generator=seeded(2))
    gap = {}
    for name in ("diagonal", "lowrank", "full"):
        fit = fit_bridge(x, y, epsilon=1.0, components=5, covariance=name, rank=2, steps=200)
        gap[name] = judged(problem, fit.bridge)[1]
    assert gap["full"] < 0.5 * gap["diagonal"] and gap["lowrank"] < 0.8 * gap["diagonal"]


def test_functions_give_fresh_points_and_nothing_to_overfit():
    problem = isotropic(2, 1.0)
    asked = []

    def target(n, generator):
        asked.append(n)
        return problem.target(n, generator=generator)

    options = {"epsilon": 1.0, "components": 6, "steps": 60, "batch_size": 100}
    fit = fit_bridge(problem.source, target, **options)
    assert asked[0] == 25_000 and asked[1:] == [100] * 30 + [400] * 15 + [800] * 15
    assert fit.objective[fit.kept] < fit.objective[0]
    again = fit_bridge(problem.source, problem.target, **options)
    assert torch.equal(again.bridge.centre, fit.bridge.centre)


@pytest.mark.slow
def test_bridge_matching_descends_the_same_objective_with_and_without_a_coupling(small):
    problem, x, y = small

    def optimal(y, x):
        rows, columns = linear_sum_assignment(torch.cdist(y, x).square().numpy())
        return y[rows], x[columns]

    start = {"epsilon": 1.0, "components": 8, "start": "k-means", "width": 0.3}
    for coupling in (None, optimal):
        options = {"loss": "matching", "coupling": coupling, "steps": 200, "batch_size": 128}
        fit = fit_bridge(x, y, **start, **options)
        cbw, gap = judged(problem, fit.bridge)
        assert fit.objective[fit.kept] < fit.objective[0] - 0.5
        assert gap < 0.5


def test_overfitting_ends_early_with_the_best_kept():
    problem = anisotropic(8, 1.0)
    x, y = (c[:120] for c in problem.pairs(120, generator=seeded(0)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = fit_bridge(x, y, epsilon=1.0, components=30, held_out=0.3, steps=800, patience=4)
    assert fit.steps < 800 and fit.stopped
    last = max(fit.objective)
    assert fit.kept < last and fit.objective[fit.kept] < fit.objective[last] - 0.05
    probe = problem.source(100, generator=seeded(5)).double()
    assert bool(fit.bridge.plan(probe).mean.isfinite().all())


@pytest.mark.parametrize("covariance", ["diagonal", "lowrank", "full"])
def test_atoms_are_said_and_the_last_good_kept(covariance):
    g = seeded()
    atoms = torch.randn(4, 2, generator=g)
    y = atoms[torch.randint(4, (2000,), generator=g)]
    x = torch.randn(2000, 2, generator=g)
    with pytest.warns(UserWarning, match="a covariance runs to 0") as said:
        fit = fit_bridge(
            x,
            y,
            epsilon=0.5,
            components=4,
            covariance=covariance,
            rank=1,
            lr=0.3,
            width=0.01,
            start="k-means",
        )
    assert fit.steps < 800 and "runs to 0" in fit.stopped
    assert len([w for w in said if "runs to 0" in str(w.message)]) == 1
    assert all(bool(p.isfinite().all()) for p in fit.bridge.parameters())
    assert float(fit.bridge.covariance.log_scale.min()) > -25
    ends = fit.bridge.sample(x[:500], generator=g)
    assert float(torch.cdist(ends, atoms).min(1).values.median()) < 0.2


def test_a_surface_is_said_even_where_there_are_no_steps():
    x = torch.randn(500, 2, generator=seeded())
    y = torch.stack((x[:, 0], 2 * x[:, 0]), 1)
    with pytest.warns(UserWarning, match="at step 0 of 800: a covariance runs to 0"):
        fit = fit_bridge(x, y, epsilon=1.0, components=1, covariance="full")
    assert bool(fit.bridge.plan(x).mean.isfinite().all())
    with pytest.warns(UserWarning, match="at step 0 of 800"):
        fit_bridge(x, x + 1, epsilon=1.0, components=4, start="samples", width=1e-12)


def test_a_wild_rate_is_said_and_the_last_good_kept(small):
    _, x, y = small
    with pytest.warns(UserWarning, match="runs to|objective is"):
        fit = fit_bridge(x, y, epsilon=1.0, components=5, steps=200, lr=30.0)
    assert fit.stopped and fit.objective[fit.kept] < min(fit.objective.values()) + 0.1
    assert all(bool(p.isfinite().all()) for p in fit.bridge.parameters())


def test_a_watch_keeps_what_is_no_worse_than_chance_and_says_what_is_wrong(small):
    problem, x, y = small
    log_a, r, S = problem.potential()
    bridge = LightBridge(log_a, r, Full.of(S), 1.0)
    watch = Watch(bridge, x[:2000].double(), y[:2000].double(), 100)
    assert [s for s in range(101) if watch.due(s)] == list(range(0, 101, 5))
    shift = torch.randn(5, 4, generator=seeded(), dtype=torch.float64)

    def looked(step, change):
        with torch.no_grad():
            bridge.centre.copy_(r + change)
        return watch.look(step, patience=2), watch.kept

    assert looked(40, 1e-3 * shift) == (False, 40)  # too little to tell
    assert looked(45, shift) == (False, 40)
    assert looked(50, 2e-3 * shift) == (False, 50)  # begins to count anew
    assert looked(55, shift) == (False, 50)
    assert looked(60, shift) == (True, 50) and "worse for 2 looks" in watch.rest
    watch.restore()
    assert torch.equal(bridge.centre, r + 2e-3 * shift)

    for scale, words in ((40.0, "runs to infinity"), (-40.0, "runs to 0"), (1e9, "objective is")):
        other = LightBridge(log_a, r, Full.of(S), 1.0)
        watch = Watch(other, x[:500].double(), y[:500].double(), 100)
        with torch.no_grad():
            other.covariance.log_scale[0, 0] = scale
        assert watch.look(5, patience=2) and words in watch.alarm
    endless = Watch(LightBridge(log_a, r, Full.of(S), 1.0), x[:9].double(), y[:9].double(), -1)
    assert endless.due(200) and not endless.due(150)


BAD = [
    ({"epsilon": 0.0}, "epsilon is 0.0"),
    ({"epsilon": float("nan")}, "epsilon is nan"),
    ({"covariance": "ful"}, "did you mean 'full'"),
    ({"start": "sinkhon"}, "did you mean 'sinkhorn'"),
    ({"loss": "primal"}, "loss is 'primal'"),
    ({"components": 0}, "components is 0"),
    ({"components": 91}, "components is 91 and source has 90 points"),
    ({"steps": -1}, "steps is -1"),
    ({"batch_size": 0}, "batch_size is 0"),
    ({"patience": 0}, "patience is 0"),
    ({"lr": 0.0}, "lr is 0.0"),
    ({"width": -1.0}, "width is -1.0"),
    ({"held_out": 1.0}, "held_out is 1.0"),
    ({"dtype": torch.float16}, "dtype is torch.float16"),
    ({"covariance": "lowrank", "rank": 2}, "rank is 2 in 2 dimensions"),
    ({"coupling": lambda y, x: (y, x)}, "set loss='matching'"),
]


@pytest.mark.parametrize(("options", "sentence"), BAD)
def test_bad_options_are_told_in_one_sentence(options, sentence):
    x = torch.randn(100, 2, generator=seeded())
    with pytest.raises(UserError, match=sentence) as error:
        fit_bridge(x, x + 1, **{"epsilon": 1.0, "components": 5, **options})
    assert "\n" not in str(error.value)


def test_bad_clouds_are_told_in_one_sentence():
    x = torch.randn(100, 3, generator=seeded())
    poisoned, flat = x.clone(), x.clone()
    poisoned[3, 1] = float("nan")
    poisoned[7, 0] = float("inf")
    flat[:, 2] = 4.0
    for source, target, sentence in [
        (poisoned, x, "source has 2 of 100 points with NaN"),
        (x, poisoned, "target has 2 of 100"),
        (x, flat, "target is constant in column 2"),
        (x[:, :2], x, "source has 2 columns and target 3"),
        (x[0], x, r"source has shape \(3,\)"),
        (x[:0], x, "n and d of 1 or more"),
    ]:
        with pytest.raises(UserError, match=sentence):
            fit_bridge(source, target, epsilon=1.0, components=3)
    # a source may be constant in a column, or a single point many times
    assert fit_bridge(flat, x, epsilon=1.0, components=3, steps=5).steps == 5
    assert fit_bridge(0 * x, x, epsilon=1.0, components=3, steps=5).steps == 5


# ------------------------------------------------------------------------------- steps


def test_centres_move_in_units_of_their_widths():
    centre = torch.zeros(2, 2, dtype=torch.float64)
    S = torch.tensor([[0.01, 1.0], [4.0, 0.25]], dtype=torch.float64)
    bridge = LightBridge(torch.zeros(2), centre, Full.of(torch.diag_embed(S)), 0.25)
    assert torch.allclose(variances(bridge), 0.25 * S, atol=1e-12)
    optimizer = BridgeAdam(bridge, lr=0.1)
    for p in bridge.parameters():
        p.grad = torch.full_like(p, 7.0)
    optimizer.step()
    # Adam's first step has the length of the rate, whatever the gradient
    assert torch.allclose(bridge.centre, -0.1 * (0.25 * S).sqrt(), rtol=1e-6)
    assert torch.allclose(
        bridge.log_weight, torch.full((2,), -0.1, dtype=torch.float64), rtol=1e-6
    )


def test_the_cycle_rises_and_falls_once():
    rates = [one_cycle(i, 1000) for i in range(1001)]
    assert rates[0] == pytest.approx(0.04) and max(rates) == rates[300] == 1
    assert all(a < b for a, b in zip(rates[:300], rates[1:301], strict=True))
    assert all(a > b for a, b in zip(rates[300:1000], rates[301:], strict=True))
    assert rates[1000] == pytest.approx(0, abs=1e-12)
    assert one_cycle(0, 1) <= 1
    assert [growth(i, 8) for i in range(8)] == [1, 1, 1, 1, 4, 4, 8, 8]
