"""A tiny pipeline, and a cache folder that nobody else sees."""

import pytest
import torch
from torch import nn

from genflow.models import Preconditioned, Rectified
from genflow.pipelines import Pipeline


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GENFLOW_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Small(nn.Module):
    """As small as a network with classes can be: no test here asks what it draws."""

    classes = 3

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
        self.embed = nn.Embedding(4, 1)

    def forward(self, x, time, label):
        return self.conv(x) + (self.embed(label) + time.reshape(-1, 1) / 1000)[..., None, None]


@pytest.fixture
def pipe():
    torch.manual_seed(1)
    return Pipeline(Preconditioned(Small(), Rectified()), (1, 8, 8), sampler="euler", steps=2)
