"""A searching stage = one Tuner. A trial trains inside its Tune process, or as a Ray Train run.

``aiornot tune fast --only explore`` runs one of them.
"""

import dataclasses
import re
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import ray.tune

from aiornot import storage
from aiornot.config import WorkError
from aiornot.data import copies
from aiornot.ray_session import HEAD, beside_me
from aiornot.training import ray_worker
from aiornot.tuning import retention
from aiornot.tuning.ledger import Ledger, Trial
from aiornot.tuning.ray_machines import machines
from aiornot.tuning.ray_search import CooperativeRungs, Rungs, Suggestions, plan_of
from aiornot.tuning.record import Record
from aiornot.tuning.space import Stage

MAX_EQUAL_ERRORS = 3
"""Trials in a row that may fail with one and the same traceback before the stage is stopped."""

ON_THE_HEAD = {HEAD: 0.001}
"""Where the driver of a Ray Train run waits: beside ours, with which it would die. Its workers have
the cores."""

OUTSIDE = ("No space left on device", "Disk quota exceeded", storage.FAILED)
"""What an error says that is the disk's or the store's and no trial's; every library words a full
disk like the system."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Terms:
    """How the trials of a stage run here; nothing of it changes what is searched."""

    num_workers: int = 1
    """Ranks of a trial that is a Ray Train run."""
    tick_seconds: float | None = None
    """A process that needs longer for a tick is ended, and its trial started again."""
    may_go_on: Callable[[], bool] = lambda: True
    """Asked again and again; False ends the stage and those of its trials that run."""


def search(stage: Stage, record: Record, ledger: Ledger, *, data: Path, terms: Terms) -> None:
    """Run the trials of a stage that are missing in its ledger.

    Needs a connection to Ray. Returns early when it is interrupted (Ctrl-C) or may not go on; the
    ledger tells.

    Raises:
        WorkError: The disk is full, or several trials in a row failed in the same way.
    """
    trials = ledger.read()
    for trial in trials:
        if trial.state == "running":
            ledger.rewind(trial)
    plan = plan_of(stage, record)
    scheduler, stops = _scheduler(stage, trials, plan.apart())
    for trial in trials:
        if trial.state == "running" and trial.id in scheduler.stopped:
            ledger.end(trial)
    job = {**copies.told(data), "tick_seconds": terms.tick_seconds, "stops": stops}
    suggestions = Suggestions(plan, ledger=ledger, trials=trials, job=job)
    missing = plan.num_trials - sum(trial.state != "running" for trial in trials)
    if missing > 0:
        driver = _Driver(suggestions, ledger, scheduler, terms.may_go_on)
        _fit(stage, missing, suggestions, scheduler, driver, terms)
        driver.close()


def _scheduler(stage: Stage, trials: list[Trial], apart: list[str]) -> tuple[Rungs, Any]:
    """Return the scheduler, and the board on which it stops trials, None where Tune stops them."""
    if not stage.nested():
        return Rungs(stage.budget, trials=trials, apart=apart), None
    placed = ray_worker.Stops.options(scheduling_strategy=beside_me())  # type: ignore[attr-defined]
    stops = placed.remote()
    stop = stops.add.remote
    return CooperativeRungs(stage.budget, trials=trials, apart=apart, stop=stop), stops


def _fit(
    stage: Stage,
    num_samples: int,
    suggestions: Suggestions,
    scheduler: Rungs,
    driver: "_Driver",
    terms: Terms,
) -> None:
    nested = stage.nested()
    trainable = _as_ray_train_run(terms.num_workers) if nested else _in_process()
    with tempfile.TemporaryDirectory(prefix="aiornot-tune-") as scratch:
        tuner = ray.tune.Tuner(
            trainable,
            tune_config=ray.tune.TuneConfig(
                num_samples=num_samples,
                max_concurrent_trials=machines(terms.num_workers).concurrent(stage),
                search_alg=suggestions,
                scheduler=scheduler,
                # .1 s per further trial instead of a new process; a nested run would hang.
                reuse_actors=not nested,
                trial_dirname_creator=lambda trial: str(trial.trial_id),
            ),
            run_config=ray.tune.RunConfig(
                name=stage.name,
                storage_path=scratch,  # Ray's own files; the ledger is the memory
                verbose=0,
                callbacks=[driver],
                stop=_Halt(driver),
                # Of processes that die. An exception is reported by the trial, and not retried.
                failure_config=ray.tune.FailureConfig(max_failures=ray_worker.MAX_DEATHS),
            ),
        )
        try:
            tuner.fit()
        except Exception as error:
            if driver.halted:  # Tune wraps what a callback raises
                return
            raise error


def _in_process() -> Any:
    share = _share()
    num_threads = int(share["CPU"])

    def train_one(config: dict[str, Any]) -> None:
        with _errors_reported():
            ray_worker.train_in_process(
                config["job"], num_threads=num_threads, tell=ray.tune.report
            )

    return ray.tune.with_resources(train_one, share)


def _as_ray_train_run(num_workers: int) -> Any:
    share = _share()
    cpus, use_gpu = int(share["CPU"]), "GPU" in share

    def train_one(config: dict[str, Any]) -> None:
        with _errors_reported():
            ray_worker.train_nested(
                config["job"], num_workers=num_workers, cpus_per_worker=cpus, use_gpu=use_gpu
            )

    # It waits for its workers, and must not take the core that one of them needs. Not nothing: Tune
    # refuses an empty request. It runs on the head, beside the driver with which it would die.
    return ray.tune.with_resources(train_one, ON_THE_HEAD)


@contextmanager
def _errors_reported() -> Iterator[None]:
    """Report an exception as the trial's last word: raised, Tune would start the trial again.

    It would do so from the same checkpoint, to meet the same exception.
    """
    try:
        yield
    except Exception as error:
        ray.tune.report(
            {
                "score": 0.0,
                "tick": 0,  # asked for by Tune and by the scheduler
                "error": ray_worker.what_happened(error),
                "traceback": traceback.format_exc(),
            }
        )


def _share() -> dict[str, float]:
    """Return the resources of one worker: a GPU with its share of the cores, or one core."""
    found = machines(num_workers=1)
    return {"CPU": float(found.cpus_per_gpu()), "GPU": 1.0} if found.num_gpus else {"CPU": 1.0}


class _Halt(ray.tune.Stopper):  # type: ignore[misc]
    """Ends the stage when its driver says so."""

    def __init__(self, driver: "_Driver") -> None:
        self._driver = driver

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._driver.is_over()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles it; there is nothing to restore


class _Driver(ray.tune.Callback):  # type: ignore[misc]
    """Carries what Tune reports into the ledger, and the ledger's ends to the searcher."""

    def __init__(
        self,
        suggestions: Suggestions,
        ledger: Ledger,
        scheduler: Rungs,
        may_go_on: Callable[[], bool],
    ) -> None:
        self._suggestions = suggestions
        self._ledger = ledger
        self._scheduler = scheduler
        self._may_go_on = may_go_on
        self._errors: dict[str, tuple[str, str]] = {}
        """Error and traceback of trials that reported one, until they end."""
        self._failed: list[tuple[Trial, str]] = []
        """The latest failures in a row, each with what tells it from another."""
        self.halted = ""
        """Why the stage was stopped, if it was."""

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles callbacks; there is nothing here to restore

    def is_over(self) -> bool:
        return bool(self.halted) or not self._may_go_on()

    def close(self) -> None:
        """After the Tuner: give up what it left running, or say why the stage was stopped."""
        if self.halted:
            raise WorkError(self.halted)
        if not self._may_go_on():
            for trial in self._suggestions.trials.values():
                if trial.state == "running" and trial.ticks:
                    self._ledger.end(trial, stopped="the budget of the stage was spent")

    def _trial(self, trial: Any) -> Trial:
        return self._suggestions.trials[trial.config["trial"]]

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        ours = self._trial(trial)
        if "error" in result:
            self._errors[ours.id] = (result["error"], result["traceback"])
            return
        # It lives: deaths count only until the next tick, or a week of work would die of three.
        trial.run_metadata.num_failures = 0
        if int(result["tick"]) <= self._scheduler.stopped.get(ours.id, int(result["tick"])):
            self._guarded(lambda: self._ledger.tick(ours, own_metrics(result)))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        ours = self._trial(trial)
        error, trace = self._errors.pop(ours.id, ("", ""))
        self._end(ours, error, trace)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._end(self._trial(trial), ray_worker.what_happened(trial.get_error()), "")

    def _end(self, trial: Trial, error: str, trace: str) -> None:
        if self.halted:
            return
        if any(text in error or text in trace for text in OUTSIDE):
            self._halt(to_be_mended(error))
            return
        self._guarded(lambda: self._record_end(trial, error, trace))
        self._suggestions.tell(trial)
        self._count(trial, _without_numbers(trace or error))

    def _record_end(self, trial: Trial, error: str, trace: str) -> None:
        self._ledger.end(trial, error=error, traceback=trace)
        trials = list(self._suggestions.trials.values())
        retention.tidy(self._ledger, trials, trial, rungs=list(self._scheduler.rungs()))

    def _count(self, trial: Trial, error: str) -> None:
        """Stop the stage when its latest trials all failed in the same way."""
        if not error or any(other != error for _, other in self._failed):
            self._failed.clear()
        if not error:
            return
        self._failed.append((trial, error))
        if len(self._failed) == MAX_EQUAL_ERRORS:
            for failed, _ in self._failed:
                self._ledger.reopen(failed)
            self._halt(
                f"{MAX_EQUAL_ERRORS} trials in a row failed in the same way: {trial.reason} "
                f"('aiornot show' has the traceback); mend that, and the same command tries them "
                "again"
            )

    def _guarded(self, write: Callable[[], None]) -> None:
        """Write to the ledger; a full disk ends the stage, and not Tune in mid-air."""
        try:
            write()
        except storage.StoreError as error:  # which says what to do
            self._halt(str(error))
        except OSError as error:
            self._halt(
                f"{self._ledger.root} cannot be written ({error}); mend that, and the same "
                "command goes on"
            )

    def _halt(self, why: str) -> None:
        self.halted = self.halted or f"stage {self._suggestions.stage!r} was stopped: {why}"


def to_be_mended(error: str) -> str:
    """Return what happened with what to do; a store says so itself."""
    if storage.FAILED in error:
        return error
    return f"{error}: make room, and the same command goes on"


def _without_numbers(text: str) -> str:
    """Return what two equal failures share: addresses, ids and sizes left out."""
    return re.sub(r"0x[0-9a-f]+|\b[0-9a-f]{16,}\b|\d+", "#", text)


OWN_KEYS = (
    *("tick", "epoch", "samples", "lr", "score"),
    *("best_tick", "diverged", "finished", "seconds"),
)
"""What the loop reports beside ``train/...``, ``val/...`` and ``device/...``."""


def own_metrics(result: Mapping[str, Any]) -> dict[str, Any]:
    """Keep what the loop reported; Tune adds a dozen values of its own."""
    return {
        key: value
        for key, value in result.items()
        if key in (*OWN_KEYS, "effective") or key.startswith(("train/", "val/", "device/"))
    }
