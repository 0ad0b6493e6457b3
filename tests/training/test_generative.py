import math

from lightning.pytorch import Callback
import pytest
from scipy import stats
from short_runs import fit, tiny
import torch

from genflow.data import Digits
from genflow.data.stream import seeded
from genflow.errors import UserError
from genflow.models import Karras, Preconditioned, Rectified, StudentT
from genflow.nn import MLP, UNet
from genflow.training import (
    Coupling,
    GenerativeModule,
    Independent,
    LogitNormal,
    LogNormal,
    RectifiedFlow,
    Uniform,
)


def batch(n=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    return {"x": torch.rand(n, 1, 8, 8, generator=g) * 2 - 1, "label": torch.arange(n) % 10}


# ------------------------------------------------------------------------------- the loss


def test_the_loss_is_the_one_of_rectified_flow():
    module = tiny(dropout=0.0, label_dropout=0.5).eval()
    b = batch(16)
    x, z, t, cond = module.draw(b, module._source("train", 3, 0, 0))
    x_t = (1 - t[:, None, None, None]) * x + t[:, None, None, None] * z
    v = module.net.model(x_t, 1000 * t, class_labels=cond["label"]).sample
    by_hand = (v - (z - x)).square().mean()

    torch.testing.assert_close(module.loss(b, step=3), by_hand)
    assert torch.equal(x, b["x"])


def test_labels_are_dropped_at_the_given_rate():
    module = tiny(label_dropout=0.25)
    b = {"x": torch.zeros(4000, 1, 8, 8), "label": torch.zeros(4000, dtype=torch.int64)}
    *_, cond = module.draw(b, module._source("train", 0, 0, 0))
    assert abs((cond["label"] == 10).float().mean() - 0.25) < 0.03
    *_, cond = module.draw(b, module._source("train", 0, 0, 0), dropout=False)
    assert (cond["label"] == 0).all()


def test_a_network_without_classes_needs_no_label():
    assert tiny(classes=None).loss({"x": batch()["x"]}, step=0).isfinite()


@pytest.mark.parametrize("other", [{"step": 1}, {"place": 1}])
def test_a_step_its_parts_and_its_ranks_have_their_own_noise(other):
    module, b = tiny(), batch()
    here = {"step": 0, "place": 0}

    def draws(**numbers):
        return module.draw(b, module._source("train", *numbers.values()))

    _, z, t, _ = draws(**here)
    _, z_same, t_same, _ = draws(**here)
    _, z_other, t_other, _ = draws(**(here | other))

    assert torch.equal(z, z_same) and torch.equal(t, t_same)
    assert not torch.isclose(z, z_other).any() or (z - z_other).abs().mean() > 0.5
    assert not torch.equal(t, t_other)
    assert module.loss(b, **here) != module.loss(b, **(here | other))


def test_masks_of_dropout_belong_to_the_step():
    module = tiny(dropout=0.5)
    module._masks = True
    first = module.loss(batch(), step=0)
    torch.rand(5)
    assert module.loss(batch(), step=0) == first


def test_the_global_generator_is_left_alone_without_dropout(tmp_path):
    for dropout in (0.0, 0.1):
        module = fit(tmp_path, 1, module=tiny(dropout=dropout))[0]
        before = torch.get_rng_state()
        module.loss(batch(), step=0)
        assert torch.equal(torch.get_rng_state(), before) == (dropout == 0)


def test_accumulated_batches_have_their_own_noise(tmp_path):
    seen = []

    class Spy(RectifiedFlow):
        def loss(self, batch, **numbers):
            seen.append(tuple(numbers.values()))
            return super().loss(batch, **numbers)

    module = Spy(tiny().net)
    fit(tmp_path, 2, module=module, accumulate_grad_batches=2)
    assert seen == [(0, 0), (0, 1), (1, 0), (1, 1)]


# ------------------------------------------------------------------------- the validation


def test_two_validations_of_the_same_weights_agree(tmp_path):
    data = Digits(batch_size=64, validation=0.1)
    module = tiny(lr=1e-12)
    _, losses, _, run = fit(tmp_path, 4, module=module, data=data, val_check_interval=2)
    half = len(losses.val) // 2
    assert half == 3
    assert losses.val[:half] == pytest.approx(losses.val[half:], rel=1e-5)
    assert math.isfinite(run.callback_metrics["val_loss"])


# -------------------------------------------------------------------------- the optimiser


def rates(tmp_path, steps, **options):
    seen = []

    class Spy(RectifiedFlow):
        def optimizer_step(self, *args, **kwargs):
            seen.append(self.optimizers().param_groups[0]["lr"])
            super().optimizer_step(*args, **kwargs)

    module = Spy(tiny().net, lr=1.0e-3, **options)
    run = fit(tmp_path, steps, module=module)[-1]
    assert run.optimizers[0].defaults["fused"]
    return [r / 1e-3 for r in seen]


def test_the_learning_rate(tmp_path):
    assert rates(tmp_path, 3) == [1, 1, 1]
    assert rates(tmp_path, 4, warmup=4) == pytest.approx([0.25, 0.5, 0.75, 1])
    cosine = [0.5 * (1 + math.cos(math.pi * i / 4)) for i in range(4)]
    assert rates(tmp_path, 4, decay="cosine") == pytest.approx(cosine)


def test_a_cosine_needs_an_end(tmp_path):
    with pytest.raises(UserError, match="max_steps is -1"):
        fit(tmp_path, -1, module=tiny(decay="cosine"), max_epochs=1)


class Norms(Callback):
    """Keeps the norm of the gradients that the optimiser sees."""

    def __init__(self):
        self.seen = []

    def on_before_zero_grad(self, trainer, module, optimizer):
        grads = [p.grad for p in module.parameters() if p.grad is not None]
        if grads:
            self.seen.append(float(torch.nn.utils.get_total_norm(grads)))


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_mixed_precision_clips_and_follows_single_precision(tmp_path, algorithm):
    clip = {"gradient_clip_val": 1e-2, "gradient_clip_algorithm": algorithm}
    runs = {}
    for precision in ("32-true", "bf16-mixed"):
        norms = Norms()
        made = tiny(dropout=0.0)
        _, losses, _, trainer = fit(tmp_path, 3, norms, module=made, precision=precision, **clip)
        runs[precision] = list(losses.train.values())
        count = sum(p.numel() for p in made.parameters())
        assert norms.seen and max(norms.seen) <= 1e-2 * (count**0.5 if algorithm == "value" else 1)
        assert trainer.optimizers[0].defaults["fused"]
        assert all(p.dtype == torch.float32 for p in made.parameters())
    assert runs["bf16-mixed"] == pytest.approx(runs["32-true"], rel=0.02)
    assert runs["bf16-mixed"] != runs["32-true"]


def test_checkpointing_keeps_less_and_changes_no_gradient():
    """Also where dropout draws its masks: they are drawn again alike."""

    def step(**options):
        module, kept = tiny(**options).train(), {}
        own = {p.untyped_storage().data_ptr() for p in module.parameters()}

        def keep(x):
            if x.untyped_storage().data_ptr() not in own:
                kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        torch.manual_seed(3)
        batch = {"x": torch.rand(4, 1, 8, 8), "label": torch.arange(4)}
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            loss = module.loss(batch, step=0)
        held = sum(kept.values())
        loss.backward()
        return held, [p.grad for p in module.parameters()]

    (much, plain), (little, again) = step(), step(gradient_checkpointing=True)
    assert little < 0.6 * much
    for a, b in zip(plain, again, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_a_network_without_blocks_cannot_be_checkpointed():
    with pytest.raises(UserError, match="VectorMLP has no blocks to compute again"):
        RectifiedFlow(MLP(2, width=8), gradient_checkpointing=True)


@pytest.mark.parametrize("options", [{"compile": True}, {"channels_last": True}])
def test_layouts_and_compilation_change_no_loss(tmp_path, options, monkeypatch):
    if "compile" in options:
        monkeypatch.setattr(torch.nn.Module, "compile", lambda self: seen.append(type(self)))
    seen = []
    plain = fit(tmp_path, 2, module=tiny(dropout=0.0))[1]
    other = fit(tmp_path, 2, module=tiny(dropout=0.0, **options))[1]
    assert list(plain.train.values()) == pytest.approx(list(other.train.values()), rel=1e-4)
    assert seen == ([UNet] if "compile" in options else [])


# ----------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": 0.0}, "lr is 0.0"),
        ({"betas": (0.9, 1.0)}, "betas are"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0"),
        ({"warmup": -1}, "warmup is -1"),
        ({"decay": "cosin"}, "did you mean 'cosine'"),
        ({"label_dropout": 1.0}, "label_dropout is 1.0"),
        ({"seed": -2}, "seed is -2"),
    ],
)
def test_options_out_of_range(options, words):
    with pytest.raises(UserError, match=words):
        tiny(**options)


def test_wrong_channels_are_named_before_training(tmp_path):
    module = RectifiedFlow(UNet(32, 3, widths=(8, 8), layers=1, attention=(), groups=4))
    with pytest.raises(UserError) as caught:
        fit(tmp_path, 1, module=module)
    assert str(caught.value) == (
        "the data has 1 channels (1, 8, 8), the network wants (3, 32, 32): set "
        "model.net.init_args.channels to 1 and model.net.init_args.size to 8."
    )


def test_other_misfits(tmp_path):
    with pytest.raises(UserError, match=r"shape \(1, 8, 8\), the network wants \(2,\)"):
        fit(tmp_path, 1, module=RectifiedFlow(MLP(2, 8, 1)))
    with pytest.raises(UserError, match=r"10 classes, the network wants 7: .*classes to 10"):
        fit(tmp_path, 1, module=tiny(classes=7))
    with pytest.raises(UserError, match="no labels, the network wants 10 classes"):
        tiny().loss({"x": batch()["x"]}, step=0)
    with pytest.raises(UserError, match=r"1 channels \(1, 4, 4\).*init_args.size to 4"):
        tiny().loss({"x": torch.zeros(2, 1, 4, 4)}, step=0)


# ------------------------------------------------------------------------- laws of times


@pytest.mark.parametrize("stratified", [False, True])
@pytest.mark.parametrize(
    ("law", "path", "cdf"),
    [
        (Uniform, Rectified(), stats.uniform().cdf),
        (lambda **o: Uniform(0.2, 0.6, **o), Rectified(), stats.uniform(0.2, 0.4).cdf),
        (
            lambda **o: LogitNormal(0.5, 0.8, **o),
            Rectified(),
            lambda t: stats.norm(0.5, 0.8).cdf(torch.logit(torch.as_tensor(t))),
        ),
        (
            LogNormal,
            Karras(),
            lambda t: stats.norm(-1.2, 1.2).cdf(-Karras().lam(torch.as_tensor(t))),
        ),
    ],
)
def test_times_follow_their_law(law, path, cdf, stratified):
    g = torch.Generator().manual_seed(0)
    t = law(stratified=stratified).sample(5000, path, generator=g)

    assert t.shape == (5000,) and t.dtype == torch.float32
    assert path.t_min <= t.min() and t.max() <= path.t_max
    distance, p = stats.kstest(t.double().numpy(), cdf)
    assert p > 0.05
    if stratified:
        assert distance < 1 / 5000 + 1e-3


@pytest.mark.parametrize(
    "bad", [lambda: Uniform(0.5, 0.5), lambda: Uniform(-1), lambda: LogitNormal(std=0)]
)
def test_impossible_laws(bad):
    with pytest.raises(UserError, match="times"):
        bad()


def test_the_independent_coupling_touches_nothing():
    x, z = torch.zeros(2, 3), torch.ones(2, 3)
    assert Independent()(x, z) == (x, z)
    assert isinstance(Independent(), Coupling)


def test_any_denoiser_can_be_trained():
    denoiser = Preconditioned(MLP(2, 16, 1), Karras(noise=StudentT(16.0)), "karras")
    module = GenerativeModule(denoiser, LogNormal(), Independent())
    loss = module.loss({"x": torch.randn(8, 2, generator=seeded("x"))}, step=0)
    assert loss.isfinite() and loss.requires_grad
