r"""How far samples are from the data, with the floor beside every number.

:mod:`~genflow.metrics.features` turns 8-bit images into vectors,
:mod:`~genflow.metrics.frechet`, :mod:`~genflow.metrics.distances` and
:mod:`~genflow.metrics.neighbours` compare two clouds of vectors,
:mod:`~genflow.metrics.catalogue` names these metrics, :mod:`~genflow.metrics.suite` sets each
beside what two halves of the real data score, and :mod:`~genflow.metrics.references` keeps what
is known of the real data. This room imports torch and its own files, nothing above it.
"""

__all__ = [
    "METRICS",
    "Absent",
    "Differentiable",
    "Features",
    "Given",
    "Identity",
    "Memorisation",
    "MomentSum",
    "Moments",
    "Pixels",
    "RandomConv",
    "Reference",
    "Small",
    "bures_distance",
    "bw_uvp",
    "cbw_uvp",
    "cbw_uvp_from_samples",
    "compare",
    "energy_distance",
    "extract",
    "frechet_distance",
    "frechet_from_features",
    "frechet_loss",
    "gaussian_mmd",
    "kernel_distance",
    "markdown",
    "measure",
    "memorisation",
    "prdc",
    "resolve",
    "sliced_wasserstein",
    "table",
]

from genflow.metrics.bures import bures_distance, bw_uvp, cbw_uvp, cbw_uvp_from_samples
from genflow.metrics.catalogue import METRICS, resolve
from genflow.metrics.distances import (
    energy_distance,
    gaussian_mmd,
    kernel_distance,
    sliced_wasserstein,
)
from genflow.metrics.features import Differentiable, Features, Identity, Pixels, extract
from genflow.metrics.frechet import (
    Moments,
    MomentSum,
    frechet_distance,
    frechet_from_features,
    frechet_loss,
)
from genflow.metrics.given import Given
from genflow.metrics.neighbours import Memorisation, memorisation, prdc
from genflow.metrics.random_conv import RandomConv
from genflow.metrics.references import Reference
from genflow.metrics.report import compare, table
from genflow.metrics.small import Small
from genflow.metrics.suite import markdown, measure
from genflow.metrics.weights import Absent
