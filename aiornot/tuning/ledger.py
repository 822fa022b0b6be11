"""The ledger: one plain JSON file per trial, the only memory that resume needs.

``runs/<chain>/<stage>/trials/<id>.json`` is rewritten whole at each tick by the driver alone.
``aiornot show`` reads it.
"""

import dataclasses
import json
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from aiornot import storage
from aiornot.config import TICKS, InputError
from aiornot.training import checkpoints

State = Literal["running", "finished", "stopped", "diverged", "failed"]
"""running: begun and not ended. stopped: given up by ASHA. finished: reached its last tick."""

Role = Literal["candidate", "control", "baseline"]
"""candidate: may go on, and be delivered. The others are there to be compared with: a control is a
configuration that the stage before ranked lower, the baseline is that of the stage file."""


@dataclasses.dataclass(kw_only=True)
class Trial:
    """One configuration, trained."""

    id: str
    number: int
    state: State = "running"
    origin: str = "sampled"
    """``sampled``, ``first``, ``baseline``, or ``from <trial id>`` for a parent's configuration,
    ``control from <trial id>`` where that was not one of its best."""
    role: Role = "candidate"
    params: dict[str, Any]
    """What the searcher drew; a key that does not apply is still here."""
    config: dict[str, Any]
    """The whole TrainConfig that is trained."""
    ticks: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    reason: str = ""
    traceback: str = ""
    """Of a failed trial, where it was an exception."""
    effective: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What was really built, read back from it: learning rates, batch, strengths."""
    started: float = 0.0

    def last(self, name: str) -> float:
        """Return the newest value of a metric, NaN before the first tick."""
        return float(self.ticks[-1].get(name, math.nan)) if self.ticks else math.nan

    @property
    def tick(self) -> int:
        """The last tick that was reported, 0 before the first."""
        return int(self.ticks[-1]["tick"]) if self.ticks else 0

    @property
    def score(self) -> float:
        """Best validation AUROC so far, NaN before the first tick."""
        return self.last("score")

    @property
    def seconds(self) -> float:
        """Seconds of training that the ticks took, over all attempts."""
        return float(sum(tick["seconds"] for tick in self.ticks))

    def add_tick(self, metrics: dict[str, Any]) -> bool:
        """Append a report; one that is here already (a resumed trial repeats it) is ignored."""
        if int(metrics["tick"]) <= self.tick:
            return False
        self.ticks.append(metrics)
        return True


def contenders(trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials that may be chosen, without those that are there to be compared with."""
    return [trial for trial in trials if trial.role == "candidate"]


def name_of(stage: str, number: int) -> str:
    """Return the name of a trial of a stage."""
    return f"{stage}-{number:03d}"


class Observer(Protocol):
    """Told of every change after it is written, e.g. the console and W&B."""

    def begin(self, trial: Trial) -> None: ...
    def tick(self, trial: Trial, metrics: dict[str, Any]) -> None: ...
    def end(self, trial: Trial) -> None: ...


class Ledger:
    """The trials of one stage under ``root``, a local folder or ``s3://...``."""

    def __init__(self, root: str, *, observers: Sequence[Observer] = ()) -> None:
        self.root = root
        self._observers = list(observers)

    def observe(self, observer: Observer) -> None:
        """Tell one more of every change from now on."""
        self._observers.append(observer)

    def trial_folder(self, trial_id: str) -> str:
        """Where the checkpoints of a trial lie."""
        return storage.join(self.root, "checkpoints", trial_id)

    def rewind(self, trial: Trial) -> None:
        """Forget the ticks behind a trial's newest checkpoint: they will be trained again.

        Usually there are none, since a checkpoint is kept before its tick is reported.
        """
        kept = checkpoints.newest_tick(self.trial_folder(trial.id))
        trial.ticks = [tick for tick in trial.ticks if int(tick["tick"]) <= kept]

    def begin(self, trial: Trial) -> None:
        """Record a trial that starts, or goes on."""
        trial.started = trial.started or time.time()
        trial.reason = trial.traceback = ""
        self._write(trial)
        for observer in self._observers:
            observer.begin(trial)

    def tick(self, trial: Trial, metrics: Mapping[str, Any]) -> None:
        """Record a report; one that is here already is ignored.

        A number that is not finite is NaN from here on, since JSON has no word for it but null.
        """
        numbers = {key: metrics[key] for key in sorted(metrics) if key != "effective"}
        values = {key: _finite(value) for key, value in numbers.items()} | {"time": time.time()}
        if not trial.add_tick(values):
            return
        trial.effective = dict(metrics.get("effective") or trial.effective)
        self._write(trial)
        for observer in self._observers:
            observer.tick(trial, values)

    def end(self, trial: Trial, *, error: str = "", traceback: str = "", stopped: str = "") -> None:
        """Record how a trial ended; its last tick tells, unless it failed or was stopped.

        Args:
            trial: The trial.
            error: What happened, in a line.
            traceback: Where, if that is known.
            stopped: Why it was stopped, where that was not for its score.
        """
        trial.state, trial.reason = _end_of(trial, error)
        trial.traceback = traceback
        if stopped and trial.state == "stopped":
            trial.reason = f"{stopped}, at tick {trial.tick}"
        self._write(trial)
        for observer in self._observers:
            observer.end(trial)

    def reopen(self, trial: Trial) -> None:
        """Record that a failed trial is to be run again; its reason stays, for people to read."""
        trial.state = "running"
        self._write(trial)

    def _write(self, trial: Trial) -> None:
        values = dataclasses.asdict(trial)
        values["ticks"] = [_nan_to_null(tick) for tick in trial.ticks]
        path = storage.join(self.root, "trials", f"{trial.id}.json")
        storage.write_text(path, _dumps(values))

    def read(self) -> list[Trial]:
        """Return all trials in the order in which they were created."""
        paths = storage.list_files(storage.join(self.root, "trials"), suffix=".json")
        trials = [_read_trial(path) for path in paths]
        return sorted(trials, key=lambda trial: trial.number)

    def write_stage(self, stage: dict[str, Any]) -> None:
        storage.write_text(storage.join(self.root, "stage.json"), _dumps(stage))

    def read_stage(self) -> dict[str, Any] | None:
        """Return what ``stage.json`` says, None where the stage never started."""
        path = storage.join(self.root, "stage.json")
        if not storage.exists(path):
            return None
        return _loads(path, "begin again with --fresh")


def _end_of(trial: Trial, error: str) -> tuple[State, str]:
    if error:
        return "failed", error
    if trial.last("diverged") == 1.0:
        return "diverged", f"the loss was not finite at tick {trial.tick}"
    if trial.tick >= TICKS:
        return "finished", ""
    return "stopped", f"below the cut at tick {trial.tick}"


def _read_trial(path: str) -> Trial:
    values = _loads(path, "delete it to run the trial again")
    try:
        trial = Trial(**values)
    except TypeError as error:
        raise InputError(f"{path} is not a trial of this version: {error}") from None
    trial.ticks = [_null_to_nan(tick) for tick in trial.ticks]
    return trial


def _loads(path: str, mend: str) -> dict[str, Any]:
    try:
        values = json.loads(storage.read_text(path))
    except ValueError as error:  # not JSON, or not even text
        raise InputError(f"{path} is not valid JSON ({error}); restore it, or {mend}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path} is not valid JSON (no object); restore it, or {mend}")
    return values


def _dumps(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=1, default=_plain, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """Return a plain value for a numpy or torch scalar, and NaN for any infinity."""
    value = value.item() if hasattr(value, "item") else value
    return math.nan if isinstance(value, float) and not math.isfinite(value) else value


def _nan_to_null(tick: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in tick.items()}


def _null_to_nan(tick: dict[str, Any]) -> dict[str, Any]:
    return {k: math.nan if v is None else v for k, v in tick.items()}


def _plain(value: object) -> object:
    """Let numpy scalars through; anything else is a bug of ours."""
    item = getattr(value, "item", None)
    assert callable(item), f"not JSON: {value!r}"
    return item()
