"""docs/scale.md: its table is what networks cost, and its configs are understood."""

from pathlib import Path
import re

import pytest
import torch
import yaml

from genflow.nn import DiT, activations, flops

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
CONFIG = ROOT / "configs" / "rectified" / "imagenet_latents_dit.yaml"
SIZES = {
    "DiT-S/2": {"heads": 6, "head_width": 64, "depth": 12},
    "DiT-B/2": {"heads": 12, "head_width": 64, "depth": 12},
    "DiT-L/2": {"heads": 16, "head_width": 64, "depth": 24},
    "DiT-XL/2": {"heads": 16, "head_width": 72, "depth": 28},
}


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


def table():
    rows = re.findall(r"^\| (DiT-\S+) \| (.*) \|$", TEXT, flags=re.MULTILINE)
    return {name: list(map(float, cells.split(" | "))) for name, cells in rows}


def counted(options):
    """The row of a network, from the network."""

    with torch.device("meta"):
        net = DiT(size=32, channels=4, patch=2, classes=1000, **options)
    label = torch.zeros(1, dtype=torch.long)
    parameters = sum(p.numel() for p in net.parameters())
    call = flops(net, (4, 32, 32), label=label).full
    kept = activations(net, (4, 32, 32), label=label)
    net.model.enable_gradient_checkpointing()
    fewer = activations(net, (4, 32, 32), label=label)
    step = 3 * 256 * call
    return [
        round(parameters / 1e6, 1),
        round(call / 1e9, 1),
        round(step / 1e12, 1),
        round(26 * parameters / 1e9, 1),
        round(2 * kept / 1e9, 3),
        round(2 * fewer / 1e9, 3),
        round((26 * parameters + 64 * kept) / 1e9, 1),
        round(400_000 * step / (0.4 * 989.4e12) / 3600, 1),
    ]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n != "DiT-S/2" else ()) for n in SIZES]
)
def test_the_table_is_what_the_network_costs(name):
    assert table()[name] == counted(SIZES[name])


def test_the_config_is_the_largest_of_the_table():
    config = yaml.safe_load(CONFIG.read_text())
    net = config["model"]["init_args"]["net"]["init_args"]
    common = {"size": 32, "channels": 4, "patch": 2, "classes": 1000}
    assert net == common | SIZES["DiT-XL/2"]
    assert config["trainer"]["max_steps"] == 400_000
    assert config["data"]["init_args"]["batch_size"] * 8 == 256
    call, total, hours = (table()["DiT-XL/2"][i] for i in (1, 6, 7))
    head = CONFIG.read_text().split("run:")[0].replace("\n# ", " ")
    assert f"{hours:.0f} hours of one H100" in head and f"{total:.0f} GB a GPU" in head
    assert f"are {40 * call / 1000:.1f}\nTFLOPs" in TEXT


def test_the_fragment_of_networks_that_do_not_fit_is_understood():
    from lightning.pytorch import Trainer

    from genflow.training import FullyShard, RectifiedFlow

    fragment = yaml.safe_load(next(b for b in blocks("yaml") if "fully_shard" in b))
    trainer = Trainer(accelerator="cpu", logger=False, **fragment["trainer"])
    assert type(trainer.strategy) is FullyShard
    with torch.device("meta"):
        net = DiT(8, 4, 2, heads=2, head_width=8, depth=2, classes=3)
    RectifiedFlow(net, **fragment["model"]["init_args"])
    assert net.model.is_gradient_checkpointing
