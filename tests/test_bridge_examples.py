"""What the pictures of bridges show, as numbers: a held-out snapshot, digits into digits."""

from pathlib import Path
import sys

import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
import torch

from genflow.data import Clouds
from genflow.metrics import bw_uvp, energy_distance
from genflow.models import LightBridge

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))


@pytest.mark.slow
def test_the_snapshot_in_the_middle_is_closer_than_simpler_guesses():
    from pictures_of_bridges import branching

    g = torch.Generator().manual_seed(0)
    first, middle, last = branching(1500, (0.5, 1.25, 2.0), g)
    bridge = LightBridge.fit(first, last, epsilon=0.225, components=20, steps=600)
    guess = bridge.plan(first, 1.0, 0.5).sample(generator=g)
    line = 0.5 * (first + last[torch.randperm(len(last), generator=g)])
    score = energy_distance(guess, middle)
    assert score < 0.25 * energy_distance(line, middle)
    assert score < 0.02 * min(energy_distance(first, middle), energy_distance(last, middle))
    assert bw_uvp(guess, middle) < 2 < bw_uvp(line, middle)


@pytest.mark.slow
@pytest.mark.parametrize(("old", "new"), [(3, 8), (0, 6)])
def test_digits_become_digits_of_the_other_class(old, new):
    data = Clouds(f"digits:{old}", f"digits:{new}", latent=24, validation=0.2)
    x, y = data.source_set[:]["x"], data.train_set[:]["x"]
    bridge = LightBridge.fit(x, y, epsilon=0.25, components=5, steps=600)
    start = data.source_val_set[:]["x"]
    end = bridge.sample(start, generator=torch.Generator().manual_seed(0))
    stored = load_digits()
    judge = LogisticRegression(max_iter=2000).fit(stored.data / 8 - 1, stored.target)
    assert (judge.predict(data.decode(end).numpy()) == new).mean() > 0.85
    assert (judge.predict(data.decode(start).numpy()) == old).mean() > 0.9
    assert torch.cdist(start, end).diagonal().mean() < 0.9 * torch.cdist(start, y).mean()
