"""One global batch, shared out in several ways: the same examples, noise, gradients."""

import copy
from functools import partial
from types import SimpleNamespace

import pytest
from short_runs import fit, saver, tiny
import torch

from genflow.data import Digits, Toy
from genflow.data.stream import StreamSampler
from genflow.errors import UserError
from genflow.nn import MLP, DiT, UNet
from genflow.training import PFGMPP, Augmentation, OptimalTransport, RectifiedFlow, Uniform
from genflow.training.lots import cut


def flipped(size, *, rank=0, world=1, micro=0, accumulate=1, step=3):
    """A batch as a rank of a run gets it: read from the stream, flipped, in float."""

    data = Digits(batch_size=size, flip=True)
    current = SimpleNamespace(ready=micro + 5 * accumulate)
    loop = SimpleNamespace(batch_progress=SimpleNamespace(current=current))
    data.trainer = SimpleNamespace(
        training=True,
        global_step=step,
        global_rank=rank,
        world_size=world,
        accumulate_grad_batches=accumulate,
        fit_loop=SimpleNamespace(epoch_loop=loop),
    )
    sampler = StreamSampler(len(data.train_set), size, rank=rank, world=world)
    batch = data.train_set[sampler.batch(step * accumulate + micro)]
    return data.on_after_batch_transfer(batch, 0)


def shared_out(module, size, ways, step=3):
    """What is drawn for a global batch of batches of a size: (micro, rank) in the order given."""

    accumulate = 1 + max(m for m, _ in ways)
    world = 1 + max(r for _, r in ways)
    out = []
    for micro, rank in ways:
        batch = flipped(
            size, rank=rank, world=world, micro=micro, accumulate=accumulate, step=step
        )
        out.append(module.drawn(batch, step=step, place=micro * world + rank))
    return [torch.cat([d[i] for d in out]) for i in range(3)] + [
        torch.cat([d[3][k] for d in out]) for k in sorted(out[0][3])
    ]


RANKS = [(0, 0), (0, 1), (0, 2), (0, 3)]
MICRO = [(0, 0), (1, 0), (2, 0), (3, 0)]
BOTH = [(0, 0), (0, 1), (1, 0), (1, 1)]


@pytest.mark.parametrize("ways", [RANKS, BOTH])
@pytest.mark.parametrize("augment", [None, Augmentation(0.5)])
def test_ranks_and_accumulation_may_be_traded_for_each_other(ways, augment):
    net = tiny().net if augment is None else tiny_augmented()
    module = RectifiedFlow(net, times=Uniform(stratified=True), augment=augment)
    one, other = (shared_out(module, 8, w) for w in (MICRO, ways))
    assert len(one) == (4 if augment is None else 5)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    x, z, t = one[:3]
    assert len(t.unique()) == 32 and len(z.flatten(1).unique(dim=0)) == 32
    assert len(x.flatten(1).unique(dim=0)) == 32


def tiny_augmented():
    return UNet(8, 1, widths=(8, 8), layers=1, attention=(), classes=10, groups=4, augment=9)


@pytest.mark.parametrize("coupling", [None, OptimalTransport()])
def test_lots_make_the_cut_of_a_batch_invisible(coupling):
    module = RectifiedFlow(tiny().net, coupling=coupling, lot=4)
    whole = shared_out(module, 32, [(0, 0)])
    for size, ways in ((8, BOTH), (16, [(0, 0), (0, 1)]), (4, [(0, k) for k in range(8)])):
        parts = shared_out(module, size, ways)
        assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))

    free = RectifiedFlow(tiny().net, coupling=coupling)
    halves = shared_out(free, 16, [(0, 0), (0, 1)])
    assert not torch.equal(shared_out(free, 32, [(0, 0)])[1], halves[1])


def test_the_flips_are_no_less_random_than_they_were():
    from genflow.data.stream import coins

    row = coins("flip", 0, 0, 40_000)
    assert abs(float(row.float().mean()) - 0.5) < 0.01
    assert abs(float((row[1:] == row[:-1]).float().mean()) - 0.5) < 0.01
    for first, count in ((0, 3), (5, 9), (1023, 4), (39_998, 2)):
        assert torch.equal(coins("flip", 0, first, count), row[first : first + count])
    assert not torch.equal(coins("flip", 1, 0, 64), row[:64])
    assert not torch.equal(coins("flip source", 0, 0, 64), row[:64])


def gradients(module):
    return torch.cat([p.grad.flatten() for p in module.parameters()])


def test_accumulation_is_the_larger_batch(tmp_path):
    """Two batches of 16 make the gradient, the step and the losses of one of 32."""

    runs = []
    for size, accumulate in ((32, 1), (16, 2)):
        module = tiny(dropout=0.0, lr=1e-3, lot=16)
        data = Digits(batch_size=size, flip=True)
        seen = []

        def training_step(self, batch, batch_idx, seen=seen):
            loss = RectifiedFlow.training_step(self, batch, batch_idx)
            seen.append(float(loss.detach()))
            return loss

        module.training_step = partial(training_step, module)
        fit(tmp_path, 3, module=module, data=data, accumulate_grad_batches=accumulate)
        runs.append((seen, module))

    (one, first), (two, second) = runs
    pairs = [(a + b) / 2 for a, b in zip(two[::2], two[1::2], strict=True)]
    assert one == pytest.approx(pairs, rel=1e-5)
    assert all(abs(a - b) > 1e-4 for a, b in zip(two[::2], two[1::2], strict=True))
    far, near = (
        max(float((p - q).abs().max()) for p, q in zip(a, first.parameters(), strict=True))
        for a in (tiny(dropout=0.0).parameters(), second.parameters())
    )
    assert far > 1e-3 and near < 2e-5  # Adam's first steps make much of small gradients


def watched(size, **options):
    """A module that notes what it draws, and its data."""

    module, draw = tiny(dropout=0.0, lr=1e-3, lot=8), RectifiedFlow.drawn
    module.seen = []

    def drawn(batch, *, step, place):
        found = draw(module, batch, step=step, place=place)
        module.seen.append((step, found[0]))
        return found

    module.drawn = drawn
    return {"module": module, "data": Digits(batch_size=size, flip=True), **options}


@pytest.mark.parametrize(("old", "new"), [(1, 2), (2, 1)])
def test_a_run_goes_on_with_another_accumulation(tmp_path, old, new):
    """Also from a step whose batches do not fill steps of the new kind."""

    whole, before, after = watched(16), watched(16 // old), watched(16 // new)
    fit(tmp_path, 5, **whole)
    fit(tmp_path, 3, saver(tmp_path, 1), **before, accumulate_grad_batches=old)
    ckpt = tmp_path / "step=3.ckpt"
    _, _, _, trainer = fit(tmp_path, 5, **after, ckpt=ckpt, accumulate_grad_batches=new)
    assert trainer.global_step == 5
    for step in (3, 4):
        one, other = ([x for k, x in run["module"].seen if k == step] for run in (whole, after))
        assert len(other) == new and torch.equal(one[0], torch.cat(other))
    ends = (run["module"].parameters() for run in (whole, after))
    assert max(float((p - q).abs().max()) for p, q in zip(*ends, strict=True)) < 2e-5


def test_a_transformer_leaves_no_parameter_without_a_gradient():
    """Else ranks would wait for each other for ever."""

    net = DiT(8, 4, 2, heads=2, head_width=8, depth=2, classes=3)
    module = RectifiedFlow(net)
    batch = {"x": torch.randn(2, 4, 8, 8), "label": torch.tensor([0, 2])}
    module.loss(batch, step=0).backward()
    assert [n for n, p in net.named_parameters() if p.grad is None] == []


# ---------------------------------------------------------------------------------- layouts


@pytest.mark.slow
def test_a_compiled_network_trains_alike_and_keeps_its_names(tmp_path):
    def run(**options):
        torch.manual_seed(0)
        module = RectifiedFlow(MLP(2, 16, 2), **options)
        return fit(tmp_path, 3, module=module, data=Toy("moons", batch_size=16))

    (plain, losses, *_), (other, seen, *_) = run(), run(compile="aot_eager")
    assert other.net._compiled_call_impl is not None and plain.net._compiled_call_impl is None
    assert list(losses.train.values()) == pytest.approx(list(seen.train.values()), rel=1e-5)
    assert plain.state_dict().keys() == other.state_dict().keys()
    for a, b in zip(plain.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_channels_last_reaches_the_network_and_its_convolutions():
    net = UNet(8, 3, widths=(8, 8), layers=1, attention=(), groups=4)
    plain, module = RectifiedFlow(net), RectifiedFlow(copy.deepcopy(net), channels_last=True)
    kernel = module.net.model.down_blocks[0].resnets[0].conv1
    assert kernel.weight.stride()[1] == 1 and kernel.weight.stride()[3] == 8
    seen = []
    for layer in (module.net.model.conv_in, kernel):
        layer.register_forward_pre_hook(lambda m, args: seen.append(args[0].stride()[1]))
    batch = {"x": torch.randn(4, 3, 8, 8)}
    torch.testing.assert_close(module.loss(batch, step=0), plain.loss(batch, step=0))
    assert seen == [1, 1]


# --------------------------------------------------------------------------------- refusals


def test_lots_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="lot is 5 and a batch holds 8 examples"):
        cut({"x": torch.zeros(8, 1)}, 5)
    with pytest.raises(UserError, match="lot is 0"):
        tiny(lot=0)
    with pytest.raises(UserError, match="stable_target is 4 and lot is 2"):
        PFGMPP(tiny().net, stable_target=4, lot=2)
    with pytest.raises(UserError, match="compile is 'inducto': did you mean 'inductor'"):
        tiny(compile="inducto")
