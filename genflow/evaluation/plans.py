"""Which feature nets look at the images, and which distances are taken of each.

Nets are made before any image is drawn. One whose weights are not there is left out, with the
reason; the report says so, and so does the job before it begins. What is left must be something.
"""

__all__ = ["FEATURES", "METRICS", "Plan", "planned"]

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
import os
from typing import Any

import torch
from torch import nn

from genflow.errors import UserError
from genflow.metrics.features import Features, features
from genflow.metrics.suite import METRICS as KNOWN
from genflow.metrics.suite import resolve
from genflow.metrics.weights import Absent

FEATURES = "random-conv,genflow-small,inception"
"""The feature nets of images where none are named; those without weights are left out."""

METRICS = "fd,kd,prdc,mmd,swd,memorisation"
"""The metrics where none are named."""

SHORT = {
    "fd": ("frechet",),
    "kd": ("kernel",),
    "prdc": ("precision", "recall", "density", "coverage"),
    "swd": ("sliced-wasserstein",),
    "all": tuple(KNOWN),
}


@dataclass(frozen=True)
class Plan:
    """Feature nets and metrics.

    Attributes:
        nets: The feature nets by the names that they were asked for by.
        metrics: The metrics of each, by the same names.
        skipped: The nets that were left out: feature, metrics, reason.
    """

    nets: Mapping[str, Features]
    metrics: Mapping[str, tuple[str, ...]]
    skipped: tuple[dict[str, Any], ...] = ()

    def points(self, name: str) -> bool:
        """Whether a net's metrics need the points of the reference, not their moments alone."""

        return any(KNOWN[m].points for m in self.metrics[name])

    def to(self, device: str | None) -> "Plan":
        """Moves the nets; returns the plan."""

        for net in self.nets.values():
            if device is not None and isinstance(net, nn.Module):
                net.to(device)
        return self


def planned(
    feature: str | None,
    metrics: str,
    shape: Sequence[int],
    *,
    inception_weights: str | os.PathLike[str] | None = None,
    say: Callable[[str], None] = print,
) -> Plan:
    """Makes the nets that are there, and says which are not.

    Args:
        feature: Names of feature nets, with commas; if None `FEATURES` for images, the vectors
            themselves for vectors.
        metrics: Names of metrics, with commas: those of `genflow.metrics.suite`, ``fd``, ``kd``,
            ``prdc``, ``swd``, ``all``; they are taken of every net, except those that name one
            themselves, as ``fid`` and ``dinov2:coverage`` do.
        shape: The shape of one image, (C, H, W), or of one vector, (d).
        inception_weights: The file of the Inception network.
        say: Told of each net that is left out.

    Raises:
        UserError: If a name is unknown, a net does not suit the images, or no net is left.
    """

    default = FEATURES if len(shape) == 3 else "identity"
    names = _listed("feature", default if feature is None else feature)
    wanted: dict[str, list[str]] = {}

    for item in _listed("metrics", metrics):
        for metric in SHORT.get(item, (item,)):
            for name in names:
                net, found = resolve(metric, name)
                if found not in wanted.setdefault(net, []):
                    wanted[net].append(found)

    probe = torch.zeros(2, *shape, dtype=torch.uint8 if len(shape) == 3 else torch.float32)
    offered = () if feature is not None else names
    nets: dict[str, Features] = {}
    skipped = []

    for name in wanted:
        try:
            weights = inception_weights if name == "inception" else None
            nets[name] = features(name, shape, weights=weights)
            nets[name](probe)
        except UserError as error:
            if not isinstance(error, Absent) and name not in offered:
                raise
            nets.pop(name, None)
            skipped.append({"feature": name, "metrics": wanted[name], "reason": str(error)})

    if not nets:
        raise UserError(
            f"no feature net is left: {skipped[0]['reason']} Or name one that needs no weights, "
            "as in --feature random-conv."
        )
    for left in skipped:
        say(f"skipped: {left['feature']} ({', '.join(left['metrics'])}): {left['reason']}")
    return Plan(nets, {n: tuple(wanted[n]) for n in nets}, tuple(skipped))


def _listed(field: str, text: str) -> list[str]:
    items = [part.strip() for part in text.split(",") if part.strip()]
    if not items:
        raise UserError(f"{field} is '{text}': name at least one, with commas between them.")
    return list(dict.fromkeys(items))
