"""Pictures: grids of images, clouds of points, curves, and a schedule drawn like a musical score.

The only room that knows matplotlib. Functions return a PIL image or a figure; saving is the
caller's.
"""

__all__ = [
    "blank",
    "cloud",
    "costs",
    "curves",
    "fronts",
    "grid_of",
    "image_of",
    "journey",
    "progress",
    "score",
    "scores",
    "taus",
]

from genflow.viz.bridges import journey
from genflow.viz.costs import costs
from genflow.viz.curves import curves
from genflow.viz.figures import blank, image_of
from genflow.viz.pictures import cloud, grid_of
from genflow.viz.progress import fronts, progress, taus
from genflow.viz.staves import score, scores
