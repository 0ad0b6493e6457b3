"""How people use it: load, call, save."""

from genflow.pipelines.pipeline import Pipeline
from genflow.pipelines.samples import Samples
from genflow.pipelines.scheduler import SearchedScheduler

__all__ = ["Pipeline", "Samples", "SearchedScheduler"]
