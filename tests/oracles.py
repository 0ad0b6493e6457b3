"""Readers of the golden numbers, and slow textbook truths that the tests compare with."""

from functools import cache
import json
import math
from pathlib import Path as FilePath

import numpy as np
import torch
from torch import Tensor

from genflow.models import (
    Brownian,
    Cosine,
    Denoiser,
    Discrete,
    Exact,
    Karras,
    Mixture,
    Path,
    Rectified,
    VariancePreserving,
)
from genflow.solvers import Corrector, SolverSchedule, Statistics, Step
from genflow.solvers.presets import relaxation
from genflow.solvers.schedules import correction, resolve

GOLDEN = FilePath(__file__).parent / "golden"


@cache
def golden(name: str) -> tuple[dict, dict[str, Tensor]]:
    """The records and the arrays of one golden file."""

    record = json.loads((GOLDEN / f"{name}.json").read_text())
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return record, {k: torch.from_numpy(np.asarray(arrays[k])) for k in arrays.files}


def double(values) -> Tensor:
    """A float64 tensor."""

    return torch.tensor(values, dtype=torch.float64)


# ------------------------------------------------------------------------- models to solve


def mixture() -> Mixture:
    """The 2-D mixture of five Gaussians of the USF golden file."""

    _, arrays = golden("usf")
    return Mixture(*(arrays[f"mixture/{k}"] for k in ("weights", "means", "covs")))


def linear_path(N: int = 1000, low: float = 1e-4, high: float = 0.02) -> Discrete:
    """The DDPM path with linear β."""

    beta = torch.linspace(low, high, N, dtype=torch.float64)
    return Discrete(tuple((1 - beta).cumprod(0).tolist()))


PATHS: dict[str, Path] = {
    "vp": VariancePreserving(),
    "cosine": Cosine(),
    "discrete": linear_path(),
    "rectified": Rectified(),
    "karras": Karras(),
    "brownian": Brownian(0.7),
}
"""One path of every kind."""


# ------------------------------------------------------------------------- the USF records


def usf_path(case: dict) -> Path:
    """The path of a case."""

    return VariancePreserving() if case["schedule"] == "vp" else Karras()


def usf_times(case: dict) -> tuple[float, ...]:
    """The times of a case, whose EDM ones are values of σ; inner times stand in their order."""

    inner = case["settings"].get("inner_times")
    values = case["decisions"]["times"] if "decisions" in case else case.get("times")
    if inner:
        values = [t for group in inner for t in group[:-1]] + [inner[-1][-1]]
    return tuple(values if case["schedule"] == "vp" else [(s / 80) ** (1 / 7) for s in values])


def usf_exact(case: dict) -> Exact:
    """The true denoiser of a case."""

    return Exact(usf_path(case), mixture())


def usf_start(case: dict) -> Tensor:
    """The initial states of a case."""

    return golden("usf")[1]["xT"] * case.get("scale", 1.0)


def usf_statistics(case: dict) -> Statistics | None:
    """The empirical statistics of a case, on a snapped grid as in the reference."""

    key = case["settings"].get("statistics")
    if not key:
        return None
    _, arrays = golden("usf")
    return Statistics(*(arrays[f"{key}/{k}"] for k in ("lambda", "l", "s", "b")), snap=True)


def _relax(record: dict, h: float, predict: str) -> float:
    name = record.get("relaxation")
    z = -h if predict == "data" else h
    if name is None:
        return 0.0
    if name == "linear":
        return record["coefficient"]
    if name in ("0.5exp", "-0.5exp"):
        return float(name[:-3]) * math.expm1(z) / h
    return relaxation("bh1" if name == "unipc-bh1" else "bh2", h, predict)


def _back(record: dict) -> tuple[int, ...]:
    """History points counted from −1 as stages back from 0."""

    return tuple(-k - 1 for k in record["points"])


def usf_schedule(case: dict) -> SolverSchedule:
    """The decisions of a case as a schedule."""

    d, times = case["decisions"], usf_times(case)
    lam = usf_path(case).lam(double(times)).tolist()
    source = {"no_afs": "model", "zero_x0": "noise", "average_x0": "mean"}[d["afs"]]
    steps = []

    for i, (order, predict) in enumerate(zip(d["orders"], d["predictions"], strict=True)):
        start = -d["starts"][i] - 1
        h = lam[i + 1] - lam[i - start]
        found, mend, c = d["derivatives"][i][: order - 1], None, d["correctors"][i]
        auto = any(r["points"] is None for r in found)
        if c is not None:
            mend = Corrector(
                order=c["order"],
                points=tuple(_back(r) for r in c["derivatives"]),
                relax=_relax(c["derivatives"][0], h, predict),
            )
        steps.append(
            Step(
                order=order,
                predict=predict,
                points=None if auto else tuple(_back(r) for r in found),
                relax=_relax(found[0], h, predict) if found else 0.0,
                correct=mend,
                start=start,
                source=source if i == 0 else "model",
            )
        )

    return SolverSchedule(times, tuple(steps))


# --------------------------------------------------------------------- slow textbook loops


def third_order_multistep(
    denoiser: Denoiser,
    x: Tensor,
    times: tuple[float, ...],
    *,
    predict: str = "data",
    lower_final: bool = False,
    whole: bool = True,
) -> Tensor:
    """DPM-Solver(++) 3M as its code is written: update rules by order, no table.

    With ``whole`` False the second derivative is halved, as in the published code.
    """

    path, t = denoiser.path, double(times)
    (alpha, sigma), lam = path(t), path.lam(t)
    N, values = len(times) - 1, []

    for i in range(N):
        data = denoiser(x, t[i])
        values.insert(0, data if predict == "data" else (x - alpha[i] * data) / sigma[i])
        h = lam[i + 1] - lam[i]
        order = min(3, i + 1, N - i if lower_final else 3)
        if predict == "data":
            x, scale, z = sigma[i + 1] / sigma[i] * x, alpha[i + 1], -h
        else:
            x, scale, z = alpha[i + 1] / alpha[i] * x, -sigma[i + 1], h
        one = torch.expm1(z) / z
        two = (one - 1) / z
        three = (two - 0.5) / z
        m0 = values[0]
        x = x + scale * h * one * m0
        if order > 1:
            r0 = (lam[i] - lam[i - 1]) / h
            D0 = (m0 - values[1]) / r0
        if order == 2:
            x = x + scale * h * 0.5 * one * D0
        if order == 3:
            r1 = (lam[i - 1] - lam[i - 2]) / h
            D1 = (values[1] - values[2]) / r1
            first = D0 + r0 / (r0 + r1) * (D0 - D1)
            second = (D0 - D1) / (r0 + r1) * (2 if whole else 1)
            x = x + scale * h * (two * first + three * second)

    return x


def phi_quadrature(k: int, z: float, nodes: int = 60) -> float:
    r""":math:`\int_0^1 e^{(1-u)z} u^{k-1}/(k-1)! \, du` by Gauss-Legendre."""

    u, w = np.polynomial.legendre.leggauss(nodes)
    u = (u + 1) / 2
    return float((w / 2 * np.exp((1 - u) * z) * u ** (k - 1) / math.factorial(k - 1)).sum())


def affine_moments(tableau, path: Path, mean: float, variance: float):
    """Mean and variance of every state of a table on 1-D Gaussian data, in closed form.

    The denoiser is affine there, so the states stay Gaussian: the window is propagated as a
    linear map of the initial state and of the fresh draws.
    """

    N, K = len(tableau.weight), tableau.window
    start = tableau.time[0] if tableau.start is None else tableau.start
    alpha, sigma = path(start)
    size = N + 2

    def unit(j: int) -> np.ndarray:
        return np.eye(size + 1)[j]

    # A state is a row of coefficients of (draws 0 … N + 1, 1), the last slot a constant.
    x = math.sqrt(float(alpha**2 * variance + sigma**2)) * unit(0) + float(alpha) * mean * unit(-1)
    x = x + float(tableau.noise[0]) * unit(1)
    window, states = [], [x]

    for i in range(N):
        a, s = (float(c) for c in path(tableau.time[i]))
        gain = a * variance / (a * a * variance + s * s)
        data = (mean - gain * a * mean) * unit(-1) + gain * x
        window = [x, data, *window][: 2 * K]
        weight = tableau.weight[i].tolist()
        x = sum(w * v for w, v in zip(weight, window, strict=False)) + weight[-1] * unit(-1)
        if i + 2 < size:
            x = x + float(tableau.noise[i + 1]) * unit(i + 2)
        states.append(x)

    return [(s[-1], float((s[:-1] ** 2).sum())) for s in states]


def usf_loop(denoiser: Denoiser, x: Tensor, schedule: SolverSchedule) -> Tensor:
    """A schedule carried out on states as the USF paper writes it; λ must be finite throughout."""

    path, t = denoiser.path, double(schedule.times)
    (alpha, sigma), lam = path(t), path.lam(t)
    mended, called, data = [x], [x], [denoiser(x, t[0])]

    def estimate(predict: str, j: int) -> Tensor:
        if predict == "data":
            return data[j]
        return (called[j] - alpha[j] * data[j]) / sigma[j]

    def move(s: int, j: int, predict: str, nodes: list[list[int]], relax: float) -> Tensor:
        h, here = lam[j] - lam[s], estimate(predict, s)
        z, terms = (-h, [here]) if predict == "data" else (h, [here])
        for d, used in enumerate(nodes, start=1):
            gap = torch.stack([lam[k] - lam[s] for k in used])
            V = torch.stack([gap**q / math.factorial(q) for q in range(1, len(used) + 1)])
            e = torch.zeros(len(used), dtype=torch.float64)
            e[d - 1] = 1
            a = torch.linalg.solve(V, e)
            slope = sum(w * (estimate(predict, k) - here) for w, k in zip(a, used, strict=True))
            terms.append(slope * (1 + relax * h) if d == 1 else slope)
        total = sum(h**k * phi_quadrature(k, float(z)) * f for k, f in enumerate(terms, start=1))
        if predict == "data":
            return sigma[j] / sigma[s] * mended[s] + alpha[j] * total
        return alpha[j] / alpha[s] * mended[s] - sigma[j] * total

    for i, step in enumerate(schedule.steps):
        back = resolve(step.points, step.order, step.start, i + 1)
        nodes = [[i - k for k in used] for used in back]
        x = move(i - step.start, i + 1, step.predict, nodes, step.relax)
        last = i + 1 == len(schedule.steps)
        if last and step.correct is None:
            return x
        called.append(x)
        data.append(denoiser(x, t[i + 1]))
        if step.correct is not None:
            _, back = correction(step, i + 1)
            nodes = [[i + 1 - k for k in used] for used in back]
            x = move(i - step.start, i + 1, step.predict, nodes, step.correct.relax)
        mended.append(x)

    return x
