"""Augmentation: the picture that the formulas draw, and labels that name it and nothing else."""

import itertools
import math

import numpy as np
import pytest
import torch

from genflow.errors import UserError
from genflow.training import Augmentation, warp
from genflow.training.augment import CENTRE, TAPS, _resample


def label(xflip=0, yflip=0, w_s=0.0, theta=0.0, w=0.0, phi=0.0, right=0.0, down=0.0):
    row = [xflip, yflip, w_s, math.cos(theta) - 1, math.sin(theta)]
    row += [w * math.cos(2 * phi), w * math.sin(2 * phi), right, down]
    return torch.tensor([row])


def rotation(angle):
    """Anticlockwise for a reader, who sees y grow downwards."""

    c, s = math.cos(angle), math.sin(angle)
    return np.array([[c, s], [-s, c]])


def drawn(size, xflip=0, yflip=0, w_s=0.0, theta=0.0, w=0.0, phi=0.0, right=0.0, down=0.0):
    """Where each pixel of the result comes from: the operations one by one, then all undone."""

    H, W = size
    y, x = np.meshgrid(np.arange(H) - (H - 1) / 2, np.arange(W) - (W - 1) / 2, indexing="ij")
    axis, e = rotation(phi), 2 ** (0.2 * w)
    forward = np.diag([1 - 2 * xflip, 1 - 2 * yflip])
    forward = 2 ** (0.2 * w_s) * forward
    forward = rotation(theta) @ forward
    forward = axis @ np.diag([e, 1 / e]) @ axis.T @ forward
    points = np.stack([x - W * right / 8, y - H * down / 8])
    return np.einsum("ij,jhw->ihw", np.linalg.inv(forward), points)


def waves(x, y):
    """A picture without symmetries, known everywhere."""

    return np.cos(0.21 * x + 0.12 * y + 0.3) + 0.5 * np.sin(0.08 * x - 0.17 * y)


CASES = {
    "mirror": {"xflip": 1},
    "flip": {"yflip": 1},
    "larger": {"w_s": 1.3},
    "smaller": {"w_s": -0.9},
    "turned": {"theta": 0.7},
    "turned far": {"theta": -2.3},
    "stretched": {"w": 1.4},
    "squeezed": {"w": -1.4},
    "slanted": {"w": 1.2, "phi": 0.5},
    "slanted back": {"w": 1.2, "phi": -0.5},
    "shifted": {"right": 0.6, "down": -0.3},
    "half a pixel": {"right": 0.5 * 8 / 40},
    "all": {"xflip": 1, "yflip": 1, "w_s": 0.8, "theta": 1.1, "w": -0.9, "phi": 0.8, "right": 0.5,
            "down": 0.4},
}  # fmt: skip


@pytest.mark.parametrize("size", [(40, 40), (32, 44)], ids=["square", "oblong"])
@pytest.mark.parametrize("case", CASES)
def test_a_picture_is_moved_as_the_formulas_say(case, size):
    H, W = size
    plain = drawn(size)
    u, v = drawn(size, **CASES[case])
    x = torch.tensor(waves(*plain))[None, None]
    moved = warp(x, label(**CASES[case]))[0, 0].numpy()
    inside = (np.abs(u) < W / 2 - 7) & (np.abs(v) < H / 2 - 7)  # away from the mirrored border
    assert inside.mean() > 0.1
    assert np.abs(moved - waves(u, v))[inside].max() < 0.012
    assert np.abs(moved - waves(*plain))[inside].max() > 0.05, "it has moved at all"


def test_a_ramp_is_moved_to_rounding():
    """Positions are counted from the centre of the taps: no drift of a fraction of a pixel."""

    case = {"w_s": 0.5, "theta": 0.4, "w": 0.6, "phi": 1.0, "right": 0.3}
    (u, v), (x, y) = drawn((32, 32), **case), drawn((32, 32))
    moved = warp(torch.tensor(0.3 * x - 0.2 * y)[None, None], label(**case))[0, 0].numpy()
    inside = (np.abs(u) < 9) & (np.abs(v) < 9)
    assert np.abs(moved - (0.3 * u - 0.2 * v))[inside].max() < 1e-5


def test_borders_are_mirrored():
    """A shift by a whole pixel brings in the second column, and not the first or a zero."""

    x = torch.linspace(0, 1, 16).expand(1, 1, 16, 16).double()
    moved = warp(x, label(right=2 * 8 / 16))
    torch.testing.assert_close(moved[..., 2:], x[..., :-2], atol=2e-2, rtol=0)
    torch.testing.assert_close(moved[..., :2], x[..., 1:3].flip(-1), atol=2e-2, rtol=0)


# ------------------------------------------------------------------- nothing is changed twice


def daubechies():
    """The orthonormal filters of twelve taps with six vanishing moments, by factorisation.

    Of each pair of roots a filter holds one; complex roots come with their conjugates.
    """

    roots = np.roots([math.comb(5 + k, k) for k in range(6)][::-1])
    pairs = [np.roots([1, 4 * y - 2, 1]) for y in roots[roots.imag > -1e-9]]
    for choice in itertools.product(*pairs):
        zeros = [z for q in choice for z in ({q, q.conjugate()} if abs(q.imag) > 1e-9 else {q})]
        h = np.poly([*zeros, *[-1.0] * 6]).real
        yield h * math.sqrt(2) / h.sum()


def bend(h):
    """How far the phase of a filter is from linear."""

    omega = np.linspace(0.02, 0.98, 100) * math.pi
    phase = np.unwrap(np.angle(np.exp(-1j * omega[:, None] * np.arange(12)) @ h))
    return np.abs(phase - np.polyval(np.polyfit(omega, phase, 1), omega)).max()


def test_the_taps_are_those_of_the_least_asymmetric_wavelet():
    h = np.array(TAPS)
    for m in range(6):
        assert h[2 * m :] @ h[: 12 - 2 * m] == pytest.approx(float(m == 0), abs=2e-12)

    filters = list(daubechies())
    assert len(filters) == 8 and min(np.abs(f - h).max() for f in filters) < 1e-11
    assert bend(h) == pytest.approx(min(map(bend, filters)), abs=1e-4)
    assert pytest.approx(np.arange(12) @ h / h.sum()) == CENTRE


def test_what_moves_nothing_changes_nothing():
    x = torch.rand(3, 2, 9, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(warp(x, torch.zeros(3, 9)), x)
    resampled = _resample(x.double(), torch.zeros(3, 9).double())
    torch.testing.assert_close(resampled, x.double(), atol=1e-5, rtol=0)
    assert torch.equal(warp(x, label(xflip=1).expand(3, 9)), x.flip(-1))
    assert torch.equal(warp(x, label(yflip=1).expand(3, 9)), x.flip(-2))


def test_an_image_does_not_depend_on_its_batch():
    g = torch.Generator().manual_seed(1)
    x = torch.rand(70, 1, 8, 8, generator=g)
    moved, own = Augmentation(p=1.0)(x, g)
    for i in (0, 63, 64, 69):
        torch.testing.assert_close(warp(x[i : i + 1], own[i : i + 1])[0], moved[i])


def test_precision_does_not_change_the_picture():
    g = torch.Generator().manual_seed(1)
    x, own = torch.rand(4, 1, 8, 8, generator=g), Augmentation(p=1.0).labels(4, generator=g)
    plain = warp(x, own)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(warp(x, own), plain)
    half = warp(x.bfloat16(), own)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half, warp(x.bfloat16().float(), own).bfloat16())


# --------------------------------------------------------------------- labels name transforms


@pytest.mark.parametrize(
    "there, back",
    [
        ({"theta": 0.6}, {"theta": -0.6}),
        ({"w": 0.8, "phi": 0.4}, {"w": -0.8, "phi": 0.4}),
        ({"w": 0.8, "phi": 0.4}, {"w": 0.8, "phi": 0.4 + math.pi / 2}),
        ({"w_s": 0.7}, {"w_s": -0.7}),
        ({"right": 0.3, "down": 0.2}, {"right": -0.3, "down": -0.2}),
    ],
)
def test_the_inverse_brings_the_picture_back(there, back):
    x = torch.tensor(waves(*drawn((40, 40))))[None, None]
    again = warp(warp(x, label(**there)), label(**back))
    inside = (..., slice(13, 27), slice(13, 27))
    torch.testing.assert_close(again[inside], x[inside], atol=0.012, rtol=0)


def test_opposite_stretches_have_different_labels():
    """The published label w (cos φ, sin φ) is one for both of these, and they are inverse."""

    w, phi = 1.3, 0.4
    for turn, same in ((math.pi, False), (math.pi / 2, True)):
        a, b = label(w=w, phi=phi), label(w=-w, phi=phi + turn)
        assert torch.allclose(a, b, atol=1e-6) == same
    legacy = [(w * math.cos(phi), w * math.sin(phi))]
    legacy += [(-w * math.cos(phi + math.pi), -w * math.sin(phi + math.pi))]
    np.testing.assert_allclose(*legacy, atol=1e-12)

    x = torch.tensor(waves(*drawn((32, 32))))[None, None]
    one, other = warp(x, label(w=w, phi=phi)), warp(x, label(w=-w, phi=phi + math.pi))
    assert (one - other).abs().max() > 0.3


def test_every_operation_has_its_own_probability_and_law():
    n, p = 40_000, 0.2
    rows = Augmentation(p, scale=2.0, translate=0.5).labels(
        n, generator=torch.Generator().manual_seed(0)
    )
    xflip, yflip, zoom, cos, sin, a, b, right, down = rows.unbind(1)
    share = {
        "xflip": (xflip, 0.5),
        "yflip": (yflip, p / 2),
        "scale": (zoom, 2 * p),
        "rotate": (sin, p),
        "stretch": (a, p),
        "slanted": (b, p / 2),
        "translate": (right, p / 2),
    }
    for name, (values, expected) in share.items():
        assert float(values.ne(0).float().mean()) == pytest.approx(expected, abs=0.01), name

    assert rows.dtype == torch.float32 and set(xflip.tolist()) == {0.0, 1.0}
    assert zoom[zoom != 0].var() == pytest.approx(1, abs=0.04)
    assert torch.hypot(a, b)[a != 0].square().mean() == pytest.approx(1, abs=0.05)
    assert right[right != 0].std() == pytest.approx(1, abs=0.04)
    torch.testing.assert_close((1 + cos) ** 2 + sin**2, torch.ones(n))
    turned = torch.atan2(sin, 1 + cos)[sin != 0]
    assert turned.std() == pytest.approx(2 * math.pi / math.sqrt(12), abs=0.04)
    assert torch.equal(right.ne(0), down.ne(0)), "one shift, in both directions"

    gates = torch.stack([zoom, sin, a, right]).ne(0).float()
    assert (torch.corrcoef(gates) - torch.eye(4)).abs().max() < 0.03, "independent gates"
    axis = torch.atan2(b, a)[b != 0]
    assert abs(torch.cos(axis).mean()) < 0.05 and abs(torch.sin(axis).mean()) < 0.05


def test_the_label_zero_is_the_image_itself():
    """Not leaky: whoever asks for zero is shown the data and nothing else."""

    g = torch.Generator().manual_seed(2)
    x = torch.rand(4000, 1, 4, 4, generator=g)
    moved, own = Augmentation(p=0.12)(x, g)
    same = own.eq(0).all(1)
    assert torch.equal(moved[same], x[same])
    assert not (moved[~same] == x[~same]).flatten(1).all(1).any()
    assert float(same.float().mean()) == pytest.approx(0.5 * 0.94 * 0.88**4, abs=0.025)


def test_operations_can_be_turned_off():
    off = {k: 0.0 for k in ("xflip", "yflip", "rotate", "stretch", "translate")}
    rows = Augmentation(p=1.0, **off).labels(50)
    assert rows[:, 2].ne(0).all() and not rows[:, [0, 1, 3, 4, 5, 6, 7, 8]].any()


# ---------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("p", [0.0, -0.1, 1.5, math.nan])
def test_the_probability_is_one(p):
    with pytest.raises(UserError, match=f"augment.p is {p}.*leave augment out"):
        Augmentation(p)


def test_multipliers_are_not_negative():
    with pytest.raises(UserError, match=r"augment.rotate is -1.0.*0 turns the operation off"):
        Augmentation(rotate=-1.0)
    with pytest.raises(UserError, match=r"augment.xflip is inf"):
        Augmentation(xflip=math.inf)


def test_images_and_labels_must_fit():
    with pytest.raises(UserError, match=r"x has shape \(4, 2\)"):
        warp(torch.zeros(4, 2), torch.zeros(4, 9))
    with pytest.raises(UserError, match=r"x has shape \(4, 2, 1, 8\)"):
        warp(torch.zeros(4, 2, 1, 8), torch.zeros(4, 9))
    with pytest.raises(UserError, match=r"label has shape \(3, 9\): 4 images need \(4, 9\)"):
        warp(torch.zeros(4, 2, 8, 8), torch.zeros(3, 9))
