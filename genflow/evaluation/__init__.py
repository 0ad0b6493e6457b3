"""Evaluation as a job: sources, feature nets, chunks of work, one reduction, a report.

`genflow.metrics` knows what a distance is; this room knows where images come from, how many
processes look at them, what is kept when one of them dies, and what a report must say.
"""

__all__ = ["Source", "evaluate", "lines", "opened", "page", "planned"]

from genflow.evaluation.jobs import evaluate
from genflow.evaluation.opening import opened
from genflow.evaluation.pages import lines, page
from genflow.evaluation.plans import planned
from genflow.evaluation.sources import Source
