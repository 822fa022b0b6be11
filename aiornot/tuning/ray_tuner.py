"""A searching stage = one Tuner; each trial trains inside its Tune process, which is reused.

``aiornot tune fast --only explore`` runs one of them.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
import ray.tune

from aiornot.training import ray_worker
from aiornot.tuning.ledger import Ledger, Trial
from aiornot.tuning.ray_search import Plan, Rungs, Suggestions
from aiornot.tuning.record import Record, space_of
from aiornot.tuning.space import Stage

MAX_RETRIES = 2
"""Times that a trial whose process died is started again, from its newest checkpoint."""


def search(stage: Stage, record: Record, ledger: Ledger, *, data: Path) -> None:
    """Run the trials of a stage that are missing in its ledger.

    Needs a connection to Ray. Returns early when it is interrupted (Ctrl-C); the ledger tells.
    """
    trials = ledger.read()
    for trial in trials:
        if trial.state == "running":
            ledger.rewind(trial)
    scheduler = Rungs(stage.budget, trials=trials)
    for trial in trials:
        if trial.state == "running" and trial.id in scheduler.stopped:
            ledger.end(trial)
    plan = Plan(
        stage=stage,
        space=space_of(record),
        first=record["first"],
        origins=record["origins"],
        base=record["base"],
        num_trials=record["num_trials"],
    )
    suggestions = Suggestions(plan, ledger=ledger, trials=trials, data=str(data.resolve()))
    missing = plan.num_trials - sum(trial.state != "running" for trial in trials)
    if missing > 0:
        _fit(stage.name, missing, suggestions, scheduler, _Driver(suggestions, ledger))


def _fit(
    name: str, num_samples: int, suggestions: Suggestions, scheduler: Rungs, driver: "_Driver"
) -> None:
    share = _share()
    num_threads = int(share["CPU"])

    def train_one(config: dict[str, Any]) -> None:
        ray_worker.train_in_process(config["job"], num_threads=num_threads, tell=ray.tune.report)

    with tempfile.TemporaryDirectory(prefix="aiornot-tune-") as scratch:
        ray.tune.Tuner(
            ray.tune.with_resources(train_one, share),
            tune_config=ray.tune.TuneConfig(
                num_samples=num_samples,
                max_concurrent_trials=num_devices(),
                search_alg=suggestions,
                scheduler=scheduler,
                reuse_actors=True,  # .1 s per further trial instead of a new process
                trial_dirname_creator=lambda trial: str(trial.trial_id),
            ),
            run_config=ray.tune.RunConfig(
                name=name,
                storage_path=scratch,  # Ray's own files; the ledger is the memory
                verbose=0,
                callbacks=[driver],
                failure_config=ray.tune.FailureConfig(max_failures=MAX_RETRIES),
            ),
        ).fit()


def _share() -> dict[str, float]:
    """Return the resources of one trial: a GPU with its share of the cores, or one core."""
    total = ray.cluster_resources()
    gpus, cpus = int(total.get("GPU", 0)), int(total.get("CPU", 1))
    return {"CPU": float(max(1, cpus // gpus)), "GPU": 1.0} if gpus else {"CPU": 1.0}


def num_devices() -> int:
    """Return how many workers the cluster holds: its GPUs, or its cores where it has none."""
    total = ray.cluster_resources()
    return int(total.get("GPU", 0)) or int(total.get("CPU", 1))


class _Driver(ray.tune.Callback):  # type: ignore[misc]
    """Carries what Tune reports into the ledger, and the ledger's ends to the searcher."""

    def __init__(self, suggestions: Suggestions, ledger: Ledger) -> None:
        self._suggestions = suggestions
        self._ledger = ledger

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles callbacks; there is nothing here to restore

    def _trial(self, trial: Any) -> Trial:
        return self._suggestions.trials[trial.config["trial"]]

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if "score" in result:
            self._ledger.tick(self._trial(trial), own_metrics(result))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._end(self._trial(trial), "")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._end(self._trial(trial), what_happened(trial.get_error()))

    def _end(self, trial: Trial, error: str) -> None:
        self._ledger.end(trial, error=error)
        self._suggestions.tell(trial)


OWN_KEYS = (
    *("tick", "epoch", "samples", "lr", "score"),
    *("best_tick", "diverged", "finished", "seconds"),
)
"""What the loop reports beside ``train/...`` and ``val/...``."""


def own_metrics(result: Mapping[str, Any]) -> dict[str, Any]:
    """Keep what the loop reported; Tune adds a dozen values of its own."""
    return {
        key: value
        for key, value in result.items()
        if key in OWN_KEYS or key.startswith(("train/", "val/"))
    }


def what_happened(error: BaseException | None) -> str:
    """Return the last line of a remote traceback, which says what happened."""
    if error is None:
        return "the trial ended with an error that Ray did not keep"
    cause = getattr(error, "cause", None) or error
    lines: Sequence[str] = [line for line in str(cause).strip().splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[-1].strip()}" if lines else type(cause).__name__
