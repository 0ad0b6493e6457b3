import pytest
from short_runs import fit, saver
import torch

from genflow.training import EMA, LossGuard


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    """Two threads would only wait for each other over networks as small as these."""

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield
    torch.set_num_threads(before)


@pytest.fixture
def unbroken(tmp_path):
    """Six steps in one go."""

    return fit(tmp_path / "whole", 6, EMA(0.9), LossGuard(), saver(tmp_path / "whole", 3))
