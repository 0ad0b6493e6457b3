"""What the model is: laws of noise, paths, exact mixtures, denoisers."""

from genflow.models.denoisers import Denoiser, Preconditioned
from genflow.models.exact import Exact
from genflow.models.grids import grid
from genflow.models.guidance import Clipped, Guided
from genflow.models.mixtures import Mixture
from genflow.models.noise import Gaussian, Noise, StudentT
from genflow.models.paths import (
    Brownian,
    Cosine,
    Discrete,
    Karras,
    Path,
    Rectified,
    VariancePreserving,
)
from genflow.models.predictions import CLOCKS, PREDICTIONS
from genflow.models.records import path_from_dict, path_named, path_to_dict
from genflow.models.steering import Steered

__all__ = [
    "CLOCKS",
    "PREDICTIONS",
    "Brownian",
    "Clipped",
    "Cosine",
    "Denoiser",
    "Discrete",
    "Exact",
    "Gaussian",
    "Guided",
    "Karras",
    "Mixture",
    "Noise",
    "Path",
    "Preconditioned",
    "Rectified",
    "Steered",
    "StudentT",
    "VariancePreserving",
    "grid",
    "path_from_dict",
    "path_named",
    "path_to_dict",
]
