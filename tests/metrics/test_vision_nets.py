"""DINOv2 and CLIP from tiny folders of the real classes, read as their folder says."""

import json

import pytest
import torch
from torch.nn import functional as F

from genflow.errors import UserError
from genflow.metrics import extract, vision
from genflow.metrics.features import features

pytestmark = pytest.mark.slow  # transformers takes seconds to import


def images(n, *shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, *shape), generator=generator).to(torch.uint8)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("GENFLOW_CACHE", str(folder))
    return folder


MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]


def tiny(folder, name):
    """A folder as the hub has it; CLIP's holds the half that reads text, too."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    image = sizes | {"image_size": 28, "patch_size": 14, "intermediate_size": 32}
    if name == "dinov2":
        net = transformers.Dinov2Model(transformers.Dinov2Config(**image))
    else:
        text = sizes | {"intermediate_size": 32, "vocab_size": 99}
        config = transformers.CLIPConfig(vision_config=image, text_config=text, projection_dim=12)
        net = transformers.CLIPModel(config)
    net.save_pretrained(folder)
    said = {"crop_size": {"height": 28, "width": 28}, "size": {"shortest_edge": 32}}
    said |= {"image_mean": MEAN, "image_std": STD}
    (folder / "preprocessor_config.json").write_text(json.dumps(said))
    return net.eval()


@pytest.mark.parametrize("name", ["dinov2", "clip"])
def test_vision_nets_read_what_their_folder_says(cache, name, monkeypatch):
    monkeypatch.setattr(vision, "BATCH", 4)
    net = tiny(cache / name, name)
    feature, x = features(name, (3, 40, 20)), images(9, 3, 40, 20)
    h = F.interpolate(x / 255, (28, 28), mode="bicubic", antialias=True).clamp(0, 1)
    h = (h - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    with torch.no_grad():
        if name == "dinov2":
            truth = net(pixel_values=h).last_hidden_state[:, 0]
        else:
            truth = net.visual_projection(net.vision_model(pixel_values=h).pooler_output)
            truth = truth / truth.norm(dim=1, keepdim=True)
    torch.testing.assert_close(extract(feature, x), truth, rtol=1e-4, atol=1e-5)
    assert feature.prefix == {"dinov2": "FD-DINOv2", "clip": "FD-CLIP"}[name]
    assert "28 × 28" in feature.resize and len(feature.digest) == 64
    grey = features(name, (1, 40, 20), weights=cache / name)
    assert grey.digest == feature.digest and "repeated" in grey.resize
    torch.testing.assert_close(grey(x[:2, :1]), feature(x[:2, :1].expand(-1, 3, -1, -1)))


def test_wrong_folders_of_vision_nets_are_refused(cache):
    tiny(cache / "dinov2", "clip")
    with pytest.raises(UserError, match=r"dinov2.*(lacks \d+ weights|cannot be read) "):
        features("dinov2", (3, 8, 8))
    tiny(cache / "clip", "clip")
    (cache / "clip" / "preprocessor_config.json").write_text("{}")
    with pytest.raises(UserError, match="tells no size, image_mean and image_std"):
        features("clip", (3, 8, 8))
    with pytest.raises(UserError, match="channels: 2 is not 1 or 3"):
        features("clip", (2, 8, 8))
