"""Faded skip connections: what enters the decoder, and what stays as it was."""

import copy

from diffusers import UNet2DConditionModel, UNet2DModel
import pytest
import torch

from genflow.errors import UserError
from genflow.models import Guided, Preconditioned, VariancePreserving
from genflow.nn import MLP, UNet, faded, skip_counts
from genflow.solvers import (
    Alteration,
    Corrector,
    Sampler,
    SolverSchedule,
    Step,
    schedule_for,
)

PATH = VariancePreserving()


def awake(net):
    """Fresh U-Nets return zeros: every weight drawn anew."""

    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return net.eval().requires_grad_(False)


def plain(**more):
    return awake(
        UNet2DModel(
            sample_size=8,
            in_channels=3,
            out_channels=3,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=4,
            attention_head_dim=8,
            **more,
        )
    )


def conditional():
    return awake(
        UNet2DConditionModel(
            sample_size=8,
            in_channels=3,
            out_channels=3,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            norm_num_groups=4,
            attention_head_dim=4,
            cross_attention_dim=6,
        )
    )


X, T, WORDS = torch.randn(2, 3, 8, 8), torch.tensor([7.0, 400.0]), torch.randn(2, 5, 6)
NETS = {
    "plain": (plain, {}),
    "conditional": (conditional, {"encoder_hidden_states": WORDS}),
}
BOTH = pytest.mark.parametrize("kind", NETS)


def call(net, kind):
    return net(X, T, return_dict=False, **NETS[kind][1])[0]


def by_hand(net, kind, factors):
    """The same forward pass with every skip tensor multiplied in a block that is replaced."""

    net = copy.deepcopy(net)
    rest = list(factors)

    for block in net.up_blocks:
        mine, rest = rest[: len(block.resnets)], rest[len(block.resnets) :]
        inner = block.forward

        def forward(*args, inner=inner, mine=mine, **kwargs):
            def scaled(tensors):
                # A block pops its tensors from the end.
                out = list(tensors)
                for j, c in enumerate(mine):
                    out[-1 - j] = out[-1 - j] * c
                return tuple(out)

            if "res_hidden_states_tuple" in kwargs:
                kwargs["res_hidden_states_tuple"] = scaled(kwargs["res_hidden_states_tuple"])
                return inner(*args, **kwargs)
            return inner(args[0], scaled(args[1]), *args[2:], **kwargs)

        block.forward = forward

    return call(net, kind)


@BOTH
def test_counts(kind):
    assert skip_counts(NETS[kind][0]()) == (2, 2)
    assert skip_counts(torch.nn.Linear(2, 2)) == ()


@BOTH
def test_ones_change_no_bit(kind):
    net = NETS[kind][0]()
    before = call(net, kind)
    for ones in ((1.0, 1.0), (1.0,) * 4):
        with faded(net, ones):
            assert torch.equal(call(net, kind), before)


@BOTH
@pytest.mark.parametrize("factors", [(0, 0, 0, 0), (1, 0.5, 0.25, 0), (0.3, 1, 1, 1)])
def test_equals_a_forward_modified_by_hand(kind, factors):
    net = NETS[kind][0]()
    before, wanted = call(net, kind), by_hand(net, kind, factors)
    with faded(net, factors):
        assert torch.equal(call(net, kind), wanted)
    assert (wanted - before).abs().max() > 1e-3
    assert torch.equal(call(net, kind), before)


def test_one_factor_a_level():
    net = plain()
    with faded(net, (0.2, 0.7)):
        short = call(net, "plain")
    with faded(net, (0.2, 0.2, 0.7, 0.7)):
        assert torch.equal(call(net, "plain"), short)


def test_the_network_is_left_alone():
    net = plain()
    keys = {k: v.clone() for k, v in net.state_dict().items()}
    before = call(net, "plain")

    with faded(net, (0.0, 0.0)):
        inside = copy.deepcopy(net)
        assert list(net.state_dict()) == list(keys)
    with pytest.raises(RuntimeError), faded(net, (0.0, 0.0)):
        net(X[:, :1], T)

    assert all(torch.equal(v, keys[k]) for k, v in net.state_dict().items())
    assert torch.equal(call(net, "plain"), before)
    assert torch.equal(call(copy.deepcopy(net), "plain"), before)
    assert not any(block._forward_pre_hooks for block in net.up_blocks)
    assert list(inside.state_dict()) == list(keys)


@pytest.mark.parametrize(
    ("net", "skips", "words"),
    [
        (plain, (0.5,), r"holds 1 factors: this network takes 2 \(one a level\) or 4"),
        (plain, (0.5,) * 3, "holds 3 factors"),
        (lambda: torch.nn.Linear(2, 2), (0.5,), "a Linear has no skip connections"),
    ],
)
def test_bad_counts(net, skips, words):
    with pytest.raises(UserError, match=words), faded(net(), skips):
        pass


# ------------------------------------------------------------------------------ in a sampler


def denoiser():
    net = awake(UNet(8, 3, widths=(8, 16), layers=1, attention=(), groups=4))
    return Preconditioned(net, PATH, "v")


def schedule(*changes, **last):
    times = schedule_for("ddim", PATH, len(changes)).times
    steps = [Step(change=Alteration(c)) for c in changes]
    steps[-1] = Step(change=Alteration(changes[-1]), **last)
    return SolverSchedule(times, steps)


def test_a_sampler_alters_the_steps_that_say_so():
    truth = denoiser()
    faint = Sampler(truth, schedule((), (0.0, 0.5), ()))
    seen = []
    faint(X, observe=lambda i, x, D: seen.append((x, D)))
    times = faint.tableau.time

    for i, (x, D) in enumerate(seen):
        plainly = truth.at(float(times[i]))(x, times[i].float())
        with truth.net.faded((0.0, 0.5)):
            faintly = truth.at(float(times[i]))(x, times[i].float())
        assert torch.equal(D, faintly if i == 1 else plainly)
        assert not torch.equal(plainly, faintly)

    whole = Sampler(truth, schedule((), (), ()))
    assert torch.equal(Sampler(truth, schedule((1, 1), (), (1.0,) * 4))(X), whole(X))
    assert not torch.equal(faint(X), whole(X))
    assert torch.equal(copy.deepcopy(faint)(X), faint(X))


def test_the_call_that_corrects_the_last_step_is_altered_like_it():
    truth = denoiser()
    seen = []
    made = schedule((), (0.0, 0.0), correct=Corrector())
    Sampler(truth, made)(X, observe=lambda i, x, D: seen.append((x, D)))
    time = PATH.t_min
    with truth.net.faded((0, 0)):
        wanted = truth(seen[2][0], torch.tensor(time))
    torch.testing.assert_close(seen[2][1], wanted)


def test_through_guidance_and_gradients():
    net = awake(UNet(8, 3, widths=(8, 16), layers=1, attention=(), groups=4, classes=2))
    truth = Guided(Preconditioned(net, PATH, "v"), 2.0, null={"label": 2})
    label = torch.tensor([0, 1])
    faint, whole = (Sampler(truth, schedule(c, c), "direct") for c in ((0.5, 0.5), ()))
    x = X.clone().requires_grad_()
    (grad,) = torch.autograd.grad(faint(x, label=label).sum(), x)
    assert grad.isfinite().all()
    assert not torch.equal(faint(X, label=label), whole(X, label=label))


def test_networks_that_cannot():
    with pytest.raises(UserError, match="takes 2"):
        Sampler(denoiser(), schedule((0.5,) * 3, ()))
    vector = Preconditioned(MLP(2, 16, 1), PATH, "v")
    with pytest.raises(UserError, match="a VectorMLP has no skip connections"):
        Sampler(vector, schedule((0.5, 0.5)))
    Sampler(vector, schedule((1.0, 1.0)))


# ------------------------------------------------------------------------------ the record


def test_json():
    made = schedule((), (0.25, 1.0), ())
    text = made.to_json()
    assert SolverSchedule.from_json(text) == made and hash(made) == hash(
        schedule((), (0.25, 1), ())
    )
    assert text.count("change") == 1
    assert '"change": {"skips": [0.25, 1.0]}' in text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"skips": [1.5]}, r"change.skips holds 1.5: each factor must be a number in \[0, 1\]"),
        ({"skips": [True]}, "change.skips holds True"),
        ({"skips": ["a"]}, "change.skips holds 'a'"),
        ({"skips": [float("nan")]}, "change.skips holds nan"),
        ({"skips": 0.5}, "change.skips is 0.5"),
        ({"skip": [0.5]}, "did you mean 'skips'"),
        (3, "step 0 has change 3"),
        ("fade", "step 0 has change 'fade'"),
    ],
)
def test_bad_records(change, words):
    import json

    record = {"format": "genflow-schedule", "version": 1, "times": [1, 0.5]}
    record["steps"] = [{"change": change}]
    with pytest.raises(UserError, match=words):
        SolverSchedule.from_json(json.dumps(record))
