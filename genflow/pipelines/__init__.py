"""How people use it: load, call, save."""

from genflow.pipelines.pipeline import Pipeline, Samples

__all__ = ["Pipeline", "Samples"]
