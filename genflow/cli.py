"""The command line: typed functions, and nothing else.

Each command is a function; its signature is the schema of its arguments and its doc-string the
help. Heavy modules are imported inside the functions, so that ``--help`` and ``--version`` answer
at once. A `UserError` is printed as one sentence, with exit code 2.
"""

__all__ = ["COMMANDS", "evaluate", "export", "fit", "generate", "main", "schedule"]

from collections.abc import Callable, Sequence
import inspect
import json
import os
from pathlib import Path
import re
import shlex
import sys
from typing import Any, Literal

from genflow.console import Bar, flags, overview
from genflow.errors import UserError, nearest
from genflow.schedule_verbs import VERBS, samplers
from genflow.version import __version__

Value = int | float | bool | str


def fit(arguments: Sequence[str]) -> None:
    """Train a model from a config file, then save it as a pipeline.

    Everything about the run goes into its folder (``run``): the resolved config, metrics, grids of
    samples, checkpoints, and at the end ``pipeline``, the averaged weights ready for use.
    """

    from genflow.pipelines import Pipeline
    from genflow.training.ema import EMA
    from genflow.training.line import train

    module, data, trainer, config = train(arguments)

    if not trainer.is_global_zero:
        return

    pipe = Pipeline(
        module.denoiser,
        shape=tuple(data.shape),
        sampler=config.sampler,
        steps=config.steps,
        class_names=data.class_names,
        card={"data": type(data).__name__, "training_steps": trainer.global_step},
    )
    target = Path(config.run) / "pipeline"
    average = next(c for c in trainer.callbacks if isinstance(c, EMA))

    with average.average(module):
        pipe.save(target, overwrite=True)

    print(f"pipeline: {target}")


def export(
    source: str,
    output: str = "out",
    format: Literal["genflow", "diffusers"] = "genflow",
    weights: Literal["average", "raw"] = "average",
    sampler: str = "dpmpp-2m",
    steps: int = 20,
    overwrite: bool = False,
) -> None:
    """Save the network of a training checkpoint as a pipeline, of genflow or of diffusers.

    Args:
        source: A .ckpt file of a run; for the format diffusers also a saved pipeline.
        output: The folder to save to.
        format: genflow, or diffusers: a stock pipeline that loads where genflow is not installed.
        weights: The averaged weights, or the raw ones.
        sampler: The pipeline's default sampler.
        steps: The number of steps of the default sampler.
        overwrite: Whether a pipeline that is there already is replaced.
    """

    from genflow.pipelines import Pipeline
    from genflow.pipelines.exports import export_diffusers, trained
    from genflow.training.checkpoints import ema_weights, read_checkpoint

    if format == "diffusers" and not source.endswith(".ckpt"):
        pipe = Pipeline.from_pretrained(source)
    else:
        read = read_checkpoint(source)
        if read.record is None or read.record["net"] is None:
            raise UserError(f"checkpoint '{source}' does not say which network it is of.")
        state = ema_weights(source) if weights == "average" else read.raw
        card = {"training_steps": read.step, "weights": weights}
        pipe = trained(read.record, state, sampler=sampler, steps=steps, card=card)

    if format == "diffusers":
        export_diffusers(pipe, output, overwrite=overwrite)
    else:
        pipe.save(output, overwrite=overwrite)

    print(f"pipeline: {output}")


def generate(
    pipeline: str,
    output: str = "out",
    n: int | None = None,
    seed: int = 0,
    seeds: str | None = None,
    label: str | None = None,
    sampler: str | None = None,
    steps: int | None = None,
    schedule: str | None = None,
    guidance: float = 1.0,
    interval: tuple[float, float] = (0.0, 1.0),
    clip: bool = False,
    options: dict[str, Value] | None = None,
    batch_size: int = 256,
    device: str | None = None,
    shard: str = "0/1",
    overwrite: bool = False,
    resume: bool = False,
) -> None:
    """Draw samples from a pipeline into a folder: numbered images, a grid, meta.json.

    Args:
        pipeline: A saved pipeline, or the id of a repository of the Hugging Face hub.
        output: The folder to write to.
        n: The number of samples; 64, or the number of seeds.
        seed: The first of n consecutive seeds, one a sample.
        seeds: The seeds themselves, as in 0-63,100; instead of n and seed.
        label: Classes to go round in, as in 3 or 0,1,2 or names; every class by default.
        sampler: A name that "genflow samplers" lists; the pipeline's own by default.
        steps: The number of steps.
        schedule: A schedule.json, instead of sampler and steps.
        guidance: The weight of classifier-free guidance; 1 is none.
        interval: The times, from 0 (data) to 1 (noise), inside which guidance acts.
        clip: Whether the data estimate is kept in [-1, 1].
        options: Options of the sampler and its grid, as in --options.order 3.
        batch_size: How many are drawn at a time; the samples do not depend on it.
        device: cpu, cuda, ...; a GPU if there is one.
        shard: The part i/n of the work to do, counted from 0.
        overwrite: Whether an older job in the folder is thrown away.
        resume: Whether the same job, begun before, is gone on with.
    """

    from genflow.pipelines import Pipeline
    from genflow.pipelines.jobs import generate as job
    from genflow.pipelines.jobs import parse_seeds, parse_shard
    from genflow.solvers import SolverSchedule

    if seeds is not None and n is not None:
        raise UserError("n and seeds are both given: give one of the two.")

    pipe = Pipeline.from_pretrained(pipeline, device=device or _device())
    numbers = parse_seeds(seeds) if seeds else list(range(seed, seed + (64 if n is None else n)))
    labels = _labels(pipe, label, len(numbers))
    call: dict[str, Any] = {"guidance": guidance, "interval": interval, "clip": clip}
    call |= {"sampler": sampler, "steps": steps, **(options or {})}

    if schedule is not None:
        call["schedule"] = SolverSchedule.load(schedule, pipe.denoiser.path)

    with Bar("samples") as report:
        meta = job(
            pipe,
            Path(output),
            numbers,
            label=labels,
            shard=parse_shard(shard),
            batch_size=batch_size,
            overwrite=overwrite,
            resume=resume,
            record={"pipeline": str(pipeline), "command": shlex.join(sys.argv)},
            report=report,
            **call,
        )

    speed = "" if meta["per_second"] is None else f", {meta['per_second']} a second"
    count = len(meta.get("images") or meta.get("vectors") or ())
    print(f"{output}: {count} samples, NFE {meta['nfe'] or 0}{speed}")


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
    from genflow.pipelines import Pipeline
    from genflow.pipelines.jobs import evaluate as job

    device = device or _device()
    reference = named(data, size=size).reference()
    about: dict[str, Any] = {"samples": samples, "data": data, "genflow": __version__}

    if (Path(samples) / "model_index.json").exists() or not Path(samples).exists():
        pipe = Pipeline.from_pretrained(samples, device=device)
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


def schedule(arguments: Sequence[str]) -> None:
    """Show, compare, convert or make a solver schedule."""

    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview("genflow schedule", VERBS))
        return
    if arguments[0] not in VERBS:
        raise UserError(f"schedule verb is '{arguments[0]}'{nearest(arguments[0], VERBS)}")

    _call(f"genflow schedule {arguments[0]}", VERBS[arguments[0]], arguments[1:])


COMMANDS: dict[str, Callable[..., None]] = {
    "fit": fit,
    "export": export,
    "generate": generate,
    "evaluate": evaluate,
    "samplers": samplers,
    "schedule": schedule,
}
"""The commands by name."""


def main(
    arguments: Sequence[str] | None = None,
    program: str = "genflow",
    commands: Sequence[str] | None = None,
) -> int:
    """Runs a command.

    Args:
        arguments: The command and its arguments; those of the process if None.
        program: The name that help and errors show.
        commands: The commands on offer; all if None.

    Returns:
        The exit code: 0, 2 for a value that cannot be used, 130 if interrupted.
    """

    # Threads that spin long while they wait for each other starve a machine that is shared.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    commands = commands or tuple(COMMANDS)

    if arguments[:1] in (["--version"], ["-V"]):
        print(f"genflow {__version__}")
        return 0
    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview(program, {name: COMMANDS[name] for name in commands}))
        return 0 if arguments else 2

    try:
        if arguments[0] not in commands:
            raise UserError(f"command is '{arguments[0]}'{nearest(arguments[0], commands)}")
        _run(program, arguments[0], arguments[1:])
    except UserError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 130

    return 0


def _run(program: str, name: str, arguments: list[str]) -> None:
    """Parses the arguments of a command by its signature, and calls it."""

    command = COMMANDS[name]
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")

    if command is fit:
        return fit(flags(arguments, ("resume", "overwrite")))
    if command is schedule:
        return schedule(arguments)

    return _call(f"{program} {name}", command, arguments)


def _call(program: str, command: Callable[..., None], arguments: Sequence[str]) -> None:
    """Parses arguments by a function's signature, and calls it.

    A parameter whose name ends in an underscore, because Python keeps the word for itself, is an
    option without it.
    """

    from jsonargparse import ArgumentError, ArgumentParser

    parameters = inspect.signature(command).parameters.items()
    switches = [k for k, p in parameters if p.annotation is bool]
    kept = {k.rstrip("_"): p for k, p in parameters if k.endswith("_")}
    parser = ArgumentParser(prog=program, exit_on_error=False)
    parser.add_function_arguments(
        command, as_positional=True, skip={p.name for p in kept.values()}
    )

    for name, p in kept.items():
        about = re.search(rf"{p.name}: (.*)", inspect.getdoc(command) or "")
        parser.add_argument(f"--{name}", type=p.annotation, default=p.default, help=about[1])

    try:
        values = parser.parse_args(flags(arguments, switches))
    except ArgumentError as error:
        text = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
        raise UserError(f"{text} (see {program} --help)") from None

    return command(**{kept[k].name if k in kept else k: v for k, v in values.as_dict().items()})


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _labels(pipe: Any, text: str | None, n: int) -> Any:
    """Class labels from text, gone round in for n samples."""

    if text is None:
        return pipe.labels(None, n)

    names = [part.strip() for part in text.split(",")]
    return pipe.labels([names[i % len(names)] for i in range(n)], n)


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
