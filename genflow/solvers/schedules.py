r"""Solver schedules: what a sampler does at each step, as frozen data.

A schedule is N + 1 decreasing times and N steps. A `Step` says how the state moves from one time
to the next: the Taylor order of the exponential integrator, what is expanded (data, noise, or the
empirical parameterisation of DPM-Solver-v3), which history points stand behind the derivatives,
and whether the next call of the network mends this step. Nothing here knows a path, and nothing
computes: `genflow.solvers.tableau` turns a schedule and a path into numbers.

History is counted in *stages back*: 0 is the newest call of the denoiser, 1 the one before. The
decisions of USF map to the fields as follows: time → ``times``; order → ``order``; prediction type
→ ``predict``; start point → ``start``; derivative estimation → ``points`` and ``relax``; corrector
→ ``correct``; analytic first step → ``source``; faded skip connections → ``change``.
"""

__all__ = ["Alteration", "Corrector", "SolverSchedule", "Step"]

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
import json
import math
import os
from pathlib import Path as FilePath
from typing import Any, Literal, get_args

import torch

from genflow.errors import UserError, nearest
from genflow.files import write_text
from genflow.models.paths import Path
from genflow.models.records import path_from_dict, path_to_dict
from genflow.shelves import resolved
from genflow.solvers.alterations import UNCHANGED, Alteration

Points = int | tuple[int, ...] | tuple[tuple[int, ...], ...] | None
Prediction = Literal["data", "noise", "empirical"]
Source = Literal["model", "noise", "mean"]

VERSION = 1


def _frozen(points: Any) -> Any:
    """Lists as tuples, all the way down."""

    return tuple(map(_frozen, points)) if isinstance(points, (list, tuple)) else points


def resolve(points: Points, order: int, start: int, count: int) -> tuple[tuple[int, ...], ...]:
    """The history points behind each of the ``order − 1`` derivatives.

    Args:
        points: The field of a step: None, a number for the slope, one set for all derivatives, or
            one set a derivative.
        order: The Taylor order.
        start: The stage that the step starts from.
        count: The number of stages in the history.

    Returns:
        A tuple of stages back for each derivative.
    """

    newer = list(range(start - 1, -1, -1))
    nearby = newer + list(range(start + 1, count))
    usual = tuple(nearby[: order - 1])

    if points is None:
        return (usual,) * (order - 1)
    if isinstance(points, int):
        return (tuple(nearby[:points]), *(usual,) * (order - 2))[: order - 1]
    if points and isinstance(points[0], tuple):
        return points
    return (points,) * (order - 1)


@dataclass(frozen=True)
class Corrector:
    """A correction of a step by the next call of the denoiser, which is made anyway.

    The step is done again from the same start with the new value as a further node; the stored
    outputs remain those of the predicted state ("pseudo", or PEC, correction). Corrected last
    steps cost one call more.

    Attributes:
        order: The Taylor order; one more than the predictor's if None.
        points: As in `Step`, counted from the new call (0): by default the new call, and the
            points of the predictor.
        relax: As in `Step`.
    """

    order: int | None = None
    points: Points = None
    relax: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "points", _frozen(self.points))


@dataclass(frozen=True)
class Step:
    r"""One step of a schedule.

    Attributes:
        order: The number of Taylor terms, 1 or more; 1 is DDIM.
        predict: What is expanded: the data estimate, the noise estimate, or the ``"empirical"``
            combination of DPM-Solver-v3, which needs statistics.
        points: The history behind the derivatives. None: the order − 1 nearest points behind each.
            A number: so many behind the slope, and the usual ones behind the others. A tuple of
            stages back: these points behind all of them. A tuple of tuples: one set a derivative.
        relax: The slope is multiplied by 1 + relax · h, with h the step in λ.
        correct: How the next call mends this step, if at all.
        start: Stages back to the state that the step starts from: 0 multistep, 1, 2 … singlestep.
        eta: The share of fresh noise, in [0, 1]: 0 is the ODE, 1 ancestral sampling. It needs
            order 1.
        source: Where the estimate of the first step comes from: the ``"model"``; ``"noise"``, the
            state taken as pure noise; or the ``"mean"`` of the data set. The last two save a call.
        change: How the network is altered for the call that the step begins with; the call that
            corrects a last step is altered alike.
    """

    order: int = 1
    predict: Prediction = "data"
    points: Points = None
    relax: float = 0.0
    correct: Corrector | None = None
    start: int = 0
    eta: float = 0.0
    source: Source = "model"
    change: Alteration = UNCHANGED

    def __post_init__(self) -> None:
        object.__setattr__(self, "points", _frozen(self.points))


@dataclass(frozen=True)
class SolverSchedule:
    """N steps between N + 1 decreasing times.

    Attributes:
        times: The times in [0, 1], decreasing: 1 is noise, 0 is data.
        steps: The steps; ``steps[i]`` goes from ``times[i]`` to ``times[i + 1]``.

    Raises:
        UserError: If the schedule cannot be carried out; the message quotes the step.
    """

    times: tuple[float, ...]
    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "times", tuple(float(t) for t in self.times))
        object.__setattr__(self, "steps", tuple(self.steps))
        self._check_times()
        for i, step in enumerate(self.steps):
            self._check_step(i, step)

    def _check_times(self) -> None:
        N = len(self.steps)

        if N < 1 or len(self.times) != N + 1:
            raise UserError(
                f"times holds {len(self.times)} values for {N} steps: N ≥ 1 steps need N + 1 "
                "times."
            )
        if not all(math.isfinite(t) and t >= 0 for t in self.times):
            raise UserError(f"times are {self.times}: each must be a finite number, 0 or more.")
        for i in range(N):
            if not self.times[i + 1] < self.times[i]:
                raise UserError(
                    f"step {i} goes from time {self.times[i]} to {self.times[i + 1]}: times must "
                    "decrease."
                )

    def _check_step(self, i: int, step: Step) -> None:
        def refuse(field: str, value: Any, rule: str) -> None:
            raise UserError(f"step {i} has {field} {value!r}: {rule}")

        if step.predict not in get_args(Prediction):
            refuse("predict", step.predict, "'data', 'noise' and 'empirical' are allowed.")
        if step.source not in get_args(Source):
            refuse("source", step.source, "'model', 'noise' and 'mean' are allowed.")
        if step.source != "model" and i > 0:
            refuse("source", step.source, "only step 0 may do without a call of the model.")
        if not 0 <= step.start <= i:
            refuse("start", step.start, f"0 … {i} stages back exist at this step.")
        if not 0 <= step.eta <= 1:
            refuse("eta", step.eta, "it must lie in [0, 1].")
        if step.eta > 0 and (step.order > 1 or step.start > 0 or step.correct is not None):
            refuse("eta", step.eta, "fresh noise needs order 1, start 0 and no corrector.")
        if not math.isfinite(step.relax):
            refuse("relax", step.relax, "it must be a finite number.")
        if not isinstance(step.correct, Corrector | None):
            refuse("correct", step.correct, "a Corrector or None is needed.")
        if not isinstance(step.change, Alteration):
            refuse("change", step.change, "an Alteration is needed.")

        _check_points(i, "", step.order, step.points, step.start, i + 1)

        if step.correct is not None:
            order, points = correction(step, i + 1)
            _check_points(i, "corrector ", order, points, step.start + 1, i + 2)

    @property
    def nfe(self) -> int:
        """The number of calls of the denoiser."""

        saved = self.steps[0].source != "model"
        extra = self.steps[-1].correct is not None
        return len(self.steps) - saved + extra

    def on(self, path: Path, source: Path) -> "SolverSchedule":
        """The same schedule on another path: every time moves to the one with the same λ.

        Times with infinite λ stay where they are.

        Args:
            path: The path to move to.
            source: The path that the times are of.
        """

        t = torch.tensor(self.times, dtype=torch.float64)
        lam = source.lam(t)
        moved = torch.where(torch.isfinite(lam), path.inverse(lam), t)
        return SolverSchedule(tuple(moved.tolist()), self.steps)

    # ------------------------------------------------------------------------------ JSON

    def to_json(self, path: Path | None = None) -> str:
        """The schedule as sparse JSON: fields at their defaults are left out.

        Args:
            path: The path that the times are of, to be noted beside them.
        """

        steps = [_sparse(step) for step in self.steps]
        body = ",\n  ".join(json.dumps(s, allow_nan=False) for s in steps)
        times = json.dumps(list(self.times), allow_nan=False)
        note = "" if path is None else f' "path": {json.dumps(path_to_dict(path))},\n'
        return (
            f'{{\n "format": "genflow-schedule",\n "version": {VERSION},\n{note}'
            f' "times": {times},\n'
            f' "steps": [\n  {body}\n ]\n}}\n'
        )

    @classmethod
    def from_json(cls, text: str) -> "SolverSchedule":
        """The schedule that [`to_json`][genflow.solvers.schedules.SolverSchedule.to_json] wrote.

        Raises:
            UserError: If the text is not a schedule, or of a newer version, or a field is unknown.
        """

        try:
            record = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"the schedule is not JSON ({error}).") from None

        if not isinstance(record, dict) or record.get("format") != "genflow-schedule":
            raise UserError("the JSON is no schedule: its format must be 'genflow-schedule'.")
        if record.get("version") != VERSION:
            raise UserError(
                f"the schedule has version {record.get('version')!r}: this genflow reads version "
                f"{VERSION}; a newer genflow may read it."
            )

        try:
            steps = tuple(_dense(i, step) for i, step in enumerate(record["steps"]))
            return cls(tuple(record["times"]), steps)
        except UserError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"the schedule lacks a field or has one of a wrong type: {error}."
            ) from None

    def save(self, file: str | os.PathLike[str], path: Path | None = None) -> None:
        """Writes the JSON to a file, with the path if one is given, whole or not at all."""

        write_text(file, self.to_json(path))

    @classmethod
    def load(cls, file: str | os.PathLike[str], path: Path | None = None) -> "SolverSchedule":
        """Reads the JSON of a file.

        Args:
            file: The file.
            path: The path that the schedule is wanted for.

        Raises:
            UserError: If there is no such file, it holds no schedule, or notes another path.
        """

        schedule, noted = read_schedule(file)

        if None not in (path, noted) and path != noted:
            raise UserError(
                f"schedule '{file}' is for {type(noted).__name__}, and wanted for "
                f"{type(path).__name__} or for other parameters: move it with 'genflow schedule "
                "convert'."
            )

        return schedule


def read_schedule(file: str | os.PathLike[str]) -> tuple[SolverSchedule, Path | None]:
    """The schedule in a file, and the path that the file notes, if any.

    Raises:
        UserError: If there is no such file, or it holds no schedule.
    """

    try:
        text = FilePath(resolved(file)).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"schedule '{file}' cannot be read ({error}).") from None

    schedule = SolverSchedule.from_json(text)
    noted = json.loads(text).get("path")
    return schedule, None if noted is None else path_from_dict(noted)


def correction(step: Step, count: int) -> tuple[int, tuple[tuple[int, ...], ...]]:
    """The order of a step's corrector, and the points behind each of its derivatives.

    Args:
        step: The predictor, with a corrector.
        count: The number of stages in the history when the predictor ran.

    Returns:
        The order, and for each derivative the stages back, counted from the new call.
    """

    order = step.correct.order or step.order + 1

    if step.correct.points is not None:
        return order, resolve(step.correct.points, order, step.start + 1, count + 1)

    sets = [(0, *(k + 1 for k in p)) for p in resolve(step.points, step.order, step.start, count)]
    last = sets[-1] if sets else (0,)
    sets = (sets + [last] * order)[: order - 1]
    return order, tuple(sets)


def _check_points(i: int, what: str, order: int, points: Points, start: int, count: int) -> None:
    """Refuses derivatives that their history points cannot carry."""

    if not 1 <= order <= count:
        raise UserError(
            f"step {i} has {what}order {order}: with {count} calls so far, 1 … {count} are "
            "possible."
        )

    sets = resolve(points, order, start, count)

    if len(sets) != order - 1:
        raise UserError(
            f"step {i} has {what}points {points!r}: order {order} needs one set for each of "
            f"{order - 1} derivatives."
        )

    for d, used in enumerate(sets, start=1):
        legal = all(isinstance(k, int) and 0 <= k < count and k != start for k in used)
        if not legal or len(set(used)) != len(used) or len(used) < d:
            raise UserError(
                f"step {i} estimates derivative {d} from {what}points {used}: at least {d} "
                f"different stages back in 0 … {count - 1} other than the start {start} are "
                "needed."
            )


def _sparse(step: Any) -> dict[str, Any]:
    """The fields that differ from their defaults."""

    record: dict[str, Any] = {}

    for f in fields(step):
        value = getattr(step, f.name)
        if f.default is MISSING or value != f.default:
            record[f.name] = _sparse(value) if is_dataclass(value) else value

    return record


def _dense(i: int, record: dict[str, Any]) -> Step:
    """The step of a sparse record."""

    def build(cls: type, values: dict[str, Any], where: str) -> Any:
        names: Sequence[str] = [f.name for f in fields(cls)]
        for name in values:
            if name not in names:
                raise UserError(f"step {i} has the field '{where}{name}'{nearest(name, names)}")
        return cls(**values)

    values = dict(record)

    for name, cls in (("correct", Corrector), ("change", Alteration)):
        if isinstance(values.get(name), dict):
            values[name] = build(cls, values[name], f"{name}.")

    return build(Step, values, "")
