"""Jobs that translate: what is given, and what a flow makes of it, side by side in a folder."""

__all__ = ["translate"]

from collections.abc import Callable, Iterator, Sequence
import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genflow import viz
from genflow.data.pixels import to_uint8
from genflow.pipelines.claims import described
from genflow.pipelines.jobs import carry_out, save_picture, tiles
from genflow.pipelines.pipeline import Pipeline
from genflow.pipelines.samples import Samples

PAIRS = 50
"""How many pairs the grid shows."""


def translate(
    pipeline: Pipeline,
    output: Path,
    x: Tensor,
    *,
    numbers: Sequence[int] | None = None,
    reverse: bool = False,
    label: Tensor | None = None,
    batch_size: int = 256,
    overwrite: bool = False,
    resume: bool = False,
    record: dict[str, Any] | None = None,
    report: Callable[[int, int], None] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Writes translations into a folder, as `genflow.pipelines.jobs.generate` writes samples.

    The grid shows each example beside its translation. A job that is gone on with must be given
    the same examples.

    Args:
        pipeline: The pipeline.
        output: The folder.
        x: Images in uint8 or in [−1, 1], or vectors, with shape (n, *event).
        numbers: The numbers of the examples in their set, for the record; 0 … n − 1 if None.
        reverse: Whether to go from the target to the source.
        label: The class of each, with shape (n), or None.
        batch_size: How many are carried at a time.
        overwrite: Whether a job that is there already is thrown away.
        resume: Whether a job with the same settings that is there already is gone on with.
        record: What else the record should say: the command, the name of the pipeline.
        report: Called with the numbers of examples done and to do.
        options: The sampler, as in `Pipeline.build`.

    Returns:
        The record.

    Raises:
        UserError: If the examples have another shape, the folder is taken, or cannot be written.
    """

    def draw(todo: list[int]) -> Iterator[Samples]:
        part = None if label is None else label[todo]
        yield from pipeline.translations(
            x[todo], part, reverse=reverse, batch_size=batch_size, **options
        )

    def picture(suffix: str, indices: list[int], made: Tensor | None) -> None:
        if made is None:
            shown = indices[:PAIRS]
            before = x[shown] if x.dtype == torch.uint8 else to_uint8(x[shown])
            pairs = torch.stack([before.cpu(), tiles(output, shown)], 1).flatten(0, 1)
            save_picture(output / "grid.png", viz.grid_of(pairs, columns=10))
        elif made.shape[1] > 1:
            side = torch.arange(2).repeat_interleave(len(made))
            save_picture(output / "cloud.png", viz.cloud(torch.cat([x.cpu(), made]), side))

    list(pipeline.translations(x[:0], reverse=reverse, batch_size=batch_size, **options))
    digest = hashlib.sha256(x.cpu().contiguous().numpy().tobytes()).hexdigest()
    made = [
        {"source": int(k), "label": None if label is None else int(label[i])}
        for i, k in enumerate(range(len(x)) if numbers is None else numbers)
    ]

    return carry_out(
        pipeline,
        output,
        made,
        draw,
        described(pipeline, options),
        shard=(0, 1),
        overwrite=overwrite,
        resume=resume,
        record={"reverse": reverse, "examples": digest, **(record or {})},
        report=report,
        picture=picture,
    )
