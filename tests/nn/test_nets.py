"""The networks behind one call: each answers as the diffusers model inside does."""

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
