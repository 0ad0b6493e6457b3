"""genflow: diffusion and flow generative models.

A model is a path and a denoiser. A sampler is a table of numbers. Training, sampling and gradients
are built on these two. The names below are imported when they are first used.
"""

from importlib import import_module

from genflow.version import __version__

_NAMES = {
    "Adaptive": "solvers",
    "BridgeChain": "models",
    "BridgeMarginals": "models",
    "BridgePipeline": "pipelines",
    "Clipped": "models",
    "Continuous": "solvers",
    "Corrector": "solvers",
    "Cosine": "models",
    "Denoiser": "models",
    "Diffusion": "training",
    "Discrete": "models",
    "Empirical": "models",
    "Exact": "models",
    "Guided": "models",
    "Karras": "models",
    "LightBridge": "models",
    "Mixture": "models",
    "PFGMPP": "training",
    "Pipeline": "pipelines",
    "Preconditioned": "models",
    "Rectified": "models",
    "RectifiedFlow": "training",
    "Sampler": "solvers",
    "SearchedScheduler": "pipelines",
    "SolverSchedule": "solvers",
    "Steered": "models",
    "Step": "solvers",
    "StudentT": "models",
    "Tableau": "solvers",
    "Truncated": "solvers",
    "UserError": "errors",
    "VariancePreserving": "models",
    "build": "solvers",
    "grid": "models",
    "read_solver": "solvers",
    "rollout": "solvers",
    "schedule_for": "solvers",
    "tabulate": "solvers",
}

# diffusers looks for these on the module of a class that it loads: on this one, for ours
_BASES = {
    "DiffusionPipeline": "pipelines.exports",
    "ModelMixin": "nn.nets",
    "SchedulerMixin": "pipelines.scheduler",
}

__all__ = ["__version__", *sorted(_NAMES)]


def __getattr__(name: str) -> object:
    room = _NAMES.get(name) or _BASES.get(name)

    if room is not None:
        return getattr(import_module(f"genflow.{room}"), name)

    raise AttributeError(f"module 'genflow' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
