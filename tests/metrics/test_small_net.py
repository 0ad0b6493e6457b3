"""The shipped net: its very weights, any size and channels, and damages in their order."""

import json

import pytest
from sklearn.datasets import load_digits
import torch
from torch.nn import functional as F

from genflow.errors import UserError
from genflow.metrics import Small, extract, frechet_from_features
from genflow.metrics import small as module

DIGEST = "8bc8510b234a1b9ea044c24ee0c94bcfbfcd36aa19855765b0b3e1c48b7d9595"


def images(n, *shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, *shape), generator=generator).to(torch.uint8)


def test_the_weights_are_those_of_every_published_number():
    assert Small().digest == DIGEST
    card = json.loads((module.NETS / "genflow-small.json").read_text(encoding="utf-8"))
    assert card["sha256"] == DIGEST and {"data", "licence", "accuracy", "script"} <= set(card)
    assert sum(w.numel() for w in Small().parameters()) == card["parameters"]
    assert (module.NETS / "genflow-small.safetensors").stat().st_size < 300_000


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 64, 48), (4, 9, 9)])
def test_any_size_and_channels(shape):
    out = extract(Small(), images(5, *shape), batch_size=2)
    assert out.shape == (5, 128 * shape[0]) and out.dtype == torch.float32
    assert out.isfinite().all() and not out.requires_grad


def test_a_colour_image_is_its_channels_one_after_the_other():
    feature, x = Small(), images(4, 3, 20, 20)
    apart = torch.cat([feature(x[:, i : i + 1]) for i in range(3)], dim=1)
    torch.testing.assert_close(feature(x), apart, rtol=1e-5, atol=1e-6)


def test_features_are_means_and_deviations_of_the_last_map():
    feature, x = Small(), images(3, 1, 32, 32)
    h = x.double() / 127.5 - 1
    for i, layer in enumerate(feature.net.double()):
        h = layer(h)
        assert i % 2 == 0 or h.min() >= 0
    truth = torch.cat((h.mean((2, 3)), h.std((2, 3), correction=0)), 1).float()
    torch.testing.assert_close(feature.float()(x), truth, rtol=1e-3, atol=2e-3)


def test_damages_come_in_their_order():
    digits = load_digits()
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    x, kind = torch.tensor(digits.images)[order, None] / 16, torch.tensor(digits.target)[order]
    first, second = x[:450], x[450:900]
    grain = torch.randn(first.shape, generator=torch.Generator().manual_seed(1))
    blurred = F.avg_pool2d(F.pad(first, (1, 1, 1, 1), mode="replicate"), 3, 1)
    sets = {
        "real": first,
        "faint": first + 0.05 * grain,
        "blur": 0.7 * first + 0.3 * blurred,
        "noise": first + 0.3 * grain,
        "eight classes": first[kind[:450] < 8],
        "one class": first[kind[:450] == 3],
    }
    feature = Small()
    bytes_of = {name: (s.clamp(0, 1) * 255).round().to(torch.uint8) for name, s in sets.items()}
    real = extract(feature, (second * 255).round().to(torch.uint8))
    found = {n: frechet_from_features(extract(feature, s), real) for n, s in bytes_of.items()}
    assert found["real"] < found["faint"] < found["blur"] < found["noise"]
    assert 2 * found["real"] < found["eight classes"] < found["one class"]


def test_bad_input_is_told_in_one_sentence(tmp_path, monkeypatch):
    feature = Small()
    for call, sentence in [
        (lambda: feature(images(2, 1, 8, 7)), "8 × 7 pixels are too few .* 8 a side"),
        (lambda: feature(torch.rand(2, 1, 8, 8)), "torch.float32 is not 8-bit"),
        (lambda: feature(images(2, 8, 8)), r"is not \(n, C, H, W\)"),
    ]:
        with pytest.raises(UserError, match=sentence):
            call()
    for file in module.NETS.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "genflow-small.safetensors").write_bytes(b"other")
    monkeypatch.setattr(module, "NETS", tmp_path)
    with pytest.raises(UserError, match="its card 8bc8510b234a; install genflow again"):
        Small()
