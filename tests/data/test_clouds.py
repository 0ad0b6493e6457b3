"""Two clouds: their names, their streams, and principal components there and back."""

from itertools import islice

import numpy as np
import pytest
import torch

from genflow.data import Clouds, draw_toy
from genflow.errors import UserError


def test_the_clouds_are_what_their_names_say(tmp_path):
    data = Clouds("normal", "swiss-roll", size=4000, validation=0.1)
    assert data.shape == (2,) and len(data.train_set) == 3600 == len(data.source_set)
    assert len(data.val_set) == 400 == len(data.source_val_set)
    assert torch.isin(data.train_set[:]["x"], draw_toy("swiss-roll", 4000).x).all()
    x = data.source_set[:]["x"]
    assert float(x.mean().abs()) < 0.05 and float(x.std()) == pytest.approx(1, abs=0.03)

    digits = Clouds("digits:3", "digits", validation=0.0)
    assert (
        digits.shape == (64,) and len(digits.source_set) == 183 and len(digits.train_set) == 1797
    )
    assert digits.val_set is None and digits.source_val_set is None
    assert digits.train_set[:]["x"].aminmax() == (-1, 1)

    np.save(tmp_path / "a.npy", np.ones((5, 2, 3)))
    np.savez(tmp_path / "b.npz", first=np.zeros((4, 6)), day2=np.full((7, 6), 2.0))
    files = Clouds(f"{tmp_path}/a.npy", f"{tmp_path}/b.npz:day2", validation=0.0)
    assert files.source_set[:]["x"].shape == (5, 6)
    assert files.train_set[:]["x"].eq(2).all() and len(files.train_set) == 7


def test_two_normal_clouds_of_one_law_differ_and_repeat():
    one, again = (
        Clouds("eight-gaussians", "eight-gaussians", size=50, noise=0.2) for _ in range(2)
    )
    x, y = one.source_set[:]["x"], one.train_set[:]["x"]
    assert not torch.equal(x, y)
    assert torch.equal(x, again.source_set[:]["x"]) and torch.equal(y, again.train_set[:]["x"])


def test_streams_are_apart_cover_everything_and_resume(tmp_path):
    number = np.arange(96.0)[:, None].repeat(2, 1)
    np.savez(tmp_path / "p.npz", x=number, y=number)
    data = Clouds(f"{tmp_path}/p.npz:x", f"{tmp_path}/p.npz:y", batch_size=32, validation=0.0)
    batches = list(islice(iter(data.train_dataloader()), 6))
    for key in ("x", "source"):
        seen = torch.cat([b[key][:, 0] for b in batches])
        assert sorted(seen[:96].tolist()) == sorted(seen[96:].tolist()) == list(range(96))
    same = sum(int((b["x"] == b["source"]).all(1).sum()) for b in batches)
    assert same < 12  # rows that meet by chance: 2 expected among 192

    later = Clouds(f"{tmp_path}/p.npz:x", f"{tmp_path}/p.npz:y", batch_size=32, validation=0.0)
    later._step = lambda: 4
    resumed = next(iter(later.train_dataloader()))
    assert torch.equal(resumed["x"], batches[4]["x"])
    assert torch.equal(resumed["source"], batches[4]["source"])


def test_principal_components_there_and_back():
    data = Clouds("digits:1", "digits:7", latent=20, validation=0.1)
    z = data.train_set[:]["x"]
    assert data.shape == (20,)
    plain = Clouds("digits:1", "digits:7", validation=0.1)
    x = plain.train_set[:]["x"]
    assert torch.allclose(data.encode(x), z, atol=1e-5)
    assert torch.allclose(data.encode(data.decode(z)), z, atol=1e-5)
    error = (data.decode(z) - x).square().mean() / x.var(0).mean()
    assert float(error) < 0.1
    whole = Clouds("digits:1", "digits:7", latent=64, validation=0.1)
    assert torch.allclose(whole.decode(whole.encode(x)), x, atol=1e-5)
    variance = torch.cat((data.encode(x), data.encode(plain.source_set[:]["x"]))).var(0)
    assert bool((variance[:-1] * 1.2 > variance[1:]).all())
    assert plain.encode(x) is x and plain.decode(x) is x


def test_bad_clouds_are_told_in_one_sentence(tmp_path):
    np.save(tmp_path / "line.npy", np.ones(4))
    np.save(tmp_path / "nan.npy", np.full((4, 2), np.nan))
    np.save(tmp_path / "wide.npy", np.ones((4, 3)))
    np.savez(tmp_path / "b.npz", day1=np.zeros((4, 2)))
    (tmp_path / "broken.npy").write_text("no array")
    for source, target, options, sentence in [
        ("swis-roll", "normal", {}, "did you mean 'swiss-roll'"),
        ("normal", "normal", {}, "both 'normal'"),
        ("digits:x", "normal", {}, "digits:0 to digits:9"),
        ("digits:12", "normal", {}, "digits:0 to digits:9"),
        (f"{tmp_path}/no.npy", "normal", {}, "is not there"),
        (f"{tmp_path}/broken.npy", "normal", {}, "cannot be read as an array"),
        (f"{tmp_path}/line.npy", "normal", {}, r"with shape \(4,\)"),
        (f"{tmp_path}/nan.npy", "normal", {}, "finite points"),
        (f"{tmp_path}/b.npz:day2", "normal", {}, "did you mean 'day1'"),
        (f"{tmp_path}/wide.npy", "moons", {}, "source has 3 columns and target 2"),
        ("normal", "moons", {"latent": 3}, "latent is 3, but points have 2 columns"),
    ]:
        with pytest.raises(UserError, match=sentence):
            Clouds(source, target, size=100, **options).setup()
    with pytest.raises(UserError, match="size is 1"):
        Clouds(size=1)
