"""Tiny pipelines as fixtures."""

import pytest
import torch
from untrained import tiny

from genflow.models import Preconditioned, Rectified
from genflow.nn import MLP
from genflow.pipelines import Pipeline


@pytest.fixture
def pipe() -> Pipeline:
    return tiny(steps=4)


@pytest.fixture
def vectors() -> Pipeline:
    torch.manual_seed(1)
    return Pipeline(Preconditioned(MLP(2, 16, 1), Rectified()), (2,), sampler="euler", steps=3)
