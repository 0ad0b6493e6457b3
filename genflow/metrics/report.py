r"""A distance, and the two numbers without which it says nothing: its floor and its ceiling.

A Fréchet distance from finite samples is never zero, not even between two halves of the real
data, and its unit depends on the feature. So a report gives

.. math:: \text{floor} = d^2(A, B), \qquad \text{distance} = d^2(\text{samples}, A \cup B), \qquad
    \text{noise} = d^2(\text{uniform}, A \cup B)

over random halves :math:`A, B` of the reference, and their ratios. It is the simple path: one
metric, one ceiling; :func:`~genflow.metrics.suite.measure` has the others. As the bias falls
with the number of points, ``distance`` flatters itself against a floor of half as many; the fair
comparison is ``distance_at_floor_n``, as many samples as :math:`A` against the same :math:`B`:
a perfect model has a ratio of one. A ratio well *below* one is a sign of copied training data.

What is *not* assumed: as many samples as references. If there are fewer samples than half the
reference, :math:`A` is cut to their number, in the floor as well.
"""

__all__ = ["compare", "table"]

from typing import Any

import torch
from torch import Tensor

from genflow.errors import UserError
from genflow.metrics.features import Features, extract
from genflow.metrics.frechet import frechet_from_features
from genflow.metrics.suite import NOISE, measure, stream


def compare(
    samples: Tensor, reference: Tensor, feature: Features, *, repeats: int = 10, seed: int = 0
) -> dict[str, Any]:
    r"""Compares samples with a reference by the Fréchet distance of a feature.

    Arguments:
        samples: The samples, 8-bit images with shape :math:`(n, C, H, W)`, or vectors with shape
            :math:`(n, d)`; at least 2.
        reference: The real ones, of the same kind, with shape :math:`(m, *)`; at least 4.
        feature: The feature; it is computed once for each image.
        repeats: The number of random halvings, at least 2.
        seed: The seed of the halvings, the subsets and the noise.

    Returns:
        A dictionary that JSON can hold: ``feature`` (``name``, ``digest``, ``width``), ``counts``
        (``samples``, ``reference``, ``noise``, ``floor`` as the sizes of A and B), ``seed``,
        ``repeats``, ``distance``, ``distance_at_floor_n`` and ``floor`` (each with ``mean``,
        ``std`` and ``values``), ``noise``, ``ratios`` and ``warnings``. A ratio to a floor of
        zero is None.

    Raises:
        UserError: If there are too few, or samples and reference differ in shape.
    """
    _check(samples, reference, repeats)

    noise = _uniform_like(reference, len(samples), stream(seed, NOISE))
    x, y, z = (extract(feature, images) for images in (samples, reference, noise))

    found = measure(x, y, ["frechet"], prefix=feature.prefix, seed=seed, repeats=repeats)
    entry, counts = found["metrics"]["frechet"], found["counts"]
    report = {
        "feature": {"name": feature.name, "digest": feature.digest, "width": found["width"]},
        "counts": {
            "samples": counts["samples"],
            "reference": counts["reference"],
            "noise": len(z),
            "floor": counts["floor"],
        },
        "seed": seed,
        "repeats": repeats,
        "distance": entry["value"],
        "distance_at_floor_n": entry["at_floor_n"],
        "floor": entry["floor"],
        "noise": frechet_from_features(z, y),
    }
    report["ratios"] = _ratios(report)
    report["warnings"] = found["warnings"]

    return report


def table(report: dict[str, Any]) -> str:
    r"""Sets a report as a plain text table.

    Arguments:
        report: What :func:`compare` returned.

    Returns:
        Aligned lines, without a newline at the end.
    """
    counts, ratios = report["counts"], report["ratios"]
    n, m, (a, b) = counts["samples"], counts["reference"], counts["floor"]
    at_floor_n, floor = report["distance_at_floor_n"], report["floor"]

    def line(name: str, points: str, value: float, std: float | None, ratio: float | None) -> list:
        spread = "" if std is None else f"± {std:.1e}"
        return [name, points, f"{value:.4g}", spread, "-" if ratio is None else f"{ratio:.3g}"]

    rows = [
        ["Fréchet distance", "points", "value", "", "/ floor"],
        line("samples", f"{n} v {m}", report["distance"], None, ratios["distance_over_floor"]),
        line(
            "samples, as many as floor",
            f"{a} v {b}",
            at_floor_n["mean"],
            at_floor_n["std"],
            ratios["distance_at_floor_n_over_floor"],
        ),
        line("floor, real v real", f"{a} v {b}", floor["mean"], floor["std"], 1.0),
        line(
            "ceiling, uniform noise",
            f"{counts['noise']} v {m}",
            report["noise"],
            None,
            ratios["noise_over_floor"],
        ),
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if i in (0, 3) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    rule = "-" * max(map(len, lines))
    feature = report["feature"]
    foot = f"feature {feature['name']} ({feature['width']} wide, sha256 {feature['digest'][:12]})"
    foot += f", {report['repeats']} halvings, seed {report['seed']}"
    notes = [f"warning: {warning}" for warning in report["warnings"]]

    return "\n".join([lines[0], rule, *lines[1:], rule, foot, *notes])


def _check(samples: Tensor, reference: Tensor, repeats: int) -> None:
    if repeats < 2:
        raise UserError(f"repeats: {repeats} is out of range; give 2 or more, for a spread.")
    if len(samples) < 2:
        raise UserError(f"samples: {len(samples)} are too few; give at least 2.")
    if len(reference) < 4:
        raise UserError(f"reference: {len(reference)} are too few to be halved; give at least 4.")
    if samples.shape[1:] != reference.shape[1:]:
        raise UserError(
            f"samples: shape {tuple(samples.shape[1:])} of one differs from the reference's "
            f"{tuple(reference.shape[1:])}; resize or convert one of the two."
        )


def _uniform_like(reference: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Noise: any 8-bit value for images, any point of the reference's box for vectors."""
    shape = (count, *reference.shape[1:])
    if reference.dtype == torch.uint8:
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)

    low, high = reference.amin(dim=0).cpu(), reference.amax(dim=0).cpu()

    return low + (high - low) * torch.rand(shape, generator=generator, dtype=low.dtype)


def _ratios(report: dict[str, Any]) -> dict[str, float | None]:
    floor, noise = report["floor"]["mean"], report["noise"]

    def over(value: float, unit: float) -> float | None:
        return value / unit if unit > 0 else None

    return {
        "distance_over_floor": over(report["distance"], floor),
        "distance_at_floor_n_over_floor": over(report["distance_at_floor_n"]["mean"], floor),
        "noise_over_floor": over(noise, floor),
        "distance_over_noise": over(report["distance"], noise),
    }
