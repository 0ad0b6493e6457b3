from lightning.pytorch import Callback, Trainer
import pytest
from short_runs import fit, tiny, trainer
import torch

from genflow.data import Digits
from genflow.errors import UserError
from genflow.training import EMA, RectifiedFlow
from genflow.training.ema import averaged


def values(module):
    return [p.detach().clone() for p in module.net.parameters()]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


class Spy(Callback):
    """Keeps the raw weights after every step, and what validation sees in each of its hooks."""

    def __init__(self):
        self.raw, self.seen = [], []

    def on_train_batch_end(self, trainer, module, *args):
        self.raw.append(values(module))

    def on_validation_batch_end(self, trainer, module, *args):
        self.seen.append(values(module))

    on_validation_epoch_end = on_validation_start = on_validation_batch_end


def test_the_average_is_the_slow_one(tmp_path):
    spy, module = Spy(), tiny()
    slow = values(module)
    _, _, ema, _ = fit(tmp_path, 12, EMA(0.5), spy, module=module)

    for n, raw in enumerate(spy.raw, start=1):
        d = min(0.5, (1 + n) / (10 + n))
        slow = [d * a + (1 - d) * p for a, p in zip(slow, raw, strict=True)]

    assert ema.updates == 12 and (1 + 12) / (10 + 12) > 0.5
    for a, b in zip(ema.weights().values(), slow, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_validation_sees_the_average_and_training_does_not(tmp_path):
    class Module(RectifiedFlow):
        def on_validation_epoch_end(self):
            ends.append(values(self))

    ends, spy = [], Spy()
    data = Digits(batch_size=64, validation=0.05)
    settings = {"data": data, "val_check_interval": 2}
    module, losses, ema, _ = fit(tmp_path, 4, EMA(0.9), spy, module=Module(tiny().net), **settings)
    _, plain, _, _ = fit(tmp_path, 4, module=Module(tiny().net), **settings)

    average = list(ema.weights().values())
    assert all(same(seen, average) for seen in (spy.seen[-1], spy.seen[-3], ends[1]))
    assert not same(average, values(module)) and same(spy.raw[-1], values(module))
    assert losses.train == plain.train and losses.val != plain.val


def test_the_average_is_lent_and_given_back(tmp_path):
    module, _, ema, _ = fit(tmp_path, 3, EMA(0.9))
    raw = values(module)

    with pytest.raises(ZeroDivisionError), ema.average(module):
        assert same(values(module), ema.weights().values())
        with ema.average(module):
            assert same(values(module), ema.weights().values())
        assert same(values(module), ema.weights().values())
        raise ZeroDivisionError

    assert same(values(module), raw)


def test_an_interrupted_validation_gives_the_raw_weights_back(tmp_path):
    class Break(Callback):
        def on_validation_epoch_end(self, trainer, module):
            raise ZeroDivisionError

    spy, module = Spy(), tiny()
    with pytest.raises(ZeroDivisionError):
        fit(
            tmp_path, 4, EMA(0.9), spy, Break(), module=module, val_check_interval=2,
            data=Digits(batch_size=64, validation=0.05),
        )  # fmt: skip
    assert same(values(module), spy.raw[-1])


def test_a_checkpoint_after_the_fit_or_inside_the_loan_holds_both(tmp_path):
    module, _, ema, run = fit(tmp_path, 3, EMA(0.9))
    run.save_checkpoint(tmp_path / "after.ckpt")
    with ema.average(module):
        run.save_checkpoint(tmp_path / "inside.ckpt")

    for name in ("after", "inside"):
        found = torch.load(tmp_path / f"{name}.ckpt", weights_only=True)
        for key, p in module.net.named_parameters():
            assert torch.equal(found["state_dict"][f"denoiser.net.{key}"], p)
            assert torch.equal(found["callbacks"]["EMA"]["weights"][key], ema.weights()[key])

    going_on = fit(tmp_path, 6, EMA(0.9), ckpt=tmp_path / "after.ckpt")
    whole = fit(tmp_path, 6, EMA(0.9))
    assert same(values(going_on[0]), values(whole[0]))
    assert same(going_on[2].weights().values(), whole[2].weights().values())


def test_validating_a_checkpoint_uses_its_average(tmp_path):
    module, _, ema, run = fit(tmp_path, 3, EMA(0.9))
    run.save_checkpoint(tmp_path / "a.ckpt")
    spy, fresh = Spy(), tiny()
    settings, callbacks = trainer(tmp_path, 3, EMA(0.9), spy)
    data = Digits(batch_size=64, validation=0.05)
    Trainer(**settings, callbacks=callbacks).validate(
        fresh, data, ckpt_path=tmp_path / "a.ckpt", verbose=False
    )
    assert same(spy.seen[-1], ema.weights().values())
    assert same(values(fresh), values(module))


def test_accumulation_averages_once_a_step(tmp_path):
    assert fit(tmp_path, 3, EMA(), accumulate_grad_batches=2)[2].updates == 3


class Looks(Callback):
    """What a callback sees in `averaged` after every step, wherever it stands in the list."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, module, *args):
        with averaged(trainer, module):
            self.seen.append(values(module))


def test_the_average_is_that_of_the_step_wherever_its_callback_stands(tmp_path):
    before, after = Looks(), Looks()
    _, _, ema, _ = fit(tmp_path, 5, before, EMA(0.9), after)
    assert len(before.seen) == len(after.seen) == ema.updates == 5
    assert all(same(a, b) for a, b in zip(before.seen, after.seen, strict=True))
    assert same(before.seen[-1], ema.weights().values())
    assert not same(before.seen[-1], before.seen[-2])


def test_without_an_average_there_are_the_weights(tmp_path):
    looks, spy = Looks(), Spy()
    fit(tmp_path, 2, looks, spy)
    assert all(same(a, b) for a, b in zip(looks.seen, spy.raw, strict=True))


def test_half_precision_is_averaged_in_float32(tmp_path):
    _, _, ema, _ = fit(tmp_path, 3, EMA(0.9), module=tiny(), precision="bf16-true")
    assert {a.dtype for a in ema.weights().values()} == {torch.float32}


def test_another_module_starts_another_average(tmp_path):
    ema = EMA(0.9)
    fit(tmp_path, 3, ema)
    fit(tmp_path, 2, ema, module=tiny())
    assert ema.updates == 2


@pytest.mark.parametrize("decay", [1.0, -0.1])
def test_decay_out_of_range(decay):
    with pytest.raises(UserError, match=f"decay is {decay}"):
        EMA(decay)
