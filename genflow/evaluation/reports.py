"""The record of an evaluation: everything that a reader needs to trust it, and to repeat it."""

__all__ = ["assembled"]

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
import platform
from typing import TYPE_CHECKING, Any

from genflow.version import __version__

if TYPE_CHECKING:
    from genflow.evaluation.jobs import Job

LIBRARIES = ("torch", "torchvision", "diffusers", "numpy", "scipy", "pillow")


def assembled(
    job: "Job",
    measures: Mapping[str, Mapping[str, Any]],
    records: Sequence[Mapping[str, Any]],
    seconds: Mapping[str, float],
    command: str | None,
) -> dict[str, Any]:
    """Collects the numbers, what they are of, and under which circumstances they were made.

    Args:
        job: The job.
        measures: What was measured, by the name of the feature net.
        records: The records of all chunks.
        seconds: The time that this call spent on measuring, and in all.
        command: What was called.

    Returns:
        The report as JSON values.
    """

    samples, data = job.source.record(), job.data.record()
    spent = {k: sum(r["seconds"][k] for r in records) for k in ("images", "features")}
    busy, count = sum(spent.values()), len(job.rows)
    nfe = next((r["nfe"] for r in records if r["nfe"] is not None), None)

    return {
        "genflow": __version__,
        "counts": {"samples": job.n, "reference": len(job.data)},
        "repeats": job.repeats,
        "samples": samples | ({} if nfe is None else {"nfe": nfe}),
        "data": data,
        "measures": dict(measures),
        "skipped": list(job.plan.skipped),
        "warnings": _warnings(samples, data, measures, job.halvings > 0),
        "seed": job.seed,
        "batch_size": job.batch_size,
        "device": str(_device(job)),
        "ranks": job.ranks.world,
        "seconds": {k: round(v, 3) for k, v in {**spent, **seconds}.items()},
        "images_per_second": round(count / busy, 2) if busy else None,
        "versions": {"python": platform.python_version(), **_versions()},
        "command": command,
    }


def _device(job: "Job") -> Any:
    pipe = getattr(job.source, "pipe", None)
    nets = (getattr(net, "buffers", None) for net in job.plan.nets.values())
    buffers = [b for made in nets if made is not None for b in made()]
    return pipe.device if pipe is not None else buffers[0].device if buffers else "cpu"


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def _warnings(
    samples: Mapping[str, Any],
    data: Mapping[str, Any],
    measures: Mapping[str, Mapping[str, Any]],
    floors: bool,
) -> list[str]:
    said = []

    for side, record in (("samples", samples), ("data", data)):
        left = record["unreadable"]
        if left:
            named = ", ".join(left[:3]) + (", …" if len(left) > 3 else "")
            found = len(left) + record["count"]
            said.append(
                f"{side}: {len(left)} of {found} files cannot be decoded and are left out "
                f"({named})."
            )
    said += [
        f"{name}: no floors, since only the moments of the reference are stored; make it again "
        "with its points."
        for name, m in measures.items()
        if floors and m["counts"]["floor"] is None and data["kind"] == "reference"
    ]
    said += [f"{name}: {text}" for name, m in measures.items() for text in m["warnings"]]
    return said
