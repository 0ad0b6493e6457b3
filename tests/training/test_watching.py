from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
import numpy as np
from PIL import Image
import pytest
from short_runs import fit, saver, tiny
import torch

from genflow.data import Toy
from genflow.errors import UserError
from genflow.nn import MLP
from genflow.training import EMA, Diverged, LossGuard, RectifiedFlow, SampleGrid, read_checkpoint


class Poisoned(RectifiedFlow):
    """Its loss is not a number at step 3."""

    def loss(self, batch, *, step, **numbers):
        loss = super().loss(batch, step=step, **numbers)
        return loss * (float("nan") if step == 3 else 1.0)


def test_a_bad_loss_stops_the_run_and_spares_the_checkpoints(tmp_path):
    module = Poisoned(tiny().net)
    with pytest.raises(Diverged) as caught:
        fit(tmp_path, 9, EMA(0.9), LossGuard(), saver(tmp_path), module=module)

    message = str(caught.value)
    assert "the loss is nan at step 3" in message and "\n" not in message
    assert message.endswith(f"the last good checkpoint is {tmp_path / 'step=3.ckpt'}.")
    assert sorted(p.name for p in tmp_path.glob("*")) == [f"step={i}.ckpt" for i in (1, 2, 3)]
    weights = [*read_checkpoint(tmp_path / "step=3.ckpt").raw.values(), *module.parameters()]
    assert all(w.isfinite().all() for w in weights)


def lazy(guard):
    """The guard as it is on a GPU: the losses seem not to be on the CPU."""

    class Elsewhere:
        type = "elsewhere"

    class Loss(torch.Tensor):
        device = Elsewhere()

    before = guard.on_before_backward

    def hook(trainer, module, loss):
        seen = loss.detach().as_subclass(Loss)
        seen.detach = lambda: loss.detach()
        before(trainer, module, seen)

    guard.on_before_backward = hook
    return guard


def test_a_late_look_comes_before_the_file(tmp_path):
    guard = lazy(LossGuard(every=100))
    with pytest.raises(Diverged, match="nan at step 3"):
        fit(tmp_path, 9, guard, saver(tmp_path, 2), module=Poisoned(tiny().net))
    assert [p.name for p in tmp_path.glob("*")] == ["step=2.ckpt"]


def test_a_late_look_happens_in_time_and_at_the_end(tmp_path):
    for every, steps in ((5, 9), (100, 5)):
        guard = lazy(LossGuard(every=every))
        with pytest.raises(Diverged, match="step 3.*there is no checkpoint from before"):
            fit(tmp_path, steps, guard, module=Poisoned(tiny().net))


def test_weights_that_are_not_finite_are_never_stored(tmp_path):
    class Burst(RectifiedFlow):
        def on_before_optimizer_step(self, optimizer):
            if self.global_step == 2:
                next(self.net.parameters()).grad.fill_(float("inf"))

    for light in (False, True):
        folder = tmp_path / str(light)
        with pytest.raises(Diverged, match="weights are no longer finite after step 2"):
            fit(
                folder, 9, saver(folder, save_weights_only=light), module=Burst(tiny().net),
                gradient_clip_val=None,
            )  # fmt: skip
        assert sorted(p.name for p in folder.glob("*")) == ["step=1.ckpt", "step=2.ckpt"]


def test_grids_are_written_and_change_nothing(tmp_path):
    plain = fit(tmp_path / "plain", 4, EMA(0.9))
    grids = SampleGrid(every=2, n=12, steps=2, guidance=2.0)
    logger = TensorBoardLogger(str(tmp_path), name="", version="run")
    watched = fit(tmp_path, 4, EMA(0.9), grids, logger=logger)

    assert watched[1].train == plain[1].train
    for a, b in zip(watched[0].parameters(), plain[0].parameters(), strict=True):
        assert torch.equal(a, b)
    folder = tmp_path / "run" / "samples"
    names = ["step-000000002.png", "step-000000004.png"]
    assert sorted(p.name for p in folder.iterdir()) == names
    first, last = (np.asarray(Image.open(folder / n)) for n in names)
    assert first.shape == (3 * 34 + 2, 4 * 34 + 2, 3) and (first != last).any()
    assert watched[0].net.training

    module, _, ema, _ = watched
    module.net.eval()
    with ema.average(module):
        again = grids.grid(module)
    assert np.array_equal(again.permute(1, 2, 0).numpy(), last)
    assert not torch.equal(grids.grid(module), again)


def test_grids_refuse_what_they_cannot_draw(tmp_path):
    points = RectifiedFlow(MLP(2, 8, 1))
    with pytest.raises(UserError, match=r"shape \(2,\): remove the callback"):
        fit(tmp_path, 1, SampleGrid(), module=points, data=Toy(batch_size=8))
    with pytest.raises(UserError, match="no classes: leave guidance out"):
        fit(tmp_path, 1, SampleGrid(guidance=2.0), module=tiny(classes=None))
    with pytest.raises(UserError, match="did you mean 'heun'"):
        fit(tmp_path, 1, SampleGrid(sampler="heum"))
    with pytest.raises(UserError, match="every is 0"):
        SampleGrid(every=0)
    with pytest.raises(UserError, match="every is 0"):
        LossGuard(every=0)


def test_a_picture_that_cannot_be_written_is_no_reason_to_stop(tmp_path):
    (tmp_path / "samples").write_text("in the way")
    with pytest.warns(UserWarning, match="a grid of samples is left out"):
        fit(tmp_path, 2, SampleGrid(every=2, n=4, steps=1))


def test_the_logged_losses_are_those_of_their_steps_also_after_a_resume(tmp_path):
    def rows(version, steps, ckpt=None):
        logger = CSVLogger(str(tmp_path), name="", version=version)
        _, losses, _, _ = fit(
            tmp_path, steps, saver(tmp_path, 3), logger=logger, log_every_n_steps=2, ckpt=ckpt
        )
        lines = (tmp_path / version / "metrics.csv").read_text().split()
        head = lines[0].split(",")
        table = [dict(zip(head, line.split(","), strict=True)) for line in lines[1:]]
        return {int(r["step"]): float(r["loss"]) for r in table}, losses.train

    logged, seen = rows("whole", 6)
    assert sorted(logged) == [1, 3, 5]
    assert all(logged[s] == pytest.approx(seen[s], rel=1e-6) for s in logged)
    again, _ = rows("again", 6, ckpt=tmp_path / "step=3.ckpt")
    assert again == {3: logged[3], 5: logged[5]}
