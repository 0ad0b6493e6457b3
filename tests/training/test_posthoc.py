"""Averages chosen after the run: golden coefficients, and averages that nobody kept."""

from oracles import golden
import pytest
from short_runs import fit, saver, tiny
import torch

from genflow.cli import main
from genflow.errors import UserError
from genflow.pipelines import Pipeline
from genflow.training import EMA, PostHocEMA, read_checkpoint, reconstruct
from genflow.training.profiles import WIDEST, coefficients, decay, exponent

RECORD, ARRAYS = golden("pfgmpp")


# ------------------------------------------------------------------------------- profiles


def test_golden_exponents_and_decays():
    for width, gamma in RECORD["phema_std_to_exp"].items():
        assert exponent(float(width)) == pytest.approx(gamma, rel=1e-12)
    for case in RECORD["phema_beta"]:
        beta = decay(case["t_next"], case["std"], case["t_delta"])
        assert beta == pytest.approx(case["beta"], rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("width", [0.03, 0.075, 0.15, 0.2])
def test_golden_coefficients(width):
    steps = ARRAYS["phema/in_ofs"].numpy()
    found, _ = coefficients(steps, ARRAYS["phema/in_std"].numpy(), steps.max(), width)
    truth = ARRAYS[f"phema/coef_out_std{width}"]
    torch.testing.assert_close(torch.from_numpy(found), truth, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("width", [0.04, 0.1, 0.2])
def test_the_width_is_the_deviation_of_the_weights(width):
    """Running the decays gives a profile of the width, with most weight near the end."""

    N = 4000
    share = torch.zeros(N + 1, dtype=torch.float64)
    for t in range(1, N + 1):
        beta = decay(t, width)
        share = beta * share
        share[t] += 1 - beta
    at = torch.arange(N + 1) / N
    mean = (share * at).sum()
    assert float(share.sum()) == pytest.approx(1)
    assert float((share * (at - mean) ** 2).sum().sqrt()) == pytest.approx(width, rel=2e-3)


def test_the_error_of_a_profile():
    """Nothing for one that was kept, and less the more were."""

    kept, error = coefficients([5, 10, 10], [0.05, 0.05, 0.1], 10, 0.05)
    assert error < 1e-6 and kept[1] == pytest.approx(1)
    errors = []
    for count in (4, 8, 16):
        steps = [100 * (i + 1) / count for i in range(count) for _ in range(2)]
        errors.append(coefficients(steps, [0.05, 0.1] * count, 100, 0.075)[1])
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.01


@pytest.mark.parametrize("width", [0.0, -0.1, WIDEST, 0.5, float("nan")])
def test_impossible_widths(width):
    with pytest.raises(UserError, match="width is"):
        exponent(width)


# ------------------------------------------------------------------------------ the callback


class Walk:
    """Weights on a random walk, in place of an optimiser."""

    def __init__(self, *widths):
        self.ema = PostHocEMA(widths)
        self.p = torch.zeros(50)
        self.ema._names, self.ema._weights = ["p"], [self.p]
        self.ema._averages = {w: [torch.zeros(50)] for w in widths}
        self.g = torch.Generator().manual_seed(0)

    def step(self, t):
        self.p += torch.randn(50, generator=self.g) / 10
        self.ema.update(t)


def test_a_width_that_was_not_kept_is_nearly_what_it_would_have_been():
    kept, wanted = Walk(0.05, 0.1), Walk(0.07)
    found, where = [], []

    for t in range(1, 801):
        kept.step(t)
        wanted.step(t)
        if t % 50 == 0:
            found += [kept.ema.averages(w)["p"].clone() for w in (0.05, 0.1)]
            where += [(t, 0.05), (t, 0.1)]

    shares, _ = coefficients([t for t, _ in where], [w for _, w in where], 800, 0.07)
    ours = sum(c * f for c, f in zip(shares, found))
    truth = wanted.ema.averages(0.07)["p"]
    distance = float((ours - truth).norm())
    assert distance < 0.02 * float((kept.p - truth).norm())
    assert distance < 0.05 * float((found[-1] - truth).norm())


def run(root, steps, *callbacks, **options):
    hoc = PostHocEMA((0.1, 0.2), every=2)
    result = fit(root, steps, EMA(0.9), hoc, saver(root, 3), *callbacks, **options)
    return result[0], hoc


def files(root):
    return sorted(p.name for p in (root / "posthoc").iterdir())


def test_snapshots_and_what_is_made_of_them(tmp_path):
    module, hoc = run(tmp_path, 5)
    assert files(tmp_path) == [
        f"width-{w}-step-00000000{t}.safetensors" for w in ("0.1", "0.2") for t in (2, 4, 5)
    ]
    found, step, error = reconstruct(tmp_path / "posthoc", 0.2)
    assert (
        step == 5 and error < 1e-6 and found.keys() == dict(module.net.named_parameters()).keys()
    )
    for name, average in hoc.averages(0.2).items():
        torch.testing.assert_close(found[name], average, rtol=1e-5, atol=1e-6)
    assert reconstruct(tmp_path / "posthoc", 0.15, step=4)[1] == 4

    # The average of step t remembers weights, so it lags behind them, and more if it is wider.
    weights = dict(module.net.named_parameters())

    def lag(width):
        return sum(float((a - weights[n]).norm()) for n, a in hoc.averages(width).items())

    assert 0 < lag(0.1) < lag(0.2)


def test_a_resumed_run_stores_what_an_unbroken_one_does(tmp_path):
    whole, again = tmp_path / "whole", tmp_path / "again"
    _, hoc = run(whole, 6)
    run(again, 3)
    _, second = run(again, 6, ckpt=again / "step=3.ckpt")
    assert set(files(whole)) <= set(files(again))
    for width in (0.1, 0.2):
        a, b = hoc.averages(width), second.averages(width)
        assert all(torch.equal(a[n], b[n]) for n in a)

    run(again, 4, ckpt=again / "step=3.ckpt")  # what lay in the future of step 3 is gone
    assert not [n for n in files(again) if n.endswith(("5.safetensors", "6.safetensors"))]


def test_half_precision(tmp_path):
    hoc = PostHocEMA((0.1,), every=10, precision="float16")
    fit(tmp_path, 2, hoc)
    found, _, _ = reconstruct(tmp_path / "posthoc", 0.1)
    for name, average in hoc.averages(0.1).items():
        torch.testing.assert_close(found[name], average, rtol=1e-3, atol=1e-4)


def test_export_of_a_width(tmp_path, capsys):
    root = tmp_path / "run" / "checkpoints"
    module = tiny()
    hoc = PostHocEMA((0.1, 0.2), every=1)
    fit(tmp_path / "run", 3, EMA(0.9), hoc, saver(root, 3), module=module)
    out = ["--output", str(tmp_path / "pipe"), "--overwrite"]
    assert main(["export", str(root / "step=3.ckpt"), "--ema_width", "0.2", *out]) == 0
    assert "width 0.2 at step 3" in capsys.readouterr().out
    pipe = Pipeline.from_pretrained(tmp_path / "pipe")
    assert pipe.card["ema_width"] == 0.2 and pipe.card["training_steps"] == 3
    for name, weight in pipe.denoiser.net.named_parameters():
        torch.testing.assert_close(weight, hoc.averages(0.2)[name], rtol=1e-5, atol=1e-6)

    for extra, words in (
        (["--ema_width", "0.9"], "width is 0.9"),
        (["--ema_width", "0.1", "--weights", "raw"], "goes with averaged weights"),
    ):
        assert main(["export", str(root / "step=3.ckpt"), *extra, *out]) == 2
        assert words in capsys.readouterr().err


# --------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"widths": ()}, "widths are"),
        ({"widths": (0.1, 0.1)}, "all different"),
        ({"widths": (0.3,)}, "width is 0.3"),
        ({"every": 0}, "every is 0"),
        ({"precision": "float8"}, "precision is 'float8'"),
    ],
)
def test_options_out_of_range(options, words):
    with pytest.raises(UserError, match=words):
        PostHocEMA(**options)


def test_averages_need_the_whole_run(tmp_path):
    fit(tmp_path, 2, EMA(0.9), saver(tmp_path, 2))
    with pytest.raises(UserError, match=r"averages of widths \[\], .* \[0.1, 0.2\]"):
        run(tmp_path, 4, ckpt=tmp_path / "step=2.ckpt")
    assert read_checkpoint(tmp_path / "step=2.ckpt").step == 2


def test_missing_and_damaged_snapshots(tmp_path):
    with pytest.raises(UserError, match="no snapshots up to step inf"):
        reconstruct(tmp_path, 0.1)
    (tmp_path / "width-0.1-step-000000001.safetensors").write_bytes(b"12345678901")
    with pytest.raises(UserError, match="is damaged"):
        reconstruct(tmp_path, 0.1)
