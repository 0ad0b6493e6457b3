"""A pipeline that no test has to train."""

import torch

from genflow.models import Preconditioned, Rectified
from genflow.nn import UNet
from genflow.pipelines import Pipeline

__all__ = ["tiny"]


def tiny(classes: int | None = 3, **options) -> Pipeline:
    torch.manual_seed(1)
    net = UNet(8, 1, widths=(8, 8), layers=1, attention=(), classes=classes, groups=4)
    names = ("ant", "bee", "cat")[:classes] if classes else None
    return Pipeline(Preconditioned(net, Rectified()), (1, 8, 8), class_names=names, **options)
