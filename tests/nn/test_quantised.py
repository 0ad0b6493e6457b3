"""Rounded weights: a grid of 2ᵇ values a tensor, and exactly the old weights afterwards."""

import pytest
import torch
from torch import nn

from genflow.errors import UserError
from genflow.nn import MLP, DiT, UNet, quantised
from genflow.nn.quantised import rounded, weights_of


def small():
    torch.manual_seed(0)
    net = UNet(8, 1, widths=(8, 16), layers=1, attention=(4,), groups=4, classes=3)
    nn.init.normal_(net.model.conv_out.weight, std=0.1)
    return net


@pytest.mark.parametrize("bits", [1, 4, 5, 8, 16])
def test_no_entry_moves_by_more_than_half_a_step(bits):
    w = torch.randn(40, 30, 3, generator=torch.Generator().manual_seed(bits), dtype=torch.float64)
    q = rounded(w, bits)
    step = (w.max() - w.min()) / (2**bits - 1)
    error = (q - w).abs()
    assert error.max() <= step / 2 * (1 + 1e-9)
    if bits <= 5:
        assert len(q.unique()) <= 2**bits and error.max() > 0.45 * step
    assert q.min() == w.min() and torch.isclose(q.max(), w.max(), rtol=1e-12)


def test_a_grid_by_hand():
    w = torch.tensor([[-1.0, -0.4, 0.1], [0.4, 1.1, 2.0]])
    assert rounded(w, 2).tolist() == [[-1.0, 0.0, 0.0], [0.0, 1.0, 2.0]]
    assert rounded(w, 1).tolist() == [[-1, -1, -1], [-1, 2, 2]]
    assert torch.equal(rounded(torch.full((3, 3), 0.7), 3), torch.full((3, 3), 0.7))
    half = rounded(torch.tensor([[0.0, 1.0, 100.0]], dtype=torch.bfloat16), 4)
    assert half.dtype == torch.bfloat16 and half.tolist() == [[0.0, 0.0, 100.0]]


@pytest.mark.parametrize(
    "net",
    [small(), MLP(2, 16, 1), DiT(8, 2, heads=2, head_width=8, depth=1, classes=5)],
    ids=lambda n: type(n).__name__,
)
def test_matrices_and_kernels_are_rounded_and_nothing_else(net):
    before = {k: v.clone() for k, v in net.state_dict().items()}

    with quantised(net, 3):
        inside = {k: v.clone() for k, v in net.state_dict().items()}

    for name, old in before.items():
        if name in weights_of(net):
            assert len(inside[name].unique()) <= 8, name
            assert torch.equal(inside[name], rounded(old, 3))
        else:
            assert torch.equal(inside[name], old), name

    left = set(dict(net.named_parameters())) - set(weights_of(net))
    modules = dict(net.named_modules())
    assert left and all(
        name.endswith("bias") or "Norm" in type(modules[name.rpartition(".")[0]]).__name__
        for name in left
    )
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_the_network_answers_otherwise_inside_and_the_same_after():
    net, x, t = small(), torch.randn(2, 1, 8, 8), torch.tensor(1.0)
    with torch.no_grad():
        before = net(x, t)
        errors = []
        for bits in (8, 6, 4):
            with quantised(net, bits):
                errors.append(float((net(x, t) - before).abs().max()))
        assert 0 < errors[0] < errors[1] < errors[2]
        assert torch.equal(net(x, t), before)


def test_weights_come_back_after_an_error_and_from_within_each_other():
    net = small()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    places = [p.data_ptr() for p in net.parameters()]

    with pytest.raises(RuntimeError, match="stop"), quantised(net, 2):
        raise RuntimeError("stop")
    with quantised(net, 6), quantised(net, 2):
        assert len(net.model.conv_in.weight.unique()) <= 4

    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert [p.data_ptr() for p in net.parameters()] == places
    assert all(p.requires_grad for p in net.parameters())


def test_a_shared_tensor_is_rounded_once():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    before = net[0].weight.clone()
    with quantised(net, 4):
        assert torch.equal(net[1].weight, rounded(before, 4))
    assert torch.equal(net[0].weight, before)


@pytest.mark.parametrize("bits", [0, -1, 17, 32, 4.0, True])
def test_bits_out_of_range_are_refused_before_anything_is_touched(bits):
    net = small()
    with pytest.raises(UserError, match=r"bits is .*from 1 to 16"), quantised(net, bits):
        pass
    with pytest.raises(UserError, match="full precision"):
        rounded(torch.ones(2, 2), bits)


def test_nothing_to_round_is_said():
    with (
        pytest.raises(UserError, match=r"GroupNorm has no parameters"),
        quantised(nn.GroupNorm(2, 4), 8),
    ):
        pass
