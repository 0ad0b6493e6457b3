"""What the model is: laws of noise, paths, exact mixtures, denoisers."""

from genflow.models.bridges import LightBridge
from genflow.models.chains import BridgeChain
from genflow.models.covariances import Covariance, Diagonal, Full, LowRank
from genflow.models.denoisers import Denoiser, Preconditioned
from genflow.models.empirical import Empirical
from genflow.models.exact import Exact
from genflow.models.fitting import Fit, fit_bridge
from genflow.models.grids import grid
from genflow.models.guidance import Clipped, Guided
from genflow.models.marginals import BridgeMarginals
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
from genflow.models.plans import Plan
from genflow.models.predictions import CLOCKS, PREDICTIONS, Regression
from genflow.models.radius import Radius
from genflow.models.records import path_from_dict, path_named, path_to_dict
from genflow.models.steering import Steered

__all__ = [
    "CLOCKS",
    "PREDICTIONS",
    "BridgeChain",
    "BridgeMarginals",
    "Brownian",
    "Clipped",
    "Cosine",
    "Covariance",
    "Denoiser",
    "Diagonal",
    "Discrete",
    "Empirical",
    "Exact",
    "Fit",
    "Full",
    "Gaussian",
    "Guided",
    "Karras",
    "LightBridge",
    "LowRank",
    "Mixture",
    "Noise",
    "Path",
    "Plan",
    "Preconditioned",
    "Radius",
    "Rectified",
    "Regression",
    "Steered",
    "StudentT",
    "VariancePreserving",
    "fit_bridge",
    "grid",
    "path_from_dict",
    "path_named",
    "path_to_dict",
]
