"""Flows before and after reflow: distances at few calls of the network, and straightness.

    python benchmarks/flows.py "1-RF=runs/digits/pipeline,2-RF=runs/reflow/pipeline"
    python benchmarks/flows.py runs/digits/pipeline --make runs/flows     # reflow and distil first

The distance is the Fréchet distance to the data at the number of points that the floor has, over
that floor, the distance between two halves of the data themselves; samples are as many as the
data, from the same seeds for all.
"""

import argparse
from pathlib import Path
from typing import Any

from measure import write_results
import torch

from genflow.data.named import named
from genflow.metrics import compare
from genflow.metrics.features import features
from genflow.pipelines import Pipeline
from genflow.recipes import distill, reflow
from genflow.solvers.straightness import flow_report

COUNTS = (1, 2, 4, 8)


def made(first: Pipeline, options: argparse.Namespace) -> dict[str, Pipeline]:
    """The flow, its rectified successor, and the one-step student of that."""

    settings = {
        "pairs": options.pairs,
        "steps": options.steps,
        "lr": 1e-3,
        "ema": 0.995,
        "pair_options": {"sampler": "heun", "steps": 12},
    }
    second = reflow(first, options.make / "reflow", **settings)
    student = distill(second, options.make / "distil", k=1, **settings)
    return {"1-RF": first, "2-RF": second, "distilled": student}


def opened(text: str, device: str) -> dict[str, Pipeline]:
    """Pipelines by name, from NAME=FOLDER,NAME=FOLDER or FOLDER."""

    found = {}

    for part in text.split(","):
        name, _, folder = part.strip().rpartition("=")
        found[name or folder] = Pipeline.from_pretrained(folder, device=device)

    return found


def distances(pipe: Pipeline, reference: torch.Tensor, options: argparse.Namespace) -> Any:
    """By the number of Euler steps, and by RK45: distance, floor, and the calls."""

    calls: dict[str, dict[str, Any]] = {
        str(k): {"sampler": "euler", "steps": k, "grid": "uniform"} for k in COUNTS
    }
    calls["rk45"] = {"sampler": "dopri5"}
    n = options.n or len(reference)
    feature = features("random-conv", reference.shape[1:]).to(options.device)
    found = {}

    for name, call in calls.items():
        drawn = pipe(n, seed=options.seed, **call)
        report = compare(drawn.uint8, reference, feature)
        fair, floor = report["distance_at_floor_n"]["mean"], report["floor"]["mean"]
        found[name] = {
            "nfe": drawn.nfe,
            "distance": report["distance"],
            "at_floor_n": fair,
            "floor": floor,
            "over_floor": fair / floor,
        }

    return found


def shape(pipe: Pipeline, options: argparse.Namespace) -> dict[str, Any]:
    """The straightness of a flow and its errors of few steps."""

    n = options.trajectories
    sources = [torch.Generator().manual_seed(options.seed + i) for i in range(n)]
    start = pipe.build(sampler="euler", steps=1).init(
        (n, *pipe.shape), generator=sources, device=pipe.device
    )
    cond = pipe.conditions(n, label=pipe.labels(None, n))
    return flow_report(pipe.denoiser, start, euler=COUNTS, conditions=cond).to_dict()


def main() -> None:
    """Measures, prints and writes."""

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("pipelines", help="NAME=FOLDER,...; one folder with --make")
    parser.add_argument("--make", type=Path, help="reflow and distil into this folder first")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--n", type=int, help="samples; as many as the data by default")
    parser.add_argument("--seed", type=int, default=10**6)
    parser.add_argument("--trajectories", type=int, default=1024)
    parser.add_argument("--pairs", type=int, default=8192)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    flows = opened(options.pipelines, options.device)

    if options.make is not None:
        flows = made(next(iter(flows.values())), options)

    reference = named(options.data).reference()
    results: dict[str, Any] = {}

    for name, pipe in flows.items():
        pipe.to(options.device)
        results[name] = {
            "distances": distances(pipe, reference, options),
            "report": shape(pipe, options),
        }

    options.pipelines, options.make = ", ".join(flows), options.make is not None
    write_results("flows", {"flows": results}, options)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
