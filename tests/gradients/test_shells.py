"""The shell: what is allowed, what is nearest to it, and how far away things are."""

import math

import pytest
import torch

from genflow.gradients.shells import SHELL, away, project, radius_of


def states(n=6, shape=(1, 4, 4), dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, *shape, generator=g, dtype=dtype)


def radii(r):
    return torch.full((6,), r, dtype=torch.float64)


def lengths(x):
    return x.flatten(1).norm(dim=1)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("r", [1e-3, 0.1, 0.7, 1.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_projections_are_allowed(norm, r, dtype):
    origin, radius = states(dtype=dtype), radii(r)
    for far in (0.01, 1.0, 30.0):
        z = project(origin + far * states(seed=1, dtype=dtype), origin, radius, norm)
        assert z.dtype == dtype and z.shape == origin.shape
        assert (radius_of(z, origin, norm) <= r * (1 + 1e-5) + 1e-6).all()
        off = (lengths(z) / lengths(origin) - 1).abs().max()
        assert off < (1e-6 if norm == "l2" else SHELL * (1 + 1e-3))


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_bound_binds(norm):
    """A step far out ends on the rim, not inside it and not out of it."""

    origin = states()
    z = project(origin + 5 * states(seed=1), origin, radii(0.3), norm)
    r = radius_of(z, origin, norm)
    assert (r > 0.3 * 0.9).all() and (r <= 0.3 + 1e-9).all()


def test_what_is_allowed_stays():
    origin = states()
    inside = away(states(seed=1), origin, radii(0.2), "l2")
    torch.testing.assert_close(
        project(inside, origin, radii(0.3), "l2"), inside, rtol=0, atol=1e-12
    )
    torch.testing.assert_close(
        project(origin, origin, radii(0.3), "linf"), origin, rtol=0, atol=1e-12
    )


def test_the_projection_onto_a_cap_is_the_nearest_point():
    g = torch.Generator().manual_seed(2)
    origin = torch.randn(1, 3, generator=g, dtype=torch.float64)
    z = origin + torch.randn(1, 3, generator=g, dtype=torch.float64)
    radius = torch.tensor([0.4], dtype=torch.float64)
    found = project(z, origin, radius, "l2")
    many = torch.randn(200_000, 3, generator=g, dtype=torch.float64)
    cap = away(many, origin.expand(200_000, 3), radius.expand(200_000), "l2")
    cap = torch.cat([cap, project(many, origin.expand(200_000, 3), radius.expand(200_000), "l2")])
    unit = z * lengths(origin) / lengths(z)
    assert float((found - unit).norm()) <= float((cap - unit).norm(dim=1).min()) + 1e-9


@pytest.mark.parametrize("r", [0.05, 1.0, 2.0])
def test_rotations_have_the_chord_that_was_asked_for(r):
    origin, direction = states(), states(seed=3)
    z = away(direction, origin, radii(r), "l2")
    torch.testing.assert_close(radius_of(z, origin, "l2"), radii(r))
    cosine = (z * origin).flatten(1).sum(1) / lengths(origin) ** 2
    expected = math.cos(2 * math.asin(r / 2))
    torch.testing.assert_close(cosine, radii(expected), atol=1e-9, rtol=0)


def test_radii_are_relative():
    origin, delta = torch.full((1, 4), 3.0), torch.tensor([[0.3, 0.0, 0.0, -0.6]])
    z = origin + delta
    assert float(radius_of(z, origin, "l2")) == pytest.approx(math.sqrt(0.45) / 6)
    assert float(radius_of(z, origin, "linf")) == pytest.approx(0.6 / 3)


def test_corners_of_the_box():
    origin = states(shape=(1, 16, 16))
    z = away(states(seed=4, shape=(1, 16, 16)), origin, radii(0.1), "linf")
    r = radius_of(z, origin, "linf")
    assert (r <= 0.1 + 1e-9).all() and (r > 0.09).all()
