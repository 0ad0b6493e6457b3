"""A model of the digits that takes seconds to train, and a classifier of them."""

import copy

import pytest
import torch

from genflow.data import Digits
from genflow.data.pixels import to_float
from genflow.gradients import fit_classifier
from genflow.models import Preconditioned, Rectified
from genflow.nn import MLP
from genflow.pipelines import Pipeline

torch.set_num_threads(1)  # small tensors: a second thread only waits


def trained(steps: int = 500) -> Pipeline:
    """A rectified flow on the digits, with a perceptron for a network."""

    data = Digits().train_set[:]
    x, label = to_float(data["x"]), data["label"]
    g = torch.Generator().manual_seed(0)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        denoiser = Preconditioned(MLP(64, 128, 3, classes=10), Rectified())

    optimizer = torch.optim.Adam(denoiser.parameters(), lr=2e-3)

    for _ in range(steps):
        rows = torch.randint(len(x), (128,), generator=g)
        z, t = torch.randn(128, 1, 8, 8, generator=g), torch.rand(128, generator=g)
        none = torch.rand(128, generator=g) < 0.1
        loss = denoiser.loss(x[rows], z, t, label=torch.where(none, 10, label[rows])).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    optimizer.zero_grad()
    names = tuple("0123456789")
    return Pipeline(denoiser.eval(), (1, 8, 8), sampler="euler", steps=8, class_names=names)


@pytest.fixture(scope="session")
def _model():
    return trained()


@pytest.fixture
def pipe(_model):
    return copy.deepcopy(_model)


@pytest.fixture(scope="session")
def classifier():
    data = Digits().train_set[:]
    return fit_classifier(data["x"], data["label"], 10, steps=150)[0]
