"""The house keeps its floors: who may import whom, read from the source."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOUSE = ROOT / "genflow"
MODULES = sorted(HOUSE.rglob("*.py"))
LIMIT = 400

CELLAR = {"errors", "version", "files", "shelves"}
GROUND = {"models", "nn", "data", "metrics"}

# room → the other rooms that it may import; the cellar is open to all
FLOORS = {
    **dict.fromkeys(CELLAR, set()),
    **dict.fromkeys(GROUND, set()),
    "solvers": {"models"},
    "viz": {"solvers", "models"},
    "search": {"solvers", "models", "nn", "metrics"},
    "training": {"solvers", "evaluation", *GROUND},
    "pipelines": {"solvers", "viz", *GROUND},
    "evaluation": {"solvers", "viz", "pipelines", *GROUND},
    "gradients": {"solvers", "viz", "pipelines", *GROUND},
    "zoo": {"solvers", "pipelines"},
    "console": set(),
    "recipes": {"solvers", "viz", "training", "pipelines", *GROUND},
    "commands": {
        "console",
        "solvers",
        "viz",
        "search",
        "training",
        "pipelines",
        "recipes",
        "gradients",
        "evaluation",
        "zoo",
        *GROUND,
    },
    "cli": {"console", "commands"},
    "__main__": {"cli"},
}

# library → where it may be used
LIBRARIES = {
    "lightning": {"training", "data", "recipes"},
    "pytorch_lightning": set(),
    "diffusers": {"pipelines", "nn"},
    "matplotlib": {"viz"},
    "cleanfid": {"metrics"},
    "transformers": {"metrics", "pipelines"},
    "torchdiffeq": {"solvers"},
    "jsonargparse": {"cli", "training"},
}


def room(file):
    """The room of a module: its folder, or its own name on the top level."""

    first = file.relative_to(HOUSE).parts[0]
    return first.removesuffix(".py")


@cache
def imports(file):
    """Every absolute name that a file imports, wherever it stands, as written in full."""

    names = set()
    package = ["genflow", *file.relative_to(HOUSE).parts[:-1]] if HOUSE in file.parents else []

    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            names |= {f"{stem}.{alias.name}" for alias in node.names}

    return names


def rooms_of(file):
    """The rooms of genflow that a file imports, other than its own."""

    parts = [n.split(".") for n in imports(file) if n.split(".")[0] == "genflow"]
    return {p[1] for p in parts if len(p) > 1} - {room(file)} - {"__version__"}


def name(file):
    return str(file.relative_to(ROOT))


EVERY_MODULE = pytest.mark.parametrize("file", MODULES, ids=name)


def test_the_rooms_are_known():
    assert {room(f) for f in MODULES} - {"__init__"} <= set(FLOORS)
    assert len(MODULES) > 30


@EVERY_MODULE
def test_floors(file):
    if room(file) == "__init__":
        allowed = {"version"}
    else:
        allowed = FLOORS[room(file)] | CELLAR
    assert rooms_of(file) <= allowed, f"{name(file)} may not import {rooms_of(file) - allowed}"


@EVERY_MODULE
def test_libraries(file):
    for library, allowed in LIBRARIES.items():
        used = any(n.split(".")[0] == library for n in imports(file))
        assert not used or room(file) in allowed, f"{name(file)} may not import {library}"


def test_nobody_imports_the_roof():
    others = [f for f in MODULES if room(f) not in ("cli", "__main__")]
    others += sorted((ROOT / "tests").rglob("*.py")) + sorted(ROOT.glob("*.py"))
    users = {name(f) for f in others if any(n.startswith("genflow.cli") for n in imports(f))}
    assert {u for u in users if not u.startswith("tests/")} <= {"train.py", "sample.py"}
    assert {room(f) for f in MODULES if "console" in rooms_of(f)} <= {"cli", "commands"}


def test_search_and_training_are_strangers():
    for file in MODULES:
        if room(file) in ("search", "training"):
            assert not rooms_of(file) & {"search", "training"}, name(file)


def test_no_circle():
    """The rooms, as they really import each other, have an order."""

    needs = {}
    for file in MODULES:
        if room(file) != "__init__":
            needs.setdefault(room(file), set()).update(rooms_of(file))

    done = set()
    while needs:
        free = {r for r, others in needs.items() if others <= done}
        assert free, f"a circle among {sorted(needs)}"
        done |= free
        needs = {r: others for r, others in needs.items() if r not in free}


@EVERY_MODULE
def test_documented_and_listed(file):
    """A doc-string first, then `__all__`, whose names exist."""

    tree = ast.parse(file.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), f"{name(file)} starts without a doc-string"
    listed = [
        node
        for node in tree.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"
    ]
    assert len(listed) == 1, f"{name(file)} defines __all__ {len(listed)} times"


@EVERY_MODULE
def test_short(file):
    lines = len(file.read_text(encoding="utf-8").splitlines())
    assert lines <= LIMIT, f"{name(file)} has {lines} lines"


@pytest.mark.parametrize("file", sorted((ROOT / "tests").rglob("*.py")), ids=name)
def test_tests_are_short_and_portable(file):
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LIMIT
    homes = ["/" + "work/", "/" + "home/", "/" + "root/"]
    assert not any(home in text for home in homes), f"{name(file)} names a path of one machine"


# --------------------------------------------------------------- the checks can fail


def test_imports_are_found_wherever_they_stand(tmp_path):
    file = tmp_path / "x.py"
    file.write_text(
        "import torch.nn as nn\n"
        "from genflow import viz\n"
        "def f():\n    from genflow.training.ema import EMA\n"
    )
    assert imports(file) == {"torch.nn", "genflow.viz", "genflow.training.ema.EMA"}
