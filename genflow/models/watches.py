"""What watches a fit: the objective on points held out, and the widths of the components.

A look keeps the parameters unless they are worse than the best so far by more than chance: by two
standard errors of the difference on the same points. (The lowest number itself would be a worse
choice, for it is partly luck; steps at a falling rate get better in ways that a few thousand
points cannot see.) And it may end the fit, for one of two reasons: several looks in a row were
worse in this sense, since the learning rate began to fall, or something went wrong.

Wrong is an objective that is not finite, and a component whose standard deviation leaves the range
from a thousandth (in float64, a hundred-thousandth) to a hundred times that of the target: it runs
to 0 on atoms and on surfaces, where the best covariance is singular. Below a thousandth, single
precision cannot tell a width from rounding. Components with less than a hundredth of an even share
of the mass may do as they like.
"""

__all__ = ["Watch"]

import math
from typing import Any

import torch
from torch import Tensor

from genflow.models.bridges import LightBridge
from genflow.models.objectives import usage
from genflow.models.steps import RISE, variances

LOOKS = 20  # at the points held out
THIN = {torch.float32: 1e-3, torch.float64: 1e-5}
WIDE = 1e2  # standard deviations of a component, in that of the target
CARRIED = 0.01  # the mass below which a component is not watched, in units of an even share


class Watch:
    """Looks at a bridge from outside, keeps the best parameters, and says when to end.

    Args:
        bridge: The bridge, as it is at the start.
        source: Points of the source that are not learned from, with shape (n, d).
        target: Points of the target, with shape (m, d).
        steps: The number of steps to come; below 1 if no end is set.

    Attributes:
        kept: The step whose parameters are kept.
        objective: The objective by step, in nats.
        alarm: What went wrong; empty if nothing did.
        rest: Why nothing more is to be expected; empty if something is.
    """

    def __init__(self, bridge: LightBridge, source: Tensor, target: Tensor, steps: int) -> None:
        self.bridge, self.source, self.target, self.steps = bridge, source, target, steps
        self.width = float(target.std(0, correction=0).square().mean().sqrt())
        self.objective: dict[int, float] = {}
        self.alarm, self.rest = "", ""
        self._best: tuple[Tensor, Tensor] | None = None  # log c and log v at the lowest objective
        self._keep(0)
        self.look(0, patience=1)

    def due(self, step: int) -> bool:
        """Whether it is time for a look: 20 times in all, the last time at the end.

        Where no end is set, every hundred steps.
        """

        every = max(1, self.steps // LOOKS) if self.steps > 0 else 100
        return step % every == 0 or step == self.steps

    def look(self, step: int, patience: int) -> bool:
        """Looks once.

        Args:
            step: The number of steps taken.
            patience: Looks in a row that may be worse, once the learning rate falls.

        Returns:
            Whether to end.
        """

        with torch.no_grad():
            log_c = self.bridge.log_normaliser(self.source)
            log_v = self.bridge.log_potential(self.target)

        value = float(log_c.mean() - log_v.mean())
        self.alarm = self._wrong(value)

        if self.alarm:
            return True

        lowest = value < min(self.objective.values(), default=math.inf)
        self.objective[step] = value

        if lowest or self._best is None:
            self._best = (log_c, log_v)
        if lowest or self._by_chance(log_c, log_v):
            self._keep(step)

        worse = sum(k > max(self.kept, RISE * self.steps) for k in self.objective)

        if worse >= patience:
            self.rest = f"the objective has been worse for {worse} looks"

        return bool(self.rest)

    def _by_chance(self, log_c: Tensor, log_v: Tensor) -> bool:
        """Whether the best is better by two standard errors at most."""

        gaps = [now - best for now, best in zip((log_c, log_v), self._best, strict=True)]
        error = sum(gap.var() / len(gap) for gap in gaps).sqrt() if len(self.target) > 1 else 0.0
        return bool(gaps[0].mean() - gaps[1].mean() <= 2 * error)

    @torch.no_grad()
    def _wrong(self, value: float) -> str:
        """What is wrong with the parameters, or nothing."""

        if not math.isfinite(value):
            return f"the objective is {value}; lower lr, or look for outliers"

        live = usage(self.bridge, self.source) > CARRIED / self.bridge.components
        thin = self.bridge.epsilon**0.5 * (0.5 * self.bridge.covariance.log_scale).exp()
        thin, wide = thin.amin(1)[live].min(), variances(self.bridge).sqrt().amax(1)[live].max()

        if float(thin) < THIN[self.bridge.centre.dtype] * self.width:
            return (
                f"a covariance runs to 0, with a standard deviation of {float(thin):.2g} in a "
                f"target of {self.width:.2g}; use fewer components, add a little noise to the "
                "target, or leave out columns that others determine"
            )
        if float(wide) > WIDE * self.width:
            return (
                f"a covariance runs to infinity, with a standard deviation of {float(wide):.2g} "
                f"in a target of {self.width:.2g}; use fewer components, or look for outliers"
            )

        return ""

    def _keep(self, step: int) -> None:
        self.kept = step
        self._state = {k: v.clone() for k, v in self.bridge.state_dict().items()}

    def restore(self) -> None:
        """Gives the bridge the parameters that were kept."""

        self.bridge.load_state_dict(self._state)

    def state(self) -> dict[str, Any]:
        """What has been seen so far, as plain values and tensors."""

        seen = {"kept": self.kept, "objective": dict(self.objective), "best": self._best}
        return seen | {"parameters": self._state}

    def resume(self, state: dict[str, Any]) -> None:
        """Goes on from a `state`."""

        self.kept, self.objective = state["kept"], state["objective"]
        best = state["best"]
        self._best = best and tuple(v.to(self.source.device) for v in best)
        self._state = state["parameters"]
