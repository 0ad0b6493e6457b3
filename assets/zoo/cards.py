"""The folder of a finished model: pipeline, schedules, tables, a picture, and the card."""

__all__ = ["assemble", "page"]

from datetime import UTC, datetime
import hashlib
import importlib.metadata
import json
import os
from pathlib import Path
import platform
import shutil
from typing import Any

from recipes import BRIDGE_PAIRS, Recipe
import torch

from genflow import viz, zoo
from genflow.data import Digits
from genflow.errors import UserError
from genflow.files import replacing
from genflow.pipelines import BridgePipeline, Pipeline
from genflow.shelves import CARD, FORMAT

LICENCE = "Apache-2.0"
MOST = 10 * 2**20
"""The largest size of a model's folder, in bytes."""

WHO = ("preset", "searched", "tuned")
"""Who is measured beside whom."""


def assemble(recipe: Recipe, work: Path, output: Path) -> None:
    """Puts the folder of a model together from what the stages left in its working folder.

    Args:
        recipe: The recipe.
        work: The working folder.
        output: The folder of the model.

    Raises:
        UserError: If it is larger than a model may be.
    """

    pipe = Pipeline.from_pretrained(work / "pipeline")
    searches = {int(f.stem): _json(f) for f in sorted((work / "searches").glob("*.json"))}

    for file in sorted((work / "tunings").glob("*.json")):
        tuning, found = _json(file), searches[int(file.stem)]
        for feature, pair in tuning.pop("measured").items():
            found["measured"][feature] |= pair
        found["tuning"] = tuning

    with replacing(output, overwrite=True, mark=CARD) as part:
        shutil.copytree(work / "pipeline", part, dirs_exist_ok=True)
        for config in part.glob("*/config.json"):
            known = {k: v for k, v in _json(config).items() if k != "_name_or_path"}
            config.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
        for name in ("schedules", "tables"):
            if (work / name).exists():
                shutil.copytree(work / name, part / name)
        pictures(pipe, recipe).save(part / "samples.png", optimize=True)
        card = _card(recipe, pipe, part, _json(work / "distances.json"), searches)
        text = json.dumps(card, indent=1, ensure_ascii=False, allow_nan=False)
        (part / CARD).write_text(text + "\n", encoding="utf-8")
        (part / "README.md").write_text(page(card), encoding="utf-8")
        size = sum(f.stat().st_size for f in part.rglob("*") if f.is_file())
        if size > MOST:
            raise UserError(f"model '{recipe.name}' has {size} bytes: {MOST} are allowed.")


def pictures(pipe: Pipeline | BridgePipeline, recipe: Recipe) -> Any:
    """Samples, a column a class; or digits on their way, a row each."""

    if isinstance(pipe, BridgePipeline):
        digits = Digits().load()
        rows = []
        for label, (a, _) in enumerate(BRIDGE_PAIRS):
            held = (digits.label == a) & (torch.arange(len(digits.label)) % 5 == 0)
            x = digits.x[held][:3]
            path = pipe.trajectory(x, (1, 0.75, 0.5, 0.25, 0), seed=0, label=label)
            rows += [torch.cat((_grey(x[i]), _grey8(path[1:, i]))) for i in range(len(x))]
        return viz.grid_of(torch.cat(rows), columns=15)

    scale = 5 if pipe.event[-1] == 8 else 2
    drawn = pipe(60, seed=0)
    return viz.grid_of(drawn.uint8, columns=10, scale=scale)


def _grey(x: torch.Tensor) -> torch.Tensor:
    return x[None]


def _grey8(x: torch.Tensor) -> torch.Tensor:
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def _json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


# ------------------------------------------------------------------------------------ the card


def _card(
    recipe: Recipe,
    pipe: Pipeline | BridgePipeline,
    folder: Path,
    found: dict[str, Any],
    searches: dict[int, dict[str, Any]],
) -> dict[str, Any]:
    """Everything that is known about a model, as JSON values."""

    weights = sorted(folder.rglob("*.safetensors"))
    kept = {k: v for k, v in vars(recipe.data).items() if k not in ("text", "samples", "most")}
    return {
        "format": FORMAT,
        "name": recipe.name,
        "about": recipe.about,
        "kind": recipe.kind,
        "licence": LICENCE,
        "data": {**kept, "shape": list(recipe.data.shape)},
        "made": {
            "command": _command(recipe),
            "from": recipe.teacher,
            "steps": pipe.card["training_steps"],
            "seed": recipe.seed,
        },
        "parameters": _parameters(pipe),
        "sampler": _sampler(pipe),
        "weights": {
            f.relative_to(folder).as_posix(): hashlib.sha256(f.read_bytes()).hexdigest()
            for f in weights
        },
        "distances": found,
        "schedules": {str(nfe): searches[nfe] for nfe in sorted(searches)},
        "no_schedules": None if searches else _reason(recipe),
        "tags": list(recipe.tags),
        "trial": zoo.trial(pipe),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": _machine(),
        "versions": {
            "python": platform.python_version(),
            **{
                name: importlib.metadata.version(name)
                for name in ("genflow", "torch", "diffusers")
            },
        },
    }


def _command(recipe: Recipe) -> str:
    """The command of a recipe as one would type it."""

    line = " ".join(recipe.command).replace("OUTPUT", f"runs/zoo/{recipe.name}")
    line = line.replace("ROOT", "data")
    return f"python {line}" if recipe.kind == "bridge" else f"genflow {line}"


def _parameters(pipe: Pipeline | BridgePipeline) -> int:
    if isinstance(pipe, BridgePipeline):
        codec = sum(p.numel() for p in pipe.codec.parameters())
        tensors = (pipe.bridge.log_weight, pipe.bridge.centre)
        tensors += tuple(pipe.bridge.covariance.tensors().values())
        return codec + sum(t.numel() for t in tensors)
    return sum(p.numel() for p in pipe.denoiser.parameters())


def _sampler(pipe: Pipeline | BridgePipeline) -> str:
    return "plan" if isinstance(pipe, BridgePipeline) else f"{pipe.sampler}, {pipe.steps} steps"


def _reason(recipe: Recipe) -> str:
    """Why there are no schedules."""

    return {
        "student": "It draws in one call, so there is nothing to schedule.",
        "bridge": "It is sampled in closed form, without calls of a network to schedule.",
    }.get(recipe.kind, "No schedule has been searched for it.")


def _machine() -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), None)
    return {"cpu": cpu or platform.processor(), "cores": os.cpu_count(), "gpu": None}


# ------------------------------------------------------------------------------------ the page


def page(card: dict[str, Any]) -> str:
    """The README of a model, with the front matter of the Hugging Face hub.

    Args:
        card: The card.
    """

    parts = [
        _front(card),
        f"# {card['name']}\n\n{card['about']}",
        "![samples](samples.png)",
        _use(card),
        _made(card),
        _table(card),
        *([_schedules(card)] if card["schedules"] else [card["no_schedules"] or ""]),
        _limits(card),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front(card: dict[str, Any]) -> str:
    bridge = card["kind"] == "bridge"
    lines = [
        "---",
        f"license: {card['licence'].lower()}",
        "library_name: genflow",
        f"pipeline_tag: {'image-to-image' if bridge else 'unconditional-image-generation'}",
        "tags:",
        *(f"- {tag}" for tag in ("genflow", "diffusion", *card["tags"])),
    ]
    if card["data"]["hub"]:
        lines += ["datasets:", f"- {card['data']['hub']}"]
    return "\n".join([*lines, "---"])


def _use(card: dict[str, Any]) -> str:
    name = card["name"]

    if card["kind"] == "bridge":
        call = ["from genflow import zoo", "from genflow.data import Digits", ""]
        call += [f'pipe = zoo.load("{name}")', "digits = Digits().load()"]
        call += ["threes = digits.x[digits.label == 3][:8]"]
        call += ['eights = pipe(threes, label="3 to 8", seed=0).images']
    else:
        call = ["from genflow import zoo", "", f'pipe = zoo.load("{name}")']
        call += ["pipe(16, label=3, seed=0).images[0].show()"]
        if card["schedules"]:
            nfe = "5" if "5" in card["schedules"] else next(iter(card["schedules"]))
            what = "table" if "tuning" in card["schedules"][nfe] else "schedule"
            call += [f'pipe(16, label=3, seed=0, schedule=zoo.{what}("{name}", {nfe}))']

    return "\n".join(["```python", *call, "```"])


def _made(card: dict[str, Any]) -> str:
    data, made, machine = card["data"], card["made"], card["machine"]
    shape = "×".join(map(str, data["shape"]))
    versions = ", ".join(f"{k} {v}" for k, v in card["versions"].items())
    rows = {
        "data": f"[{data['name']}]({data['source']}), {data['images']:,} images {shape}, "
        f"{data['licence']}",
        "made by": f"`{made['command']}`",
        "training": f"{made['steps']:,} steps, seed {made['seed']}",
        "parameters": f"{card['parameters']:,}",
        "own sampler": card["sampler"],
        "licence of the weights": card["licence"],
        "measured": f"{card['date']}, {machine['cores']} cores of {machine['cpu']}, {versions}",
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows.items())])


def _table(card: dict[str, Any]) -> str:
    """The distances by the number of calls, or the counts of a bridge."""

    found = card["distances"]

    if card["kind"] == "bridge":
        head = ["| | read as the target | moved | a random target is away |", "|---|---|---|---|"]
        rows = [
            f"| {r['pair']} | {r['read']} of {r['held_out']} | {r['moved']:.2f} | "
            f"{r['random']:.2f} |"
            for r in found["table"]
        ]
        told = (
            "Digits that neither the autoencoder nor the bridge has seen, one draw each: how many "
            "a logistic regression on pixels reads as the target class, how far they moved, and "
            "how far a random digit of that class is, as root-mean-square of pixels in [−1, 1]. "
            "The "
            f"regression reads {100 * found['judge']:.0f} % of unseen real digits right; the "
            f"autoencoder's error on them is {found['autoencoder']:.3f}."
        )
        return "\n".join(["## Measured", "", *head, *rows, "", told])

    counts = sorted({cell["nfe"] for cell in found["table"]})
    parts = ["## Distance by calls of the network"]

    for feature, known in found["features"].items():
        cells: dict[str, dict[int, str]] = {}
        for cell in found["table"]:
            row = cells.setdefault(cell["sampler"], {})
            row[cell["nfe"]] = _ratio(cell[feature]["over_floor"])
        rows = [[name, *(own.get(n, "") for n in counts)] for name, own in cells.items()]
        told = f"`{feature}`; uniform noise is at {known['noise_over_floor']:.0f}:"
        parts += ["", told, "", *_markdown(["calls", *map(str, counts)], rows)]

    a, b = found["points"]
    told = (
        "Fréchet distance of a feature ÷ its floor, the distance between two parts of the data "
        f"({a} v {b} images): 1 is perfect. {found['samples']:,} samples of one training; the "
        "first feature is a random net, the second a small one that was trained on such pictures."
    )
    return "\n".join([*parts, "", told])


def _schedules(card: dict[str, Any]) -> str:
    first = next(iter(card["schedules"].values()))
    bred, unseen = first["measured"]
    tunings = [s["tuning"] for s in card["schedules"].values() if "tuning" in s]
    who = WHO if tunings else WHO[:2]
    head = ["calls", "best preset"]
    for name in (bred, unseen):
        head += [f"preset, `{name}`", *who[1:], "ratio"]
    rows = []
    for nfe, found in card["schedules"].items():
        cells = [nfe, found["preset"]]
        for name in (bred, unseen):
            pair = found["measured"][name]
            values = [pair[k]["over_floor"] for k in who if k in pair]
            told = [_ratio(v) for v in values] + [""] * (len(who) - len(values))
            cells += [*told, f"{values[-1] / values[0]:.2f}"]
        rows.append(cells)
    budget = first["budget"]
    rungs = ", then ".join(
        f"{'all' if n > first['presets'] else n} on {samples}" for n, samples in budget["rungs"]
    )
    told = (
        "Distances ÷ floor as above. `schedules/N.json` was searched with N calls: "
        f"{first['presets']} presets on all grids, and those on the times of Beta, AYS and GITS, "
        f"were ranked by the distance to the data with `{bred}`: {rungs} samples; from the best "
        f"{budget['parents']}, {budget['children']} children were bred by it on "
        f"{budget['samples']} samples. Ours and the best presets were compared on "
        f"{budget['final']:,} other samples; what was chosen is measured here on seeds that "
        "neither has seen, and is a preset itself where nothing was better. "
        f"`{unseen}` had no part in the search."
    )
    if tunings:
        told += (
            " `tables/N.json` is the table of that schedule with its times and weights tuned by "
            f"{tunings[0]['steps']} gradients of the same distance on {tunings[0]['cloud']} "
            "samples; the last column is that of the table where there is one."
        )
    return "\n".join(["## Searched schedules", "", *_markdown(head, rows), "", told])


def _limits(card: dict[str, Any]) -> str:
    """What must not be expected."""

    told = [
        "A small model of small pictures, trained once from one seed: made to try samplers on.",
        "Distances are of small feature nets, and are no FID; compare them within this page.",
    ]
    if card["kind"] == "student":
        told.append(
            "More than one call does not help it: it has learned the jump from noise alone."
        )
    if card["kind"] == "bridge":
        told = [
            told[0],
            "It knows four pairs of classes, each in one direction.",
            "What is drawn is as sharp as the autoencoder, and as varied as its few components.",
        ]
    return "\n".join(["## Limits", "", *(f"* {line}" for line in told)])


def _ratio(value: float) -> str:
    """A ratio to the floor in three figures."""

    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _markdown(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *rows)]
    return [lines[0], "|" + "---|" * len(head), *lines[1:]]
