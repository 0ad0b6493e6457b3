"""How people use it: load, call, save."""

from genflow.pipelines.pipeline import Pipeline
from genflow.pipelines.samples import Samples

__all__ = ["Pipeline", "Samples"]
