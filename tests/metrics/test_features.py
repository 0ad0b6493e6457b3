"""Features: the same on every machine, right about noise and classes, clear about bad input."""

import pytest
import torch

from genflow.errors import UserError
from genflow.metrics import Differentiable, Features, Identity, Pixels, RandomConv, extract
from genflow.metrics.features import features


def images(n, *shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, *shape), generator=generator).to(torch.uint8)


def test_random_weights_are_the_same_on_every_machine():
    before = torch.get_rng_state()
    feature = RandomConv(1, 8)
    assert torch.equal(torch.get_rng_state(), before)
    assert feature.name == "random-conv-1x8-0"
    # A change of this digest changes every published ratio: then change the name too.
    assert feature.digest == "929b7e6a60b95dc0c6a2757534189ea0464ea583ad9cdbc1158a4bdf9758bcce"
    assert RandomConv(1, 8).digest == feature.digest != RandomConv(1, 8, seed=1).digest


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 64, 64), (1, 28, 28), (1, 4, 4)])
def test_random_conv_reads_any_square_size(shape):
    feature = features("random-conv", shape)
    out = extract(feature, images(6, *shape))
    assert isinstance(feature, Features)
    assert out.shape == (6, 64) and out.dtype == torch.float32 and out.isfinite().all()
    assert out.std(dim=0).gt(0).float().mean() > 0.8
    assert not list(feature.parameters()) and not feature.state_dict()


def test_random_conv_is_the_textbook_convolution():
    feature, x = RandomConv(2, 8, seed=3), images(3, 2, 8, 8)
    h = x.double() / 127.5 - 1
    for i, stride in enumerate((1, 2)):
        layer = torch.nn.Conv2d(*feature.get_buffer(f"weight_{i}").shape[1::-1], 3, stride, 1)
        layer.weight.data = feature.get_buffer(f"weight_{i}")
        layer.bias.data = feature.get_buffer(f"bias_{i}")
        h = layer.double()(h).relu()
    flat = h.detach().flatten(2)
    truth = torch.cat((flat.mean(2), flat.std(2, correction=0)), 1).float()
    torch.testing.assert_close(feature(x), truth, rtol=1e-4, atol=1e-5)


def test_batches_do_not_matter():
    feature, x = RandomConv(1, 8), images(33, 1, 8, 8)
    torch.testing.assert_close(extract(feature, x, 5), extract(feature, x), rtol=1e-5, atol=1e-6)


def test_pixels_and_identity():
    x = images(4, 3, 5, 7)
    assert torch.equal(Pixels()(x), x.reshape(4, -1) / 255)
    v = torch.randn(4, 2)
    assert extract(Identity(), v).equal(v)
    assert len({Pixels().digest, Identity().digest}) == 2


@pytest.mark.parametrize("name", ["random-conv", "pixels", "genflow-small"])
def test_every_feature_says_what_it_is(name):
    feature = features(name, (1, 8, 8))
    assert isinstance(feature, Features)
    assert feature.prefix == f"FD-{name}" and len(feature.digest) == 64 and feature.resize


@pytest.mark.parametrize("name", ["random-conv", "pixels", "genflow-small"])
def test_features_have_slopes_where_images_are_not_rounded(name):
    feature, x = features(name, (2, 8, 8)), images(5, 2, 8, 8)
    assert isinstance(feature, Differentiable)
    real = (x.float() / 127.5 - 1).requires_grad_()
    torch.testing.assert_close(feature.embed(real).detach(), feature(x), rtol=1e-5, atol=1e-6)

    if isinstance(feature, torch.nn.Module):
        feature = feature.double()
    real = real.detach().double().requires_grad_()
    towards, weights = torch.randn_like(real), torch.randn_like(feature.embed(real))
    (slope,) = torch.autograd.grad((feature.embed(real) * weights).sum(), real)
    step = 1e-7
    with torch.no_grad():
        ends = [feature.embed(real + s * towards) for s in (step, -step)]
    rise = ((ends[0] - ends[1]) * weights).sum() / (2 * step)
    assert float((slope * towards).sum()) == pytest.approx(float(rise), rel=1e-4)


@pytest.mark.parametrize("name", ["random-conv", "genflow-small"])
def test_a_flat_image_has_a_finite_slope(name):
    """Its channels do not vary, and the root of a variance has no slope at zero."""

    feature = features(name, (1, 8, 8))
    x = torch.zeros(2, 1, 8, 8, requires_grad=True)
    feature.embed(x).sum().backward()
    assert bool(x.grad.isfinite().all())


def test_vectors_pass_through_with_their_slope():
    v = torch.randn(3, 2, requires_grad=True)
    assert Identity().embed(v) is v and isinstance(Identity(), Differentiable)


def test_full_names_make_the_same_net():
    feature = features("random-conv-3x16-7", (3, 16, 16))
    assert feature.digest == RandomConv(3, 16, 7).digest
    with pytest.raises(UserError, match=r"is for images of shape \(3, 16, 16\)"):
        features("random-conv-3x16-7", (1, 16, 16))


def test_bad_input_is_told_in_one_sentence():
    net = RandomConv(1, 8)
    for call, sentence in [
        (lambda: features("randomconv", (1, 8, 8)), "did you mean 'random-conv'"),
        (lambda: features("qqq", (1, 8, 8)), "Allowed: clip, dinov2, genflow-small, identity, "),
        (
            lambda: features("pixels", (1, 8, 8), weights="x.pt"),
            "'pixels' reads none; leave 'x.pt'",
        ),
        (
            lambda: features("inception", (3,)),
            r"\(3,\) is not \(C, H, W\); the feature 'inception'",
        ),
        (lambda: features("genflow-small", (3,)), "'identity' for vectors"),
        (lambda: features("random-conv", (1, 8, 9)), "take 'pixels'"),
        (lambda: features("random-conv", (2,)), "'identity' for vectors"),
        (lambda: RandomConv(0, 8), "channels: 0"),
        (lambda: RandomConv(1, 3), "size: 3"),
        (lambda: net(torch.rand(2, 1, 8, 8)), "torch.float32 is not 8-bit"),
        (lambda: net(images(2, 3, 8, 8)), r"\(2, 3, 8, 8\) is not \(n, 1, 8, 8\)"),
        (lambda: Pixels()(images(2, 8)), r"\(2, 8\) is not \(n, C, H, W\)"),
        (lambda: Identity()(images(2, 1, 8, 8)), "for vectors"),
        (lambda: extract(net, images(0, 1, 8, 8)), "there are 0"),
        (lambda: extract(net, images(1, 1, 8, 8), 0), "batch_size: 0"),
    ]:
        with pytest.raises(UserError, match=sentence):
            call()
