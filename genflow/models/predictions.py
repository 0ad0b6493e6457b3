r"""What a network predicts: a table of coefficients, a row a prediction.

With F the output of the network, the estimates of data and noise are linear in :math:`(x_t, F)`,
and the target of F is linear in :math:`(x, z)`. Everything else about a prediction follows from
its row: the loss, the denoiser, the velocity.
"""

__all__ = [
    "CLOCKS",
    "PREDICTIONS",
    "TURNED",
    "USUAL_CLOCKS",
    "Coefficient",
    "Coefficients",
    "Regression",
    "combine",
    "scaled",
]

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from genflow.models.paths import Path, broadcast

Coefficient = Tensor | float


def scaled(c: Coefficient, x: Tensor) -> Tensor:
    """c x, where the float 1 costs nothing."""

    if isinstance(c, float):
        return x if c == 1.0 else c * x
    return broadcast(c, x) * x


def combine(a: Coefficient, x: Tensor, b: Coefficient, y: Tensor) -> Tensor:
    """a x + b y, where a coefficient that is the float 0 or 1 costs nothing."""

    if isinstance(a, float) and a == 0.0:
        return scaled(b, y)
    if isinstance(b, float):
        return scaled(a, x) if b == 0.0 else torch.add(scaled(a, x), y, alpha=b)
    return torch.addcmul(scaled(a, x), broadcast(b, y), y)


class Coefficients(NamedTuple):
    r"""How a prediction F relates to data and noise at one time.

    Attributes:
        scale: The factor of :math:`x_t` at the entrance of the network.
        data: :math:`(a, b)` with :math:`E[X|x_t] = a x_t + b F`.
        noise: :math:`(a, b)` with :math:`E[Z|x_t] = a x_t + b F`.
        target: :math:`(a, b)` with the target of F equal to :math:`a x + b z`.
    """

    scale: Coefficient
    data: tuple[Coefficient, Coefficient]
    noise: tuple[Coefficient, Coefficient]
    target: tuple[Coefficient, Coefficient]


def _data(path: Path, t: Tensor, sigma_data: float) -> Coefficients:
    alpha, sigma = path(t)
    return Coefficients(1.0, (0.0, 1.0), (1 / sigma, -alpha / sigma), (1.0, 0.0))


def _noise(path: Path, t: Tensor, sigma_data: float) -> Coefficients:
    alpha, sigma = path(t)
    return Coefficients(1.0, (1 / alpha, -sigma / alpha), (0.0, 1.0), (0.0, 1.0))


def _v(path: Path, t: Tensor, sigma_data: float) -> Coefficients:
    alpha, sigma = path(t)
    s = alpha**2 + sigma**2
    return Coefficients(1.0, (alpha / s, -sigma / s), (sigma / s, alpha / s), (-sigma, alpha))


def _flow(path: Path, t: Tensor, sigma_data: float) -> Coefficients:
    alpha, sigma = path(t)
    alpha_dot, sigma_dot = path.rates(t)
    det = alpha * sigma_dot - alpha_dot * sigma
    return Coefficients(
        1.0,
        (sigma_dot / det, -sigma / det),
        (-alpha_dot / det, alpha / det),
        (alpha_dot, sigma_dot),
    )


def _reverse_flow(path: Path, t: Tensor, sigma_data: float) -> Coefficients:
    c = _flow(path, t, sigma_data)
    return Coefficients(
        1.0, *((a, -b) for a, b in (c.data, c.noise)), (-c.target[0], -c.target[1])
    )


def _karras(path: Path, t: Tensor, sigma_data: float, variance: float = 1.0) -> Coefficients:
    alpha, sigma = path(t)
    s, m = sigma / alpha, variance
    total = m * s**2 + sigma_data**2
    root = total.sqrt()
    return Coefficients(
        1 / (alpha * root),
        (sigma_data**2 / (alpha * total), m**0.5 * s * sigma_data / root),
        (m * s / (alpha * total), -(m**0.5) * sigma_data / root),
        (m**0.5 * s / (sigma_data * root), -sigma_data / (m**0.5 * root)),
    )


def _karras_moment(path: Path, t: Tensor, sigma_data: float) -> Coefficients:
    return _karras(path, t, sigma_data, path.noise.variance)


PREDICTIONS: dict[str, Callable[[Path, Tensor, float], Coefficients]] = {
    "data": _data,
    "noise": _noise,
    "v": _v,
    "flow": _flow,
    "reverse-flow": _reverse_flow,
    "karras": _karras,
    "karras-moment": _karras_moment,
}
"""The coefficient table: a row a prediction."""


def _log_sigma(path: Path, t: Tensor) -> Tensor:
    return -0.25 * path.lam(t)


def _discrete(path: Path, t: Tensor) -> Tensor:
    levels = getattr(path, "levels", 1000)
    return levels * t - 1


CLOCKS: dict[str, Callable[[Path, Tensor], Tensor]] = {
    "unit": lambda path, t: t,
    "thousand": lambda path, t: 1000 * t,
    "discrete": _discrete,
    "log-sigma": _log_sigma,
    "reverse-unit": lambda path, t: 1 - t,
    "reverse-thousand": lambda path, t: 1000 * (1 - t),
}
"""What a network is told about the time: t, 1000 t, the level N t − 1, or ¼ log(σ/α); and, for
networks that were trained with noise at 0 and data at 1, 1 − t or 1000 (1 − t)."""

USUAL_CLOCKS = {
    "data": "thousand",
    "noise": "thousand",
    "v": "thousand",
    "flow": "thousand",
    "reverse-flow": "reverse-thousand",
    "karras": "log-sigma",
    "karras-moment": "log-sigma",
}

TURNED = {
    "flow": "reverse-flow",
    "reverse-flow": "flow",
    "unit": "reverse-unit",
    "reverse-unit": "unit",
    "thousand": "reverse-thousand",
    "reverse-thousand": "thousand",
}
"""A prediction or a clock, and what it is when data and noise change places."""


@dataclass(frozen=True)
class Regression:
    r"""What a network answered, and what it should have.

    Attributes:
        x: The data, with shape (B, \*).
        x_t: The perturbed data, with shape (B, \*).
        t: The times, with shape (B).
        output: F, with shape (B, \*).
        error: F minus its target, with shape (B, \*).
        row: :math:`(a, b)` with :math:`E[X|x_t] = a x_t + b F`.
    """

    x: Tensor
    x_t: Tensor
    t: Tensor
    output: Tensor
    error: Tensor
    row: tuple[Coefficient, Coefficient]

    @property
    def estimate(self) -> Tensor:
        r"""The data estimate, with shape (B, \*)."""

        return combine(self.row[0], self.x_t, self.row[1], self.output)
