"""How much abuse a sampler bears, by D: noise on the state, rounded weights, few steps.

PFGM++ claims that a small D makes sampling robust. Here small models of the digits, equal but for
D and the training seed, are sampled with EDM's Heun method under three stressors, one at a time:

    noise on the state    α σ times a normal draw, added before every step
    rounded weights       2ᵇ values a tensor
    steps                 fewer of them

and compared with the digits by the Fréchet distance of a fixed random net, in units of the
distance between two halves of the real ones at equal counts (1 is perfect). All models draw from
the same seeds. Lines are means over training seeds, bands reach from the best to the worst.

Models are trained here unless pipelines are given, and kept in a folder with what was measured on
them, so that a run that was stopped goes on where it was.

    python benchmarks/robustness.py [--quick]
    python benchmarks/robustness.py --pipelines runs/d128/pipeline runs/inf/pipeline
    python benchmarks/robustness.py --pipelines A B --data FOLDER --reference 10000 --device cuda
"""

import argparse
from collections.abc import Iterator
from contextlib import nullcontext
import hashlib
import json
import logging
import math
from pathlib import Path
import time
from typing import Any
import warnings

from lightning.pytorch import Trainer
from measure import RESULTS, write_results
import torch
from torch import Tensor

from genflow import Pipeline, viz
from genflow.data import Digits, to_uint8
from genflow.data.named import named
from genflow.files import write_text
from genflow.metrics import compare
from genflow.metrics.features import features
from genflow.nn import UNet, quantised
from genflow.solvers import shaken
from genflow.training import EMA, PFGMPP

WIDTHS = (16, 32)
SWEEPS = ("noise on the state, α", "bits of a weight", "steps")


# ---------------------------------------------------------------------------------- the models


def trained(D: float, seed: int, steps: int) -> Pipeline:
    """A model of the digits; two of them differ in D and in the seed, and in nothing else."""

    torch.manual_seed(seed)
    net = UNet(8, 1, widths=WIDTHS, layers=1, attention=(4,), groups=8, classes=10)
    options = {"lr": 3e-3, "warmup": min(100, steps // 4), "decay": "cosine", "seed": seed}
    module = PFGMPP(net, D=D, **options)
    average = EMA(0.995)
    Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        callbacks=[average],
        gradient_clip_val=1.0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, Digits(batch_size=64, seed=seed))

    with average.average(module):
        weights = {k: v.clone() for k, v in net.state_dict().items()}
    net.load_state_dict(weights)
    return Pipeline(module.denoiser.eval(), (1, 8, 8), sampler="karras-heun", steps=18)


def models(options: argparse.Namespace) -> Iterator[tuple[str, Pipeline]]:
    """Each with its name: those given, or those of all D and seeds."""

    for folder in options.pipelines or ():
        yield folder, Pipeline.from_pretrained(folder)

    if options.pipelines:
        return

    for seed in range(options.seeds):
        for D in options.D:
            name = f"D{D:g}-seed{seed}-{options.train_steps}"
            folder = Path(options.models) / name
            if not (folder / "model_index.json").exists():
                begun = time.process_time()
                trained(D, seed, options.train_steps).save(folder, overwrite=True)
                print(f"{name}: trained in {time.process_time() - begun:.0f} s", flush=True)
            yield name, Pipeline.from_pretrained(folder)


# ------------------------------------------------------------------------------- the stressors


def drawn(pipe: Pipeline, n: int, steps: int, alpha: float, bits: float) -> Tensor:
    """Samples under stress, as bytes; sample i starts from seed i whatever the stress."""

    sampler = shaken(pipe.build(sampler="karras-heun", steps=steps), alpha)
    rounded = nullcontext() if math.isinf(bits) else quantised(pipe.denoiser, int(bits))
    labels, parts = pipe.labels(None, n), []

    with rounded:
        for seeds in torch.arange(n).split(256):
            g = [torch.Generator().manual_seed(int(s)) for s in seeds]
            cond = {} if labels is None else {"label": labels[seeds].to(pipe.device)}
            x = sampler.init((len(g), *pipe.shape), generator=g, device=pipe.device)
            parts.append(to_uint8(sampler(x, generator=g, **cond)).cpu())

    return torch.cat(parts)


def cells(options: argparse.Namespace) -> dict[str, dict[float, dict[str, float]]]:
    """The settings of every cell: by stressor and by how strong it is."""

    usual = {"steps": options.usual_steps, "alpha": 0.0, "bits": math.inf}
    noise, bits, steps = SWEEPS
    return {
        noise: {a: usual | {"alpha": a} for a in options.alpha},
        bits: {float(b): usual | {"bits": b} for b in options.bits},
        steps: {float(s): usual | {"steps": s} for s in options.steps},
    }


def digest(pipe: Pipeline) -> str:
    """Names the weights of a pipeline."""

    weights = pipe.denoiser.state_dict().values()
    return hashlib.sha256(b"".join(w.cpu().numpy().tobytes() for w in weights)).hexdigest()[:12]


def measured(
    pipe: Pipeline, reference: Tensor, file: Path, options: argparse.Namespace
) -> dict[str, dict[float, dict[str, float]]]:
    """The distance of every cell; what a file holds from an earlier run is not done again."""

    phi = features("random-conv", tuple(reference.shape[1:]))
    about = [digest(pipe), phi.digest[:12], options.n, len(reference)]
    kept = json.loads(file.read_text()) if file.exists() else {}
    pipe.to(options.device)

    def cell(settings: dict[str, float]) -> dict[str, float]:
        key = json.dumps([settings, about])
        if key not in kept:
            x = drawn(pipe, options.n, **settings)
            report = compare(x, reference, phi, repeats=5)
            floor, own = report["floor"]["mean"], report["distance_at_floor_n"]["mean"]
            kept[key] = {"distance": own, "floor": floor, "ratio": own / floor}
            write_text(file, json.dumps(kept, indent=1) + "\n")
        return kept[key]

    return {
        title: {strength: cell(settings) for strength, settings in sweep.items()}
        for title, sweep in cells(options).items()
    }


# ------------------------------------------------------------------------------------- output


def called(D: float) -> str:
    return f"D = {'∞' if math.isinf(D) else f'{D:g}'}"


def gathered(
    found: list[tuple[float, dict[str, Any]]], what: str
) -> dict[str, dict[str, dict[float, list[float]]]]:
    """Stressor → D → strength → one value a training seed."""

    table: dict[str, dict[str, dict[float, list[float]]]] = {title: {} for title in SWEEPS}

    for D, sweeps in sorted(found, key=lambda pair: pair[0]):
        for title, sweep in sweeps.items():
            curve = table[title].setdefault(called(D), {})
            for strength, cell in sweep.items():
                curve.setdefault(strength, []).append(cell[what])

    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="tiny settings, to see it run; no picture"
    )
    parser.add_argument("--D", type=float, nargs="+", default=[16, 128, 2048, math.inf])
    parser.add_argument("--seeds", type=int, default=3, help="training seeds for each D")
    parser.add_argument("--train-steps", type=int, default=1000)
    parser.add_argument("--models", default="runs/robustness", help="where models are kept")
    parser.add_argument("--pipelines", nargs="+", help="saved pipelines of the digits, instead")
    parser.add_argument("--data", default="digits", help="the data of these pipelines")
    parser.add_argument("--reference", type=int, help="how many of the data; all by default")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--n", type=int, default=500, help="samples a cell")
    parser.add_argument(
        "--usual-steps", type=int, default=18, help="steps of the other two sweeps"
    )
    parser.add_argument("--alpha", type=float, nargs="+", default=[0, 0.05, 0.1, 0.2, 0.4])
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 6, 5, 4])
    parser.add_argument("--steps", type=int, nargs="+", default=[6, 7, 8, 10, 14])
    options = parser.parse_args()

    if options.quick:
        options.D, options.seeds, options.train_steps, options.n = [16, math.inf], 2, 20, 40
        options.alpha, options.bits, options.steps = [0, 0.2], [6, 4], [6, 8]
        options.usual_steps = 6

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    begun, found = time.process_time(), []

    reference = named(options.data).reference(options.reference)

    for name, pipe in models(options):
        start = time.process_time()
        file = Path(options.models) / f"{name.strip('/').replace('/', '-')}.measured.json"
        D = getattr(pipe.denoiser.path.noise, "D", math.inf)
        found.append((D, measured(pipe, reference, file, options)))
        print(f"{name}: measured in {time.process_time() - start:.0f} s", flush=True)

    table = gathered(found, "ratio")

    print(f"\n{time.process_time() - begun:.0f} s of CPU time")

    options.D = [called(D) for D in sorted({D for D, _ in found})]
    results = {"ratios": table, "distances": gathered(found, "distance")}
    write_results("robustness", results, options)

    if not options.quick:
        figure = viz.curves(
            table, ylabel="Fréchet distance ÷ floor", yscale="log", marks={"real v real": 1.0}
        )
        suffix = "" if options.device == "cpu" else "-gpu"
        figure.savefig(RESULTS / f"robustness{suffix}.png")


if __name__ == "__main__":
    main()
