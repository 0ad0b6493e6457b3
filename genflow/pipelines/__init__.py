"""How people use it: load, call, save."""

from genflow.pipelines.bridge import BridgePipeline
from genflow.pipelines.pipeline import Pipeline
from genflow.pipelines.samples import Samples
from genflow.pipelines.scheduler import SearchedScheduler

__all__ = ["BridgePipeline", "Pipeline", "Samples", "SearchedScheduler"]
