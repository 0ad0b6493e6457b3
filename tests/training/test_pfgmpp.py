"""PFGM++ in training: preconditioning, loss, balance of levels, stable targets, resuming."""

from functools import partial
import math

from oracles import double, golden
import pytest
from scipy import stats
from short_runs import fit, saver, tiny
import torch
from torch import nn

from genflow.errors import UserError
from genflow.models import (
    Discrete,
    Empirical,
    Karras,
    Rectified,
    StudentT,
    VariancePreserving,
    path_to_dict,
)
from genflow.nn import MLP
from genflow.training import (
    EMA,
    PFGMPP,
    Diffusion,
    LogNormal,
    RectifiedFlow,
    StableTarget,
    Uncertainty,
    read_checkpoint,
)
from genflow.training.checks import wrong_record

RECORD, ARRAYS = golden("pfgmpp")


def small(D=64.0, classes=10, **options):
    return PFGMPP(tiny(dropout=0.0, classes=classes).net, D, **options)


def digits(n=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    return {"x": torch.rand(n, 1, 8, 8, generator=g) * 2 - 1, "label": torch.arange(n) % 10}


# ------------------------------------------------------------------------- preconditioning


class Stub(nn.Module):
    """F(a, ·) = tanh(1.5 a) + 0.1, and what it was shown."""

    def forward(self, x, time):
        self.seen = x, time
        return torch.tanh(1.5 * x) + 0.1


def test_golden_preconditioning():
    """Both ways in and the way out, at twelve noise levels up to 380."""

    denoiser = PFGMPP(Stub(), sigma_max=400.0).denoiser
    t = denoiser.path.inverse(-ARRAYS["precond/sigma"].log())
    data = denoiser(ARRAYS["precond/x"].double(), t)
    x, time = denoiser.net.seen
    for got, name in ((x, "model_in"), (time, "c_noise"), (data, "D")):
        truth = ARRAYS[f"precond/edm/{name}"].double()
        torch.testing.assert_close(got.double(), truth, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("entry", RECORD["edm_precond"], ids=lambda e: str(e["sigma"]))
def test_golden_coefficients(entry):
    """c_skip, c_out, c_in and c_noise do not depend on D; the weight is 1/c_out²."""

    for D in (2.0, 128.0, math.inf):
        denoiser = PFGMPP(Stub(), D, sigma_max=400.0).denoiser
        c = denoiser.coefficients(denoiser.path.inverse(-double(entry["sigma"]).log()))
        close = partial(pytest.approx, rel=1e-9)
        assert float(c.data[0]) == close(entry["c_skip"])
        assert float(c.data[1]) == close(entry["c_out"])
        assert float(c.scale) == close(entry["c_in"])
        assert float(c.data[1]) ** -2 == close(entry["loss_weight"])


@pytest.mark.parametrize("entry", RECORD["second_moment_precond"][::3], ids=str)
def test_second_moment_coefficients(entry):
    denoiser = PFGMPP(
        Stub(), entry["D"], sigma_max=400.0, preconditioning="second-moment"
    ).denoiser
    c = denoiser.coefficients(denoiser.path.inverse(-double(entry["sigma"]).log()))
    assert float(c.data[0]) == pytest.approx(entry["c_skip"], rel=1e-9)
    assert float(c.data[1]) == pytest.approx(entry["c_out"], rel=1e-9)
    assert float(c.scale) == pytest.approx(entry["c_in"], rel=1e-9)


@pytest.mark.parametrize("D", [6.0, 40.0])
def test_second_moments_are_one(D):
    """Inputs and targets of the network have unit variance at every level, EDM's have not."""

    def variances(how):
        d = PFGMPP(Stub(), D, preconditioning=how).denoiser
        g = torch.Generator().manual_seed(0)
        x = 0.5 * torch.randn(200_000, 4, generator=g, dtype=torch.float64)
        z = d.path.noise.sample(x.shape, generator=g, dtype=torch.float64)
        t = d.path.inverse(-double([3.0]).log())
        c = d.coefficients(t)
        target = c.target[0] * x + c.target[1] * z
        return float((c.scale * d.path.perturb(x, z, t)).var()), float(target.var())

    assert variances("second-moment") == pytest.approx((1, 1), rel=0.02)
    assert variances("edm")[0] > 1 + 1.5 / D


# -------------------------------------------------------------------------------- the loss


@pytest.mark.parametrize("D", [2.0, 64.0, math.inf])
def test_the_loss_is_edms(D):
    """λ(σ) ‖D − x‖²/N with λ = (σ² + σ_d²)/(σ σ_d)², at drawn levels."""

    module, batch = small(D, sigma_data=0.7), digits(16)
    x, z, t, cond = module.draw(batch, module._source("train", 5, 0, 0))
    _, sigma = (c[:, None, None, None] for c in module.denoiser.path(t))
    data = module.denoiser(x + sigma * z, t, **cond)
    weight = (sigma**2 + 0.7**2) / (sigma * 0.7) ** 2
    by_hand = (weight * (data - x).square()).mean()
    torch.testing.assert_close(module.loss(batch, step=5), by_hand, rtol=1e-4, atol=1e-5)


def test_levels_are_log_normal():
    law, path = PFGMPP(Stub()).times, Karras()
    assert law == LogNormal(-1.2, 1.2)
    for p, sigma in RECORD["lognormal_sigma_quantiles"]["P_mean=-1.2,P_std=1.2"].items():
        _, got = path(law.quantile(double(float(p)), path))
        assert float(got) == pytest.approx(sigma, rel=1e-9)


@pytest.mark.parametrize("D", [1.5, 256.0])
def test_noise_that_is_drawn_in_training(D):
    module = small(D)
    batch = {"x": torch.zeros(3000, 1, 8, 8), "label": torch.zeros(3000, dtype=torch.int64)}
    _, z, _, _ = module.draw(batch, module._source("train", 0, 0, 0))
    radius = torch.linalg.vector_norm(z.flatten(1), dim=1, dtype=torch.float64)
    assert stats.kstest(radius, StudentT(D).radius(64).cdf).pvalue > 1e-3


@pytest.mark.parametrize(
    ("module", "path"),
    [
        (lambda net, law: RectifiedFlow(net, noise=law), Rectified),
        (lambda net, law: Diffusion(net, VariancePreserving(noise=law)), VariancePreserving),
        (lambda net, law: PFGMPP(net, law.D), Karras),
    ],
    ids=["flow", "ddpm", "pfgmpp"],
)
def test_the_minimiser_is_the_posterior_mean(module, path):
    """Trained on four points, a small network comes near the exact denoiser, at D = 3."""

    points = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]])
    torch.manual_seed(0)
    module = module(MLP(2, 64, 2), StudentT(3.0))
    assert module.denoiser.path == path(noise=StudentT(3.0))
    optimizer = torch.optim.Adam(module.parameters(), 3e-3)

    for step in range(250):
        optimizer.zero_grad()
        batch = {"x": points[torch.arange(128) % 4]}
        module.loss(batch, step=step).backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()

    truth = Empirical(module.denoiser.path, points)
    t = path().inverse(-torch.full((256,), 0.7).log())
    z = StudentT(3.0).sample((256, 2), generator=torch.Generator().manual_seed(1))
    x_t = module.denoiser.path.perturb(points[torch.arange(256) % 4], z.clamp(-3, 3), t)
    with torch.no_grad():
        error = (module.denoiser(x_t, t) - truth(x_t, t)).square().mean().sqrt()
    assert float(error) < 0.25 * float(truth(x_t, t).std())


# --------------------------------------------------------------------------- uncertainty


def test_uncertainty_learns_the_error_of_each_level():
    """The best u is the logarithm of the mean loss; then every level weighs the same."""

    model, g = Uncertainty(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)

    def errors(c):
        return torch.exp(2 * torch.sin(3 * c))

    assert torch.equal(model(torch.tensor([2.0]), torch.tensor([0.3])), torch.tensor([2.0]))
    for _ in range(800):
        c = torch.rand(256, generator=g) * 2 - 1
        noisy = errors(c) * torch.empty(256).exponential_(generator=g)
        optimizer.zero_grad()
        model(noisy, c).mean().backward()
        optimizer.step()

    c = torch.linspace(-0.9, 0.9, 30)
    torch.testing.assert_close(model.log_error(c), errors(c).log(), rtol=0, atol=0.5)
    assert (model.log_error(c) - errors(c).log()).square().mean().sqrt() < 0.2


def test_uncertainty_is_trained_resumed_and_dropped(tmp_path):
    def module():
        return small(uncertainty=True, warmup=2, lr=1e-2)

    whole = fit(tmp_path / "whole", 4, EMA(0.9), saver(tmp_path / "whole", 2), module=module())
    again = fit(
        tmp_path / "again", 4, EMA(0.9), module=module(), ckpt=tmp_path / "whole" / "step=2.ckpt"
    )
    weights = [run[0].uncertainty.weight for run in (whole, again)]
    assert weights[0].abs().max() > 1e-3 and torch.equal(*weights)
    kept = read_checkpoint(tmp_path / "whole" / "step=4.ckpt")
    assert kept.raw.keys() == whole[0].net.state_dict().keys() == kept.average.keys()
    with pytest.raises(UserError, match="features is 0"):
        Uncertainty(0)


# ------------------------------------------------------------------------- stable targets


@pytest.mark.parametrize("D", [3.0, math.inf])
@pytest.mark.parametrize("path", [Karras, VariancePreserving])
def test_stable_targets_keep_the_state_and_know_the_mean(path, D):
    path = path(noise=StudentT(D))
    g = torch.Generator().manual_seed(0)
    points = torch.randn(40, 3, generator=g, dtype=torch.float64)
    x, t = points[:5], double([0.35, 0.5, 0.6, 0.7, 0.9])
    z = path.noise.sample(x.shape, generator=g, dtype=torch.float64)
    mean, noise = StableTarget(5)(x, z, t, path, points, None)
    torch.testing.assert_close(path.perturb(mean, noise, t), path.perturb(x, z, t))
    truth = Empirical(path, points)(path.perturb(x, z, t), t)
    torch.testing.assert_close(mean, truth)
    assert (mean - x).abs().max() > 1e-2


def test_stable_targets_have_the_same_mean_and_less_variance():
    """Over draws of (x, z) that gave one state, single data average to the stable target."""

    g = torch.Generator().manual_seed(0)
    batch = {"x": torch.randn(512, 2, generator=g)}
    net = MLP(2, 8, 1)
    single = PFGMPP(net, 8.0)
    stable = PFGMPP(net, 8.0, stable_target=512)

    def gradients(module, step):
        net.zero_grad()
        module.loss(batch, step=step).backward()
        return torch.cat([p.grad.flatten() for p in net.parameters()])

    rows = [torch.stack([gradients(m, s) for s in range(60)]) for m in (single, stable)]
    means, spreads = [r.mean(0) for r in rows], [float(r.var(0).sum()) for r in rows]
    assert spreads[1] < 0.8 * spreads[0]
    scale = math.sqrt(sum(spreads) / 60)
    assert float((means[0] - means[1]).norm()) < 2 * scale


def test_stable_targets_respect_the_label():
    """References are those of the class that the network is told; all if it is told none."""

    module = small(8.0, stable_target=2, label_dropout=0.0)
    batch = digits(8) | {"label": torch.tensor([3, 4, 3, 4, 3, 5, 5, 5])}
    allowed = module._allowed(torch.tensor([3, 10]), batch)
    assert allowed.tolist() == [[b == 3 for b in batch["label"].tolist()], [True] * 8]
    seen = []
    regress = module.denoiser.regress
    module.denoiser.regress = lambda x, z, t, **c: seen.append((x, t, c)) or regress(x, z, t, **c)
    assert module.loss(batch, step=0).isfinite()
    (x, _, cond), alike = seen[0], batch["x"][[0, 2, 4]]
    assert len(x) == 2 and cond["label"].tolist() == [3, 4]
    # The first target lies in the plane of the three images of its class.
    basis = (alike[1:] - alike[0]).flatten(1)
    rest = (x[0] - alike[0]).flatten()
    found = torch.linalg.lstsq(basis.T, rest[:, None]).solution
    torch.testing.assert_close(basis.T @ found, rest[:, None], rtol=0, atol=1e-4)


# ------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"D": 0.0}, "D is 0.0"),
        ({"D": -3.0}, "D is -3.0"),
        ({"D": math.nan}, "D is nan"),
        ({"sigma_min": 2.0, "sigma_max": 2.0}, "sigma_min is 2.0 and sigma_max is 2.0"),
        ({"sigma_max": math.inf}, "sigma_max is inf"),
        ({"sigma_data": 0.0}, "sigma_data is 0.0"),
        ({"preconditioning": "edmm"}, "did you mean 'edm'"),
        ({"D": 2.0, "preconditioning": "second-moment"}, "take D above 2"),
        ({"stable_target": 0}, "stable_target is 0"),
        ({"lr": -1.0}, "lr is -1.0"),
    ],
)
def test_impossible_options(options, words):
    with pytest.raises(UserError, match=words):
        PFGMPP(Stub(), **options)


def test_a_checkpoint_of_another_path_is_refused_with_both_values(tmp_path):
    fit(tmp_path, 1, EMA(0.9), saver(tmp_path, 1), module=small(64.0))
    file = tmp_path / "step=1.ckpt"

    def resume(module):
        return fit(tmp_path, 2, EMA(0.9), module=module, ckpt=file)

    for module, words in (
        (small(128.0), "path.D is 64.0 there and 128.0 here"),
        (small(math.inf), "path.D is 64.0 there and inf here"),
        (small(64.0, sigma_max=40.0), "path.sigma_max is 80.0 there and 40.0 here"),
        (small(64.0, sigma_data=1.0), "sigma_data is 0.5 there and 1.0 here"),
        (small(64.0, preconditioning="second-moment"), "prediction is karras there and karras-m"),
        (tiny(dropout=0.0), "path is Karras there and Rectified here, prediction is karras"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            resume(module)
        assert "\n" not in str(caught.value)

    assert resume(small(64.0))[3].global_step == 2


def test_gaussian_noise_and_infinite_degrees_are_one_record():
    def record(path):
        return {"path": path_to_dict(path), "prediction": "v", "clock": "unit"}

    assert wrong_record(record(Karras()), record(Karras(noise=StudentT(math.inf)))) is None
    error = wrong_record(record(Discrete((0.9, 0.5))), record(Discrete((0.9, 0.4, 0.1))))
    assert "alphas_cumprod is 3 numbers there and 2 numbers here" in str(error)
