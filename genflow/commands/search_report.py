"""The report of a search: schedule.json, report.md, and a page that needs no other file."""

__all__ = ["write"]

import base64
import html
import io
import json
import math
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from genflow import viz
from genflow.commands.listings import table
from genflow.commands.search_methods import Outcome, Run
from genflow.commands.search_problem import SCORES
from genflow.files import write_text, writing
from genflow.solvers.files import save_table
from genflow.solvers.schedules import SolverSchedule
from genflow.version import __version__

if TYPE_CHECKING:
    from PIL.Image import Image

SHOWN = 36
"""How many samples are shown before and after."""

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse } td, th { padding: .2rem .8rem; text-align: left }
tr { border-bottom: 1px solid #ddd } pre { background: #f5f5f5; padding: .8rem; overflow: auto }
img { max-width: 100% } figure { display: inline-block; margin: 0 1rem 1rem 0 }
"""


def write(folder: Path, run: Run, found: Outcome, settings: dict[str, Any]) -> str:
    """Writes what was found into a folder.

    Args:
        folder: The folder.
        run: The search.
        found: What it found.
        settings: What else the record should say.

    Returns:
        A few lines for the terminal.
    """

    path = run.problem.denoiser.path
    found.schedule.save(folder / "schedule.json", path)
    if found.table is not None:
        save_table(found.table, folder / "table.json", path)
    record = _record(run, found, settings)
    write_text(folder / "result.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    pictures = _pictures(run, found)

    for name, (_, picture) in pictures.items():
        with writing(folder / f"{name}.png") as part:
            picture.save(part, format="png")

    markdown = _markdown(run, found, record, pictures)
    write_text(folder / "report.md", markdown)
    write_text(folder / "report.html", _page(run, found, record, pictures))
    return (
        f"{table(found.schedule, path)}\n\n{_verdict(run, found)}\n"
        f"schedule: {folder / 'schedule.json'}\n"
        + ("" if found.table is None else f"table: {folder / 'table.json'}\n")
        + f"report: {folder / 'report.html'}"
    )


def _verdict(run: Run, found: Outcome) -> str:
    name = found.baselines[0][0]
    ours, theirs = mean(found.held_out), mean(found.held_out_baseline)
    words = (
        f"{SCORES[run.problem.score]}, fresh seeds: {_spread(found.held_out)}; the best preset, "
        f"{name}: {_spread(found.held_out_baseline)}; ratio {ours / theirs:.2f}."
    )

    if found.table is not None:
        tuned = mean(found.held_out_table)
        words += f" The table: {_spread(found.held_out_table)}; ratio {tuned / theirs:.2f}."
    return words


def _spread(values: list[float]) -> str:
    return f"{mean(values):.4g} ± {stdev(values):.1g}" if len(values) > 1 else f"{values[0]:.4g}"


def _record(run: Run, found: Outcome, settings: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a report, for programs."""

    archive, problem = found.archive, run.problem
    seeds = problem.seeds
    return {
        **settings,
        "genflow": __version__,
        "method": run.method,
        "nfe": run.nfe,
        "budget": run.budget,
        "seed": run.seed,
        **problem.record(),
        "held_out": found.held_out,
        "baseline": found.baselines[0][0],
        "held_out_baseline": found.held_out_baseline,
        "held_out_table": found.held_out_table or None,
        "held_out_seeds": [[g.start, g.stop] for g in seeds.report],
        "finalists": [{"number": e.number, "value": e.value} for e in found.final],
        "baselines": {name: value for name, _, value in found.baselines},
        "scored": len(archive),
        "rejected": archive.rejected,
        "best_so_far": [v for v in archive.curve() if math.isfinite(v)],
        "taus": [s.tau for s in archive.stages],
        "refined": found.refined,
        "free": list(run.free) if run.refine else None,
    }


# ------------------------------------------------------------------------------- pictures


def _pictures(run: Run, found: Outcome) -> "dict[str, tuple[str, Image]]":
    """The figures by name, each with what it shows."""

    archive, path = found.archive, run.problem.denoiser.path
    figures: dict[str, tuple[str, Any]] = {
        "score": ("The schedule", viz.score(found.schedule, path)),
    }
    if len(archive) > 1:
        figures["progress"] = ("Best score so far", viz.progress(archive.curve()))
    if archive.stages:
        points = [(s.seen, s.tau) for s in archive.stages]
        figures["tau"] = ("Kendall's τ of the predictor, by stage", viz.taus(points))
    if len({e.cost for e in archive.kept}) > 1:
        every = [(e.cost, e.value) for e in archive.kept]
        best = [(e.cost, e.value) for e in archive.front()]
        figures["pareto"] = ("Score against cost", viz.fronts(every, best))

    out = {name: (told, viz.image_of(figure)) for name, (told, figure) in figures.items()}
    return out | _samples(run, found)


def _samples(run: Run, found: Outcome) -> "dict[str, tuple[str, Image]]":
    """Samples before and after, and the teacher's, from the same seeds."""

    problem = run.problem
    seeds = problem.seeds.report[0]
    seeds = seeds[: min(len(seeds), SHOWN if problem.images else 512)]
    population = problem.population(seeds)
    tables = [] if found.table is None else [found.table]
    ran = dict(population([found.schedule, found.baselines[0][1], *tables]))
    states = {
        "before": (f"Before: {found.baselines[0][0]}", ran[1]),
        "after": ("After: the schedule found", ran[0]),
        **({"table": ("After: its table with tuned weights", ran[2])} if tables else {}),
        "teacher": (f"The teacher: {problem.teacher.sampler}", problem.target(seeds)),
    }
    draw = viz.grid_of if problem.images else viz.cloud
    flat = len(problem.pipe.event) in (1, 3)
    return {name: (told, draw(problem.decoded(x))) for name, (told, x) in states.items() if flat}


# ---------------------------------------------------------------------------------- words


def _rows(run: Run, found: Outcome) -> list[tuple[str, str]]:
    archive, problem = found.archive, run.problem
    rows = [
        ("score", f"{problem.score}: {SCORES[problem.score]}"),
        ("found, on fresh seeds", _spread(found.held_out)),
        (f"best preset ({found.baselines[0][0]}), on the same", _spread(found.held_out_baseline)),
        ("ratio", f"{mean(found.held_out) / mean(found.held_out_baseline):.3f}"),
        ("what the search minimised", f"{archive.best.value:.4g}, on its own seeds"),
        ("schedules scored", f"{len(archive)}, of which {archive.rejected} were rejected"),
        ("samples a score", f"{len(problem.seeds.search)}"),
        ("fresh samples", f"{len(problem.seeds.report)} × {len(problem.seeds.report[0])}"),
        ("teacher", f"{problem.teacher.sampler}, {problem.teacher.steps} steps"),
    ]
    if found.refined is not None:
        before, after = found.refined
        followed = problem.sloped and problem.score != "error"
        what = "the score, unrounded," if followed else "teacher's error"
        rows.append((f"{what} before and after refining", f"{before:.4g} → {after:.4g}"))
    if found.table is not None:
        ratio = mean(found.held_out_table) / mean(found.held_out_baseline)
        rows += [
            ("its table with tuned weights, on the same", _spread(found.held_out_table)),
            ("ratio of the table", f"{ratio:.3f}"),
        ]
    rows += [(f"preset: {name}", f"{value:.4g}") for name, _, value in found.baselines]
    return rows


def _loading(schedule: SolverSchedule, file: str = "schedule.json") -> str:
    """Python that uses a schedule, or its table: in diffusers, or in genflow if it must be."""

    saved = schedule.steps[0].source != "model"
    lines = [
        "import genflow",
        f'found = genflow.read_solver("{file}")',
        *["# Stock pipelines make the first call too, which this schedule does without:"] * saved,
        f"pipe.scheduler = genflow.SearchedScheduler.from_schedules({{{schedule.nfe + saved}: "
        "found}, like=pipe.scheduler)",
    ]
    if any(step.change for step in schedule.steps):
        lines = [
            "import genflow",
            'pipe = genflow.Pipeline.from_pretrained("PIPELINE")',
            f'pipe(16, schedule=genflow.read_solver("{file}"))',
        ]
    return "\n".join(lines)


def _best(found: Outcome) -> str:
    """The file of what does best."""

    return "schedule.json" if found.table is None else "table.json"


def _title(run: Run, record: dict[str, Any]) -> str:
    return f"{run.nfe} calls, by {run.method}: {record['pipeline']}"


def _markdown(
    run: Run, found: Outcome, record: dict[str, Any], pictures: "dict[str, tuple[str, Image]]"
) -> str:
    rows = "\n".join(f"| {name} | {value} |" for name, value in _rows(run, found))
    images = "\n\n".join(f"{told}:\n\n![{told}]({n}.png)" for n, (told, _) in pictures.items())
    listed = table(found.schedule, run.problem.denoiser.path)
    return (
        f"# {_title(run, record)}\n\n| | |\n|---|---|\n{rows}\n\n```\n{listed}\n```\n\n"
        f"In diffusers:\n\n```python\n{_loading(found.schedule, _best(found))}\n```\n\n{images}\n"
    )


def _page(
    run: Run, found: Outcome, record: dict[str, Any], pictures: "dict[str, tuple[str, Image]]"
) -> str:
    """One page with its pictures inside."""

    def cell(text: str) -> str:
        return html.escape(text, quote=False)

    rows = "".join(
        f"<tr><td>{cell(name)}</td><td>{cell(value)}</td></tr>\n"
        for name, value in _rows(run, found)
    )
    figures = "".join(
        f'<figure><img alt="{html.escape(told)}" src="data:image/png;base64,{_inside(picture)}">'
        f"<figcaption>{cell(told)}</figcaption></figure>\n"
        for told, picture in pictures.values()
    )
    listed = table(found.schedule, run.problem.denoiser.path)
    title = cell(_title(run, record))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{STYLE}</style></head><body>\n<h1>{title}</h1>\n<table>\n{rows}</table>\n"
        f"<h2>The schedule</h2>\n<pre>{cell(listed)}</pre>\n<h2>In diffusers</h2>\n"
        f"<pre>{cell(_loading(found.schedule, _best(found)))}</pre>\n<h2>Pictures</h2>\n{figures}"
        f"<p>genflow {record['genflow']}, {record['seconds']} s</p>\n</body></html>\n"
    )


def _inside(picture: "Image") -> str:
    stream = io.BytesIO()
    picture.save(stream, format="png")
    return base64.b64encode(stream.getvalue()).decode()
