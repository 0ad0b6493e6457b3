"""Straightening flows: pairs, reflow, distill."""

__all__ = ["distill", "pairs", "reflow"]

from pathlib import Path
from typing import Any, Literal

from genflow.commands.choices import Value, device_named, pipeline_named
from genflow.console import Bar

LossName = Literal["l2", "pseudo-huber"]
TimesName = Literal["u-shaped", "uniform", "logit-normal"]


def pairs(
    pipeline: str,
    output: str,
    n: int = 20_000,
    seed: int = 0,
    sampler: str = "dopri5",
    steps: int | None = None,
    guidance: float = 1.0,
    options: dict[str, Value] | None = None,
    dtype: Literal["float16", "float32", "uint8"] | None = None,
    shard_size: int = 4096,
    shard: str = "0/1",
    batch_size: int = 256,
    device: str | None = None,
) -> None:
    """Make a store of pairs of noise and samples, for reflow; a killed job goes on.

    Args:
        pipeline: A saved pipeline.
        output: The folder of the store.
        n: The number of pairs.
        seed: The seed of the first pair.
        sampler: The sampler; heun is several times as fast as dopri5.
        steps: The number of its steps.
        guidance: The weight of classifier-free guidance; 1 is none.
        options: Options of the sampler and its grid.
        dtype: How samples are kept; float16 for images by default.
        shard_size: The number of pairs in a file.
        shard: The part i/n of the files to make, counted from 0.
        batch_size: How many are drawn at a time.
        device: cpu, cuda, ...; a GPU if there is one.
    """

    from genflow.pipelines.jobs import parse_shard
    from genflow.pipelines.pairs import make_pairs

    pipe = pipeline_named(pipeline, device)
    call: dict[str, Any] = {"sampler": sampler, "steps": steps, "guidance": guidance}

    with Bar("pairs") as report:
        made = make_pairs(
            pipe,
            Path(output),
            n,
            seed=seed,
            dtype=dtype,
            shard_size=shard_size,
            shard=parse_shard(shard),
            batch_size=batch_size,
            report=report,
            **call | (options or {}),
        )

    print(f"{output}: {made.n} pairs in {made.shards} shards")


def reflow(
    pipeline: str,
    output: str,
    pairs: int = 20_000,
    steps: int = 3000,
    sampler: str | None = None,
    sampler_steps: int | None = None,
    guidance: float = 1.0,
    dtype: Literal["float16", "float32", "uint8"] | None = None,
    online: str | None = None,
    times: TimesName = "u-shaped",
    loss: LossName = "l2",
    lr: float = 5e-4,
    batch_size: int = 128,
    ema: float = 0.999,
    seed: int = 0,
    device: str | None = None,
) -> None:
    """Train the rectified successor of a flow, in one call; a killed call goes on.

    Args:
        pipeline: The flow: a saved pipeline on the straight path.
        output: The folder: pairs, checkpoints, and at the end pipeline.
        pairs: The number of pairs.
        steps: The number of training steps.
        sampler: What makes the pairs; dopri5 by default, heun with 10 steps online.
        sampler_steps: The number of its steps.
        guidance: The weight of classifier-free guidance in the pairs; 1 is none.
        dtype: How samples are kept; float16 for images by default.
        online: Data, as in digits, whose classes are asked for: pairs are drawn in every step
            instead of being stored.
        times: The law of the training times.
        loss: How an answer is judged.
        lr: The learning rate; it falls as a cosine to 0.
        batch_size: The number of pairs in a step.
        ema: The decay of the averaged weights.
        seed: Names the pairs and the training.
        device: cpu, cuda, ...; a GPU if there is one.
    """

    from genflow import recipes
    from genflow.data.named import named
    from genflow.training import LogitNormal, Uniform, UShaped

    laws = {"u-shaped": UShaped, "uniform": Uniform, "logit-normal": LogitNormal}
    data = None if online is None else named(online)

    if data is not None:
        data.batch_size = batch_size

    with Bar("pairs") as bar:
        recipes.reflow(
            pipeline_named(pipeline, device),
            Path(output),
            pairs=pairs,
            steps=steps,
            times=laws[times](),
            loss=_loss(loss),
            lr=lr,
            batch_size=batch_size,
            ema=ema,
            seed=seed,
            pair_options=_asked(sampler, sampler_steps, guidance, None if data else dtype),
            online=data,
            trainer=_trainer(device),
            report=lambda stage, done, todo: bar(done, todo),
        )

    print(f"pipeline: {Path(output) / 'pipeline'}")


def distill(
    pipeline: str,
    output: str,
    k: int = 1,
    pairs: int = 20_000,
    steps: int = 3000,
    sampler: str | None = None,
    sampler_steps: int | None = None,
    guidance: float = 1.0,
    dtype: Literal["float16", "float32", "uint8"] | None = None,
    loss: LossName = "l2",
    lr: float = 5e-4,
    batch_size: int = 128,
    ema: float = 0.999,
    seed: int = 0,
    device: str | None = None,
) -> None:
    """Train a student that samples in k Euler steps, in one call; a killed call goes on.

    Args:
        pipeline: The teacher, best one that reflow has straightened.
        output: The folder: pairs, checkpoints, and at the end pipeline.
        k: The number of steps of the student.
        pairs: The number of pairs.
        steps: The number of training steps.
        sampler: What makes the pairs; dopri5 by default.
        sampler_steps: The number of its steps.
        guidance: The weight of classifier-free guidance in the pairs; 1 is none.
        dtype: How samples are kept; float16 for images by default.
        loss: How an answer is judged.
        lr: The learning rate; it falls as a cosine to 0.
        batch_size: The number of pairs in a step.
        ema: The decay of the averaged weights.
        seed: Names the pairs and the training.
        device: cpu, cuda, ...; a GPU if there is one.
    """

    from genflow import recipes

    with Bar("pairs") as bar:
        recipes.distill(
            pipeline_named(pipeline, device),
            Path(output),
            k=k,
            loss=_loss(loss),
            pairs=pairs,
            steps=steps,
            lr=lr,
            batch_size=batch_size,
            ema=ema,
            seed=seed,
            pair_options=_asked(sampler, sampler_steps, guidance, dtype),
            trainer=_trainer(device),
            report=lambda stage, done, todo: bar(done, todo),
        )

    print(f"pipeline: {Path(output) / 'pipeline'}")


# ----------------------------------------------------------------------------- what they share


def _loss(name: LossName) -> Any:
    from genflow.training import PseudoHuber, SquaredError

    return {"l2": SquaredError, "pseudo-huber": PseudoHuber}[name]()


def _asked(
    sampler: str | None, steps: int | None, guidance: float, dtype: str | None
) -> dict[str, Any]:
    """The options of the pairs that were given."""

    given = {"sampler": sampler, "steps": steps, "dtype": dtype}
    asked = {k: v for k, v in given.items() if v is not None}
    return asked if guidance == 1.0 else asked | {"guidance": guidance}


def _trainer(device: str | None) -> dict[str, Any]:
    name = device_named(device).split(":")[0]
    return {"accelerator": {"cuda": "gpu"}.get(name, name)}
