r"""The verbs of ``genflow schedule``: show, compare, convert, make; and the list of samplers.

A schedule is a JSON file of decreasing times and of one record a step. Times are times *of a
path*: what a schedule does depends on them only through :math:`\lambda = \log \alpha_t/\sigma_t`,
so ``convert`` moves a schedule to another path by keeping every λ. ``make`` and ``convert`` note
the path in the file, and the other verbs then need not be told.

A path is named as in ``Karras``, ``"Karras(sigma_max=40)"``, or by a saved pipeline, a schedule
that notes its path, or a JSON file that holds a path's record.
"""

__all__ = ["VERBS", "compare", "convert", "make", "samplers", "show", "table"]

from collections.abc import Callable
import math
import os
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

from genflow.commands.choices import Value
from genflow.errors import UserError
from genflow.files import writing
from genflow.shelves import resolved

if TYPE_CHECKING:
    from genflow.models import Path
    from genflow.solvers import SolverSchedule, Step

NONE = "–"


# ----------------------------------------------------------------------------------- the verbs


def show(file: str, path: str | None = None, plot: str | None = None) -> None:
    """Print a schedule as a table, and draw it.

    Args:
        file: A schedule, or a saved pipeline that has one.
        path: The path that it is for, if the file does not say: Karras, Rectified, a pipeline, ...
        plot: A PNG to draw it into, like a musical score.
    """

    schedule, known = _read(file, path)
    print(table(schedule, known))

    if plot is not None:
        _draw([(FilePath(file).name, schedule, known)], plot)


def compare(
    first: str,
    second: str,
    path: str | None = None,
    plot: str | None = None,
) -> None:
    """Print two schedules and what they differ in, and draw them on one axis.

    Args:
        first: A schedule, or a saved pipeline that has one.
        second: Another one.
        path: The path that they are for, if the files do not say.
        plot: A PNG to draw both into.
    """

    read = [_read(file, path) for file in (first, second)]

    for file, (schedule, known) in zip((first, second), read, strict=True):
        print(f"{file}\n{table(schedule, known)}\n")

    (a, on_a), (b, on_b) = read
    print(_difference(a, b, on_a, on_b))

    if plot is not None:
        names = [f"{mark}  {FilePath(f).name}" for mark, f in (("A", first), ("B", second))]
        _draw([(n, s, p) for n, (s, p) in zip(names, read, strict=True)], plot)


def convert(
    file: str,
    from_: str | None = None,
    to: str | None = None,
    output: str = "schedule.json",
    overwrite: bool = False,
) -> None:
    """Move a schedule to another path: every time goes where the path has the same λ.

    Args:
        file: The schedule.
        from_: The path that its times are of, if the file does not say.
        to: The path to move to.
        output: The file to write.
        overwrite: Whether a file that is there already is replaced.
    """

    schedule, source = _read(file, from_)

    if source is None:
        raise UserError(f"schedule '{file}' does not say which path it is for: give --from.")
    if to is None:
        raise UserError("the path to move to is not given: give --to, as in --to Karras.")

    from genflow.models import path_named

    target = path_named(to)
    _save(schedule.on(target, source), target, output, overwrite)


def make(
    name: str,
    path: str | None = None,
    steps: int = 20,
    options: dict[str, Value] | None = None,
    output: str = "schedule.json",
    overwrite: bool = False,
) -> None:
    """Write the schedule of a named sampler to a file, to be read, changed and used.

    Args:
        name: A name that "genflow samplers" lists.
        path: The path that it is for: Karras, Rectified, a saved pipeline, ...
        steps: The number of steps.
        options: Options of the sampler and its grid, as in --options.order 3.
        output: The file to write.
        overwrite: Whether a file that is there already is replaced.
    """

    from genflow.models import path_named
    from genflow.solvers import SolverSchedule, schedule_for

    if path is None:
        raise UserError("path is not given: name the path of the model, as in --path Karras.")

    target = path_named(path)
    made = schedule_for(name, target, steps, **(options or {}))

    if not isinstance(made, SolverSchedule):
        raise UserError(
            f"sampler '{name}' is a table of numbers, not a schedule of steps: of the samplers "
            "listed, those of ddim, dpm, dpmpp, dpm-v3, deis and unipc have schedules."
        )

    _save(made, target, output, overwrite)


VERBS: dict[str, Callable[..., None]] = {
    "show": show,
    "compare": compare,
    "convert": convert,
    "make": make,
}
"""The verbs by name."""


def samplers() -> None:
    """List the samplers: order, calls of the network for N steps, options, source."""

    from genflow.solvers import PRESETS

    rows = [("sampler", "order", "NFE", "options", "source")]

    for entry in PRESETS.values():
        pinned = getattr(entry.make, "keywords", {})
        free = {k: v for k, v in entry.options.items() if k not in pinned}
        options = " ".join(k if v is None else f"{k}={v}" for k, v in free.items())
        source = entry.url.replace("https://arxiv.org/abs/", "arXiv ")
        source = source.replace("https://openreview.net/forum?id=", "OpenReview ")
        source = source.removeprefix("https://doi.org/")
        first, *more = _folded(options, 42)
        rows.append((entry.name, entry.order, entry.nfe, first, source))
        rows += [("", "", "", line, "") for line in more]

    print(_aligned(rows))
    print("\nN is --steps. Options are given as --options.order 3. Every sampler but dopri5 and")
    print("those that run a file also takes the grid's: grid, start, stop, final, rho, shift.")


# -------------------------------------------------------------------------------------- tables


def table(schedule: "SolverSchedule", path: "Path | None" = None) -> str:
    """A schedule as an aligned table, a row a step, with its number of calls below.

    Args:
        schedule: The schedule.
        path: Its path, for a column of λ.
    """

    import torch

    times = schedule.times
    lam = [None] * len(times)

    if path is not None:
        lam = path.lam(torch.tensor(times, dtype=torch.float64)).tolist()

    header = ["step", "time", "λ", "order", "predict", "points", "relax", "corrector", "start"]
    header += ["eta", "source"]
    altered = any(step.change for step in schedule.steps)
    rows = [[*header, "change"] if altered else header]

    for i, step in enumerate(schedule.steps):
        row = [str(i), _number(times[i]), _lam(lam[i]), *_cells(i, step)]
        rows.append([*row, _change(step)] if altered else row)

    rows.append(["end", _number(times[-1]), _lam(lam[-1])])
    on = "" if path is None else f", on {_short(path)}"
    lines = [_aligned(rows), f"{len(schedule.steps)} steps, NFE {schedule.nfe}{on}"]

    if any(step.order > 1 or step.correct is not None for step in schedule.steps):
        lines.append(
            "Points are calls of the network behind the slopes, counted back: 0 is the newest"
        )
        lines.append("when the step is made; for a corrector, the call that follows the step.")
    if path is None:
        lines.append("The file does not say its path: name it with --path for λ.")

    return "\n".join(lines)


def _cells(i: int, step: "Step") -> list[str]:
    """What a step decides, in words."""

    from genflow.solvers.schedules import correction, resolve

    mend = NONE

    if step.correct is not None:
        order, sets = correction(step, i + 1)
        mend = f"order {order}" + (f" on {_points(sets)}" if sets else "")
        mend += f" relax {step.correct.relax:+.3f}" if step.correct.relax else ""

    return [
        str(step.order),
        step.predict,
        _points(resolve(step.points, step.order, step.start, i + 1)),
        f"{step.relax:+.3f}" if step.relax else NONE,
        mend,
        f"{step.start} back" if step.start else NONE,
        f"{step.eta:g}" if step.eta else NONE,
        step.source,
    ]


def _points(sets: tuple[tuple[int, ...], ...]) -> str:
    """The history behind each derivative, in stages back: one set if all have the same."""

    if not sets:
        return NONE

    kinds = sets[:1] if len(set(sets)) == 1 else sets
    return " | ".join(",".join(map(str, used)) for used in kinds)


def _change(step: "Step") -> str:
    """How a step alters the network: factors of skip connections, blocks, guidance."""

    change = step.change
    parts = [
        ",".join(f"{c:g}" for c in change.skips) if change.fades else "",
        f"drops {len(change.drop)}" if change.drop else "",
        f"reuses {len(change.reuse)}" if change.reuse else "",
        "" if change.guidance else "unguided",
    ]
    return "; ".join(filter(None, parts)) or NONE


def _number(t: float) -> str:
    return f"{t:.6f}"


def _lam(lam: float | None) -> str:
    if lam is None:
        return NONE
    return f"{lam:+.3f}" if abs(lam) < float("inf") else "+∞" if lam > 0 else "-∞"


def _short(path: "Path") -> str:
    """A path as its name and the numbers that are not the usual ones."""

    from genflow.models import path_to_dict

    record = path_to_dict(path)
    name = record.pop("class")
    D = float(record.pop("D", "inf"))

    if any(isinstance(v, list) for v in record.values()):
        return f"{name}({len(path.alphas_cumprod)} levels)"

    usual = path_to_dict(type(path)())
    record |= {} if math.isinf(D) else {"D": D}
    fields = ", ".join(f"{k}={v:g}" for k, v in record.items() if usual.get(k) != v)
    return f"{name}({fields})" if fields else name


def _aligned(rows: list[Any]) -> str:
    """Columns side by side."""

    count = len(rows[0])
    full = [[*row, *[""] * (count - len(row))] for row in rows]
    widths = [max(len(row[k]) for row in full) for k in range(count)]
    cells = [[c.ljust(w) for c, w in zip(row, widths, strict=True)] for row in full]
    return "\n".join("  ".join(row).rstrip() for row in cells)


def _folded(text: str, width: int) -> list[str]:
    """Words in lines of a width."""

    lines = [""]

    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if len(longer) > width and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer

    return lines


def _difference(
    a: "SolverSchedule", b: "SolverSchedule", on_a: "Path | None", on_b: "Path | None"
) -> str:
    """In one sentence, what two schedules differ in."""

    if len(a.steps) != len(b.steps):
        return f"They have {len(a.steps)} and {len(b.steps)} steps, and {a.nfe} and {b.nfe} calls."

    names = [] if on_a == on_b else ["path"]
    names += [] if a.times == b.times else ["times"]

    for name in a.steps[0].__dataclass_fields__:
        where = [
            i
            for i, (x, y) in enumerate(zip(a.steps, b.steps, strict=True))
            if getattr(x, name) != getattr(y, name)
        ]
        if where:
            at = "every step" if len(where) == len(a.steps) else f"step {_list(where)}"
            names.append(f"{name} ({at})")

    return f"They differ in {', '.join(names)}." if names else "They are the same."


def _list(where: list[int]) -> str:
    return ", ".join(map(str, where))


# ---------------------------------------------------------------------------- files and paths


def _read(file: str, path: str | None) -> "tuple[SolverSchedule, Path | None]":
    """A schedule, and its path: the one named, or that of the file or of the pipeline it is in."""

    from genflow.models import path_named
    from genflow.solvers.schedules import SolverSchedule, read_schedule

    place = FilePath(resolved(file))
    place = place / "schedule.json" if place.is_dir() else place

    if path is not None:
        known = path_named(path)
        return SolverSchedule.load(place, known), known

    schedule, known = read_schedule(place)

    if known is None and (place.parent / "model_index.json").exists():
        known = path_named(str(place.parent))

    return schedule, known


def _save(schedule: "SolverSchedule", path: "Path", output: str, overwrite: bool) -> None:
    if os.path.exists(output) and not overwrite:
        raise UserError(f"'{output}' exists: give another name, or say overwrite.")

    schedule.save(output, path)
    print(table(schedule, path))
    print(f"schedule: {output}")

    if max(schedule.times) > path.t_max:
        print(
            f"Note: it begins at time {max(schedule.times):.3f}, which is noisier than a model on "
            f"{type(path).__name__} is trained for."
        )


def _draw(staves: list[Any], plot: str) -> None:
    from genflow.viz import scores

    if FilePath(plot).suffix.lower() != ".png":
        raise UserError(f"plot is '{plot}': a name that ends in .png is needed.")

    with writing(plot) as part:
        scores(staves).savefig(part, format="png")

    print(f"plot: {plot}")
