"""The networks behind one call: each answers as the diffusers model inside does."""

import copy

import pytest
import torch

from genflow.errors import UserError
from genflow.nn import MLP, DiT, Net, UNet

UNET = {"widths": (8, 16), "layers": 1, "attention": (4,), "groups": 4}


def test_a_unet_is_called_as_diffusers_calls_it():
    net = UNet(8, 2, classes=3, **UNET)
    x, label = torch.randn(4, 2, 8, 8), torch.tensor([0, 1, 2, 3])
    ours = net(x, torch.tensor(250.0), label)
    assert torch.equal(ours, net.model(x, 250.0, class_labels=label).sample)
    assert net.shape == (2, 8, 8) and net.classes == 3
    kinds = [type(b).__name__ for b in net.model.down_blocks]
    assert kinds == ["DownBlock2D", "AttnDownBlock2D"]


def test_a_dit_gives_only_the_channels_of_its_input():
    net = DiT(8, 2, heads=2, head_width=8, depth=1, classes=5)
    with torch.no_grad():
        net.model.proj_out_2.weight.normal_()
    x, label = torch.randn(3, 2, 8, 8), torch.tensor([0, 4, 5])
    time = torch.tensor([1.0, 500.0, 999.0])
    ours = net(x, time, label)
    assert torch.equal(ours, net.model(x, timestep=time, class_labels=label).sample[:, :2])
    assert ours.abs().sum() > 0 and net.classes == 5


@pytest.mark.parametrize(
    "net",
    [UNet(8, 1, classes=3, **UNET), MLP(4, 16, 1, classes=3)],
    ids=lambda n: type(n).__name__,
)
def test_no_label_is_the_null_class_and_labels_matter(net):
    x, t = torch.randn(2, *net.shape), torch.tensor(400.0)
    null = net(x, t, torch.tensor([3, 3]))
    assert torch.equal(net(x, t), null)
    assert not torch.allclose(net(x, t, torch.tensor([0, 1])), null)


@pytest.mark.parametrize(
    "net", [UNet(8, 1, **UNET), MLP(4, 16, 1)], ids=lambda n: type(n).__name__
)
def test_one_time_for_all_is_the_same_as_one_each(net):
    x = torch.randn(3, *net.shape)
    one = net(x, torch.tensor(123.0))
    assert torch.allclose(one, net(x, torch.full((3,), 123.0)), atol=1e-6)
    assert not torch.allclose(one, net(x, torch.tensor(900.0)))


def test_what_cannot_be_built_or_called_is_named():
    with pytest.raises(UserError, match="multiple of groups 32"):
        UNet(8, 1, widths=(40,))
    with pytest.raises(UserError, match="multiple of 4"):
        UNet(10, 1, widths=(32, 32, 32))
    with pytest.raises(UserError, match="built without classes"):
        MLP(2)(torch.randn(1, 2), torch.tensor(1.0), torch.tensor([0]))
    with pytest.raises(UserError, match="Linear"):
        Net(torch.nn.Linear(1, 1))


# ---------------------------------------------------------------- embeddings for labels


def lively(net):
    """Every weight drawn anew: a fresh transformer answers zero."""

    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.1 * torch.randn(p.shape, generator=g))
    return net.eval()


CONDITIONAL = [
    (UNet(8, 1, classes=3, **UNET), 1),
    (MLP(4, 16, 1, classes=3), 1),
    (DiT(8, 2, heads=2, head_width=8, depth=3, classes=3), 3),
]


@pytest.mark.parametrize(("net", "count"), CONDITIONAL, ids=lambda n: type(n).__name__)
def test_an_embedding_stands_for_its_label(net, count):
    net = lively(net)
    x, t, label = torch.randn(3, *net.shape), torch.tensor(400.0), torch.tensor([2, 3, 0])
    rows = net.embed(label)
    assert rows.shape[:2] == (3, count)
    assert torch.equal(net(x, t, embedding=rows), net(x, t, label))
    for k in range(count):  # every block reads its own row
        other = rows.clone()
        other[:, k] += torch.randn(rows.shape[2])
        assert not torch.allclose(net(x, t, embedding=other), net(x, t, label))


@pytest.mark.parametrize(("net", "count"), CONDITIONAL, ids=lambda n: type(n).__name__)
def test_the_tables_are_the_model_own(net, count, tmp_path):
    """Behind the door the model is as it was: names, weights, config, and its own loader."""

    net.model.save_pretrained(tmp_path)
    again = type(net.model).from_pretrained(tmp_path)
    assert again.state_dict().keys() == net.model.state_dict().keys()
    label = torch.tensor([1, 3])
    assert torch.equal(Net(again).embed(label), net.embed(label))
    twice = copy.deepcopy(net)
    with torch.no_grad():
        for p in twice.parameters():
            p.add_(1.0)
    assert torch.allclose(twice.embed(label), net.embed(label) + 1.0)


def test_gradients_reach_an_embedding():
    net = lively(MLP(4, 16, 1, classes=3)).double()
    x, t = torch.randn(2, 4, dtype=torch.float64), torch.tensor(400.0)
    rows = net.embed(torch.tensor([0, 1])).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda e: net(x, t, embedding=e), rows, atol=1e-4)


def test_embeddings_that_cannot_be_are_named():
    net, plain = MLP(4, 16, 1, classes=3), MLP(4, 16, 1)
    x, t, rows = torch.randn(2, 4), torch.tensor(1.0), torch.zeros(2, 1, 16)
    with pytest.raises(UserError, match="label and embedding are both given"):
        net(x, t, torch.tensor([0, 1]), rows)
    with pytest.raises(UserError, match=r"takes \(B, 1, 16\) in floating point"):
        net(x, t, embedding=rows[0])
    with pytest.raises(UserError, match="takes"):
        net(x, t, embedding=rows.long())
    with pytest.raises(UserError, match="embedding is given, but .* without classes"):
        plain(x, t, embedding=rows)
    with pytest.raises(UserError, match="without classes"):
        plain.embed(torch.tensor([0]))
