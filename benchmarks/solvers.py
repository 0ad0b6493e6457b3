"""Every solver at few calls: its error, its kernels, and what it asks of the host.

The error is the distance to a solution with 1,000 steps from the same initial states, root mean
square over elements. It is printed twice, as the median and as the root mean square over states:
the two can rank solvers differently, since a few states sit where a hair's breadth decides their
mode, and the second is theirs. The plot shows the median. Problems are the 2-D mixture of the
golden files, whose denoiser is exact, one in 16 dimensions, and a saved pipeline if one is given.
genflow's presets and diffusers' schedulers drive the same denoiser in the same run, to clean data,
on a trailing grid (for a straight path diffusers takes its own flow grid) and on one that is
uniform in λ; and genflow's alone on the golden files' own grid, which is uniform in λ and ends at
t = 0.001. Columns count calls, so a method of two calls a step takes half the steps. Kernels and
host reads are those that one call more costs with a network that computes nothing, counted by a
dispatch mode: no clock is involved.

    python benchmarks/solvers.py [--quick] [--pipeline runs/digits/pipeline]
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
import math
from pathlib import Path
import time
from typing import Any
import warnings

import diffusers
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from measure import RESULTS, Counted, print_table, write_results
import numpy as np
import torch
from torch import Tensor

from genflow import Exact, Mixture, Pipeline, VariancePreserving, build, rollout
from genflow.data.named import named
from genflow.errors import UserError
from genflow.models import Denoiser, Discrete, Rectified
from genflow.solvers import PRESETS, Statistics, estimate

GOLDEN = Path(__file__).parents[1] / "tests" / "golden" / "usf.npz"
CALLS = (3, 4, 5, 6, 8, 10, 12, 15, 20)

Solve = Callable[[Tensor], Tensor]


# --------------------------------------------------------------------------- what is solved


def linear_path() -> Discrete:
    """The DDPM path: 1,000 levels with linear β."""

    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    return Discrete(tuple((1 - beta).cumprod(0).tolist()))


def mixtures() -> dict[str, Mixture]:
    """The golden mixture, and five diagonal Gaussians in 16 dimensions."""

    with np.load(GOLDEN) as arrays:
        names = ("mixture/weights", "mixture/means", "mixture/covs")
        golden = Mixture(*(torch.from_numpy(arrays[k]) for k in names))
    g = torch.Generator().manual_seed(16)
    means = torch.randn(5, 16, generator=g, dtype=torch.float64)
    scales = 0.05 + 0.25 * torch.rand(5, 16, generator=g, dtype=torch.float64)
    return {"gm2d": golden, "gm16d": Mixture(golden.weights, means, scales**2)}


@dataclass
class Problem:
    """A denoiser, initial states, examples of its data, and the grid to solve on."""

    denoiser: Denoiser
    x: Tensor
    examples: Tensor
    grid: dict[str, str]


def problems(pipeline: str | None, data: str, quick: bool) -> dict[str, Problem]:
    """The problems by title."""

    g = torch.Generator().manual_seed(0)
    found = {}

    for name, law in mixtures().items():
        x = torch.randn(64 if quick else 256, law.means.shape[1], generator=g).double()
        examples = law.sample(256 if quick else 1024, generator=g)
        for title, path, grid in (
            ("trailing", linear_path(), {"grid": "trailing", "final": "zero"}),
            ("λ grid", linear_path(), {"grid": "logsnr", "final": "zero"}),
            ("λ grid to t = 0.001", VariancePreserving(), {"grid": "logsnr", "final": "min"}),
        ):
            found[f"{name}, {title}"] = Problem(Exact(path, law), x, examples, grid)

    if pipeline is not None:
        pipe = Pipeline.from_pretrained(pipeline)
        denoiser = pipe.denoiser.requires_grad_(False)
        x = torch.randn(8 if quick else 32, *pipe.shape, generator=g)
        examples = named(data, size=pipe.shape[-1]).reference().float() / 127.5 - 1
        found["pipeline"] = Problem(denoiser, x, examples, {"grid": "trailing", "final": "zero"})

    return found


# -------------------------------------------------------------------------- the contestants

Make = Callable[[Problem, int], Solve | None]
STAGES = {"midpoint": 2, "heun": 2, "karras-heun": 2, "rk4": 4}


def ours(name: str, **options) -> Make:
    """A preset, with as many steps as the calls pay for, if they pay for whole ones."""

    def make(problem: Problem, calls: int) -> Solve | None:
        fewest = calls // STAGES.get(name, 1)

        for steps in (fewest, fewest + 1):  # steps at the ends can cost less than the others
            try:
                sampler = build(name, problem.denoiser, steps, **problem.grid, **options)
            except UserError:
                continue
            if sampler.nfe == calls:
                return sampler

        return None

    return make


def settings(kind: type, problem: Problem) -> dict[str, Any] | None:
    """How a scheduler of diffusers is told of a path and a grid; None if it cannot be."""

    path, known = problem.denoiser.path, kind().config

    if isinstance(path, Rectified):
        if kind is diffusers.FlowMatchEulerDiscreteScheduler:
            return {}
        flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 1.0}
        return flow if "use_flow_sigmas" in known else None
    if not isinstance(path, Discrete) or "trained_betas" not in known:
        return None

    abar = np.asarray(path.alphas_cumprod)
    betas = {"trained_betas": 1 - abar / np.concatenate([[1.0], abar[:-1]])}

    if problem.grid["grid"] == "trailing":
        return betas | {"timestep_spacing": "trailing"}
    return betas | {"use_exponential_sigmas": True} if "use_exponential_sigmas" in known else None


def theirs(name: str, **options) -> Make:
    """A scheduler of diffusers in the loop of its pipelines, on a discrete or straight path."""

    def make(problem: Problem, calls: int) -> Solve | None:
        kind = getattr(diffusers, name)
        given, denoiser = settings(kind, problem), problem.denoiser

        def answer(x: Tensor, level: Tensor) -> Tensor:
            if isinstance(denoiser.path, Rectified):
                return denoiser.velocity(x, (level.double() / 1000).to(x))
            t = (level.double() + 1) / denoiser.path.levels
            alpha, sigma = denoiser.path(t)
            return (x - alpha * denoiser(x, t)) / sigma

        def solve(x: Tensor) -> Tensor:
            made = kind(**given, **options)
            made.set_timesteps(calls)
            x = x * float(getattr(made, "init_noise_sigma", 1.0))
            for t in made.timesteps:
                seen = made.scale_model_input(x, t) if hasattr(made, "scale_model_input") else x
                x = made.step(answer(seen, t), t, x, return_dict=False)[0]
            return x

        return None if given is None else solve

    return make


DIFFUSERS: dict[str, tuple[str, dict[str, Any]]] = {
    "diffusers DDIM": ("DDIMScheduler", {"clip_sample": False}),
    "diffusers Euler": ("EulerDiscreteScheduler", {}),
    "diffusers FlowMatchEuler": ("FlowMatchEulerDiscreteScheduler", {}),
    "diffusers DPM++ 2M": ("DPMSolverMultistepScheduler", {"solver_order": 2}),
    "diffusers DPM++ 3M": ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    "diffusers UniPC 2": ("UniPCMultistepScheduler", {"solver_order": 2}),
    "diffusers UniPC 3": ("UniPCMultistepScheduler", {"solver_order": 3}),
    "diffusers DEIS 3": ("DEISMultistepScheduler", {"solver_order": 3}),
}


def contestants(statistics: Statistics) -> dict[str, Make]:
    """All presets with a fixed number of calls and no fresh noise, then diffusers' schedulers."""

    other = ("ddpm", "dpm", "dpmpp", "adjoint-dpm", "euler-maruyama", "reinterpolate")
    names = [n for n in PRESETS if PRESETS[n].spaced and n not in other]
    table = {n: ours(n) for n in names if n != "dpm-v3"}
    table["unipc, order 3"] = ours("unipc", order=3)
    table["dpm-v3"] = ours("dpm-v3", statistics=statistics)
    table["dpm-v3, order 2"] = ours("dpm-v3", statistics=statistics, order=2)
    return table | {n: theirs(kind, **known) for n, (kind, known) in DIFFUSERS.items()}


def errors(
    problem: Problem, statistics: Statistics, calls: tuple[int, ...]
) -> dict[str, dict[int, dict[str, float]]]:
    """The error of every contestant at every number of calls."""

    x = problem.x
    solution = build("unipc", problem.denoiser, 1000, order=3, **problem.grid)(x)
    found: dict[str, dict[int, dict[str, float]]] = {}

    for name, make in contestants(statistics).items():
        for n in calls:
            solve = make(problem, n)
            if solve is None:
                continue
            with torch.no_grad():
                square = (solve(x) - solution).double().square().flatten(1).mean(1)
            if bool(square.isfinite().all()):
                error = {
                    "median": float(square.median().sqrt()),
                    "rms": float(square.mean().sqrt()),
                }
                found.setdefault(name, {})[n] = error

    return found


def statistics_of(problem: Problem) -> Statistics:
    """The statistics of a problem's denoiser, with an exact diagonal if it is small."""

    exact = problem.x[0].numel() <= 16
    examples = problem.examples[: 1024 if exact else 128]
    options = {"points": 96, "probes": None} if exact else {"points": 32, "probes": 2}
    return estimate(problem.denoiser, examples, samples=len(examples), batch_size=512, **options)


# ------------------------------------------------------------------- kernels and host reads


def added(run: Callable[[int], Callable[[], None]]) -> tuple[float, float]:
    """Kernels and host reads of one call more, from 20 and 30 calls."""

    seen = []

    for n in (20, 30):
        loop = run(n)
        with Counted() as counted:
            loop()
        seen.append((counted.kernels, counted.reads))

    return tuple((b - a) / 10 for a, b in zip(*seen, strict=True))


def costs() -> dict[str, tuple[float, float]]:
    """What a call costs beside the network, for every contestant."""

    x, found = torch.randn(4, 3, 8, 8), {}
    law = Mixture(torch.ones(1), torch.zeros(1, 192), torch.ones(1, 192))
    problem = Problem(Exact(linear_path(), law), x, x, {"grid": "trailing", "final": "zero"})

    def of_table(make: Make) -> Callable[[int], Callable[[], None]]:
        def run(n: int) -> Callable[[], None]:
            table = next(s for s in (make(problem, n + k) for k in range(4)) if s).tableau
            stages = [lambda x, t: x] * n
            # Tables of several stages a step are cut to the same number of calls.
            small = type(table)(table.time[:n], table.weight[:n], table.noise[: n + 1])
            small.prepare()
            return lambda: rollout(stages, x, small)

        return run

    def of_scheduler(name: str, options: dict) -> Callable[[int], Callable[[], None]]:
        def run(n: int) -> Callable[[], None]:
            made = getattr(diffusers, name)(**options)
            made.set_timesteps(n)

            def loop() -> None:
                y = x
                for t in made.timesteps:
                    if hasattr(made, "scale_model_input"):
                        made.scale_model_input(y, t)
                    y = made.step(y, t, y, return_dict=False)[0]

            return loop

        return run

    level = torch.ones(2, *x.shape[1:], dtype=torch.float64)
    ends = torch.tensor([-5.0, 5.0], dtype=torch.float64)
    statistics = Statistics(ends, 0.5 * level, -0.2 * level, 0.1 * level)

    for name, make in contestants(statistics).items():
        if name not in DIFFUSERS:
            found[name] = added(of_table(make))

    for name, (kind, options) in DIFFUSERS.items():
        found[name] = added(of_scheduler(kind, options))

    return found


# ----------------------------------------------------------------------------------- output

SHOWN = {
    "ddim": ("0.55", "-"),
    "dpmpp-2m": ("tab:blue", "-"),
    "unipc, order 3": ("tab:orange", "-"),
    "deis": ("tab:green", "-"),
    "dpm-v3": ("tab:red", "-"),
    "ipndm": ("tab:purple", "-"),
    "diffusers DPM++ 2M": ("tab:blue", ":"),
    "diffusers UniPC 3": ("tab:orange", ":"),
    "diffusers DEIS 3": ("tab:green", ":"),
}


def plot(found: dict[str, dict[str, dict[int, Any]]], file: Path) -> None:
    """Error against calls, a panel a problem."""

    lines = math.ceil(len(found) / 3)
    figure = Figure(figsize=(13.5, 3.8 * lines), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    row = figure.subplots(lines, 3, squeeze=False).flatten()
    for axes in row[len(found) :]:
        axes.remove()

    for axes, (title, rows) in zip(row, found.items(), strict=False):
        for name, (colour, line) in SHOWN.items():
            if name in rows:
                calls = sorted(rows[name])
                values = [rows[name][n]["median"] for n in calls]
                axes.plot(calls, values, line, color=colour, marker="o", ms=3, label=name)
        axes.set(xscale="log", yscale="log", title=title, xlabel="calls of the network (NFE)")
        axes.set_xticks(CALLS, [str(n) for n in CALLS])
        axes.minorticks_off()
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)

    for axes in row[: len(found) : 3]:
        axes.set_ylabel("median distance to 1,000 steps")
    handles = {
        label: h for a in row for h, label in zip(*a.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(), handles.keys(), loc="outside right upper", frameon=False, fontsize=8
    )
    figure.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer states and calls, no picture")
    parser.add_argument("--pipeline", help="a saved pipeline, runs/digits/pipeline for instance")
    parser.add_argument("--data", default="digits", help="the data of the pipeline")
    options = parser.parse_args()
    calls = (5, 10) if options.quick else CALLS
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    begun = time.process_time()

    kernels = costs()
    found = {}

    known: dict[str, Statistics] = {}

    for title, problem in problems(options.pipeline, options.data, options.quick).items():
        name = title.split(",")[0]
        if name not in known:
            known[name] = statistics_of(problem)
        found[title] = errors(problem, known[name], calls)
        for measure in ("median", "rms"):
            print(f"\n{title}: distance to 1,000 steps ({measure}), by calls of the network")
            rows = [
                [name, *(f"{row[n][measure]:.4f}" if n in row else "" for n in calls)]
                for name, row in found[title].items()
            ]
            print_table(["sampler", *map(str, calls)], rows)

    print(f"\n{time.process_time() - begun:.0f} s of CPU time")
    costs_ = {n: {"kernels": k, "host_reads": r} for n, (k, r) in kernels.items()}
    write_results("solvers", {"errors": found, "costs": costs_}, options)

    if not options.quick:
        plot(found, RESULTS / "solvers.png")


if __name__ == "__main__":
    main()
