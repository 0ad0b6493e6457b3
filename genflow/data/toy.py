"""Sets of points in the plane, for pictures, tests and one-minute runs.

Every set is a law, drawn once from the seed:

    x = (raw - centre) / scale + noise · e,    e standard normal

`centre` and `scale` are constants of the law, not of the draw: the mean, and the root of the mean
of the two variances. So without noise the variance, averaged over both coordinates, is one, and
two draws of the same set can be compared; the shape is not stretched. What is not assumed: that
points are independent. Scikit-learn spaces those of the moons and the rings evenly along their
arcs, so that only `noise` and the order tell two seeds apart there.

    moons            two half circles                                     2 classes
    eight-gaussians  eight spots on a circle, each as wide as the noise   8 classes
    checkerboard     the eight dark fields of a 4×4 board                 8 classes
    swiss-roll       a spiral, seen from above                            none
    rings            two circles, one of half the radius                  2 classes
    pinwheel         five bent arms                                       5 classes
    two-squares      two squares on a diagonal                            2 classes
"""

from collections.abc import Callable
from dataclasses import dataclass
import math
from typing import Any, Literal

import numpy as np
from sklearn import datasets
import torch

from genflow.data.base import DataModule
from genflow.data.checks import at_least, between, one_of
from genflow.data.examples import Examples, Tensors
from genflow.data.stream import seed_words

__all__ = ["Toy", "draw_toy"]

Points = tuple[np.ndarray, np.ndarray | None]  # (n, 2) and (n,)


def _state(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))


def _moons(n: int, rng: np.random.Generator) -> Points:
    return datasets.make_moons(n, random_state=_state(rng))


def _eight_gaussians(n: int, rng: np.random.Generator) -> Points:
    label = rng.integers(8, size=n)
    angle = label * math.pi / 4
    return np.stack([np.cos(angle), np.sin(angle)], 1), label


def _checkerboard(n: int, rng: np.random.Generator) -> Points:
    label = rng.integers(8, size=n)
    row = label // 2
    column = 2 * (label % 2) + row % 2
    return np.stack([column, row], 1) + rng.random((n, 2)), label


def _swiss_roll(n: int, rng: np.random.Generator) -> Points:
    x, _ = datasets.make_swiss_roll(n, random_state=_state(rng))
    return x[:, [0, 2]], None


def _rings(n: int, rng: np.random.Generator) -> Points:
    return datasets.make_circles(n, factor=0.5, random_state=_state(rng))


def _pinwheel(n: int, rng: np.random.Generator) -> Points:
    label = rng.integers(5, size=n)
    along = 1 + 0.3 * rng.standard_normal(n)
    across = 0.1 * rng.standard_normal(n)
    bend = 2 * math.pi * label / 5 + 0.25 * np.exp(along)
    z = (along + 1j * across) * np.exp(1j * bend)
    return np.stack([z.real, z.imag], 1), label


def _two_squares(n: int, rng: np.random.Generator) -> Points:
    label = rng.integers(2, size=n)
    return (2.0 * label - 1)[:, None] + rng.uniform(-0.5, 0.5, (n, 2)), label


@dataclass(frozen=True)
class _Law:
    draw: Callable[[int, np.random.Generator], Points]
    classes: int | None
    variance: float  # of a raw point, the mean of both coordinates'
    centre: tuple[float, float] = (0.0, 0.0)


_ROLL = (2.0, 2 / (3 * math.pi))  # the mean of t(cos t, sin t) for t uniform on 3π/2 .. 9π/2
_SQUARE = (1.5 * math.pi) ** 2 * 13 / 3  # the mean of t² there

LAWS = {
    "moons": _Law(_moons, 2, (0.75 + 0.5625 - 1 / math.pi) / 2, (0.5, 0.25)),
    "eight-gaussians": _Law(_eight_gaussians, 8, 0.5),
    "checkerboard": _Law(_checkerboard, 8, 4 / 3, (2.0, 2.0)),
    "swiss-roll": _Law(_swiss_roll, None, (_SQUARE - _ROLL[0] ** 2 - _ROLL[1] ** 2) / 2, _ROLL),
    "rings": _Law(_rings, 2, 0.3125),
    "pinwheel": _Law(_pinwheel, 5, 0.55),
    "two-squares": _Law(_two_squares, 2, 13 / 12),
}


def draw_toy(name: str, size: int, *, noise: float = 0.05, seed: int = 0) -> Tensors:
    """Draws a set.

    Args:
        name: which set, as in the table above.
        size: n, the number of points.
        noise: the standard deviation of the noise added after scaling.
        seed: names the draw.

    Returns:
        points with shape (n, 2) in float32, with labels where the set has classes.

    Raises:
        UserError: if the name is unknown or a number out of its range.
    """
    law = LAWS[one_of("name", name, LAWS)]
    at_least("size", size, 1)
    between("noise", noise, 0, math.inf)
    rng = np.random.default_rng(seed_words("toy", at_least("seed", seed, 0)))
    raw, label = law.draw(size, rng)
    x = (raw - np.asarray(law.centre)) / math.sqrt(law.variance)
    x = torch.from_numpy(x + noise * rng.standard_normal(x.shape)).to(torch.float32)
    if law.classes is None or label is None:
        return Tensors(x)
    return Tensors(x, torch.from_numpy(np.asarray(label, np.int64)), classes=law.classes)


class Toy(DataModule):
    """A set of points in the plane; see the table above.

    Args:
        name: which set.
        size: the number of points, before any are held out.
        noise: the standard deviation of the noise added to the scaled points.
        **options: batch_size, workers, seed and validation, as in `DataModule`.

    Raises:
        UserError: if the name is unknown or a number out of its range.
    """

    def __init__(
        self,
        name: Literal[
            "moons",
            "eight-gaussians",
            "checkerboard",
            "swiss-roll",
            "rings",
            "pinwheel",
            "two-squares",
        ] = "moons",
        size: int = 10_000,
        noise: float = 0.05,
        **options: Any,
    ) -> None:
        super().__init__(flip=False, **options)
        self.name = one_of("name", name, LAWS)
        self.size = at_least("size", size, 1)
        self.noise = between("noise", noise, 0, math.inf)

    @property
    def title(self) -> str:
        """See `DataModule.title`."""
        return self.name

    def load(self) -> Examples:
        """See `DataModule.load`; (n, 2)."""
        return draw_toy(self.name, self.size, noise=self.noise, seed=self.seed)
