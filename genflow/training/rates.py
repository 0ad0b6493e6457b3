"""How the learning rate goes: a linear rise, then constant, or a cosine down to 0."""

__all__ = ["rate"]

import math


def rate(step: int, *, warmup: int, decay: str, last: int) -> float:
    r"""The factor of the learning rate at a step.

    .. math:: \min\left(1, \frac{s + 1}{w}\right) \cdot
              \tfrac12 \left(1 + \cos \pi \frac{\max(0, s - w)}{S - w} \right)

    Args:
        step: s, the number of steps done.
        warmup: w, the number of steps of the rise; 0 for none.
        decay: ``"cosine"``, or ``"none"``: the second factor is 1.
        last: S, where the cosine ends.

    Returns:
        The factor, in [0, 1].
    """

    rise = min(1.0, (step + 1) / max(1, warmup))

    if decay == "none":
        return rise

    done = min(1.0, max(0, step - warmup) / max(1, last - warmup))
    return rise * 0.5 * (1 + math.cos(math.pi * done))
