"""Measuring flows: how straight they are, and how likely data are under them."""

__all__ = ["flow_report", "likelihood"]

from collections.abc import Callable
import json
from typing import TYPE_CHECKING, Any, Literal

from genflow.commands.choices import pipeline_named
from genflow.console import Bar
from genflow.errors import UserError

if TYPE_CHECKING:
    from genflow.pipelines import Pipeline


def flow_report(
    pipelines: str,
    n: int = 1024,
    seed: int = 0,
    steps: int = 25,
    euler: str = "1,2,4,8",
    output: str | None = None,
    plot: str | None = None,
    device: str | None = None,
) -> None:
    """Measure how straight flows are: straightness, transport costs, errors of few steps.

    Args:
        pipelines: Saved pipelines on the straight path, one, or several as in first,second.
        n: The number of trajectories.
        seed: The first seed.
        steps: The number of fourth-order steps of the accurate solution.
        euler: The numbers of Euler steps to compare with it.
        output: A JSON file to write the numbers to.
        plot: A PNG to draw the errors into.
        device: cpu, cuda, ...; a GPU if there is one.
    """

    from genflow.files import write_text, writing
    from genflow.solvers import straightness

    counts = _counts(euler)
    found: dict[str, straightness.FlowReport] = {}

    for name in map(str.strip, pipelines.split(",")):
        pipe = pipeline_named(name, device)
        start, cond = _starts(pipe, n, seed)
        with Bar(name) as report:
            found[name] = straightness.flow_report(
                pipe.denoiser, start, steps=steps, euler=counts, conditions=cond, report=report
            )

    print(_flow_table(found, counts))

    if output is not None:
        record = {name: report.to_dict() for name, report in found.items()}
        write_text(output, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        print(f"report: {output}")

    if plot is not None:
        from genflow.viz import curves

        panels = {name: {k: [e] for k, e in r.error.items()} for name, r in found.items()}
        figure = curves(
            {"distance to the accurate solution": panels},
            xlabel="Euler steps",
            ylabel="root mean square",
            xscale="log",
            yscale="log",
        )
        with writing(plot) as part:
            figure.savefig(part, format="png")
        print(f"picture: {plot}")


def likelihood(
    pipeline: str,
    data: str = "digits",
    n: int = 64,
    seed: int = 0,
    divergence: Literal["exact", "hutchinson"] = "hutchinson",
    probes: int = 1,
    rtol: float = 1e-4,
    atol: float = 1e-4,
    batch_size: int = 64,
    output: str | None = None,
    device: str | None = None,
) -> None:
    """Measure the log-likelihood of data under a flow, in bits a dimension for images.

    Args:
        pipeline: A saved pipeline.
        data: digits, a torchvision set as in FashionMNIST:ROOT, a folder, or a zip.
        n: The number of examples, drawn without repetition.
        seed: Names the examples, the dequantisation and the probes.
        divergence: exact costs a product with the Jacobian for every element; hutchinson is an
            unbiased estimate.
        probes: How many probes the estimate averages.
        rtol: The relative tolerance of the solver.
        atol: The absolute tolerance.
        batch_size: How many are solved at a time.
        output: A JSON file to write the numbers to.
        device: cpu, cuda, ...; a GPU if there is one.
    """

    from genflow.data.named import named
    from genflow.files import write_text
    from genflow.solvers.likelihood import Likelihood, bits_per_dim

    pipe = pipeline_named(pipeline, device)
    pipe.check_noise()
    x, label = _examples(named(data), n, seed)
    solve = Likelihood(pipe.denoiser, divergence, probes=probes, rtol=rtol, atol=atol)
    kept, nfe = [], 0

    with Bar("examples") as report:
        for i in range(0, len(x), batch_size):
            part = slice(i, i + batch_size)
            cond = {} if pipe.classes is None else {"label": label[part].to(pipe.device)}
            found = solve(x[part].to(pipe.device), generator=_probe(seed, i), **cond)
            kept += found.log_prob.tolist()
            nfe = max(nfe, found.nfe)
            report(min(i + batch_size, len(x)), len(x))

    result = _likelihood_record(kept, x[0].numel(), len(x.shape) == 4, bits_per_dim)
    result |= {"pipeline": pipeline, "data": data, "seed": seed, "nfe": nfe}
    print("\n".join(f"{k}: {v}" for k, v in result.items()))

    if output is not None:
        write_text(output, json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def _counts(text: str) -> list[int]:
    """Numbers of steps from text."""

    parts = [part.strip() for part in text.split(",")]

    if not all(part.isdigit() and int(part) > 0 for part in parts):
        raise UserError(f"euler is '{text}': write numbers above 0, as in 1,2,4,8.")

    return [int(part) for part in parts]


def _starts(pipe: "Pipeline", n: int, seed: int) -> tuple[Any, dict[str, Any]]:
    """The states at t = 1 of n seeds, and their conditions."""

    from torch import Generator

    pipe.check_noise()
    generators = [Generator().manual_seed(seed + i) for i in range(n)]
    sampler = pipe.build(sampler="euler", steps=1)
    start = sampler.init((n, *pipe.shape), generator=generators, device=pipe.device)
    return start, pipe.conditions(n, label=pipe.labels(None, n))


def _flow_table(found: dict[str, Any], counts: list[int]) -> str:
    """A line a flow."""

    heads = ["straightness", "relative", "cost p=2", *(f"error @{k}" for k in counts)]
    width = max(map(len, [*found, "flow"]))
    lines = [f"{'flow':<{width}}" + "".join(f"  {h:>12}" for h in heads)]

    for name, r in found.items():
        row = [r.straightness, r.relative, r.cost[2.0], *(r.error[k] for k in counts)]
        lines.append(f"{name:<{width}}" + "".join(f"  {v:>12.5g}" for v in row))

    return "\n".join(lines)


def _examples(data: Any, n: int, seed: int) -> tuple[Any, Any]:
    """Examples as a density sees them, images dequantised, and their classes."""

    import torch

    from genflow.data.stream import seeded
    from genflow.solvers.likelihood import dequantised

    if n < 1 or n > len(data.train_set):
        raise UserError(
            f"n is {n}, and there are {len(data.train_set)} examples: ask for 1 or more of them."
        )

    source = seeded("likelihood", seed)
    batch = data.train_set[torch.randperm(len(data.train_set), generator=source)[:n]]
    x = batch["x"]
    return dequantised(x, generator=source) if x.dtype == torch.uint8 else x, batch.get("label")


def _probe(seed: int, first: int) -> Any:
    from genflow.data.stream import seeded

    return seeded("probe", seed, first)


def _likelihood_record(
    log_prob: list[float], d: int, images: bool, bits: Callable[..., Any]
) -> dict[str, Any]:
    import torch

    nats = torch.tensor(log_prob, dtype=torch.float64)
    value = bits(nats, d) if images else nats
    unit = "bits_per_dim" if images else "log_prob_nats"
    error = float(value.std() / len(value) ** 0.5) if len(value) > 1 else None
    return {unit: float(value.mean()), "standard_error": error, "n": len(value), "dimensions": d}
