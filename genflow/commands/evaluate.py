"""Measuring samples against data."""

__all__ = ["evaluate"]

import shlex
import sys

from genflow.commands.choices import Value, device_named
from genflow.console import Bar


def evaluate(
    samples: str,
    data: str = "digits",
    n: int | None = None,
    seed: int = 0,
    repeats: int = 1,
    label: str | None = None,
    sampler: str | None = None,
    steps: int | None = None,
    schedule: str | None = None,
    guidance: float | None = None,
    interval: tuple[float, float] | None = None,
    clip: bool = False,
    options: dict[str, Value] | None = None,
    feature: str | None = None,
    metrics: str | None = None,
    inception_weights: str | None = None,
    halvings: int = 5,
    output: str | None = None,
    batch_size: int = 256,
    chunk: int = 1000,
    device: str | None = None,
    dtype: str | None = None,
    channels: int | None = None,
    size: int | None = None,
    skip_unreadable: bool = False,
    shard: str = "0/1",
    reduce: bool = False,
    resume: bool = False,
    overwrite: bool = False,
) -> None:
    """Measure how far samples are from the data, with floors: report.json, report.md, grid.png.

    Args:
        samples: A pipeline to draw from; a folder or zip of images; a .npz or .npy file; the
            folder of a generating job.
        data: digits, a torchvision set as in FashionMNIST:ROOT, a folder, a zip, a .npz or .npy
            file, or what "genflow reference make" stored.
        n: The number of samples; as many as there are, or for a pipeline as there are data.
        seed: The first seed.
        repeats: The number of ranges of seeds, of n samples each; more than 1 gives a spread.
        label: Classes to go round in, as in 3 or 0,1,2 or names; every class by default.
        sampler: A name that "genflow samplers" lists; the pipeline's own by default.
        steps: The number of steps.
        schedule: A schedule.json or table.json, instead of sampler and steps.
        guidance: The weight of classifier-free guidance; 1, which is none, by default.
        interval: The times, from 0 (data) to 1 (noise), inside which guidance acts.
        clip: Whether the data estimate is kept in [-1, 1].
        options: Options of the sampler and its grid, as in --options.order 3.
        feature: Feature nets, with commas: random-conv, genflow-small, inception, dinov2, clip,
            pixels; the first three by default, those without weights being left out.
        metrics: Metrics, with commas: fd, kd, prdc, mmd, swd, memorisation, which is the default;
            energy, all; or with their net: fid, kid, cmmd, dinov2:coverage.
        inception_weights: The TorchScript file of the Inception network.
        halvings: How often the data are halved for the floors; 0 for no floors.
        output: A folder for the job, its report and a picture; or a .json file for the report.
        batch_size: How many images are held at once.
        chunk: How many images are drawn and stored together.
        device: cpu, cuda, ...; a GPU if there is one, under torchrun one a process.
        dtype: What a pipeline's network computes in: float16, bfloat16, float32 or float64;
            features are computed in float32.
        channels: 1 or 3, to convert all images to grey or to colour.
        size: The side to which all images are brought.
        skip_unreadable: Whether image files that cannot be decoded are left out, and counted.
        shard: The part i/n of the work to do, counted from 0; the last to end measures.
        reduce: Whether only to measure what the shards have seen.
        resume: Whether the same job, begun before, is gone on with.
        overwrite: Whether an older job in the folder is thrown away.
    """

    from genflow.evaluation import evaluate as job
    from genflow.evaluation import lines
    from genflow.evaluation.plans import METRICS
    from genflow.pipelines.jobs import parse_shard

    with Bar("images") as bar:
        made = job(
            samples,
            data,
            output=output,
            n=n,
            seed=seed,
            repeats=repeats,
            label=label,
            feature=feature,
            metrics=METRICS if metrics is None else metrics,
            inception_weights=inception_weights,
            channels=channels,
            size=size,
            skip_unreadable=skip_unreadable,
            batch_size=batch_size,
            chunk=chunk,
            halvings=halvings,
            device=device_named(device),
            dtype=dtype,
            shard=parse_shard(shard),
            reduce=reduce,
            resume=resume,
            overwrite=overwrite,
            command=shlex.join(sys.argv),
            report=bar,
            sampler=sampler,
            steps=steps,
            schedule=schedule,
            guidance=guidance,
            interval=interval,
            clip=clip or None,
            **(options or {}),
        )

    if made is not None:
        print(lines(made))
        if output is not None:
            print(f"report: {output}")
