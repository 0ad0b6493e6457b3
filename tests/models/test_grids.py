"""Grids of times: published formulae, ends, monotony for every path and kind."""

import math

from oracles import PATHS, double
import pytest
import torch

from genflow.errors import UserError
from genflow.models import Discrete, Karras, Rectified, VariancePreserving, grid

KINDS = ["logsnr", "uniform", "quadratic", "karras", "trailing", "leading"]


@pytest.mark.parametrize("final", ["min", "zero"])
@pytest.mark.parametrize("steps", [1, 2, 50])
@pytest.mark.parametrize("shift", [1.0, 3.0, 0.4])
@pytest.mark.parametrize("spacing", KINDS)
@pytest.mark.parametrize("kind", PATHS)
def test_every_grid_decreases_between_its_ends(kind, spacing, shift, steps, final):
    path = PATHS[kind]
    times = grid(path, steps, spacing, final=final, shift=shift)
    assert len(times) == steps + 1
    assert all(a > b for a, b in zip(times, times[1:], strict=False)), times
    assert all(isinstance(t, float) and 0 <= t <= 1 for t in times)
    if spacing != "leading":
        assert times[0] == pytest.approx(path.t_max, abs=1.1e-3)
    if final == "zero" or spacing in ("trailing", "leading"):
        assert times[-1] == 0
    elif steps > 1:
        assert times[-1] == pytest.approx(path.t_min, abs=1.1e-3)


def test_edm():
    """σ_i = (σ_max^(1/ρ) + i/(N−1) (σ_min^(1/ρ) − σ_max^(1/ρ)))^ρ, then 0."""

    N, path = 18, Karras()
    i = torch.arange(N, dtype=torch.float64) / (N - 1)
    sigma = (80 ** (1 / 7) + i * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    times = double(grid(path, N))
    torch.testing.assert_close(path(times)[1], torch.cat([sigma, sigma.new_zeros(1)]))
    even = times[:-1].diff()
    torch.testing.assert_close(even, even.mean().expand_as(even))


def test_karras_grid_with_another_rho_on_another_path():
    path, N = VariancePreserving(), 12
    times = double(grid(path, N, "karras", rho=3.0))
    root = torch.exp(-path.lam(times) / 3.0)
    torch.testing.assert_close(root.diff(), root.diff().mean().expand(N))


def test_logsnr_is_even_in_lambda():
    path = VariancePreserving()
    times = double(grid(path, 9, "logsnr"))
    gaps = path.lam(times).diff()
    torch.testing.assert_close(gaps, gaps.mean().expand(9))
    assert times[0] == 1 and times[-1] == 1e-3


def test_infinite_ends_are_moved_inside():
    times = grid(Rectified(), 4, "logsnr")
    assert times[0] == pytest.approx(0.999) and times[-1] == pytest.approx(0.001)
    assert grid(Rectified(), 4) == (1.0, 0.75, 0.5, 0.25, 0.0)


def test_quadratic():
    times = double(grid(Rectified(), 5, "quadratic"))
    torch.testing.assert_close(times.sqrt(), torch.linspace(1, 0, 6, dtype=torch.float64))


def test_trailing_and_leading_levels():
    """Levels 999, 899, … and 900, 800, … of 1000, that is DDIM's two conventions."""

    path = PATHS["discrete"]
    trailing = [round(1000 * t) - 1 for t in grid(path, 10, "trailing")[:-1]]
    leading = [round(1000 * t) - 1 for t in grid(path, 10, "leading")[:-1]]
    assert trailing == list(range(999, 0, -100))
    assert leading == list(range(900, -1, -100))
    small = Discrete((0.9, 0.7, 0.4, 0.2, 0.1))
    assert grid(small, 5, "leading") == pytest.approx((1.0, 0.8, 0.6, 0.4, 0.2, 0.0))


@pytest.mark.parametrize("shift", [0.3, 2.0, 3.0])
def test_shift_on_the_straight_path(shift):
    """t ↦ a t / (1 + (a − 1) t), the form of Stable Diffusion 3."""

    plain, moved = (double(grid(Rectified(), 10, shift=a)) for a in (1.0, shift))
    torch.testing.assert_close(moved, shift * plain / (1 + (shift - 1) * plain))


@pytest.mark.parametrize("kind", ["vp", "karras", "cosine", "discrete"])
def test_shift_multiplies_the_odds_far_from_the_ends(kind):
    """Where σ/α is far from both ends the shift is λ − log a, and the ends stay."""

    path = PATHS[kind]
    plain, moved = (double(grid(path, 40, "logsnr", shift=a, final="min")) for a in (1.0, 1.5))
    before, after = path.lam(plain), path.lam(moved)
    middle = (before > before[0] + 4) & (before < before[-1] - 4)
    assert int(middle.sum()) > 3
    gap = (before - after)[middle]
    torch.testing.assert_close(gap, torch.full_like(gap, math.log(1.5)), rtol=0.05, atol=0)
    assert moved[0] == plain[0] and moved[-1] == plain[-1]
    assert bool((after[1:-1] < before[1:-1]).all())


def test_shift_and_back():
    path = PATHS["vp"]
    lam = path.lam(double(grid(path, 20, "logsnr", shift=2.0)))
    r = torch.exp(-lam)
    q = (r - r[-1]) / (r[0] - r[-1])
    undone = r[-1] + (r[0] - r[-1]) * 0.5 * q / (1 - 0.5 * q)
    torch.testing.assert_close(-undone.log(), path.lam(double(grid(path, 20, "logsnr"))))


REFUSED = {
    "steps": ({"steps": 0}, "steps is 0"),
    "kind": ({"steps": 3, "kind": "logsnor"}, "grid is 'logsnor': did you mean 'logsnr'"),
    "final": ({"steps": 3, "final": "end"}, "final is 'end'"),
    "ends": ({"steps": 3, "start": 0.2, "stop": 0.5}, "start is 0.2 and stop is 0.5"),
    "shift": ({"steps": 3, "shift": 0.0}, "shift is 0.0"),
    "rho": ({"steps": 3, "kind": "karras", "rho": -1.0}, "rho is -1.0"),
    "leading": ({"steps": 1001, "kind": "leading"}, "at most 1000 steps"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_impossible_grids_are_refused(name):
    options, message = REFUSED[name]
    with pytest.raises(UserError, match=message):
        grid(VariancePreserving(), **options)
