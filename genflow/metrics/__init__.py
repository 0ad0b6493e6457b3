r"""How far samples are from the data, with the floor and the ceiling beside every number.

:mod:`~genflow.metrics.features` turns 8-bit images into vectors,
:mod:`~genflow.metrics.frechet` and :mod:`~genflow.metrics.distances` compare two clouds of
vectors, and :mod:`~genflow.metrics.report` sets a distance between what two halves of the real
data score and what noise scores. This room imports torch and its own files, nothing above it.
"""

__all__ = [
    "Features",
    "Identity",
    "MomentSum",
    "Moments",
    "Pixels",
    "RandomConv",
    "bures_distance",
    "bw_uvp",
    "cbw_uvp",
    "cbw_uvp_from_samples",
    "compare",
    "energy_distance",
    "extract",
    "frechet_distance",
    "frechet_from_features",
    "kernel_distance",
    "sliced_wasserstein",
    "table",
]

from genflow.metrics.bures import bures_distance, bw_uvp, cbw_uvp, cbw_uvp_from_samples
from genflow.metrics.distances import energy_distance, kernel_distance, sliced_wasserstein
from genflow.metrics.features import Features, Identity, Pixels, RandomConv, extract
from genflow.metrics.frechet import Moments, MomentSum, frechet_distance, frechet_from_features
from genflow.metrics.report import compare, table
