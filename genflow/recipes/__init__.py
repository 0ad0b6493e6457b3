"""Recipes: what takes a trained pipeline, a trainer and a sampler together.

`reflow` straightens a flow, `distill` makes a student of few steps, `adapt` carries the features
of one domain to another.
"""

__all__ = ["Adapter", "accuracies", "adapt", "distill", "reflow"]

from genflow.recipes.adaptation import Adapter, accuracies, adapt
from genflow.recipes.reflow import distill, reflow
