"""Pieces of a batch: the same values and gradients, fewer activations, the same random numbers."""

import pytest
import torch
from torch import nn

from genflow.nn import Checkpointed


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 64), nn.Tanh(), nn.Linear(64, 2)).double()


@pytest.mark.parametrize("rows", [1, 2, 4, None])
def test_values_and_gradients(rows):
    inner = net()
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    found = []
    for f in (inner, Checkpointed(inner, rows)):
        y = f(x)
        found.append(
            [y.detach(), *torch.autograd.grad(y.square().sum(), [x, *inner.parameters()])]
        )
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)


def test_only_the_input_is_kept_and_pieces_come_one_by_one():
    inner, sizes, kept = net(), [], []
    inner.register_forward_pre_hook(lambda m, args: sizes.append(len(args[0])))
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    f = Checkpointed(inner, rows=1)

    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = f(x)

    assert sum(t.numel() for t in kept) <= 2 * x.numel() and sizes == [1] * 4
    y.sum().backward()
    assert sizes == [1] * 8
    sizes.clear()
    with torch.no_grad():
        f(x)
    assert sizes == [1] * 4


def test_further_arguments_are_cut_alike():
    def judge(x, label, *, scale, power):
        assert len(x) == len(label) == len(scale)
        return (x.sum(1) * label * scale) ** power

    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    label, scale = torch.arange(3), torch.rand(3, dtype=torch.float64)
    found = Checkpointed(judge)(x, label, scale=scale, power=2)
    torch.testing.assert_close(found, judge(x, label, scale=scale, power=2))


def test_dropout_is_drawn_again():
    f = Checkpointed(nn.Dropout(0.5), rows=1)
    x = torch.ones(4, 8, requires_grad=True)
    y = f(x)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())
