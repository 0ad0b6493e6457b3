"""A ledger in a study of Optuna, which outlives its workers and is shared by them.

The study lies on a journal file by default, or at any address that Optuna's relational storage
knows, so that several processes or machines share it, and Optuna's dashboard shows it. A schedule
that waits is a waiting trial, a claimed one is running, a scored one complete; the schedule itself
is a user attribute, as the JSON of `SolverSchedule`.

A worker may be killed at any moment. What it had claimed is queued again by whoever asks next, as
soon as its process is seen to be gone, or after ``patience`` seconds if it ran on another machine.
If two workers propose the same schedule, the older proposal is scored and the other is dropped.

References:
    Optuna: A Next-generation Hyperparameter Optimization Framework
    https://arxiv.org/abs/1907.10902
"""

__all__ = ["StudyLedger"]

from collections.abc import Iterator, Mapping
from datetime import datetime
import json
import math
import os
from pathlib import Path
import socket
import time
from typing import Any

from genflow.errors import UserError
from genflow.search.archive import Entry
from genflow.search.ledger import Candidate
from genflow.solvers.schedules import SolverSchedule


class StudyLedger:
    """A ledger in an Optuna study, which outlives its workers and is shared by them.

    Args:
        place: A journal file, or the address of a relational storage, as in
            ``"postgresql://…/searches"``.
        problem: What the search is about, as JSON values. A ledger that is there already must be
            about the same.
        name: The name of the study.
        patience: The seconds after which a claim of a worker on another machine lapses, above 0.

    Raises:
        UserError: If Optuna is not installed, the place cannot be opened, or holds the ledger of
            another problem; the message says which fields differ.
    """

    def __init__(
        self,
        place: str | os.PathLike[str],
        problem: Mapping[str, Any],
        *,
        name: str = "search",
        patience: float = 3600.0,
    ) -> None:
        if not patience > 0:
            raise UserError(f"patience is {patience}: a number of seconds above 0 is needed.")

        try:
            import optuna
        except ImportError:
            raise UserError(
                "the ledger of a search is an Optuna study, and Optuna is not installed: pip "
                "install 'genflow[search]'."
            ) from None

        self.place, self.patience = str(place), patience
        self._state = optuna.trial.TrialState
        self._create = optuna.trial.create_trial
        optuna.logging.set_verbosity(optuna.logging.WARNING)

        try:
            storage = _storage(self.place)
            self.study = optuna.create_study(
                storage=storage, study_name=name, load_if_exists=True, direction="minimize"
            )
        except Exception as error:
            reason = " ".join(str(error).split())
            raise UserError(f"ledger '{self.place}' cannot be opened ({reason}).") from None

        self._agree(json.loads(json.dumps(problem)))
        self._open: dict[int, Any] = {}
        self._read: dict[int, SolverSchedule] = {}
        self._me = {"host": socket.gethostname(), "pid": os.getpid(), "born": _born(os.getpid())}

    def _agree(self, problem: dict[str, Any]) -> None:
        """Notes the problem in a new ledger; refuses one of another problem."""

        noted = self.study.user_attrs.get("problem")

        if noted is None:
            self.study.set_user_attr("problem", problem)
            return

        theirs, ours = dict(_flat(noted)), dict(_flat(problem))
        names = [n for n in {**theirs, **ours} if theirs.get(n) != ours.get(n)]

        if names:
            told = ", ".join(
                f"{n} ({_short(theirs.get(n))} there, {_short(ours.get(n))} here)" for n in names
            )
            raise UserError(
                f"ledger '{self.place}' is of another problem, which differs in {told}: give the "
                "same settings, or another output."
            )

    # ------------------------------------------------------------------ queue and record

    def propose(self, schedule: SolverSchedule, origin: str) -> None:
        """See [`Ledger.propose`][genflow.search.ledger.Ledger.propose]."""

        record = json.loads(schedule.to_json())
        self.study.add_trial(
            self._create(
                state=self._state.WAITING, user_attrs={"schedule": record, "origin": origin}
            )
        )

    def claim(self) -> Candidate | None:
        """See [`Ledger.claim`][genflow.search.ledger.Ledger.claim]."""

        self._adopt()

        while self._trials(self._state.WAITING):
            trial = self.study.ask()

            if "schedule" not in trial.user_attrs:
                # Another worker emptied the queue in between, and Optuna made a blank trial.
                self.study.tell(trial, state=self._state.FAIL)
                return None

            trial.set_user_attr("worker", self._me | {"since": time.time()})
            schedule = self._schedule(trial)

            if self._older(trial.number, schedule):
                self.study.tell(trial, state=self._state.FAIL)
                continue

            self._open[trial.number] = trial
            return Candidate(trial.number, schedule, trial.user_attrs["origin"])

        return None

    def close(
        self, candidate: Candidate, value: float, *, cost: float = 0.0, seconds: float = 0.0
    ) -> None:
        """See [`Ledger.close`][genflow.search.ledger.Ledger.close].

        A claim that has lapsed is not closed: its schedule is in the queue again.
        """

        import optuna

        trial = self._open.pop(candidate.number)
        finite = math.isfinite(value)

        try:
            trial.set_user_attr("told", {"cost": cost, "seconds": seconds, "rejected": not finite})
            if finite:
                self.study.tell(trial, value)
            else:
                self.study.tell(trial, state=self._state.FAIL)
        except (ValueError, RuntimeError, optuna.exceptions.UpdateFinishedTrialError):
            return

    def entries(self) -> list[Entry]:
        """See [`Ledger.entries`][genflow.search.ledger.Ledger.entries]."""

        done = sorted(self._told(), key=lambda t: (t.datetime_complete, t.number))
        return [self._entry(t) for t in done]

    def known(self) -> set[SolverSchedule]:
        """See [`Ledger.known`][genflow.search.ledger.Ledger.known]."""

        return {self._schedule(t) for t in self._trials() if self._counts(t)}

    def finished(self) -> int:
        """See [`Ledger.finished`][genflow.search.ledger.Ledger.finished]."""

        return len(self._told())

    def running(self) -> int:
        """See [`Ledger.running`][genflow.search.ledger.Ledger.running]."""

        self._adopt()
        return len(self._trials(self._state.RUNNING))

    # ---------------------------------------------------------------------------- trials

    def _trials(self, *states: Any) -> list[Any]:
        return self.study.get_trials(deepcopy=False, states=states or None)

    def _told(self) -> list[Any]:
        finished = self._trials(self._state.COMPLETE, self._state.FAIL)
        return [t for t in finished if "told" in t.user_attrs]

    def _counts(self, trial: Any) -> bool:
        """Whether a trial stands for its schedule: not a lapsed claim, a duplicate, or a blank."""

        dropped = trial.state == self._state.FAIL and "told" not in trial.user_attrs
        return "schedule" in trial.user_attrs and not dropped

    def _schedule(self, trial: Any) -> SolverSchedule:
        if trial.number not in self._read:
            text = json.dumps(trial.user_attrs["schedule"])
            self._read[trial.number] = SolverSchedule.from_json(text)
        return self._read[trial.number]

    def _older(self, number: int, schedule: SolverSchedule) -> bool:
        """Whether an older trial stands for the same schedule."""

        return any(
            t.number < number and self._counts(t) and self._schedule(t) == schedule
            for t in self._trials()
        )

    def _entry(self, trial: Any) -> Entry:
        told = trial.user_attrs["told"]
        value = math.nan if told["rejected"] else float(trial.value)
        return Entry(
            trial.number,
            self._schedule(trial),
            value,
            trial.user_attrs["origin"],
            told["cost"],
            told["seconds"],
        )

    def _adopt(self) -> None:
        """Queues again what dead workers had claimed."""

        import optuna

        for trial in self._trials(self._state.RUNNING):
            if trial.number in self._open or not self._lapsed(trial):
                continue
            try:
                self.study.tell(trial.number, state=self._state.FAIL)
            except (ValueError, RuntimeError, optuna.exceptions.UpdateFinishedTrialError):
                continue  # another worker was quicker
            if "schedule" in trial.user_attrs:
                self.propose(self._schedule(trial), trial.user_attrs["origin"])

    def _lapsed(self, trial: Any) -> bool:
        worker = trial.user_attrs.get("worker")

        if worker is not None and worker["host"] == self._me["host"]:
            return _born(worker["pid"]) != worker["born"]

        if worker is not None:
            return time.time() - worker["since"] > self.patience

        # Killed in the moment between its claim and its signature.
        return (datetime.now() - trial.datetime_start).total_seconds() > 10


def _storage(place: str) -> Any:
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    if "://" in place:
        return RDBStorage(place)

    Path(place).parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(place))


def _born(pid: int) -> str:
    """When a process of this machine was started, in its own clock; empty if there is none."""

    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except OSError:
        pass

    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass

    return "" if Path("/proc/self/stat").exists() else "alive"


def _flat(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a nested record, by dotted names."""

    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"
