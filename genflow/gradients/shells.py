r"""The set that a changed noise may not leave: a ball around it, on the shell of its own norm.

Gaussian noise in d dimensions has a norm within about 0.7 of √d: that is what a sampler starts
from. A change :math:`\delta` of the noise z is therefore measured relative to z, and moves it on
the sphere of its own norm:

.. math:: \|z + \delta\|_2 = \|z\|_2, \qquad
    \frac{\|\delta\|_2}{\|z\|_2} \le r \quad\text{or}\quad
    \frac{\|\delta\|_\infty}{\|z\|_2 / \sqrt d} \le r.

For the norm ``"l2"`` this is a cap of the sphere, and the projection onto it is a rotation by
:math:`2 \arcsin(r/2)` at most, in closed form. For ``"linf"`` sphere and box are met in turn, and
the change is then shortened until both hold; the sphere to one part in a thousand. States are
projected in float64.
"""

__all__ = ["NORMS", "away", "project", "radius_of"]

import torch
from torch import Tensor

NORMS = ("l2", "linf")

SHELL = 1e-3
"""How far a norm may be off the sphere for ``"linf"``, relatively."""


def _flat(z: Tensor) -> Tensor:
    return z.flatten(1).to(torch.float64)


def _length(z: Tensor) -> Tensor:
    return z.norm(dim=1, keepdim=True)


def radius_of(z: Tensor, origin: Tensor, norm: str) -> Tensor:
    """How far states are from where they started, relatively, with shape (B).

    Args:
        z: The states, with shape (B, *).
        origin: Where they started, with shape (B, *).
        norm: A name in `NORMS`.
    """

    a, b = _flat(z), _flat(origin)
    length = _length(b)

    if norm == "l2":
        return (_length(a - b) / length)[:, 0]

    return (a - b).abs().amax(1) / length[:, 0] * b.shape[1] ** 0.5


def project(z: Tensor, origin: Tensor, radius: Tensor, norm: str) -> Tensor:
    """The allowed state near a state.

    Args:
        z: The states, with shape (B, *).
        origin: The middles of the balls, with shape (B, *).
        radius: r, with shape (B), in [0, 2] for "l2".
        norm: A name in `NORMS`.

    Returns:
        The states, with shape (B, *), in the dtype of z.
    """

    a, b, r = _flat(z), _flat(origin), radius.to(torch.float64)[:, None]
    found = _cap(a, b, r) if norm == "l2" else _box(a, b, r)
    return found.to(z.dtype).view_as(z)


def away(direction: Tensor, origin: Tensor, radius: Tensor, norm: str) -> Tensor:
    """States at a radius in given directions: on the rim of the cap, or in a corner of the box.

    Args:
        direction: The directions, with shape (B, *).
        origin: Where they start, with shape (B, *).
        radius: r, with shape (B).
        norm: A name in `NORMS`.
    """

    a, b, r = _flat(direction), _flat(origin), radius.to(torch.float64)[:, None]

    if norm == "l2":
        found = _rotated(a, b, r)
    else:
        step = r * _length(b) / b.shape[1] ** 0.5
        found = _box(b + step * a.sign(), b, r)

    return found.to(direction.dtype).view_as(direction)


def _rotated(u: Tensor, b: Tensor, r: Tensor) -> Tensor:
    """b turned towards u by the angle whose chord is r‖b‖."""

    R = _length(b)
    u = u - (u * b).sum(1, keepdim=True) / R**2 * b
    angle = 2 * torch.asin((r / 2).clamp(0, 1))
    return angle.cos() * b + angle.sin() * R * u / _length(u).clamp(min=1e-300)


def _cap(a: Tensor, b: Tensor, r: Tensor) -> Tensor:
    R = _length(b)
    a = a * (R / _length(a))
    return torch.where(_length(a - b) <= r * R, a, _rotated(a, b, r))


def _box(a: Tensor, b: Tensor, r: Tensor, rounds: int = 20) -> Tensor:
    R = _length(b)
    side = r * R / b.shape[1] ** 0.5

    for _ in range(rounds):
        a = a * (R / _length(a))
        a = b + torch.clamp(a - b, -side, side)

    return b + _shortened(a - b, b) * (a - b)


def _shortened(delta: Tensor, b: Tensor) -> Tensor:
    r"""The largest s ≤ 1 with ‖b + sδ‖ within `SHELL` of ‖b‖.

    .. math:: s^2 \|\delta\|^2 + 2 s \, b^T \delta + \|b\|^2 = (1 \pm 10^{-3})^2 \|b\|^2
    """

    R2 = (b * b).sum(1, keepdim=True)
    p, q = (delta * delta).sum(1, keepdim=True), (delta * b).sum(1, keepdim=True)
    end = R2 + p + 2 * q
    low, high = (1 - SHELL) ** 2 * R2, (1 + SHELL) ** 2 * R2
    bound = torch.where(end > high, high, low)
    root = (q * q - p * (R2 - bound)).clamp(min=0).sqrt()
    crossing = torch.where(end > high, -q + root, -q - root) / p.clamp(min=1e-300)
    return torch.where((end > high) | (end < low), crossing.clamp(0, 1), torch.ones_like(p))
