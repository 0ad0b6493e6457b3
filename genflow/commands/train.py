"""Training a model, and what to make of a checkpoint."""

__all__ = ["export", "fit"]

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from genflow.commands.choices import pipeline_named
from genflow.errors import UserError


def fit(arguments: Sequence[str]) -> None:
    """Train a model from a config file, then save it as a pipeline.

    Everything about the run goes into its folder (``run``): the resolved config, metrics, grids of
    samples, checkpoints, and at the end ``pipeline``, the averaged weights ready for use.
    """

    from genflow.data.latents import Latents
    from genflow.pipelines import BridgePipeline, Pipeline
    from genflow.pipelines.exports import trained
    from genflow.pipelines.folders import load_codec
    from genflow.training.ema import EMA
    from genflow.training.lightsb import LightSB
    from genflow.training.line import train
    from genflow.training.sharding import gathered, sharded

    module, data, trainer, config = train(arguments)
    average = next((c for c in trainer.callbacks if isinstance(c, EMA)), None)
    parted = average is not None and sharded(trainer.strategy)

    if parted:
        with average.average(module):
            state = gathered(module.net.state_dict())  # with the help of all processes

    if not trainer.is_global_zero:
        return

    target = Path(config.run) / "pipeline"
    card: dict[str, Any] = {"data": data.title, "training_steps": trainer.global_step}

    if isinstance(module, LightSB):
        BridgePipeline(module.fitted(), card=card).save(target, overwrite=True)
        print(f"pipeline: {target}")
        return

    if module.augment is not None:
        card["augment"] = asdict(module.augment)

    pipe = Pipeline(
        trained(module.record(), state).denoiser if parted else module.denoiser,
        shape=tuple(data.shape),
        sampler=config.sampler,
        steps=config.steps,
        class_names=data.class_names,
        source=data.origin,
        codec=load_codec(data.vae) if isinstance(data, Latents) else None,
        card=card,
    )

    if average is None:
        print(f"pipeline: none yet, make it by genflow export {config.run}/checkpoints/last.ckpt")
        return

    with nullcontext() if parted else average.average(module):
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
    ema_width: float | None = None,
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
        ema_width: Takes the average of this relative width, such as 0.08, from the snapshots of a
            run that was trained with PostHocEMA.
    """

    from genflow.pipelines import BridgePipeline
    from genflow.pipelines.exports import export_diffusers, trained
    from genflow.training.checkpoints import ema_weights, read_checkpoint
    from genflow.training.lightsb import bridge_of
    from genflow.training.posthoc import reconstruct

    if ema_width is not None and (weights == "raw" or not source.endswith(".ckpt")):
        raise UserError(
            f"ema_width is {ema_width}: it goes with averaged weights and the .ckpt file of a run."
        )

    if format == "diffusers" and not source.endswith(".ckpt"):
        pipe = pipeline_named(source)
    elif (bridge := bridge_of(source)) is not None:
        if format == "diffusers":
            raise UserError(f"'{source}' is of a bridge, which has no network: format is genflow.")
        pipe = BridgePipeline(bridge)
    else:
        read = read_checkpoint(source)
        if read.record is None or read.record["net"] is None:
            raise UserError(f"checkpoint '{source}' does not say which network it is of.")
        card = {"training_steps": read.step, "weights": weights}
        if ema_width is not None:
            snapshots = Path(source).resolve().parents[1] / "posthoc"
            average, step, error = reconstruct(snapshots, ema_width, read.step)
            state = read.raw | average
            card |= {"training_steps": step, "ema_width": ema_width, "profile_error": error}
            print(f"average: width {ema_width:g} at step {step}, profile error {error:.2%}")
        else:
            state = ema_weights(source) if weights == "average" else read.raw
        if read.record.get("augment") is not None:
            card["augment"] = read.record["augment"]
        pipe = trained(read.record, state, sampler=sampler, steps=steps, card=card)

    if format == "diffusers":
        export_diffusers(pipe, output, overwrite=overwrite)
    else:
        pipe.save(output, overwrite=overwrite)

    print(f"pipeline: {output}")
