"""Every model of ``assets/zoo``: its size, its card, its weights, its schedules, its page."""

import hashlib
import json
from pathlib import Path
import sys

import pytest
import torch

from genflow import zoo
from genflow.pipelines import BridgePipeline
from genflow.search.usf import SolverSpace
from genflow.shelves import card_of
from genflow.solvers import SolverSchedule
from genflow.solvers.files import load_table

ROOT = Path(__file__).parents[2] / "assets" / "zoo"
MODELS = sorted(card.parent for card in ROOT.glob("*/card.json"))
FIELDS = {
    *("about", "data", "date", "distances", "kind", "licence", "machine", "made", "name"),
    *("parameters", "schedules", "tags", "trial", "versions", "weights"),
}

sys.path.insert(0, str(ROOT))

from cards import MOST, page  # noqa: E402
from recipes import RECIPES  # noqa: E402

EVERY_MODEL = pytest.mark.parametrize("folder", MODELS, ids=lambda folder: folder.name)


@pytest.fixture(autouse=True)
def _here(monkeypatch):
    monkeypatch.setenv("GENFLOW_ZOO", str(ROOT))


@EVERY_MODEL
def test_the_folder_is_small_and_holds_no_pickle(folder):
    files = [f for f in folder.rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) < MOST
    assert {f.suffix for f in files} <= {".json", ".safetensors", ".md", ".png"}
    assert (folder / "samples.png").read_bytes().startswith(b"\x89PNG")
    homes = tuple(f"/{name}/" for name in ("work", "home", "root", "tmp"))
    texts = [f.read_text(encoding="utf-8") for f in files if f.suffix in (".json", ".md")]
    assert not any(home in text for home in homes for text in texts)


@EVERY_MODEL
def test_the_card_is_whole_and_the_page_is_made_of_it(folder):
    card = card_of(folder)
    assert set(card) >= FIELDS and card["name"] == folder.name in RECIPES
    assert card["licence"] == "Apache-2.0" and card["data"]["licence"]
    assert card["made"]["command"] and card["made"]["steps"] >= 500
    for file, digest in card["weights"].items():
        assert hashlib.sha256((folder / file).read_bytes()).hexdigest() == digest
    assert {str(f.relative_to(folder)) for f in folder.rglob("*.safetensors")} == set(
        card["weights"]
    )
    assert (folder / "README.md").read_text(encoding="utf-8") == page(card)
    assert card["distances"]["table"]
    if card["kind"] != "bridge":
        features = card["distances"]["features"]
        assert len(features) == 2 and all(known["floor"] > 0 for known in features.values())
        cells = card["distances"]["table"]
        assert all(cell[name]["over_floor"] > 0.5 for cell in cells for name in features)


@EVERY_MODEL
def test_it_loads_and_draws_what_it_drew(folder):
    pipe, card = zoo.load(folder.name), card_of(folder)
    found = zoo.trial(pipe)
    assert found == pytest.approx(card["trial"], abs=1e-3)
    if not isinstance(pipe, BridgePipeline):
        assert sum(p.numel() for p in pipe.denoiser.parameters()) == card["parameters"]


@EVERY_MODEL
def test_its_schedules_are_legal_and_have_the_calls_of_their_names(folder):
    card, files = card_of(folder), sorted((folder / "schedules").glob("*.json"))
    assert {f.stem for f in files} == set(card["schedules"])
    if not files:
        return assert_told(card)
    path = zoo.load(folder.name).denoiser.path
    for file in files:
        schedule = SolverSchedule.load(file, path)
        assert schedule.nfe == int(file.stem) and SolverSpace(path, schedule.nfe).legal(schedule)
        found = card["schedules"][file.stem]
        assert found["nfe"] == schedule.nfe and found["preset"] and found["budget"]
        pairs = found["measured"].values()
        assert all(pair[who]["over_floor"] > 0.5 for pair in pairs for who in pair)
        assert "path" in json.loads(file.read_text(encoding="utf-8"))
        assert (folder / "tables" / file.name).exists() == ("tuning" in found)


@EVERY_MODEL
def test_its_tables_are_of_its_path_and_draw(folder):
    pipe = zoo.load(folder.name)
    for nfe, table in zoo.tables(folder.name).items():
        file = folder / "tables" / f"{nfe}.json"
        assert torch.equal(load_table(file, pipe.denoiser.path).weight, table.weight)
        drawn = pipe(2, seed=0, schedule=zoo.table(folder.name, nfe))
        assert table.nfe == drawn.nfe == nfe and bool(drawn.x.isfinite().all())


def assert_told(card):
    """What has no schedules says why."""

    assert card["no_schedules"] in page(card) and "## Searched" not in page(card)


def test_students_come_after_their_teachers():
    seen = set()
    for recipe in RECIPES.values():
        assert recipe.teacher is None or recipe.teacher in seen
        seen.add(recipe.name)
