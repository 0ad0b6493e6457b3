"""What samples and data look like, side by side."""

__all__ = ["copies", "picture"]

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw
import torch
from torch import Tensor

from genflow import viz
from genflow.evaluation.sources import Source

if TYPE_CHECKING:
    from genflow.evaluation.jobs import Job

GAP, HEAD = 24, 20  # pixels between the grids, and above them


def picture(job: "Job") -> Image.Image | None:
    """Some samples beside as many of the data; None where there is nothing to be seen.

    Vectors are drawn as clouds of points. Where only a reference is stored, samples stand alone.
    """

    sides = {"samples": job.shards.pictures(job.chunks)}

    if isinstance(job.data, Source):
        sides["data"] = job.data.read(job.data.shown(len(job.data)))

    drawn = {name: _panel(x) for name, x in sides.items() if len(x)}
    return _beside({name: p for name, p in drawn.items() if p is not None})


def copies(job: "Job", measures: Mapping[str, Any]) -> Image.Image | None:
    """The samples that look most like copies, above the data that they are nearest to.

    Args:
        job: The job.
        measures: What was measured; the first feature net that looked for copies chooses.
    """

    found = (m["metrics"].get("memorisation", {}).get("closest") for m in measures.values())
    pairs = next((p for p in found if p), None)

    if pairs is None or not isinstance(job.data, Source) or job.source.shape[0] not in (1, 3):
        return None

    samples = torch.cat([job.source.read([p["sample"]]) for p in pairs])
    nearest = torch.cat([job.data.read([p["training"]]) for p in pairs])
    return viz.grid_of(torch.cat([samples, nearest]), len(pairs)) if samples.ndim == 4 else None


def _panel(x: Tensor) -> Image.Image | None:
    if x.ndim == 4 and x.shape[1] in (1, 3):
        return viz.grid_of(x)
    return viz.cloud(x) if x.ndim == 2 and x.shape[1] > 1 else None


def _beside(panels: dict[str, Image.Image]) -> Image.Image | None:
    """Pictures in a row, each under its name."""

    if not panels:
        return None

    width = sum(p.width for p in panels.values()) + GAP * (len(panels) + 1)
    height = max(p.height for p in panels.values()) + HEAD + GAP
    page = Image.new("RGB", (width, height), "white")
    pen, left = ImageDraw.Draw(page), GAP

    for name, panel in panels.items():
        pen.text((left, HEAD / 2), name, fill="black", anchor="lm", font_size=13)
        page.paste(panel, (left, HEAD))
        left += panel.width + GAP

    return page
