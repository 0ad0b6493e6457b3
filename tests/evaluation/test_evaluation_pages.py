"""Reports: what a page and a terminal show of the record."""

from albums import pictures, save
from PIL import Image
import pytest
import torch

from genflow.evaluation import evaluate, lines, page
from genflow.metrics import frechet_from_features
from genflow.metrics.features import extract, features

DATA = pictures(60, channels=1, seed=1)


@pytest.fixture
def report(pipe):
    job = {"feature": "random-conv,inception", "metrics": "fd,kd,memorisation", "halvings": 2}
    return evaluate(
        pipe, DATA, n=30, seed=5, repeats=2, label="0,2", command="c d", say=lambda t: None, **job
    )


def test_the_record_holds_what_a_repetition_needs(report):
    samples, data = report["samples"], report["data"]
    assert samples["seeds"] == [[5, 34], [35, 64]] and samples["classes"] == {"0": 15, "2": 15}
    assert samples["sampler"] == {"sampler": "euler", "steps": 2} and samples["nfe"] == 2
    assert samples["guidance"] == 1.0 and len(data["sha256"]) == 64
    feature = report["measures"]["random-conv"]["feature"]
    assert feature["name"] == "random-conv-1x8-0" and feature["resize"] == "none"
    assert len(feature["sha256"]) == 64
    assert {"python", "torch", "diffusers", "numpy"} <= set(report["versions"])
    assert report["images_per_second"] > 0 and report["seconds"]["total"] > 0


def test_noise_is_a_ceiling(report):
    frechet = report["measures"]["random-conv"]["metrics"]["frechet"]
    noise = torch.randint(0, 256, (30, 1, 8, 8), generator=torch.Generator().manual_seed(9))
    net = features("random-conv", (1, 8, 8))
    other = frechet_from_features(extract(net, noise.to(torch.uint8)), extract(net, DATA))
    assert frechet["noise"] == pytest.approx(other, rel=0.3), "other noise of the same kind"
    assert frechet["noise"] > 10 * frechet["floor"]["mean"]


def test_the_page_shows_every_number_and_every_omission(report):
    text = page(report, ["grid", "closest"])
    seeds = report["measures"]["random-conv"]["metrics"]["frechet"]["seeds"]
    for words in (
        "# a pipeline against a tensor",
        f"| FD-random-conv | {seeds['min']:.4g} |",
        "inception-2015-12-05.pt",
        "| seeds | 5 to 34, 35 to 64 |",
        "| sampler | euler, steps 2 |",
        "| classes | 2, 15 of each |",
        "(closest.png)",
        "`c d`",
        *report["warnings"],
    ):
        assert words in text, words
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) <= 3, "rows of a table have its columns"


def test_the_terminal_shows_the_floor_and_what_was_left_out(report):
    text = lines(report)
    assert "FD-random-conv" in text and "left out: inception" in text
    assert all(f"warning: {w}" in text for w in report["warnings"])


def test_a_copy_is_named_and_shown_beside_what_it_copies(tmp_path):
    folder = save(tmp_path / "samples", pictures(20, channels=1, seed=2))
    save(folder, DATA[17:18], start=7)
    report = evaluate(
        folder,
        save(tmp_path / "data", DATA),
        feature="pixels",
        metrics="memorisation",
        halvings=0,
        output=tmp_path / "o",
        say=lambda t: None,
    )
    first = report["measures"]["pixels"]["metrics"]["memorisation"]["closest"][0]
    assert (first["sample_name"], first["training_name"]) == ("0007.png", "0017.png")
    shown = Image.open(tmp_path / "o" / "closest.png").convert("L")
    side = shown.height // 2
    above = shown.crop((0, 0, side, side - 2)).getdata()
    below = shown.crop((0, side - 1, side, 2 * side - 3)).getdata()
    assert list(above)[side * 4 : side * 20] == list(below)[side * 4 : side * 20]


def test_vectors_have_a_cloud_and_a_box_of_noise(tmp_path):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 2, generator=generator) for n in (1000, 2000))
    report = evaluate(x, y, metrics="fd", halvings=2, output=tmp_path / "o", say=lambda t: None)
    assert list(report["measures"]) == ["identity"]
    box = y.amax(0) - y.amin(0)
    gaps = (y.amax(0) + y.amin(0)) / 2 - y.mean(0), box / 12**0.5 - y.std(0)  # of two Gaussians
    expected = float(sum(g.square().sum() for g in gaps))
    noise = report["measures"]["identity"]["metrics"]["frechet"]["noise"]
    assert noise == pytest.approx(expected, rel=0.15)
    assert Image.open(tmp_path / "o" / "grid.png").width > 500
    assert "vectors of width 2" in (tmp_path / "o" / "report.md").read_text()
