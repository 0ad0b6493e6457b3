"""What gradients through a sampler are for: inverting, auditing, fine-tuning."""

__all__ = ["audit", "finetune", "invert"]

from collections.abc import Mapping
from pathlib import Path
import shlex
import sys
from typing import Any, Literal

from genflow.commands.choices import Value, device_named, labels_of, policy_of
from genflow.console import Bar
from genflow.errors import UserError

_FOLDER = ("output", "device", "overwrite", "resume", "every")


def invert(
    pipeline: str,
    target: str,
    output: str = "out/invert",
    loss: Literal["pixel", "gram"] = "pixel",
    n: int = 8,
    seed: int = 0,
    start: str | None = None,
    rows: str | None = None,
    guidance: float = 1.0,
    learn_guidance: bool = False,
    keep: float = 0.0,
    iterations: int = 100,
    optimizer: str = "adam",
    lr: float = 0.05,
    clip: float | None = None,
    gradient: str = "exact",
    sampler: str | None = None,
    steps: int | None = None,
    options: dict[str, Value] | None = None,
    batch_size: int = 16,
    device: str | None = None,
    every: int = 10,
    overwrite: bool = False,
    resume: bool = False,
) -> None:
    """Find the condition, an embedding, that makes samples match a target.

    Args:
        pipeline: A saved pipeline, zoo:NAME, or the id of a repository of the Hugging Face hub.
        target: A picture or a folder of them; or label:NAME or prompt:TEXT, its own samples of it.
        output: The folder to write to.
        loss: pixel, or gram: the style of a fixed feature net, without place.
        n: The number of samples that share the embedding.
        seed: The first of their seeds.
        start: The class or the prompt to begin with; no class, or the empty prompt, by default.
        rows: The rows of the embedding that change, as in 5-76; all by default.
        guidance: The weight of classifier-free guidance, or where it begins.
        learn_guidance: Whether it is optimised as well.
        keep: How strongly the embedding is pulled towards the start.
        iterations: The number of steps of the optimiser.
        optimizer: adam, sgd or lbfgs.
        lr: The learning rate.
        clip: The largest norm of the gradient.
        gradient: exact, direct, continuous, or truncated:K, the last K calls alone.
        sampler: A name that "genflow samplers" lists; the pipeline's own by default.
        steps: The number of steps of the sampler.
        options: Options of the sampler and its grid, as in --options.order 3.
        batch_size: How many samples are differentiated at a time.
        device: cpu, cuda, ...; a GPU if there is one.
        every: The number of iterations between two states to resume from.
        overwrite: Whether an older job in the folder is thrown away.
        resume: Whether the same job, begun before, is gone on with.
    """

    settings = dict(locals())

    from genflow.gradients import Inversion, beginning
    from genflow.gradients.targets import loss_of, pictures
    from genflow.pipelines.jobs import parse_seeds

    pipe = _loaded(pipeline, device)
    seeds = list(range(seed, seed + n))
    solver = {"sampler": sampler, "steps": steps, **(options or {})}
    images = pictures(target, pipe, seeds, guidance=guidance, **solver)
    task = Inversion(
        pipe,
        loss_of(loss, images),
        seeds,
        start=beginning(pipe, start),
        rows=None if rows is None else parse_seeds(rows),
        guidance=guidance,
        learn_guidance=learn_guidance,
        keep=keep,
        iterations=iterations,
        optimizer=optimizer,
        lr=lr,
        clip=clip,
        batch_size=batch_size,
        gradient=policy_of(gradient),
        **solver,
    )
    record = _run("invert", task, settings)
    print(f"{output}: loss {_change(record)}{_remark(record)}")


def audit(
    pipeline: str,
    classifier: str,
    output: str = "out/audit",
    n: int = 32,
    seed: int = 0,
    label: str | None = None,
    prompt: str | None = None,
    truth: Literal["label", "answer"] = "label",
    target: str | None = None,
    norm: Literal["l2", "linf"] = "l2",
    radius: float = 1.0,
    radii: list[float] = [0.05, 0.1, 0.2, 0.4, 0.8],  # noqa: B006
    iterations: int = 120,
    patience: int = 12,
    step: float = 0.2,
    draws: int = 8,
    guidance: float = 1.0,
    gradient: str = "exact",
    sampler: str | None = None,
    steps: int | None = None,
    options: dict[str, Value] | None = None,
    batch_size: int = 16,
    device: str | None = None,
    every: int = 10,
    overwrite: bool = False,
    resume: bool = False,
) -> None:
    """Find the smallest change of the noise for which a classifier fails on the saved image.

    Args:
        pipeline: A saved pipeline, zoo:NAME, or the id of a repository of the Hugging Face hub.
        classifier: A labelled data set to train a small net on, as in digits; or
            package.module:function, which returns a classifier of images in [-1, 1].
        output: The folder to write to.
        n: The number of samples.
        seed: The first of their seeds.
        label: Classes to go round in, as in 3 or 0,1,2 or names; every class by default.
        prompt: A prompt for all samples, on a pipeline that draws from text.
        truth: What the right answer is: the label, or what the classifier answers before.
        target: The class that it is to answer; any wrong one by default.
        norm: l2 (a rotation of the noise), or linf (no element changes by more).
        radius: The largest radius that is searched, as a part of the norm of the noise.
        radii: The radii of the table of success rates.
        iterations: The number of steps of a sample.
        patience: The number of steps in vain after which a radius counts as too small.
        step: The length of a step, as a part of the radius.
        draws: How many random changes of the same radius a sample has for control.
        guidance: The weight of classifier-free guidance; 1 is none.
        gradient: exact, direct, continuous, or truncated:K, the last K calls alone.
        sampler: A name that "genflow samplers" lists; the pipeline's own by default.
        steps: The number of steps of the sampler.
        options: Options of the sampler and its grid, as in --options.order 3.
        batch_size: How many samples are differentiated at a time.
        device: cpu, cuda, ...; a GPU if there is one.
        every: The number of iterations between two states to resume from.
        overwrite: Whether an older job in the folder is thrown away.
        resume: Whether the same job, begun before, is gone on with.
    """

    settings = dict(locals())

    import torch

    from genflow.gradients import Audit, classifier_of

    pipe = _loaded(pipeline, device)
    net, about = classifier_of(classifier, pipe.device)
    labels = None if pipe.condition is not None else labels_of(pipe, label, n)

    if truth == "label" and labels is None:
        raise UserError("truth is 'label', but this pipeline has no classes: say --truth answer.")

    wanted = None if target is None else torch.full((n,), _number(target, pipe))
    task = Audit(
        pipe,
        net,
        range(seed, seed + n),
        label=labels,
        prompt=prompt,
        truth=labels if truth == "label" else None,
        target=wanted,
        norm=norm,
        radius=radius,
        radii=radii,
        iterations=iterations,
        patience=patience,
        step=step,
        draws=draws,
        seed=seed,
        gradient=policy_of(gradient),
        batch_size=batch_size,
        guidance=guidance,
        sampler=sampler,
        steps=steps,
        **(options or {}),
    )
    record = _run("audit", task, settings | about)
    print(f"{'radius':>8} {'broken':>8} {'at random':>10}")
    for row in record["table"]:
        print(f"{row['radius']:8.3g} {_percent(row['success'])} {_percent(row['random']):>10}")
    found = record["radius"]["mean"]
    at = "" if found is None else f", at a mean radius of {found:.3g}"
    at += "" if found is None else f"; at random there {_percent(record['random_at_same_radius'])}"
    print(f"{output}: {record['broken']} of {record['tested']} broken{at}{_remark(record)}")


def finetune(
    pipeline: str,
    output: str = "out/finetune",
    loss: Literal["gram", "pixel", "classifier"] = "gram",
    target: str | None = None,
    classifier: str | None = None,
    n: int = 128,
    held: int = 32,
    seed: int = 0,
    label: str | None = None,
    prompt: str | None = None,
    rank: int | None = 4,
    scale: float = 1.0,
    layers: str = ".*",
    keep: float = 0.0,
    iterations: int = 100,
    batch: int = 16,
    optimizer: str = "adam",
    lr: float = 1e-3,
    clip: float | None = 1.0,
    average: float = 0.0,
    guidance: float = 1.0,
    gradient: str = "exact",
    sampler: str | None = None,
    steps: int | None = None,
    options: dict[str, Value] | None = None,
    batch_size: int = 16,
    device: str | None = None,
    every: int = 10,
    overwrite: bool = False,
    resume: bool = False,
) -> None:
    """Train the weights of a pipeline, or low-rank changes, on a metric of its samples.

    Args:
        pipeline: A saved pipeline, zoo:NAME, or the id of a repository of the Hugging Face hub.
        output: The folder to write to; the new pipeline is its folder pipeline.
        loss: gram (the style of a target), pixel, or classifier.
        target: A picture or a folder of them, or label:NAME or prompt:TEXT, its own samples of it;
            with loss classifier the class that is wanted, each sample's own by default.
        classifier: A labelled data set to train a small net on, as in digits; or
            package.module:function, which returns a classifier of images in [-1, 1].
        n: The number of samples, with fixed seeds, that are gone round in.
        held: The number of other samples, on which results are measured.
        seed: The first seed.
        label: Classes to go round in, as in 3 or 0,1,2 or names; every class by default.
        prompt: A prompt for all samples, on a pipeline that draws from text.
        rank: The rank of the changes; null trains all weights.
        scale: The factor of the changes.
        layers: Which layers are trained: a regular expression found in their names.
        keep: How strongly samples are held near those of the pipeline as it was.
        iterations: The number of steps of the optimiser.
        batch: The number of samples of a step.
        optimizer: adam, sgd or lbfgs.
        lr: The learning rate.
        clip: The largest norm of the gradient.
        average: The decay of the average of the weights, which is saved; 0 is none.
        guidance: The weight of classifier-free guidance; 1 is none.
        gradient: exact, direct, continuous, or truncated:K, the last K calls alone.
        sampler: A name that "genflow samplers" lists; the pipeline's own by default.
        steps: The number of steps of the sampler.
        options: Options of the sampler and its grid, as in --options.order 3.
        batch_size: How many samples are differentiated at a time.
        device: cpu, cuda, ...; a GPU if there is one.
        every: The number of iterations between two states to resume from.
        overwrite: Whether an older job in the folder is thrown away.
        resume: Whether the same job, begun before, is gone on with.
    """

    settings = dict(locals())

    import torch

    from genflow.gradients import Classified, FineTuning, classifier_of
    from genflow.gradients.targets import loss_of, pictures

    pipe = _loaded(pipeline, device)
    seeds = list(range(seed, seed + n + held))
    labels = None if pipe.condition is not None else labels_of(pipe, label, n + held)
    solver = {"guidance": guidance, "sampler": sampler, "steps": steps, **(options or {})}
    about: dict[str, Any] = {}

    if loss == "classifier":
        if classifier is None:
            raise UserError("classifier is missing: loss classifier needs one, as in digits.")
        net, about = classifier_of(classifier, pipe.device)
        wanted = labels if target is None else torch.tensor([_number(target, pipe)])
        if wanted is None:
            raise UserError("target is missing: say which class is wanted.")
        metric = Classified(net, wanted)
    elif target is None:
        raise UserError(f"target is missing: loss {loss} needs a picture, or a folder of them.")
    else:
        metric = loss_of(loss, pictures(target, pipe, seeds, **solver))

    task = FineTuning(
        pipe,
        metric,
        seeds[:n],
        seeds[n:],
        label=labels,
        prompt=prompt,
        rank=rank,
        scale=scale,
        layers=layers,
        keep=keep,
        iterations=iterations,
        batch=batch,
        optimizer=optimizer,
        lr=lr,
        clip=clip,
        average=average,
        batch_size=batch_size,
        gradient=policy_of(gradient),
        seed=seed,
        **solver,
    )
    record = _run("finetune", task, settings | about)
    print(
        f"{output}: loss {_change(record)} on held-out seeds, drift {record['drift']:.3g}"
        f"{_remark(record)}\npipeline: {Path(output) / 'pipeline'}"
    )


# ------------------------------------------------------------------------- what they share


def _loaded(pipeline: str, device: str | None) -> Any:
    from genflow.pipelines import Pipeline

    return Pipeline.from_pretrained(pipeline, device=device_named(device))


def _number(text: str, pipe: Any) -> int:
    """A class, by its number or its name."""

    if text.isdigit():
        return int(text)
    return int(pipe.labels(text, 1)[0])


def _run(name: str, task: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    from genflow.gradients.jobs import run

    where = {k: settings[k] for k in _FOLDER if k != "device"}
    where["output"] = Path(where["output"])
    same = {"application": name} | {k: v for k, v in settings.items() if k not in _FOLDER}

    with Bar("iterations") as report:
        return run(task, settings=same, command=shlex.join(sys.argv), report=report, **where)


def _change(record: Mapping[str, Any]) -> str:
    return f"{record['loss_before']:.4g} -> {record['loss_after']:.4g}"


def _remark(record: Mapping[str, Any]) -> str:
    """What took how long, and what was skipped."""

    skipped = record["skipped"]
    said = f", {skipped} steps skipped for gradients that are not finite" if skipped else ""
    return f" ({record['cpu_seconds']:.1f} s of CPU{said})"


def _percent(x: float | None) -> str:
    return f"{'-' if x is None else format(100 * x, '.0f') + ' %':>8}"
