r"""Fitting a light Schrödinger bridge to two clouds of points: no trainer, no config, seconds.

By default, in the frame where the clouds are centred and of order one:

1. a start by k-means and Sinkhorn's iteration (`genflow.models.starts`);
2. Adam on the objective :math:`\mathbb E \log c - \mathbb E \log v` (`genflow.models.objectives`),
   800 steps, the learning rate going up and down once while batches grow from 512 points to
   4,096 (`genflow.models.steps`);
3. every twentieth of the way, the objective on points held out (`genflow.models.watches`). The
   last parameters are returned that are as good there as the best, but for chance, and steps end
   early where that gets worse.

A single component with a diagonal or full covariance has its minimum in closed form, and takes no
steps. The clouds need not be paired, nor be of one size; either may be a function that draws
points, and then every batch is fresh.

*What is not assumed, and what can go wrong.* The objective has local minima in the centres; more
components cost little and help. Where the target has atoms, or lies on a surface, the best
covariance is singular: a component whose standard deviation runs to 0, or to infinity, ends the
fit (`genflow.models.watches`). The last good parameters are kept, and a warning says so.
"""

__all__ = ["Fit", "Pairing", "check", "fit_bridge", "loss_of", "prepare"]

from collections.abc import Callable, Iterator
from dataclasses import dataclass
import math
from typing import Any
import warnings

import torch
from torch import Generator, Tensor

from genflow.errors import UserError, nearest
from genflow.models.bridges import LightBridge
from genflow.models.clouds import Cloud, Law, check_pair
from genflow.models.frames import Frame
from genflow.models.objectives import dual_loss, matching_loss
from genflow.models.starts import FAMILIES, STARTS, begin, enough
from genflow.models.steps import BridgeAdam, growth, one_cycle
from genflow.models.watches import Watch

Pairing = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From a batch of the target and one of the source to the same rows, matched."""

LOSSES = ("dual", "matching")
SURVEYED = 100_000  # points that say where a cloud lies, and how wide it is
FINE = 0.01  # ε in the frame, below which arithmetic is in float64


@dataclass(frozen=True)
class Fit:
    """What came of a fit.

    Args:
        bridge: The bridge, in float64.
        steps: The number of steps taken.
        kept: The step whose parameters were kept.
        objective: The objective on the points held out by step, in nats.
        stopped: Why the fit ended before its last step; empty if it did not.
    """

    bridge: LightBridge
    steps: int
    kept: int
    objective: dict[int, float]
    stopped: str = ""


def fit_bridge(
    source: Law,
    target: Law,
    *,
    epsilon: float,
    components: int = 50,
    covariance: str = "diagonal",
    rank: int = 4,
    start: str = "sinkhorn",
    width: float = 0.1,
    loss: str = "dual",
    coupling: Pairing | None = None,
    steps: int = 800,
    batch_size: int = 512,
    lr: float = 2e-2,
    held_out: float = 0.1,
    patience: int = 5,
    seed: int = 0,
    dtype: torch.dtype | None = None,
) -> Fit:
    r"""Fits a light Schrödinger bridge.

    Args:
        source: Points at t = 1, with shape (n, \*), or a function ``draw(n, generator=...)``.
        target: Points at t = 0, with shape (m, \*), likewise.
        epsilon: The variance ε of the Brownian motion per unit time, above 0.
        components: K, at most the number of points of either cloud.
        covariance: ``"diagonal"``, ``"lowrank"`` or ``"full"``.
        rank: The rank of the low-rank part, 1 to d − 1; read by ``"lowrank"`` alone.
        start: ``"sinkhorn"``, ``"k-means"`` or ``"samples"``; see `genflow.models.starts`.
        width: S where the start gives none, above 0.
        loss: ``"dual"``, or ``"matching"``, the regression of LightSB-M.
        coupling: What pairs two batches for matching, as in ``target, source = coupling(target,
            source)``; independent if None.
        steps: The number of steps, 0 or more.
        batch_size: Points of each cloud in a step of the first half, 1 or more; four times as
            many in the third quarter and eight in the last; all if there are fewer.
        lr: The largest learning rate, above 0; centres move in units of their widths.
        held_out: The fraction of points that are looked at and not learned from, in [0, 1), at
            most 5,000. With 0 the points themselves are looked at.
        patience: Looks in a row at a worse objective after which the fit ends, of 20 in all.
        seed: Names the random numbers.
        dtype: The precision of the steps; by default float32, or float64 where ε is below a
            hundredth of the target's mean variance.

    Returns:
        The bridge, and the record of the fit.

    Raises:
        UserError: If the clouds cannot be joined, or a value is out of its range.

    Example:
        >>> fit = fit_bridge(x0, x1, epsilon=0.1)
        >>> y = fit.bridge.sample(x0)

    References:
        Light Schrödinger Bridge
        https://arxiv.org/abs/2310.01174
    """

    options = {"components": components, "covariance": covariance, "rank": rank}
    options |= {"start": start, "width": width}
    check(
        **options,
        loss=loss,
        coupling=coupling,
        epsilon=epsilon,
        lr=lr,
        batch_size=batch_size,
        patience=patience,
        steps=steps,
        held_out=held_out,
        dtype=dtype,
    )
    closed = components == 1 and covariance != "lowrank" and start == "sinkhorn"
    held_out = 0.0 if closed else held_out
    generator = Generator().manual_seed(seed)
    clouds = [Cloud(*c, held_out, generator) for c in (("source", source), ("target", target))]
    frame, bridge = prepare(*clouds, epsilon, **options, generator=generator, dtype=dtype)
    watch = Watch(bridge, *(cloud.held() for cloud in clouds), steps)
    done = 0

    def objective(step: int) -> Tensor:
        x, y = (cloud.batch(batch_size * growth(step, steps)) for cloud in clouds)
        return loss_of(bridge, x, y, loss, coupling, generator)

    if not closed and not watch.alarm:
        for done in _descend(bridge, objective, lr, steps):
            if watch.due(done) and watch.look(done, patience):
                break

    watch.restore()
    if watch.alarm:
        warnings.warn(f"the fit ended at step {done} of {steps}: {watch.alarm}", stacklevel=2)

    return Fit(
        frame.leave(bridge, epsilon), done, watch.kept, watch.objective, watch.alarm or watch.rest
    )


def prepare(
    source: Cloud,
    target: Cloud,
    epsilon: float,
    *,
    components: int,
    covariance: str,
    rank: int,
    start: str,
    width: float,
    generator: Generator,
    dtype: torch.dtype | None = None,
) -> tuple[Frame, LightBridge]:
    """Moves two clouds into their frame, and makes a bridge there to begin with.

    Raises:
        UserError: If the clouds cannot be joined by such a bridge.
    """

    check_pair(source, target, components)
    d = source.points.shape[1]

    if covariance == "lowrank" and not 1 <= rank < d:
        raise UserError(
            f"rank is {rank} in {d} dimensions: 1 or more and below {d} is needed; "
            "covariance='full' has all directions."
        )

    frame = Frame.of(source.known(SURVEYED), target.known(SURVEYED))
    eps = frame.epsilon(epsilon)
    dtype = dtype or (torch.float64 if eps < FINE else torch.float32)
    source.enter(frame.source, frame.scale, dtype)
    target.enter(frame.target, frame.scale, dtype)
    options = {"components": components, "family": covariance, "rank": rank, "width": width}
    known = (cloud.known(n) for cloud, n in zip((source, target), enough(components), strict=True))
    bridge = begin(*known, eps, method=start, generator=generator, **options)
    return frame, bridge.to(dtype)


def loss_of(
    bridge: LightBridge,
    source: Tensor,
    target: Tensor,
    loss: str,
    coupling: Pairing | None,
    generator: Generator,
) -> Tensor:
    """The loss of two batches, by name; matching pairs them row by row, or by the coupling."""

    if loss == "dual":
        return dual_loss(bridge, source, target)

    n = min(len(source), len(target))
    source, target = source[:n], target[:n]
    if coupling is not None:
        target, source = coupling(target, source)
    return matching_loss(bridge, source, target, generator=generator)


def _descend(
    bridge: LightBridge, objective: Callable[[int], Tensor], lr: float, steps: int
) -> Iterator[int]:
    """Takes the steps of one cycle, and says how many are done after each."""

    optimizer = BridgeAdam(bridge, lr)

    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * one_cycle(step, steps)
        optimizer.zero_grad()
        objective(step).backward()
        optimizer.step()
        yield step + 1


def check(**given: Any) -> None:
    """Checks the names and the numbers of a fit, as many as are given.

    Raises:
        UserError: If one is not allowed.
    """

    for field, allowed in (("covariance", FAMILIES), ("start", STARTS), ("loss", LOSSES)):
        if given[field] not in allowed:
            raise UserError(f"{field} is '{given[field]}'{nearest(str(given[field]), allowed)}")

    for field in ("epsilon", "lr", "width"):
        if not 0 < given[field] < math.inf:
            raise UserError(f"{field} is {given[field]}: a finite number above 0 is needed.")

    for field, least in (("components", 1), ("batch_size", 1), ("patience", 1), ("steps", 0)):
        value = given.get(field, least)
        if not isinstance(value, int) or value < least:
            raise UserError(f"{field} is {value}: a whole number of {least} or more is needed.")

    if not 0 <= given.get("held_out", 0) < 1:
        raise UserError(f"held_out is {given['held_out']}: a fraction in [0, 1) is needed.")
    if given.get("dtype") not in (None, torch.float32, torch.float64):
        raise UserError(f"dtype is {given['dtype']}: torch.float32 or torch.float64 is needed.")
    if given["coupling"] is not None and given["loss"] != "matching":
        raise UserError("coupling is given, and the dual loss has no pairs: set loss='matching'.")
