"""Schedules and tables of weights, printed in columns."""

__all__ = ["aligned", "short", "table", "weights"]

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genflow.models import Path
    from genflow.solvers import SolverSchedule, Step, Tableau

NONE = "–"


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
        row = [str(i), _number(times[i]), spelled(lam[i]), *_cells(i, step)]
        rows.append([*row, _change(step)] if altered else row)

    rows.append(["end", _number(times[-1]), spelled(lam[-1])])
    on = "" if path is None else f", on {short(path)}"
    lines = [aligned(rows), f"{len(schedule.steps)} steps, NFE {schedule.nfe}{on}"]

    if any(step.order > 1 or step.correct is not None for step in schedule.steps):
        lines.append(
            "Points are calls of the network behind the slopes, counted back: 0 is the newest"
        )
        lines.append("when the step is made; for a corrector, the call that follows the step.")
    if path is None:
        lines.append("The file does not say its path: name it with --path for λ.")

    return "\n".join(lines)


def weights(table: "Tableau", path: "Path") -> str:
    """The rows of a table, a column a slot of the window that any row uses.

    Args:
        table: The table, with weights of shape (N, 2K + 1).
        path: Its path, for a column of λ.
    """

    count = table.weight.shape[1] - 1
    back = [f" {k // 2} back" if k > 1 else "" for k in range(count)]
    names = [f"{'xD'[k % 2]}{back[k]}" for k in range(count)] + ["1"]
    used = [k for k in range(count + 1) if bool(table.weight[:, k].any())]
    rows = [["call", "time", "λ", *(names[k] for k in used), "fresh noise"]]

    for i, (t, row) in enumerate(zip(table.time, table.weight.tolist(), strict=True)):
        cells = [f"{row[k]:+.6g}" if row[k] else "" for k in used]
        fresh = float(table.noise[i + 1])
        lam = spelled(float(path.lam(t)))
        rows.append([str(i), f"{float(t):.6f}", lam, *cells, f"{fresh:g}" if fresh else ""])

    what = "the data estimate" if table.reads == "data" else "the velocity"
    told = f"{len(table.time)} rows, NFE {table.nfe}, on {short(path)}"
    return f"{aligned(rows)}\n{told}\nx is the state at a call, D {what} there."


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


def spelled(lam: float | None) -> str:
    """λ in three places, with a sign."""

    if lam is None:
        return NONE
    return f"{lam:+.3f}" if abs(lam) < float("inf") else "+∞" if lam > 0 else "-∞"


def short(path: "Path") -> str:
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


def aligned(rows: list[Any]) -> str:
    """Columns side by side."""

    count = len(rows[0])
    full = [[*row, *[""] * (count - len(row))] for row in rows]
    widths = [max(len(row[k]) for row in full) for k in range(count)]
    cells = [[c.ljust(w) for c, w in zip(row, widths, strict=True)] for row in full]
    return "\n".join("  ".join(row).rstrip() for row in cells)
