r"""The catalogue of metrics: names, what each tells, and what reports may call it.

A name like FID belongs to one network: the same formula on other features is called otherwise,
"FD-DINOv2" or "KD-pixels". The catalogue keeps the functions of :mod:`~genflow.metrics.frechet`,
:mod:`~genflow.metrics.distances` and :mod:`~genflow.metrics.neighbours` under one signature, with
the settings of the published metrics: subsets of 1,000 points for KID, the fifth neighbour for
precision and its kin, :math:`\sigma = 10` and a factor of 1,000 for CMMD. On other features than
CLIP's the kernel's width is the median distance of real points.
"""

__all__ = ["METRICS", "Found", "How", "Metric", "label", "resolve", "sigma_for"]

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from genflow.errors import UserError, nearest
from genflow.metrics.distances import (
    energy_distance,
    gaussian_mmd,
    kernel_distance,
    median_gap,
    sliced_wasserstein,
)
from genflow.metrics.frechet import frechet_from_features
from genflow.metrics.neighbours import memorisation, prdc

SUBSET, NEIGHBOUR, DIRECTIONS, SCALE = 1000, 5, 256, 1000
CLIP_SIGMA = 10.0


@dataclass(frozen=True)
class How:
    """What a metric needs to know besides the points.

    Arguments:
        seed: The seed of subsets and directions.
        subsets: The number of KID's subsets.
        sigma: The width of MMD's kernel.
    """

    seed: int
    subsets: int
    sigma: float


Found = dict[str, dict[str, Any]]  # metric → value, and what else it tells


def _frechet(x: Any, y: Any, how: How) -> Found:
    return {"frechet": {"value": frechet_from_features(x, y)}}


def _kernel(x: Tensor, y: Tensor, how: How) -> Found:
    size = min(SUBSET, len(x), len(y))
    mean, std = kernel_distance(x, y, subsets=how.subsets, subset_size=size, seed=how.seed)
    said = {"value": mean, "std": std, "subsets": how.subsets, "subset_size": size}
    return {"kernel": said}


def _prdc(x: Tensor, y: Tensor, how: How) -> Found:
    k = min(NEIGHBOUR, len(x) - 1, len(y) - 1)
    return {name: {"value": value, "k": k} for name, value in prdc(x, y, k=k).items()}


def _mmd(x: Tensor, y: Tensor, how: How) -> Found:
    value = SCALE * gaussian_mmd(x, y, sigma=how.sigma)
    return {"mmd": {"value": value, "sigma": how.sigma, "scale": SCALE}}


def _sliced(x: Tensor, y: Tensor, how: How) -> Found:
    value = sliced_wasserstein(x, y, projections=DIRECTIONS, seed=how.seed)
    return {"sliced-wasserstein": {"value": value, "projections": DIRECTIONS}}


def _energy(x: Tensor, y: Tensor, how: How) -> Found:
    return {"energy": {"value": energy_distance(x, y)}}


def _memorisation(x: Tensor, y: Tensor, how: How) -> Found:
    found = memorisation(x, y)
    middle = float(found.ratios.median())
    return {
        "memorisation": {
            "value": found.fraction,
            "threshold": found.threshold,
            "copies": found.copies,
            "median_ratio": middle if middle < float("inf") else None,
            "closest": [
                {"sample": i, "training": j, "ratio": r}
                for i, j, r in found.closest()
                if r < float("inf")
            ],
        }
    }


@dataclass(frozen=True)
class Metric:
    """A metric: what it tells, how it is computed, and what it needs.

    Arguments:
        about: One line of documentation.
        function: Computes it, by itself or with others that share the work.
        better: Whether a better model has a "lower" or a "higher" value.
        points: Whether it needs the reference's points, and not just their moments.
        pairs: Whether it looks at pairs of points, hence at ``most`` of the samples.
        whole: Whether it reads the whole reference all the same.
        unbiased: Whether it is zero on average between real points; its unit is then the
            deviation of the floor, and not the floor.
    """

    about: str
    function: Callable[[Any, Any, How], Found]
    better: str = "lower"
    points: bool = True
    pairs: bool = False
    whole: bool = False
    unbiased: bool = False


METRICS: dict[str, Metric] = {
    "frechet": Metric("Fréchet distance of the two first moments", _frechet, points=False),
    "kernel": Metric("squared distance by a cubic kernel (KID)", _kernel, unbiased=True),
    "precision": Metric("part of the samples among real ones", _prdc, "higher", pairs=True),
    "recall": Metric("part of the real ones among samples", _prdc, "higher", pairs=True),
    "density": Metric("how many real neighbourhoods hold a sample", _prdc, "higher", pairs=True),
    "coverage": Metric("part of real neighbourhoods with a sample", _prdc, "higher", pairs=True),
    "mmd": Metric("1,000 times the squared Gaussian-kernel discrepancy", _mmd, pairs=True),
    "sliced-wasserstein": Metric("Wasserstein-2 distance along 256 directions", _sliced),
    "energy": Metric("energy distance", _energy, pairs=True),
    "memorisation": Metric(
        "part of the samples suspiciously near a training item",
        _memorisation,
        pairs=True,
        whole=True,
    ),
}

SHORT = {"frechet": "FD", "kernel": "KD", "mmd": "MMD"}
PUBLISHED = {
    ("frechet", "Inception"): "FID",
    ("kernel", "Inception"): "KID",
    ("mmd", "CLIP"): "CMMD",
}

ALIASES = {
    "fid": ("inception", "frechet"),
    "kid": ("inception", "kernel"),
    "cmmd": ("clip", "mmd"),
    **{
        f"fd-{feature}": (feature, "frechet")
        for feature in ("dinov2", "clip", "genflow-small", "random-conv", "pixels")
    },
}


def resolve(text: str, feature: str) -> tuple[str, str]:
    r"""Reads the name of a metric as a user writes it.

    Arguments:
        text: ``"fid"``, ``"kid"``, ``"cmmd"``, ``"fd-dinov2"`` and the like, a name of
            :data:`METRICS`, or feature and metric, as in ``"dinov2:coverage"``.
        feature: The feature for a bare name.

    Returns:
        The names of the feature and of the metric.

    Raises:
        UserError: If the metric is unknown; the feature is not looked at.
    """
    name, colon, metric = text.partition(":")

    if colon and metric in METRICS and name:
        return name, metric
    if text.lower() in ALIASES:
        return ALIASES[text.lower()]
    if text in METRICS:
        return feature, text

    wrong = metric if colon else text
    raise UserError(f"metric '{wrong}'{nearest(wrong, [*METRICS, *ALIASES])}")


def label(name: str, prefix: str) -> str:
    r"""How reports call a metric on a feature; FID, KID and CMMD are each one network's only.

    Arguments:
        name: The name of the metric.
        prefix: How the feature calls its Fréchet distance.
    """
    net = _net(prefix)

    if (name, net) in PUBLISHED:
        return PUBLISHED[name, net]
    if name in SHORT:
        return f"{SHORT[name]}-{net}"
    return f"{name} ({net})"


def sigma_for(prefix: str, y: Tensor, seed: int) -> float:
    r"""The width of MMD's kernel: CMMD's on CLIP, else the median distance of real points.

    Arguments:
        prefix: How the feature calls its Fréchet distance.
        y: The real points, with shape :math:`(m, d)`.
        seed: Which of them are looked at.
    """
    if _net(prefix) == "CLIP":
        return CLIP_SIGMA

    return median_gap(y, seed=seed) or 1.0  # of points that are all alike: any width will do


def _net(prefix: str) -> str:
    return "Inception" if prefix == "FID" else prefix.removeprefix("FD-")
