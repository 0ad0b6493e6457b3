"""What the config of a scheduler of diffusers says: its path, its prediction, its schedules.

A config is a flat dict of JSON values. Schedulers of diffusers share the names of the keys that
describe a network (``beta_start``, ``prediction_type`` and so on); everything else in a config is
about a solver, and not ours to read.
"""

__all__ = [
    "PREDICTION_TYPES",
    "read_path",
    "record_of",
    "refuse_unwritable",
    "schedule_of",
    "spelled_out",
]

from collections.abc import Collection, Mapping
import json
from typing import Any

from diffusers import DDPMScheduler

from genflow.errors import UserError, nearest
from genflow.models.paths import Discrete, Path, Rectified
from genflow.models.records import path_from_dict
from genflow.solvers.files import solver_record, table_of
from genflow.solvers.schedules import SolverSchedule
from genflow.solvers.tableau import Tableau

PREDICTION_TYPES = {
    "epsilon": "noise",
    "v_prediction": "v",
    "sample": "data",
    "flow_prediction": "flow",
}
"""The names that diffusers has for the rows of `genflow.models.PREDICTIONS`."""

_LEVELS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
)


def read_path(config: Mapping[str, Any]) -> Path:
    """The path of a network, from the config of its scheduler.

    Args:
        config: The config; keys that it lacks have the defaults of diffusers.

    Returns:
        `Rectified` for a flow prediction, else `Discrete`.

    Raises:
        UserError: If the prediction or the schedule of β is unknown, or a flow is not on 1,000
            levels.
    """

    kind = config.get("prediction_type", "epsilon")

    if kind not in PREDICTION_TYPES:
        raise UserError(f"prediction_type is '{kind}'{nearest(str(kind), PREDICTION_TYPES)}")

    if PREDICTION_TYPES[kind] == "flow":
        N = config.get("num_train_timesteps", 1000)
        if N != 1000:
            raise UserError(
                f"num_train_timesteps is {N}: networks that predict a flow are told 1000 σ, use "
                "1000."
            )
        return Rectified()

    try:
        stock = DDPMScheduler(**{k: config[k] for k in _LEVELS if k in config})
    except NotImplementedError:
        raise UserError(
            f"beta_schedule is '{config['beta_schedule']}', which diffusers does not know: "
            "'linear', 'scaled_linear' and 'squaredcos_cap_v2' are usual."
        ) from None

    return Discrete(tuple(stock.alphas_cumprod.tolist()))


def spelled_out(config: Mapping[str, Any], ours: Collection[str]) -> dict[str, Any]:
    """The config of a foreign scheduler, with the defaults that count as explicit values.

    Args:
        config: The config of a scheduler, made in memory or loaded.
        ours: The keys whose values count; other keys stay only where they were given.

    Returns:
        A config that another scheduler may be made from.

    Raises:
        UserError: If the config is of a scheduler of another kind of path.
    """

    defaults = set(config.get("_use_default_values", ()))
    kept = {k: v for k, v in config.items() if k in ours or k not in defaults}
    kept.pop("_use_default_values", None)

    if "beta_start" not in config:
        if "sigma_max" in config:
            raise UserError(
                "the config has sigma_max and no beta_start: it is of a variance-exploding "
                "scheduler, whose networks are scaled otherwise; give one with β or of a flow."
            )
        # The schedulers of flow models predict nothing else, and have no word for it.
        if "shift" in config:
            kept.setdefault("prediction_type", "flow_prediction")

    return kept


def refuse_unwritable(config: Mapping[str, Any]) -> None:
    """Refuses what JSON cannot hold: numbers that are not finite above all.

    Raises:
        UserError: If there is such a value; the message names its key.
    """

    for name, value in config.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{name} cannot be written to JSON ({error}): give plain, finite values."
            ) from None


def record_of(count: Any, schedule: SolverSchedule | Tableau) -> dict[str, Any]:
    """A schedule as the dict of its times and its sparse steps; a table as that of its numbers.

    Args:
        count: The number that it is held under.
        schedule: The schedule, or the table.

    Raises:
        UserError: If a number in it is not finite, or the table is not a plain one.
    """

    try:
        record = solver_record(schedule)
        json.dumps(record, allow_nan=False)
    except ValueError as error:
        raise UserError(
            f"schedules['{count}'] cannot be written to JSON ({error}): give finite numbers."
        ) from None

    return {k: v for k, v in record.items() if k not in ("format", "version")}


def schedule_of(count: Any, given: Any, version: int, path: Path) -> SolverSchedule | Tableau:
    """The schedule, or the table, that is held under a number.

    Args:
        count: The number.
        given: A `SolverSchedule` or a `Tableau`, or the dict of its numbers, as in its JSON file.
        version: The version of the format of such a dict.
        path: The path that the schedule is wanted for.

    Raises:
        UserError: If it is no legal schedule, notes another path, or the count is no whole number
            above 0.
    """

    if not str(count).isdigit() or int(count) < 1:
        raise UserError(
            f"schedules holds one under {count!r}: the keys are numbers of calls, 1 or more."
        )
    if isinstance(given, (SolverSchedule, Tableau)):
        return given
    if not isinstance(given, Mapping):
        raise UserError(
            f"schedules['{count}'] is a {type(given).__name__}: a SolverSchedule is needed, or "
            "the dict of its times and steps; or a table."
        )

    noted = given.get("path")

    if noted is not None and path_from_dict(noted) != path:
        raise UserError(
            f"schedules['{count}'] is for {noted.get('class')}, and the network lives on "
            f"{type(path).__name__}, or on other levels of it: hand it to from_schedules with "
            "path, which moves it."
        )
    if "weight" in given:
        return table_of(given, f"schedules['{count}']")

    try:
        text = json.dumps({"format": "genflow-schedule", "version": version, **given})
        return SolverSchedule.from_json(text)
    except (UserError, TypeError) as error:
        raise UserError(f"schedules['{count}'] is no schedule: {error}") from None
