"""Networks that are told how an image was augmented: zero is the stock network, to the bit."""

from diffusers import DiTTransformer2DModel, UNet2DModel
import pytest
import torch
from torch import nn

from genflow.errors import UserError
from genflow.nn import MLP, DiT, Net, UNet, VectorMLP
from genflow.nn.labels import stock

UNET = {"widths": (8, 16), "layers": 1, "attention": (4,), "groups": 4}
DIT = {"heads": 2, "head_width": 8, "depth": 2}


def unet(classes=3, augment=9):
    torch.manual_seed(0)
    net = UNet(8, 1, classes=classes, augment=augment, **UNET)
    nn.init.normal_(net.model.conv_out.weight, std=0.1)
    return net


def dit(augment=9):
    torch.manual_seed(0)
    net = DiT(8, 2, classes=3, augment=augment, **DIT)
    for p in net.parameters():
        nn.init.normal_(p, std=0.1)
    return net


def mlp(classes=3, augment=9):
    torch.manual_seed(0)
    return MLP(4, 16, 2, classes=classes, augment=augment)


EVERY = pytest.mark.parametrize("make", [unet, dit, mlp], ids=lambda m: m.__name__)


@EVERY
def test_the_label_is_heard_and_zero_is_none(make):
    net = make()
    x, t, c = torch.randn(3, *net.shape), torch.tensor([0.3, 1.0, 2.0]), torch.tensor([0, 1, 3])
    a = torch.randn(3, 9)
    with torch.no_grad():
        plain = net(x, t, c)
        assert torch.equal(net(x, t, c, augment=torch.zeros(3, 9)), plain)
        told = net(x, t, c, augment=a)
        assert (told - plain).abs().flatten(1).amax(1).min() > 1e-4
        mixed = net(x, t, c, augment=a * torch.tensor([[1.0], [0.0], [1.0]]))
    torch.testing.assert_close(mixed[1], plain[1])
    torch.testing.assert_close(mixed[[0, 2]], told[[0, 2]])
    assert net.augment == 9 and net.classes == 3


@EVERY
def test_classes_are_heard_as_before(make):
    net = make()
    x, t = torch.randn(2, *net.shape), torch.tensor(1.0)
    with torch.no_grad():
        null = net(x, t, torch.tensor([3, 3]))
        assert torch.equal(net(x, t), null)
        assert not torch.allclose(net(x, t, torch.tensor([0, 1])), null)


@EVERY
def test_the_embedding_is_linear_in_the_label_without_a_bias(make):
    net = make()
    maps = {k: m for k, m in net.named_modules() if k.endswith(".augment")}
    assert maps and all(isinstance(m, nn.Linear) and m.bias is None for m in maps.values())
    assert len(maps) == (2 if make is dit else 1), "a DiT embeds its labels in every block"


@EVERY
def test_gradients_reach_the_label_and_its_weights(make):
    net = make()
    x, a = torch.randn(2, *net.shape), torch.randn(2, 9, requires_grad=True)
    net(x, torch.tensor(1.0), augment=a).square().sum().backward()
    assert a.grad.abs().min() > 0
    for name, p in net.named_parameters():
        if ".augment." in name:
            assert p.grad.abs().sum() > 0, name


def shared(mine, other):
    """The weights of mine that the stock model has as well."""

    theirs = other.state_dict()
    names = {k.replace(".classes.", "."): k for k in mine.state_dict() if ".augment." not in k}
    assert names.keys() == theirs.keys()
    return {k: mine.state_dict()[v] for k, v in names.items()}


@pytest.mark.parametrize(
    "net, cls", [(unet(), UNet2DModel), (dit(), DiTTransformer2DModel)], ids=["unet", "dit"]
)
def test_without_a_label_it_is_the_model_of_diffusers(net, cls):
    config = {k: v for k, v in net.model.config.items() if k != "augment" and k[0] != "_"}
    other = cls.from_config(config)
    other.load_state_dict(shared(net.model, other))
    x, t, c = torch.randn(2, *net.shape), torch.tensor([1.0, 2.0]), torch.tensor([0, 3])
    with torch.no_grad():
        assert torch.equal(net(x, t, c), Net(other)(x, t, c))


@pytest.mark.parametrize("net", [unet(), unet(None), dit(), mlp(None)], ids=lambda n: repr(n)[:4])
def test_it_is_saved_and_loaded_like_any_other(net, tmp_path, caplog):
    net.model.save_pretrained(tmp_path)
    again = Net(type(net.model).from_pretrained(tmp_path))
    assert "not expected" not in caplog.text, "every entry of the config is known"
    assert again.model.config.items() >= {"augment": 9}.items()
    x, a = torch.randn(2, *net.shape), torch.randn(2, 9)
    assert (again.augment, again.classes, again.shape) == (9, net.classes, net.shape)
    with torch.no_grad():
        args = (x, torch.tensor(1.0))
        torch.testing.assert_close(again(*args, augment=a), net(*args, augment=a))


def test_the_stock_twin_shares_the_weights():
    net = unet(None)
    twin = stock(net.model)
    assert type(twin) is UNet2DModel and "augment" not in twin.config
    x, t = torch.randn(2, 1, 8, 8), torch.tensor(1.0)
    with torch.no_grad():
        assert torch.equal(twin(x, t).sample, net(x, t))
    assert twin.conv_in.weight.data_ptr() == net.model.conv_in.weight.data_ptr()
    assert stock(twin) is twin and isinstance(stock(mlp().model), VectorMLP)
    for model in (unet().model, dit().model):
        with pytest.raises(UserError, match=r"with classes has no stock twin"):
            stock(model)


@EVERY
def test_a_network_without_the_features_says_so(make):
    net = make(augment=0)
    assert net.augment == 0 and not any(k.endswith(".augment") for k, _ in net.named_modules())
    with pytest.raises(UserError, match=r"augment is given.*build it with augment=9"):
        net(torch.randn(2, *net.shape), torch.tensor(1.0), augment=torch.zeros(2, 9))
