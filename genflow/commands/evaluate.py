"""Measuring samples against data."""

__all__ = ["evaluate"]

from collections.abc import Callable
import json
from pathlib import Path
from typing import Any

from genflow.commands.choices import device_named, pipeline_named
from genflow.console import Bar
from genflow.version import __version__


def evaluate(
    samples: str,
    data: str = "digits",
    n: int | None = None,
    seed: int = 0,
    sampler: str | None = None,
    steps: int | None = None,
    guidance: float = 1.0,
    feature: str = "random-conv",
    output: str | None = None,
    batch_size: int = 256,
    device: str | None = None,
    size: int | None = None,
) -> None:
    """Measure how far samples are from the data: Fréchet distance, floor, and noise.

    Args:
        samples: A pipeline to draw from, or a folder or zip of images.
        data: digits, a torchvision set as in FashionMNIST:ROOT, a folder, or a zip.
        n: The number of samples to draw; as many as there are data by default.
        seed: The first seed.
        sampler: A name that "genflow samplers" lists; the pipeline's own by default.
        steps: The number of steps.
        guidance: The weight of classifier-free guidance; 1 is none.
        feature: The feature net: random-conv, pixels.
        output: A JSON file to write the report to.
        batch_size: How many are drawn at a time.
        device: cpu, cuda, ...; a GPU if there is one.
        size: The side to which images of a folder or zip are brought.
    """

    from genflow.data.named import images_of, named
    from genflow.files import write_text
    from genflow.metrics import table
    from genflow.pipelines.jobs import evaluate as job

    device = device_named(device)
    reference = named(data, size=size).reference()
    about: dict[str, Any] = {"samples": samples, "data": data, "genflow": __version__}

    if (Path(samples) / "model_index.json").exists() or not Path(samples).exists():
        pipe = pipeline_named(samples, device)
        n = len(reference) if n is None else n
        with Bar("samples") as report:
            drawn = _draw(pipe, n, seed, batch_size, report, sampler, steps, guidance)
        about |= {"seeds": [seed, seed + n - 1], "nfe": drawn["nfe"], "sampler": drawn["sampler"]}
        x = drawn["x"]
    else:
        x = images_of(samples, channels=reference.shape[1], size=size)

    result = about | job(x, reference, feature=feature, device=device)
    print(table(result))

    if output is not None:
        write_text(output, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
        print(f"report: {output}")


def _draw(
    pipe: Any,
    n: int,
    seed: int,
    batch_size: int,
    report: Callable[[int, int], None],
    sampler: str | None,
    steps: int | None,
    guidance: float,
) -> dict[str, Any]:
    """Samples in the form in which the data are stored, batch by batch."""

    import torch

    parts, nfe, name = [], 0, ""
    batches = pipe.batches(
        range(seed, seed + n),
        pipe.labels(None, n),
        batch_size=batch_size,
        sampler=sampler,
        steps=steps,
        guidance=guidance,
    )

    for batch in batches:
        parts.append(batch.uint8 if len(pipe.shape) == 3 else batch.x)
        nfe, name = batch.nfe, batch.sampler
        report(sum(map(len, parts)), n)

    return {"x": torch.cat(parts), "nfe": nfe, "sampler": name}
