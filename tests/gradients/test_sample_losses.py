"""Losses: closed forms, and a gradient that finite differences confirm."""

import math

import pytest
import torch

from genflow.errors import UserError
from genflow.gradients import Classified, Gram, Pixel
from genflow.gradients.losses import margin
from genflow.metrics.features import RandomConv

EVERY = torch.arange(3)


def images(n=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(n, 1, 8, 8, generator=g) - 1


def test_pixels():
    y = images()
    x = y + torch.tensor([0.0, 0.5, -2.0]).view(3, 1, 1, 1)
    torch.testing.assert_close(Pixel(y)(x, EVERY), torch.tensor([0.0, 0.25, 4.0]))
    shuffled = torch.tensor([2, 0])
    torch.testing.assert_close(Pixel(y)(y[shuffled], shuffled), torch.zeros(2))
    assert float(Pixel(y[:1])(y, EVERY)[0]) == 0 < float(Pixel(y[:1])(y, EVERY)[1])


def test_the_style_of_one_image_and_of_none():
    maps = RandomConv(1, 8).maps
    x = images()
    assert float(Gram(maps, x[:1])(x[:1], EVERY[:1])) == 0
    silent = lambda x: [torch.zeros(len(x), 4, 3, 3)]  # noqa: E731
    loud = Gram(maps, x)
    loud.maps, loud.style = silent, [torch.eye(4)]
    torch.testing.assert_close(loud(x, EVERY), torch.ones(3))


def test_gram_matrices_by_hand():
    """Two layers, one of two channels with two pixels: every entry written out."""

    def maps(x):
        h = x.flatten(2)[:, :, :4].reshape(len(x), 2, 1, 2)
        return [h, 2 * h]

    x = torch.tensor([[[[1.0, 2.0], [3.0, -1.0]]]])
    y = torch.tensor([[[[0.0, 1.0], [1.0, 0.0]]]])
    G = torch.tensor([[2.5, 0.5], [0.5, 5.0]])  # ½ Σ h hᵀ with rows (1, 2) and (3, −1)
    H = torch.tensor([[0.5, 0.0], [0.0, 0.5]])
    expected = float((G - H).square().sum() / H.square().sum())
    assert float(Gram(maps, y)(x, EVERY[:1])) == pytest.approx(expected, rel=1e-6)


def test_style_does_not_see_where():
    maps = lambda x: [x.expand(-1, 3, -1, -1) ** torch.arange(1, 4).view(1, 3, 1, 1)]  # noqa: E731
    x = images(1)
    moved = x.roll((3, 2), (2, 3))
    assert float(Gram(maps, x)(moved, EVERY[:1])) < 1e-10 < float(Pixel(x)(moved, EVERY[:1]))


def test_gradients_of_style():
    net = RandomConv(1, 8).double()
    loss = Gram(net.maps, images(2, seed=1).double())
    assert torch.autograd.gradcheck(lambda x: loss(x, EVERY), images().double().requires_grad_())


def test_features_are_the_last_maps():
    net = RandomConv(1, 8)
    eight = torch.randint(0, 256, (3, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    eight = eight.to(torch.uint8)
    h = net.maps(eight.float() / 127.5 - 1)[-1]
    torch.testing.assert_close(net(eight)[:, : h.shape[1]], h.mean((2, 3)))


def test_classes():
    logits = torch.tensor([[0.0, 1.0, 3.0], [2.0, 0.0, 0.0], [0.0, 5.0, 0.0]])
    own = Classified(lambda x: logits[: len(x)], torch.tensor([2, 1, 1]))
    expected = [math.log(sum(map(math.exp, r))) - r[k] for r, k in zip(logits.tolist(), (2, 1, 1))]
    torch.testing.assert_close(own(images(), EVERY), torch.tensor(expected))
    assert own.right(images(), EVERY).tolist() == [True, False, True]
    one = Classified(lambda x: logits, torch.tensor([0]))
    assert one.right(images(), EVERY).tolist() == [False, True, False]


def test_being_right_is_judged_on_eight_bits():
    """0.001 is saved as level 128, which is 0.0039: beyond a threshold of 0.002."""

    net = lambda x: torch.stack([torch.zeros(len(x)), x.amax((1, 2, 3)) - 0.002], 1)  # noqa: E731
    x = torch.full((1, 1, 8, 8), 0.001)
    assert net(x).argmax(1).item() == 0
    assert Classified(net, torch.tensor([1])).right(x, EVERY[:1]).item()


def test_margins():
    f = torch.tensor([[1.0, 4.0, 2.0], [0.0, 1.0, 3.0]])
    truth = torch.tensor([1, 1])
    torch.testing.assert_close(margin(f, truth), torch.tensor([2.0, -2.0]))
    torch.testing.assert_close(margin(f, truth, torch.tensor([2, 2])), torch.tensor([2.0, -2.0]))
    torch.testing.assert_close(margin(f, truth, torch.tensor([0, 0])), torch.tensor([3.0, 3.0]))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: Pixel(torch.zeros(1, 3, 8, 8))(x, EVERY), r"target has shape \(3, 8, 8\)"),
        (lambda x: Classified(lambda x: x, EVERY)(x, EVERY), r"shape \(3, 1, 8, 8\) for 3 images"),
        (
            lambda x: Classified(lambda x: torch.zeros(3, 2), EVERY)(x, EVERY),
            "class 2 is wanted, and the classifier knows 0 … 1",
        ),
    ],
)
def test_bad_values(call, words):
    with pytest.raises(UserError, match=words):
        call(images())
