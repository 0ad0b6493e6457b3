"""From features to numbers: one measure for each feature net, and its spread over seeds.

Distances, floors and ratios are those of `genflow.metrics.suite`, of the first range of seeds. If
a pipeline was drawn from several ranges, each gives every distance once, and their least, mean and
deviation stand beside; the least is what some papers report. A Fréchet distance also has a
ceiling: what uniform noise scores. The pairs of sample and training image that look most like
copies are named, so that a person can look at them.
"""

__all__ = ["measured"]

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from genflow.data.stream import seeded
from genflow.evaluation.references import References
from genflow.evaluation.sources import Source
from genflow.metrics.features import Features, extract
from genflow.metrics.references import Reference
from genflow.metrics.suite import measure

if TYPE_CHECKING:
    from genflow.evaluation.jobs import Job

NOISE = 1000  # images of noise: enough for a scale, cheap for a wide net


def measured(job: "Job", references: Mapping[str, Reference]) -> dict[str, dict[str, Any]]:
    """Measures what all shards have seen.

    Args:
        job: The job, all of whose chunks are done.
        references: The reference of each net, by name.

    Returns:
        By the name of the net what `genflow.metrics.suite.measure` returns, with ``feature``, and
        for each metric with ``seeds`` where there are several ranges of seeds.

    Raises:
        UserError: If features are not finite.
    """

    found = {}

    for name, net in job.plan.nets.items():
        reference, names = references[name], job.plan.metrics[name]
        x = job.shards.join(name, job.chunks)

        try:
            parts = x.split(job.n)
            options = {"prefix": net.prefix, "seed": job.seed}
            made = measure(parts[0], reference, names, repeats=job.halvings, **options)
            rest = [measure(p, reference, names, repeats=0, **options) for p in parts[1:]]
        finally:
            job.shards.joined(name).unlink(missing_ok=True)

        for metric, numbers in made["metrics"].items():
            if rest and "value" in numbers:
                others = [r["metrics"][metric]["value"] for r in rest]
                numbers["seeds"] = spread([numbers["value"], *others])

        if "value" in made["metrics"].get("frechet", {}):
            made["metrics"]["frechet"]["noise"] = _ceiling(job, net, reference)

        for pair in made["metrics"].get("memorisation", {}).get("closest", ()):
            _name(job, pair)

        about = {"name": net.name, "sha256": net.digest, "resize": net.resize}
        found[name] = {"feature": about, **made}

    return found


def spread(values: list[float]) -> dict[str, Any]:
    """The least, the largest, the mean and the deviation of some numbers, and the numbers."""

    numbers = torch.tensor(values, dtype=torch.float64)
    return {
        "min": float(numbers.min()),
        "max": float(numbers.max()),
        "mean": float(numbers.mean()),
        "std": float(numbers.std(correction=1)),
        "values": values,
    }


def _name(job: "Job", pair: dict[str, Any]) -> None:
    """Says which sample and which of the data are near each other, in words of their sources."""

    pair["sample"] = job.rows[pair["sample"]]
    pair["sample_name"] = job.source.name_of(pair["sample"])
    if isinstance(job.data, Source):
        pair["training_name"] = job.data.name_of(pair["training"])


def _ceiling(job: "Job", net: Features, reference: Reference) -> float | None:
    """The Fréchet distance of uniform noise; None for vectors whose box is unknown."""

    n, generator = min(job.n, NOISE), seeded("noise", job.seed)
    noise = _noise(job, n, generator)

    if noise is None:
        return None

    features = extract(net, noise, job.batch_size)
    options = {"prefix": net.prefix, "seed": job.seed, "repeats": 0}
    return measure(features, reference, ["frechet"], **options)["metrics"]["frechet"]["value"]


def _noise(job: "Job", n: int, generator: torch.Generator) -> Tensor | None:
    shape = job.source.shape

    if len(shape) == 3:
        return torch.randint(0, 256, (n, *shape), generator=generator).to(torch.uint8)
    if isinstance(job.data, References):
        return None

    low = torch.stack([x.amin(0) for x in job.data]).amin(0)
    high = torch.stack([x.amax(0) for x in job.data]).amax(0)
    return low + (high - low) * torch.rand(n, *shape, generator=generator)
