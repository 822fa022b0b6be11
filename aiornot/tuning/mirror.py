"""A stage's search as an Optuna study in a file, for people to look at.

``optuna-dashboard runs/fast/explore/optuna.journal`` shows it, also while it runs. Nothing is ever
read back from it: it is made from the ledger whenever a stage starts or goes on.
"""

import datetime
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import optuna
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from aiornot.training.errands import Errands
from aiornot.tuning.ledger import Trial, contenders
from aiornot.tuning.space import Distribution

NAME = "optuna.journal"
"""In a stage's folder."""

_CLOSE_SECONDS = 20.0


def outcome(trial: Trial) -> tuple[TrialState, float | None]:
    """Return what Optuna is told of a trial that has ended."""
    if trial.state == "finished" and math.isfinite(trial.score):
        return TrialState.COMPLETE, trial.score
    if trial.state == "stopped":
        return TrialState.PRUNED, None
    return TrialState.FAIL, None


def frozen(trial: Trial, space: Mapping[str, Distribution]) -> FrozenTrial:
    """Return a trial as Optuna keeps it, with the score of each tick as its intermediate values.

    Args:
        trial: Ended, or running.
        space: The stage's, resolved.
    """
    state, value = outcome(trial)
    made = optuna.trial.create_trial(
        state=state,
        value=value,
        params=trial.params,
        distributions={name: space[name] for name in trial.params},
        user_attrs=_attributes(trial),
        intermediate_values={int(tick["tick"]): float(tick["score"]) for tick in trial.ticks},
    )
    made.datetime_start = _moment(trial.started)
    made.datetime_complete = _moment(
        trial.ticks[-1].get("time", trial.started) if trial.ticks else trial.started
    )
    if trial.state == "running":
        made.state, made.datetime_complete = TrialState.RUNNING, None
    return made


def _attributes(trial: Trial) -> dict[str, str]:
    """Optuna numbers trials as they come; the id is the ledger's."""
    return {
        "trial": trial.id,
        "state": trial.state,
        "reason": trial.reason,
        "origin": trial.origin,
    }


def _moment(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)


class Mirror:
    """An observer that keeps the study of a searching stage in a journal file.

    Controls are not in it: they were not drawn, and may lie outside of the space.

    Args:
        path: The file, on a local disk; one that is there is replaced.
        name: Of the study.
        space: What the stage draws from.
        read: Reads the trials of the ledger.
    """

    def __init__(
        self,
        path: Path,
        *,
        name: str,
        space: Mapping[str, Distribution],
        read: Callable[[], Sequence[Trial]],
    ) -> None:
        self._path = path
        self._name = name
        self._space = space
        self._read = read
        self._errands = Errands("the mirror of the Optuna study")
        self._running: dict[str, tuple[int, int]] = {}
        """Of each trial that runs: Optuna's number, and how many ticks it has."""
        self._ended: set[str] = set()
        self._errands.put(self._make)

    def begin(self, trial: Trial) -> None:
        if trial.role != "candidate":
            return
        made, num_ticks = frozen(trial, self._space), len(trial.ticks)
        self._errands.put(lambda: self._begin(trial.id, made, num_ticks))

    def tick(self, trial: Trial, metrics: Mapping[str, float]) -> None:
        tick, score = int(metrics["tick"]), float(metrics["score"])
        self._errands.put(lambda: self._tick(trial.id, tick, score))

    def end(self, trial: Trial) -> None:
        told, attributes = outcome(trial), _attributes(trial)
        self._errands.put(lambda: self._end(trial.id, *told, attributes))

    def close(self) -> None:
        """Write what is left."""
        self._errands.close(_CLOSE_SECONDS)

    def _make(self) -> None:
        """Make the file from the ledger, beside the old one, and put it in its place."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        beside = self._path.with_name(f"{self._path.name}.tmp")
        for stale in (beside, *self._path.parent.glob(f"{self._path.name}*.lock*")):
            stale.unlink(missing_ok=True)  # of a process that was killed
        self._open(beside)
        self._running.clear()
        self._ended.clear()
        for trial in contenders(self._read()):
            self._add(trial.id, frozen(trial, self._space), len(trial.ticks))
        os.replace(beside, self._path)
        self._open(self._path)

    def _open(self, path: Path) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._storage = optuna.storages.JournalStorage(JournalFileBackend(str(path)))
        optuna.create_study(
            storage=self._storage,
            study_name=self._name,
            direction="maximize",
            load_if_exists=True,
        )
        self._study = self._storage.get_study_id_from_name(self._name)

    def _add(self, trial_id: str, made: FrozenTrial, num_ticks: int) -> None:
        number = self._storage.create_new_trial(self._study, made)
        if made.state == TrialState.RUNNING:
            self._running[trial_id] = (number, num_ticks)
        else:
            self._ended.add(trial_id)

    def _begin(self, trial_id: str, made: FrozenTrial, num_ticks: int) -> None:
        if trial_id in self._ended or self._running.get(trial_id, (0, num_ticks))[1] != num_ticks:
            self._make()  # opened again, or ticks were taken back: Optuna cannot forget
        elif trial_id not in self._running:
            self._add(trial_id, made, num_ticks)

    def _tick(self, trial_id: str, tick: int, score: float) -> None:
        if trial_id in self._running:
            number, _ = self._running[trial_id]
            self._storage.set_trial_intermediate_value(number, tick, score)
            self._running[trial_id] = (number, tick)

    def _end(
        self, trial_id: str, state: TrialState, value: float | None, attributes: dict[str, str]
    ) -> None:
        if trial_id not in self._running:  # the file was made after it had ended
            return
        number, _ = self._running.pop(trial_id)
        self._ended.add(trial_id)
        for name in ("state", "reason"):
            self._storage.set_trial_user_attr(number, name, attributes[name])
        self._storage.set_trial_state_values(number, state, None if value is None else [value])
