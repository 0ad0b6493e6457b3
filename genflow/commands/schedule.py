r"""The verbs of ``genflow schedule``: show, compare, convert, make; and the list of samplers.

A schedule is a JSON file of decreasing times and of one record a step. Times are times *of a
path*: what a schedule does depends on them only through :math:`\lambda = \log \alpha_t/\sigma_t`,
so ``convert`` moves a schedule to another path by keeping every λ. ``make`` and ``convert`` note
the path in the file, and the other verbs then need not be told.

A path is named as in ``Karras``, ``"Karras(sigma_max=40)"``, or by a saved pipeline, a schedule
that notes its path, or a JSON file that holds a path's record.
"""

__all__ = ["VERBS", "compare", "convert", "make", "samplers", "show"]

from collections.abc import Callable
import os
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

from genflow.commands.choices import Value
from genflow.commands.listings import aligned, table, weights
from genflow.errors import UserError
from genflow.files import writing
from genflow.shelves import resolved

if TYPE_CHECKING:
    from genflow.models import Path
    from genflow.solvers import SolverSchedule


# ----------------------------------------------------------------------------------- the verbs


def show(file: str, path: str | None = None, plot: str | None = None) -> None:
    """Print a schedule as a table, and draw it; or the weights of a table.json.

    Args:
        file: A schedule or a table, or a saved pipeline that has a schedule.
        path: The path that it is for, if the file does not say: Karras, Rectified, a pipeline, ...
        plot: A PNG to draw it into, like a musical score.
    """

    numbers = _numbers(file, path)

    if numbers is not None:
        if plot is not None:
            raise UserError(f"'{file}' is a table of weights, without steps to draw: drop plot.")
        return print(numbers)

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

    print(aligned(rows))
    print("\nN is --steps. Options are given as --options.order 3. Every sampler but dopri5 and")
    print("those that run a file also takes the grid's: grid, start, stop, final, rho, shift.")


# -------------------------------------------------------------------------------------- tables


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


def _numbers(file: str, path: str | None) -> str | None:
    """The weights of the table in a file, printed; None if the file holds no table."""

    from genflow.models import path_named
    from genflow.solvers.files import is_table, load_table, noted_path

    place = FilePath(resolved(file))

    if not place.is_file() or not is_table(place):
        return None

    known = noted_path(place) if path is None else path_named(path)
    return weights(load_table(place, known), known)


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
