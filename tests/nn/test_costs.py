"""The table of costs: exactly additive, attention and all, and equal to altered runs."""

import copy

import pytest
import tiny
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from genflow.errors import UserError
from genflow.nn import MLP, Costs, DiT, activations, altered, blocks_of, flops, seconds

EVERY = pytest.mark.parametrize("case", tiny.NETS, indirect=True)


@pytest.fixture
def case(request):
    return tiny.Case(request.param)


def counted(case, modes=None, memory=None):
    """What torch counts in one call on the CPU, with attention spelt out so that it counts."""

    with (
        sdpa_kernel(SDPBackend.MATH),
        altered(case.model, modes or {}, {} if memory is None else memory),
        FlopCounterMode(display=False) as counter,
    ):
        case(B=1)
    return counter.get_total_flops()


@EVERY
def test_the_table_is_what_torch_counts_in_altered_runs(case):
    table = flops(case.net, case.shape, **case.cond(1))
    names = list(blocks_of(case.model))
    assert list(table.saving) == names and table.unit == "FLOPs"
    assert table() == table.full == counted(case)

    for name in names:
        assert table.saving[name] > 0
        assert table([name]) == counted(case, {name: "drop"})

    every_other = names[::2]
    assert table(every_other) == counted(case, dict.fromkeys(every_other, "drop"))
    assert table.least == table(names) == counted(case, dict.fromkeys(names, "drop"))
    assert table.full - sum(table.saving.values()) == table.least

    memory = {}
    kept = counted(case, dict.fromkeys(names, "keep"), memory)
    assert counted(case, dict.fromkeys(names, "reuse"), memory) == table.least
    assert kept == table.full


def test_attention_by_hand():
    """Four projections, and two products of every token with every other."""

    case = tiny.Case("unet")
    tokens, width = 16, 16
    saved = 4 * 2 * tokens * width**2 + 2 * 2 * tokens**2 * width
    assert flops(case.net, case.shape).saving["mid_block.attentions.0"] == saved


def test_a_residual_block_by_hand():
    """Two 3 × 3 convolutions and the map of the embedding; the shortcut stays."""

    case = tiny.Case("unet")
    block = blocks_of(case.model)["down_blocks.1.resnets.0"]
    a, b, pixels, embedding = 8, 16, 16, block.time_emb_proj.in_features
    assert block.conv_shortcut is not None
    saved = 2 * pixels * 9 * (a * b + b * b) + 2 * embedding * b
    assert flops(case.net, case.shape).saving["down_blocks.1.resnets.0"] == saved


def test_counting_leaves_the_network_alone():
    case = tiny.Case("unet")
    before, keys = case(), copy.deepcopy(case.model.state_dict())
    flops(case.net.train(), case.shape)
    assert case.model.training
    case.net.eval()
    seconds(case.net, case.shape, batch=1, repeats=1)
    assert torch.equal(case(), before)
    assert all(torch.equal(v, keys[k]) for k, v in case.model.state_dict().items())
    assert {p.device.type for p in case.model.parameters()} == {"cpu"}


def test_seconds():
    case = tiny.Case("dit")
    table = seconds(case.net, case.shape, batch=2, repeats=3)
    assert list(table.saving) == list(blocks_of(case.model)) and table.unit == "seconds"
    assert 0 < max(table.saving.values()) < table.full
    assert all(s >= 0 for s in table.saving.values())


def test_costs():
    table = Costs(10.0, {"a": 3.0, "b": 4.0})
    assert (table(), table(["b"]), table.least) == (10.0, 6.0, 3.0)
    with pytest.raises(UserError, match="the block is 'c'"):
        table(["c"])
    with pytest.raises(TypeError):
        table.saving["a"] = 0.0
    with pytest.raises(UserError, match="a VectorMLP has no blocks to leave out"):
        flops(MLP(2), (2,))
    with pytest.raises(UserError, match="repeats is 0"):
        seconds(tiny.dit(), (4, 8, 8), repeats=0)


@pytest.mark.gpu
def test_seconds_and_reuse_on_a_gpu():
    case = tiny.Case("unet")
    names = list(blocks_of(case.model))
    before = case()
    case.net.cuda()
    table = seconds(case.net, case.shape, batch=2, repeats=3)
    assert 0 < max(table.saving.values()) < table.full

    x, time, memory = case.input().cuda(), torch.tensor(300.0, device="cuda"), {}
    with torch.no_grad():
        for mode in ("keep", "reuse"):
            with altered(case.model, dict.fromkeys(names, mode), memory):
                out = case.net(x, time)
            torch.testing.assert_close(out.cpu(), before, rtol=1e-3, atol=1e-3)


# ------------------------------------------------------------------------------ activations


class Two(torch.nn.Module):
    """Two layers: kept are what enters each, and what enters the activation between them."""

    def __init__(self):
        super().__init__()
        self.one, self.two = torch.nn.Linear(5, 7), torch.nn.Linear(7, 3)

    def forward(self, x, time):
        h = self.one(x)
        return self.two(torch.nn.functional.silu(h))


def test_activations_are_what_the_backward_pass_reads():
    assert activations(Two(), (5,)) == 5 + 7 + 7
    net = Two()
    kept = {id(p): p.requires_grad for p in net.parameters()}
    activations(net, (5,))
    assert {id(p): p.requires_grad for p in net.parameters()} == kept


def test_activations_grow_with_depth_and_not_with_the_table_of_classes():
    def count(depth, classes):
        net = DiT(8, 4, 2, heads=2, head_width=8, depth=depth, classes=classes)
        return activations(net, (4, 8, 8), label=torch.zeros(1, dtype=torch.long))

    assert count(3, 10) - count(2, 10) == count(2, 10) - count(1, 10) > 0
    assert count(2, 500) == count(2, 10)
