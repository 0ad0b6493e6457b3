"""A tiny pipeline that no test has to train."""

import pytest
import torch

from genflow.models import Preconditioned, Rectified
from genflow.nn import MLP, UNet
from genflow.pipelines import Pipeline


def tiny(classes: int | None = 3, **options) -> Pipeline:
    torch.manual_seed(1)
    net = UNet(8, 1, widths=(8, 8), layers=1, attention=(), classes=classes, groups=4)
    names = ("ant", "bee", "cat")[:classes] if classes else None
    return Pipeline(Preconditioned(net, Rectified()), (1, 8, 8), class_names=names, **options)


@pytest.fixture
def pipe() -> Pipeline:
    return tiny(steps=4)


@pytest.fixture
def vectors() -> Pipeline:
    torch.manual_seed(1)
    return Pipeline(Preconditioned(MLP(2, 16, 1), Rectified()), (2,), sampler="euler", steps=3)
