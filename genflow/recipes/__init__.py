"""Recipes: what takes a trained pipeline, a trainer and a sampler together.

`reflow` straightens a flow, `distill` makes a student of few steps.
"""

__all__ = ["distill", "reflow"]

from genflow.recipes.reflow import distill, reflow
