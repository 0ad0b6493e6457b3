"""Low-rank changes: nothing at first, little afterwards, and merged without a trace."""

import pytest
import torch

from genflow.errors import UserError
from genflow.gradients import lay, merge
from genflow.nn import MLP, UNet


def net():
    torch.manual_seed(3)
    return UNet(8, 1, widths=(8, 16), layers=1, attention=(4,), classes=3, groups=4).eval()


def moved(parameters, scale=0.3):
    g = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for p in parameters.values():
            p.add_(scale * torch.randn(p.shape, generator=g))


def called(net):
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        return net(torch.randn(2, 1, 8, 8, generator=g), torch.tensor(300.0), torch.tensor([0, 2]))


def test_nothing_changes_at_first_and_merging_changes_nothing():
    model = net()
    plain, state = called(model), {k: v.clone() for k, v in model.state_dict().items()}
    low = lay(model, rank=2)
    assert torch.equal(called(model), plain)
    moved(low)
    laid = called(model)
    assert (laid - plain).abs().max() > 1e-2
    merge(model)
    torch.testing.assert_close(called(model), laid, rtol=0, atol=1e-6)
    after = model.state_dict()
    assert after.keys() == state.keys()
    assert {type(m).__name__ for m in model.modules()} == {
        type(m).__name__ for m in net().modules()
    }
    changed = {k for k in after if not torch.equal(after[k], state[k])}
    assert changed == {n.removesuffix("up") + "weight" for n in low if n.endswith("up")}


def test_a_change_is_a_matrix_of_low_rank():
    model = net()
    before = {n: m.weight.detach().clone() for n, m in model.named_modules() if "conv1" in n}
    low = lay(model, rank=3, scale=6.0, layers="conv1")
    moved(low)
    merge(model)
    for name, old in before.items():
        change = (model.get_submodule(name).weight.detach() - old).flatten(1)
        expected = 2.0 * low[f"{name}.up"] @ low[f"{name}.down"]
        torch.testing.assert_close(change, expected.detach(), atol=1e-6, rtol=1e-5)
        assert torch.linalg.matrix_rank(change, rtol=1e-4) == 3


def test_only_the_changes_want_gradients():
    model = net()
    low = lay(model, rank=1, layers="attentions")
    wanting = {id(p) for p in model.parameters() if p.requires_grad}
    assert wanting == {id(p) for p in low.values()} and all("attentions" in n for n in low)
    model(torch.randn(2, 1, 8, 8), torch.tensor(300.0)).square().sum().backward()
    ups = [p.grad.abs().sum() for n, p in low.items() if n.endswith("up")]
    assert all(g > 0 for g in ups)


def test_ranks_are_no_higher_than_the_matrix():
    low = lay(MLP(2, 16, 1), rank=64)
    assert low["model.enter.down"].shape == (2, 2) and low["model.enter.up"].shape == (16, 2)


def test_the_seed_is_the_only_chance():
    ours, again, other = (lay(net(), seed=s) for s in (0, 0, 1))
    assert all(torch.equal(ours[k], again[k]) for k in ours)
    assert not torch.equal(ours["model.conv_in.down"], other["model.conv_in.down"])


def test_networks_in_half_precision_keep_their_dtype():
    model = MLP(4, 16, 1).half()
    low = lay(model, rank=2)
    assert all(p.dtype == torch.float32 for p in low.values())
    moved(low)
    merge(model)
    assert {p.dtype for p in model.parameters()} == {torch.float16}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rank": 0}, "rank is 0: it must be 1 or more"),
        ({"scale": 0.0}, "scale is 0.0"),
        ({"layers": "("}, r"layers is '\(', no regular expression"),
        ({"layers": "attention9"}, "none of the .* layers: 'model.*' is one of them"),
    ],
)
def test_bad_values(options, words):
    with pytest.raises(UserError, match=words):
        lay(net(), **options)
