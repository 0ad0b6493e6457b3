r"""The published solvers of the Taylor-in-λ family, as schedules.

A preset is a function of a path and a number of steps that writes down a `SolverSchedule`; nothing
else is needed to have the solver. Named relaxations depend on the step h alone, so a preset writes
them as the number :math:`(R(h) - 1)/h`.
"""

__all__ = ["ddim", "dpm", "dpm_v3", "relaxation", "unipc"]

from collections.abc import Sequence
import dataclasses
import math
from typing import Literal

import torch

from genflow.errors import UserError
from genflow.models.paths import Path
from genflow.solvers.compiler import phi
from genflow.solvers.schedules import Corrector, Prediction, SolverSchedule, Step

Variant = Literal["bh1", "bh2", "none"]


def relaxation(variant: str, h: float, predict: str) -> float:
    r"""A named relaxation of the slope as the number ``relax``, so that the factor is 1 + relax ·
    h.

    With z = h for noise and z = −h for data, ``"bh2"`` (which is also DPM-Solver-2's) is
    :math:`\tfrac12 z (e^z - 1)/(e^z - 1 - z)`, ``"bh1"`` is :math:`\tfrac12 z^2/(e^z - 1 - z)`,
    and ``"none"`` is 1.

    Args:
        variant: The name.
        h: The step in λ, above 0; the number is 0 if it is infinite.
        predict: What is expanded, ``"data"`` or ``"noise"``.

    References:
        UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models
        https://arxiv.org/abs/2302.04867
    """

    if variant == "none" or not math.isfinite(h):
        return 0.0

    z = torch.tensor(-h if predict == "data" else h, dtype=torch.float64)
    top = phi(1, z) if variant == "bh2" else 1.0
    return float((0.5 * top / phi(2, z) - 1) / h)


def _lam(path: Path, times: Sequence[float]) -> list[float]:
    return path.lam(torch.tensor(times, dtype=torch.float64)).tolist()


def _check_order(order: int, highest: int) -> None:
    if not 1 <= order <= highest:
        raise UserError(f"order is {order}: 1 … {highest} are allowed.")


def _ramp(order: int, N: int, lower_final: bool | None) -> list[int]:
    """Orders 1, 2, … at the start, and … 2, 1 at the end of short or of flagged schedules."""

    lower = N < 15 if lower_final is None else lower_final
    return [min(order, i + 1, N - i if lower else order) for i in range(N)]


def ddim(path: Path, times: Sequence[float], *, eta: float = 0.0) -> SolverSchedule:
    """DDIM: order 1, with a share η of fresh noise; η = 1 is ancestral (DDPM) sampling.

    References:
        Denoising Diffusion Implicit Models
        https://arxiv.org/abs/2010.02502
    """

    return SolverSchedule(tuple(times), (Step(eta=eta),) * (len(times) - 1))


def dpm(
    path: Path,
    times: Sequence[float],
    *,
    order: int = 2,
    predict: Prediction = "data",
    method: Literal["multistep", "singlestep"] = "multistep",
    variant: Literal["dpmsolver", "taylor"] = "dpmsolver",
    lower_final: bool | None = None,
) -> SolverSchedule:
    """DPM-Solver (noise) and DPM-Solver++ (data), multistep or singlestep, of order 1 … 3.

    The third-order multistep method uses the whole second derivative, as its derivation asks for;
    the published code and its copies use half of it, and so converge at order 2.

    Args:
        path: The path.
        times: The times of all calls, with the final one.
        order: The order.
        predict: ``"data"`` (++) or ``"noise"``.
        method: ``"multistep"`` or ``"singlestep"``; a singlestep method of order q spends q
            consecutive times on each of its steps.
        variant: ``"dpmsolver"``, the published approximations, or ``"taylor"``.
        lower_final: Lowers the order of the last multistep steps; None: if there are under 15.

    Raises:
        UserError: If the order is not in 1 … 3.

    References:
        DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling
        https://arxiv.org/abs/2206.00927

        DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models
        https://arxiv.org/abs/2211.01095
    """

    _check_order(order, 3)

    if method == "singlestep":
        return SolverSchedule(tuple(times), _singlestep(path, times, order, predict, variant))
    if method != "multistep":
        raise UserError(f"method is '{method}': 'multistep' and 'singlestep' are allowed.")

    lam = _lam(path, times)
    name = "bh2" if variant == "dpmsolver" else "none"
    steps = []

    for i, q in enumerate(_ramp(order, len(times) - 1, lower_final)):
        relax = relaxation(name, lam[i + 1] - lam[i], predict) if q == 2 else 0.0
        steps.append(Step(order=q, predict=predict, relax=relax))

    return SolverSchedule(tuple(times), tuple(steps))


def _singlestep(
    path: Path, times: Sequence[float], order: int, predict: Prediction, variant: str
) -> tuple[Step, ...]:
    """Groups of up to ``order`` stages; a stage at or into infinite λ is a group of its own."""

    lam = _lam(path, times)
    lead, tail = int(math.isinf(lam[0])), int(math.isinf(lam[-1]))
    inner = max(0, len(times) - 1 - lead - tail)
    tail = len(times) - 1 - lead - inner
    full, rest = divmod(inner, order)

    if order == 3 and rest == 0 and full and not tail:
        groups = [3] * (full - 1) + [2, 1]
    else:
        groups = [order] * full + ([rest] if rest else [])

    steps: list[Step] = []

    for size in [1] * lead + groups + [1] * tail:
        i = len(steps)
        steps += [_stage(size, k, predict, variant, lam[i : i + size + 1]) for k in range(size)]

    return tuple(steps)


def _stage(size: int, k: int, predict: Prediction, variant: str, lam: Sequence[float]) -> Step:
    """Stage k of a singlestep group; the λ are those of the group."""

    if k == 0:
        return Step(predict=predict)
    if variant == "taylor":
        return Step(order=k + 1, predict=predict, start=k)

    relax = relaxation("bh2", lam[-1] - lam[0], predict) if size == 2 else 0.0
    return Step(order=2, predict=predict, start=k, points=(0,), relax=relax)


def unipc(
    path: Path,
    times: Sequence[float],
    *,
    order: int = 2,
    variant: Variant = "bh2",
    predict: Prediction = "data",
    corrector: bool = True,
    lower_final: bool | None = True,
) -> SolverSchedule:
    """UniPC: a multistep predictor of order 1 … 4, mended by the next call.

    B(h) of the paper cancels but for the second-order predictor and the first-order corrector,
    where it is a relaxation; ``variant="none"`` is the method with varying coefficients.

    Args:
        path: The path.
        times: The times of all calls, with the final one.
        order: The order of the predictor; the corrector adds one.
        variant: ``"bh1"``, ``"bh2"`` or ``"none"``.
        predict: ``"data"`` or ``"noise"``.
        corrector: Whether all steps but the last are corrected.
        lower_final: Lowers the order of the last steps; None: if there are under 15.

    Raises:
        UserError: If the order is not in 1 … 4 or the variant unknown.

    References:
        UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models
        https://arxiv.org/abs/2302.04867
    """

    _check_order(order, 4)

    if variant not in ("bh1", "bh2", "none"):
        raise UserError(f"variant is '{variant}': 'bh1', 'bh2' and 'none' are allowed.")

    N, lam = len(times) - 1, _lam(path, times)
    steps = []

    for i, q in enumerate(_ramp(order, N, lower_final)):
        relax = relaxation(variant, lam[i + 1] - lam[i], predict)
        step = Step(order=q, predict=predict, relax=relax if q == 2 else 0.0)
        if corrector and i < N - 1:
            mend = Corrector(relax=relax if q == 1 else 0.0)
            step = dataclasses.replace(step, correct=mend)
        steps.append(step)

    return SolverSchedule(tuple(times), tuple(steps))


def dpm_v3(
    path: Path,
    times: Sequence[float],
    *,
    order: int = 3,
    corrector: bool = True,
    p_pseudo: bool = False,
    c_pseudo: bool = True,
    lower_final: bool | None = True,
) -> SolverSchedule:
    """DPM-Solver-v3: multistep on the empirical parameterisation, mended by the next call.

    Needs the statistics of the denoiser, as
    [`estimate`][genflow.solvers.statistics.estimate] finds them. The pseudo estimates are steadier
    at few steps, and converge at order 2 whatever the order named.

    Args:
        path: The path.
        times: The times of all calls, with the final one.
        order: The order of the predictor, 1 … 3.
        corrector: Whether all steps but the last are corrected.
        p_pseudo: Estimates the d-th derivative of the predictor from d points, and not from all.
        c_pseudo: The same for the corrector, whose order is then one more than the predictor's;
            otherwise it has the predictor's order, and steps of order 1 have none.
        lower_final: Lowers the order of the last steps; None: if there are under 15.

    Raises:
        UserError: If the order is not in 1 … 3.

    References:
        DPM-Solver-v3: Improved Diffusion ODE Solver with Empirical Model Statistics
        https://arxiv.org/abs/2310.13268
    """

    _check_order(order, 3)
    N = len(times) - 1
    steps = []

    for i, q in enumerate(_ramp(order, N, lower_final)):
        points = tuple(tuple(range(1, d + 1)) for d in range(1, q)) if p_pseudo and q > 1 else None
        mend = None
        if corrector and i < N - 1 and (c_pseudo or q > 1):
            # Counted from the new call, 0; the step began at 1.
            new = (0, *range(2, q + 1))
            sets = (
                tuple(new[:d] for d in range(1, q + 1)) if c_pseudo else (new[: q - 1],) * (q - 1)
            )
            mend = Corrector(order=len(sets) + 1, points=sets)
        steps.append(Step(order=q, predict="empirical", points=points, correct=mend))

    return SolverSchedule(tuple(times), tuple(steps))
