"""The documentation is true: its blocks run, its commands parse, its links lead somewhere.

Every page of ``docs/`` is run from top to bottom in an empty folder, on tiny pipelines and with
less of everything (`QUICK`, `SCENES`). Nothing is left out silently: a block that is not run says
why in the page, and its commands are parsed all the same.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
import json
import logging
from pathlib import Path
import re

import numpy as np
import pages as book
import pytest
import torch
import yaml

from genflow.cli import COMMANDS, main
from genflow.gradients import classifiers
from genflow.metrics import METRICS
from genflow.metrics.features import REGISTRY
from genflow.models import Karras, Preconditioned, Rectified, StudentT
from genflow.nn import UNet
from genflow.pipelines import Pipeline
from genflow.solvers import PRESETS, save_table, schedule_for, tabulate

ROOT, PAGES = book.ROOT, book.PAGES
README = ROOT / "README.md"
EVALUATION = (ROOT / "docs/evaluation.md").read_text(encoding="utf-8")

PAIRS = ["--pairs", "16", "--steps", "2", "--sampler", "heun", "--sampler_steps", "1"]
ONCE = ["--iterations", "1", "--steps", "2", "--batch_size", "2", "--n", "2"]
QUICK = {
    "fit": [
        *("--trainer.max_steps", "2", "--trainer.accelerator", "cpu"),
        *("--trainer.enable_progress_bar", "false", "--ema.decay", "0.5"),
    ],
    "generate": ["--n", "4"],
    "pairs": ["--n", "16", "--steps", "1"],
    "evaluate": ["--halvings", "0", "--feature", "random-conv"],
    "translate": ["--n", "4", "--steps", "2"],
    "likelihood": ["--n", "2", "--rtol", "1", "--atol", "1"],
    "flow-report": ["--n", "4", "--steps", "2"],
    "reflow": PAIRS,
    "distill": PAIRS,
    "invert": ONCE,
    "audit": ONCE,
    "finetune": [*ONCE, "--held", "2", "--batch", "2"],
    "search": [
        *("--budget", "8", "--samples", "8", "--report_samples", "8", "--teacher_steps", "2"),
    ],
}
"""What is added to the commands of the pages, so that they take seconds."""


@dataclass(frozen=True)
class Scene:
    """How a page is run, where it differs from others.

    Attributes:
        fewer: Texts of its blocks, and what stands for them.
        slow: ``"no"``, ``"commands"`` if Python alone is fast enough for every run of the tests,
            or ``"all"``.
        true: What holds of its names at the end.
    """

    fewer: dict[str, str] = field(default_factory=dict)
    slow: str = "no"
    true: Callable[[dict], object] = lambda names: True


SCENES = {
    "applications.md": Scene(
        {
            "iterations=60": "iterations=1",
            "range(32)": "range(2)",
            'norm="l2"': 'norm="l2", iterations=1',
            "range(456)": "range(8)",
            "range(256)": "range(4)",
            "range(256, 456)": "range(4, 8)",
            "rank=4": "rank=4, iterations=1, batch=2",
        },
        "all",
        lambda names: len(names["task"].held) == 4,
    ),
    "evaluation.md": Scene(
        {
            "Digits().reference()": "Digits().reference()[:400]",
            "max_steps: 1500": "max_steps: 2",
            "n: 1000": "n: 8",
            '"recall"], ': '"recall"], repeats=2, ',
        },
        "all",
        lambda names: (
            set(METRICS) | set(REGISTRY) <= set(re.findall(r"^\| `([\w-]+)` \|", EVALUATION, re.M))
            and names["result"]["metrics"]["frechet"]["ratio"] > 5
            and names["report"]["counts"]["samples"] == 200
        ),
    ),
    "flows.md": Scene(
        {
            "pairs=8192": "pairs=16",
            "steps=1500": "steps=2",
            "steps=300": "steps=2",
            "reference(16)": "reference(4)",
            "(256": "(8",
            "train_set[:4]": "train_set[:2]",
        },
        "all",
        lambda names: names["code"].shape == (2, 1, 8, 8) and len(names["back"].x) == 4,
    ),
    "embedding.md": Scene({"iterations=60": "iterations=2"}, "all"),
    "evaluate.md": Scene({"pipe(500": "pipe(100"}, "all"),
    "gradients.md": Scene(
        true=lambda names: names["x"].grad.any() and names["y"].requires_grad,
    ),
    "lightsb.md": Scene(
        {
            "epsilon=0.5)": "epsilon=0.5, steps=20)",
            "epsilon=0.1, covar": "epsilon=0.1, steps=20, covar",
            "epsilon=1.0)": "epsilon=1.0, steps=20)",
        },
        "all",
        lambda names: names["path"].shape == (5, 2000, 2),
    ),
    "pfgmpp.md": Scene({"(64, *pipe": "(4, *pipe", "None, 64": "None, 4"}, "all"),
    "schedule.md": Scene({"budget=60": "budget=6", "range(64)": "range(8)"}, "all"),
    "scale.md": Scene(
        {"heads=6, head_width=64, depth=12": "heads=2, head_width=8, depth=2"},
        true=lambda names: (
            names["gap"] < 1e-4
            and len(names["data"].train_set) == 1797
            and float((names["same"][0] - names["same"][1]).abs().max()) < 1e-5
            and names["x"].shape == (16, 1, 8, 8)
        ),
    ),
    "train.md": Scene(slow="all"),
    "search.md": Scene(
        {
            "Teacher()": "Teacher(steps=2)",
            "range(256)": "range(8)",
            "[:64]": "[:4]",
            "budget=300": "budget=6",
            "(200, 100, 100, 200)": "(4, 4, 4, 4)",
            "batch=8": "batch=1",
        },
        "all",
        lambda names: 0 < names["found"].saved < 1,
    ),
    "solvers.md": Scene(
        {
            "reference(256)": "reference(16)",
            "images, resume": "images, points=24, samples=8, resume",
        },
        "commands",
    ),
}


def scene(page):
    return SCENES.get(str(page.relative_to(page.parents[0])), Scene())


def tiny(path=None, classes=10, **options):
    torch.manual_seed(0)
    net = UNet(8, 1, widths=(8, 8), layers=1, attention=(), classes=classes, groups=4)
    return Pipeline(Preconditioned(net, path or Rectified()), (1, 8, 8), steps=2, **options)


def stock(folder):
    """Puts a model of a zoo there, as small as possible: pipeline, card, schedule, table."""

    pipe = tiny()
    pipe.save(folder)
    weights = {
        str(file.relative_to(folder)): sha256(file.read_bytes()).hexdigest()
        for file in folder.rglob("*.safetensors")
    }
    card = {"format": 1, "about": "Tiny.", "parameters": 1, "weights": weights}
    (folder / "card.json").write_text(json.dumps(card))
    (folder / "README.md").write_text("---\nlicense: mit\n---\n\n# Tiny\n")
    (folder / "tables").mkdir()
    three = tabulate(schedule_for("ddim", Rectified(), 3), Rectified())
    save_table(three, folder / "tables/3.json", Rectified())
    (folder / "schedules").mkdir()
    schedule_for("ddim", Rectified(), 5).save(folder / "schedules/5.json", Rectified())


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder with the configs, and tiny pipelines where training would put them."""

    (tmp_path / "configs").symlink_to(ROOT / "configs")
    tiny().save(tmp_path / "runs/digits/pipeline")
    tiny(classes=None, source="Digits").save(tmp_path / "runs/translate-digits/pipeline")
    tiny(Karras(noise=StudentT(128))).save(tmp_path / "runs/digits-pfgmpp/pipeline")
    stock(tmp_path / "zoo" / "digits-1rf")
    monkeypatch.setenv("GENFLOW_ZOO", str(tmp_path / "zoo"))
    monkeypatch.setenv("GENFLOW_CACHE", str(tmp_path / "cache"))
    fast = partial(classifiers.fit_classifier, steps=10)
    monkeypatch.setattr(classifiers, "fit_classifier", fast)
    monkeypatch.setattr(logging, "raiseExceptions", False)  # its stream was captured elsewhere
    monkeypatch.chdir(tmp_path)
    before = dict(PRESETS)
    yield tmp_path
    PRESETS.clear()
    PRESETS.update(before)


def name(page):
    return str(page.relative_to(ROOT))


def some(*kinds):
    return [p for p in PAGES if scene(p).slow in kinds]


# ------------------------------------------------------------------------------ pages run


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", some("no", "commands"), ids=name)
def test_a_page_runs(page, desk):
    """Commands too, where they take no longer than Python."""

    what = scene(page)
    names = book.run(page, what.fewer, QUICK, shell=what.slow == "no")
    assert what.true(names)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", some("commands", "all"), ids=name)
def test_a_long_page_runs(page, desk):
    what = scene(page)
    assert what.true(book.run(page, what.fewer, QUICK))


@pytest.mark.filterwarnings("ignore")
def test_the_readme_runs(desk):
    """Its Python; the commands are those of the pages, and are parsed below."""

    names = book.run(README, {"epsilon=0.5,": "epsilon=0.5, steps=20,"}, shell=False)
    assert names["x"].grad.any() and names["path"].shape == (5, 2000, 2)
    assert Path("three.png").exists() and Path("three.json").exists()


def test_the_readme_begins_with_the_two_commands():
    found = [b.text.strip() for b in book.blocks(README) if b.language == "bash"]
    assert found[:2] == ["make demo", "make test"]


# ------------------------------------------------------------------- pages are well formed


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_fence_says_what_it_is(page):
    """A language that is run or read here, and no command beside ours that could not be run."""

    for block in book.blocks(page):
        where = f"{name(page)}:{block.line}"
        assert block.language in {"python", "bash", "yaml", "json", "text"}, where
        if block.language == "yaml":
            assert yaml.safe_load(block.text), where
        if block.language == "bash" and not block.excuse:
            for words in book.commands(block.text):
                assert book.arguments(words) is not None, f"{where}: {words[0]} is not ours"
                assert words[0] not in book.LAUNCHERS, f"{where}: {words[0]} cannot be run here"
    text = page.read_text(encoding="utf-8")
    assert not re.findall(r"^ {4}(?:genflow|python train\.py) ", text, flags=re.MULTILINE)


@pytest.mark.parametrize("page", [README, *PAGES], ids=name)
def test_every_command_parses(page, monkeypatch, capsys):
    """Its name and its options exist, also where the page says that it is not run."""

    monkeypatch.chdir(ROOT)
    files = {block.title for block in book.blocks(page)}
    shell = [b for b in book.blocks(page) if b.language == "bash"]

    for words in (w for block in shell for w in map(book.arguments, book.commands(block.text))):
        if words is None:
            continue
        if words[0] == "fit":
            assert words[1] == "-c" and (Path(words[2]).exists() or words[2] in files), words
        else:
            assert book.parse(words, monkeypatch) == 0, capsys.readouterr().err


def test_the_pages_show_the_commands():
    """Each command stands in a page, so that one who looks for it finds an example."""

    lines = [
        b.text for page in [README, *PAGES] for b in book.blocks(page) if b.language == "bash"
    ]
    text = "\n".join(lines)
    assert [c for c in COMMANDS if not re.search(rf"(genflow|\.py) {c}\b", text)] == []


@pytest.mark.parametrize(
    "page", [README, ROOT / "CHANGELOG.md", ROOT / "benchmarks/README.md", *PAGES], ids=name
)
def test_links_lead_somewhere(page):
    for file, anchor in book.links(page):
        target = (page.parent / file).resolve() if file else page
        made = (
            target.parent == ROOT / "docs/reference" and (ROOT / "genflow" / target.stem).is_dir()
        )
        assert target.exists() or made, f"{name(page)} links to {file}"
        if anchor and target.suffix == ".md":
            assert anchor in book.anchors(target), f"{name(page)} links to {file}#{anchor}"


def test_the_navigation_names_every_page():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r"[\w/]+\.md\b", text))
    rooms = {f"reference/{p.parent.name}.md" for p in (ROOT / "genflow").glob("*/__init__.py")}
    there = {str(p.relative_to(ROOT / "docs")) for p in PAGES}
    assert named - rooms == there - rooms


# ------------------------------------------------------------------- what pages rely on


@pytest.mark.slow
def test_the_config_of_features_trains_and_carries(tmp_path, monkeypatch):
    """docs/flows.md: the features of a classifier, from files to files."""

    monkeypatch.setattr(logging, "raiseExceptions", False)
    monkeypatch.chdir(tmp_path)
    Path("features").mkdir()
    for which, mean in (("known", 0.0), ("shifted", 3.0)):
        x = np.random.default_rng(0).normal(mean, 1.0, size=(200, 32))
        np.save(f"features/{which}.npy", x)
    file = ROOT / "configs/rectified/adapt_features.yaml"
    config = yaml.safe_load(file.read_text())
    quick = ["--trainer.max_steps", "150", "--trainer.accelerator", "cpu"]
    quick += ["--trainer.enable_progress_bar", "false", "--ema.decay", "0.9"]
    quick += ["--model.init_args.net.init_args.width", "32", "--model.init_args.lr", "0.01"]
    assert main(["fit", "-c", str(file), *quick]) == 0
    carry = ["translate", f"{config['run']}/pipeline", "features/shifted.npy"]
    assert main([*carry, "--output", "carried", "--device", "cpu"]) == 0
    made = np.load("carried/samples.npy")
    assert made.shape == (200, 32) and abs(made.mean()) < 1.0


def test_the_page_on_the_zoo_names_every_model():
    recipes = (ROOT / "assets/zoo/recipes.py").read_text(encoding="utf-8")
    made = re.findall(r'Recipe\(\n +"([\w-]+)"', recipes)
    page = (ROOT / "docs/zoo.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| `([\w-]+)` \|", page, flags=re.MULTILINE)
    assert sorted(told) == sorted(made)
    assert len(made) > 4


# ------------------------------------------------------------------- the checks can fail


def test_a_page_that_is_wrong_is_noticed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "x.md"
    page.write_text(
        '```python\na = 1\n```\n\n```yaml title="b.yaml"\nc: 2\n```\n\n'
        "<!-- not run: for show -->\n```python\n1 / 0\n```\n"
    )
    assert book.run(page)["a"] == 1 and Path("b.yaml").read_text() == "c: 2\n"
    with pytest.raises(AssertionError, match="holds"):
        book.run(page, {"nowhere": ""})
    page.write_text("# A title: it's one\n\n```python\n1 / 0\n```\n[x](y.md#z)\n")
    with pytest.raises(ZeroDivisionError):
        book.run(page)
    assert book.links(page) == [("y.md", "z")] and book.anchors(page) == {"a-title-its-one"}
    assert book.parse(["generate", "p", "--stepz", "3"], monkeypatch) == 2
    assert book.parse(["schedule", "show", "f.json", "--plot", "f.png"], monkeypatch) == 0
    assert book.commands("genflow a \\\n  b # c\n") == [["genflow", "a", "b"]]
