"""Feature nets of others: clean-fid's way exactly, weights absent or wrong said in a sentence."""

import numpy as np
import pytest
import torch
from torch import nn

from genflow.errors import UserError
from genflow.files import cache_folder
from genflow.metrics import Absent, Features, Given, extract, inception
from genflow.metrics.features import features
from genflow.metrics.inception import FILE, resized
from genflow.metrics.weights import digest_of_file


def images(n, *shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, *shape), generator=generator).to(torch.uint8)


class StandIn(nn.Module):
    """What clean-fid's loader expects of the real file, in 400 kB."""

    def __init__(self, width=2048):
        super().__init__()
        linear = nn.Linear(48, width)
        nn.init.normal_(linear.weight, generator=torch.Generator().manual_seed(0))
        self.layers = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), linear)

    def forward(self, x, return_features: bool = True):
        return self.layers(x)


def save(folder, width=2048):
    torch.jit.script(StandIn(width)).save(str(folder / FILE))
    return folder / FILE


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("GENFLOW_CACHE", str(folder))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return folder


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("GENFLOW_CACHE", str(tmp_path / "a"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert cache_folder() == tmp_path / "a"
    monkeypatch.delenv("GENFLOW_CACHE")
    assert cache_folder() == tmp_path / "b" / "genflow"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder().parts[-2:] == (".cache", "genflow")


@pytest.mark.parametrize("name", ["inception", "dinov2", "clip"])
def test_absent_weights_are_one_sentence_with_file_source_and_folder(cache, name):
    with pytest.raises(Absent) as caught:
        features(name, (3, 32, 32))
    sentence = str(caught.value)
    assert "is not there" in sentence and str(cache) in sentence and "https://" in sentence
    assert ("inception-2015-12-05.pt" if name == "inception" else "model.safetensors") in sentence
    with pytest.raises(UserError) as caught:  # a path that someone gave is a slip, not a reason
        features(name, (3, 32, 32), weights=cache / "elsewhere")
    assert not isinstance(caught.value, Absent) and "elsewhere" in str(caught.value)


@pytest.mark.parametrize("channels", [1, 3])
def test_resizing_is_clean_fids_bit_for_bit(channels):
    from cleanfid.resize import make_resizer

    theirs = make_resizer("PIL", False, "bicubic", (299, 299))
    x = images(3, channels, 17, 40)
    for image, ours in zip(x, resized(x), strict=True):
        colour = image.expand(3, -1, -1).permute(1, 2, 0).numpy()
        assert np.array_equal(theirs(colour), ours.expand(3, -1, -1).permute(1, 2, 0).numpy())


@pytest.mark.parametrize("channels", [1, 3])
def test_inception_equals_clean_fids_loader(cache, channels, monkeypatch):
    from cleanfid.inception_torchscript import InceptionV3W

    cache.mkdir()
    file = save(cache)
    monkeypatch.setattr(inception, "BATCH", 2)
    feature, x = features("inception", (channels, 20, 20)), images(5, channels, 20, 20)
    theirs = InceptionV3W(str(cache), download=False)(resized(x).expand(-1, 3, -1, -1))
    out = extract(feature, x)
    assert out.shape == (5, 2048) and isinstance(feature, Features)
    torch.testing.assert_close(out, theirs, rtol=1e-5, atol=1e-5)
    assert feature.digest == digest_of_file(file) and feature.prefix == "FID"
    assert "clean" in feature.resize and ("repeated" in feature.resize) == (channels == 1)
    named = features("inception", (channels, 20, 20), weights=file.rename(cache / "other.pt"))
    torch.testing.assert_close(named(x[:2]), out[:2])


def test_a_wrong_inception_file_is_refused(cache):
    cache.mkdir()
    torch.save({"a": torch.ones(1)}, cache / FILE)
    with pytest.raises(UserError, match=r"sha256 \w{12}\) is not the TorchScript network"):
        features("inception", (3, 8, 8))
    (cache / FILE).write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match="is not the TorchScript network"):
        features("inception", (3, 8, 8))
    save(cache, width=1000)
    with pytest.raises(UserError, match="gives 1000 numbers an image, not 2048"):
        features("inception", (3, 8, 8))
    with pytest.raises(UserError, match="channels: 4 is not 1 or 3"):
        features("inception", (4, 8, 8))


def test_a_module_from_python_is_a_feature():
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.BatchNorm1d(5))
    feature, x = Given("mine", net), images(4, 3, 2, 2)
    torch.testing.assert_close(feature(x), net.eval()((x / 255).float()))
    assert feature.prefix == "FD-mine" and isinstance(feature, Features)
    other = Given("mine", nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.BatchNorm1d(5)))
    assert other.digest != feature.digest == Given("mine", net).digest
    halved = Given("mine", net, lambda images: images[:, :, ::1].float() / 510, "halved")
    assert halved.resize == "halved" and not torch.equal(halved(x), feature(x))
    for name in ("FID", "inception", ""):
        with pytest.raises(UserError, match="is taken or empty"):
            Given(name, net)
    with pytest.raises(UserError, match=r"gives \(4, 3, 2, 2\) for 4 images"):
        Given("flat", nn.Identity())(x)
