"""Blocks kept, dropped and reused, in every family: against networks whose branch is cut out."""

from contextlib import contextmanager
import copy
import io

import pytest
import tiny
import torch

from genflow.errors import UserError
from genflow.nn import MLP, altered, blocks_of

EVERY = pytest.mark.parametrize("case", tiny.NETS, indirect=True)


@pytest.fixture
def case(request):
    return tiny.Case(request.param)


COUNTS = {  # residual blocks and attention, or transformer blocks
    "unet": 2 + 1 + 3 + 4 + 2,
    "resampling": 2 + 1 + 3 + 4 + 2 + 2,
    "conditional": 2 + 1 + 3 + 4 + 2,
    "dit": 3,
    "sd3": 3,
    "flux": 4,
}


STREAMS = ("attn.to_out.0", "attn.to_add_out", "attn2.to_out.0", "ff.net.2", "ff_context.net.2")
ENDS = {  # the linear maps in which the branches of a block end
    "ResnetBlock2D": ("conv2",),
    "Attention": ("to_out.0",),
    "Transformer2DModel": ("proj_out",),
    "BasicTransformerBlock": ("attn1.to_out.0", "ff.net.2"),
    "JointTransformerBlock": STREAMS,
    "FluxTransformerBlock": STREAMS,
    "FluxSingleTransformerBlock": ("proj_out",),
}


@contextmanager
def cut(case, *names):
    """The network while the branches of some blocks are zero."""

    saved = []
    for name in names:
        block = case.model.get_submodule(name)
        starts = tuple(f"{end}." for end in ENDS[type(block).__name__])
        saved += [(p, p.clone()) for k, p in block.named_parameters() if k.startswith(starts)]
    for p, _ in saved:
        p.zero_()
    yield
    for p, value in saved:
        p.copy_(value)


def seen(case, name, call):
    """What a block was given, and what it answered."""

    found = []
    block = case.model.get_submodule(name)
    hook = block.register_forward_hook(
        lambda m, args, kwargs, out: found.append((args, kwargs, out)), with_kwargs=True
    )
    try:
        call()
    finally:
        hook.remove()
    return found[-1]


def tensors(answer):
    return [answer] if isinstance(answer, torch.Tensor) else [s for s in answer if s is not None]


# ---------------------------------------------------------------------------- names and order


@EVERY
def test_the_blocks_are_all_there_in_the_order_in_which_they_run(case):
    blocks = blocks_of(case.model)
    assert len(blocks) == COUNTS[case.name]

    ran = []
    hooks = [
        b.register_forward_pre_hook(lambda m, args, name=name: ran.append(name))
        for name, b in blocks.items()
    ]
    case()
    for hook in hooks:
        hook.remove()

    assert ran == list(blocks)
    assert all(case.model.get_submodule(name) is b for name, b in blocks.items())


def test_resampling_blocks_and_shortcuts_are_among_them():
    names = list(blocks_of(tiny.resampling().model))
    assert "down_blocks.0.downsamplers.0" in names and "up_blocks.0.upsamplers.0" in names
    assert blocks_of(torch.nn.Linear(2, 2)) == {} == blocks_of(MLP(2).model)


# ---------------------------------------------------------------------------- drop


@EVERY
def test_a_dropped_block_is_one_whose_branch_is_zero(case):
    before = case()
    for name, block in blocks_of(case.model).items():
        with cut(case, name):
            args, kwargs, out = seen(case, name, case)
            zeroed = case()
        with altered(case.model, {name: "drop"}, {}), torch.no_grad():
            mine = block(*args, **kwargs)
            whole = case()
        assert type(mine) is type(out)
        assert all(torch.equal(a, b) for a, b in zip(tensors(mine), tensors(out), strict=True))
        torch.testing.assert_close(whole, zeroed, rtol=1e-4, atol=1e-4)
        assert (whole - before).abs().max() > 1e-3


@EVERY
def test_everything_dropped(case):
    names = list(blocks_of(case.model))
    before = case()
    with cut(case, *names):
        zeroed = case()
    with altered(case.model, dict.fromkeys(names, "drop"), {}):
        bare = case()
    assert bare.shape == before.shape
    torch.testing.assert_close(bare, zeroed, rtol=1e-4, atol=1e-4)
    assert torch.equal(case(), before)


# ---------------------------------------------------------------------------- reuse


@EVERY
def test_reuse_after_a_full_run_on_the_same_input_gives_it_back(case):
    before = case()
    for name, block in blocks_of(case.model).items():
        memory = {}
        with altered(case.model, {name: "keep"}, memory):
            assert torch.equal(case(), before)
        assert list(memory) == [(name, 0)]
        with altered(case.model, {name: "reuse"}, memory):
            again = case()
        scale = before.abs().max()
        assert (again - before).abs().max() <= 2e-6 * scale
        if hasattr(block, "conv2"):
            assert torch.equal(again, before)


@EVERY
def test_reuse_adds_the_branch_of_the_last_full_run(case):
    """The branch by hand: what a full block and one that is cut answer on the same input."""

    plain = case(seed=2)
    for name, block in blocks_of(case.model).items():
        args, kwargs, full = seen(case, name, lambda: case(seed=1))
        with torch.no_grad(), cut(case, name):
            bare = block(*args, **kwargs)
        branch = [a - b for a, b in zip(tensors(full), tensors(bare), strict=True)]

        def add(module, given, out, branch=branch):
            summed = [s + b for s, b in zip(tensors(out), branch, strict=True)]
            if isinstance(out, torch.Tensor):
                return summed[0]
            return tuple(summed) if len(out) == len(summed) else (None, summed[0])

        hook = block.register_forward_hook(add)
        with cut(case, name):
            wanted = case(seed=2)
        hook.remove()

        memory = {}
        with altered(case.model, {name: "keep"}, memory):
            case(seed=1)
        with altered(case.model, {name: "reuse"}, memory):
            mine = case(seed=2)
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-4)
        assert (mine - plain).abs().max() > 1e-3, name


def test_what_is_kept_last_is_reused_and_drops_forget_nothing():
    case = tiny.Case("unet")
    name, memory = "mid_block.attentions.0", {}
    for seed, mode in ((0, "keep"), (1, "keep"), (2, "drop"), (3, "reuse")):
        with altered(case.model, {name: mode}, memory):
            case(seed=seed)
    kept = {}
    with altered(case.model, {name: "keep"}, kept):
        case(seed=1)
    assert torch.equal(memory[name, 0][0], kept[name, 0][0])


def test_two_passes_of_a_call_have_a_branch_each():
    case, name = tiny.Case("dit"), "transformer_blocks.1"
    memory, first, second = {}, {}, {}
    with altered(case.model, {name: "keep"}, memory):
        case(seed=1), case(seed=2)
    for seed, alone in ((1, first), (2, second)):
        with altered(case.model, {name: "keep"}, alone):
            case(seed=seed)
    assert torch.equal(memory[name, 0][0], first[name, 0][0])
    assert torch.equal(memory[name, 1][0], second[name, 0][0])

    with altered(case.model, {name: "reuse"}, memory):
        one, two = case(seed=3), case(seed=4)
    with altered(case.model, {name: "reuse"}, second):
        alone = case(seed=4)
    assert torch.equal(two, alone) and not torch.equal(one, alone)


# ---------------------------------------------------------------------------- nothing stays


@EVERY
def test_nothing_stays_in_the_network(case):
    names = list(blocks_of(case.model))
    modes = dict.fromkeys(names, "drop")
    before, keys = case(), {k: v.clone() for k, v in case.model.state_dict().items()}

    with altered(case.model, {}, {}):
        assert torch.equal(case(), before)

    with altered(case.model, modes, {}):
        twin, average = copy.deepcopy(case.net), torch.optim.swa_utils.AveragedModel(case.net)
        file = io.BytesIO()
        torch.save(case.model, file)
        assert list(case.model.state_dict()) == list(keys)
        altered_there = case()
        assert torch.equal(case(net=twin), before) and torch.equal(case(net=average), before)

    with pytest.raises(ZeroDivisionError), altered(case.model, modes, {}):
        raise ZeroDivisionError

    assert not torch.equal(altered_there, before)
    assert not any("forward" in vars(m) for m in case.model.modules())
    assert not any(m._forward_hooks for m in case.model.modules())
    assert torch.equal(case(), before)
    assert all(torch.equal(v, keys[k]) for k, v in case.model.state_dict().items())

    file.seek(0)
    loaded = copy.copy(case.net)
    loaded._modules = {"model": torch.load(file, weights_only=False)}
    assert torch.equal(case(net=loaded), before)


def test_a_copy_has_weights_of_its_own():
    """Copies of functions keep pointing at the module they were made for; these do not."""

    case, name = tiny.Case("unet"), "mid_block.resnets.0"
    with altered(case.model, {name: "keep"}, {}):
        twin = copy.deepcopy(case.net)
    before = case(net=twin)
    for p in case.model.get_submodule(name).parameters():
        p.zero_()
    assert torch.equal(case(net=twin), before)


def test_methods_that_others_replaced_are_put_back():
    case, name = tiny.Case("unet"), "mid_block.resnets.1"
    block = case.model.get_submodule(name)
    calls, inner = [], block.forward

    def foreign(*args, **kwargs):
        calls.append(1)
        return inner(*args, **kwargs)

    block.forward = foreign
    with altered(case.model, {name: "drop"}, {}), altered(case.model, {name: "keep"}, {}):
        case()
    assert block.forward is foreign and not calls
    with altered(case.model, {name: "keep"}, {}):
        case()
    assert block.forward is foreign and len(calls) == 1


# ---------------------------------------------------------------------------- refusals


def refuse(case, modes, words, memory=None):
    with pytest.raises(UserError, match=words), altered(case.model, modes, memory or {}):
        case()
    assert not any("forward" in vars(m) for m in case.model.modules())


def test_refusals():
    case, name = tiny.Case("unet"), "mid_block.attentions.0"
    refuse(case, {"mid_block.attention.0": "drop"}, "did you mean 'mid_block.attentions.0'")
    refuse(case, {name: "skip"}, "has the mode 'skip'")
    refuse(case, {name: "reuse"}, f"'{name}' is reused in pass 1 of a call, and was not kept")

    memory = {}
    with altered(case.model, {name: "keep"}, memory):
        case(B=2)
    with (
        pytest.raises(UserError, match=r"reused for shape \(4, 16.*kept for \(2, 16"),
        altered(case.model, {name: "reuse"}, memory),
    ):
        case(B=4)

    case.model.train()
    refuse(case, {name: "drop"}, "in training mode: call eval")
    case.model.eval().enable_gradient_checkpointing()
    refuse(case, {name: "drop"}, "call disable_gradient_checkpointing")
    with torch.no_grad(), altered(case.model, {name: "drop"}, {}):
        case()

    with pytest.raises(UserError, match="a VectorMLP has no blocks to drop or reuse"):
        MLP(2).altered({"a": "drop"}, {}).__enter__()
