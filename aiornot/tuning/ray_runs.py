"""A stage that searches nothing: given configurations, each as one Ray Train run.

``aiornot tune fast`` runs its ``full`` and ``final`` stages through this room, as many runs side by
side as the cluster has room for.
"""

import queue
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
import ray.train
from ray.util.queue import Queue

from aiornot.config import WorkError
from aiornot.data import copies
from aiornot.training import checkpoints, ray_worker
from aiornot.tuning.ledger import Ledger, Trial, contenders, name_of
from aiornot.tuning.outlook import Machines
from aiornot.tuning.ray_machines import machines
from aiornot.tuning.ray_tuner import ON_THE_HEAD, OUTSIDE, to_be_mended
from aiornot.tuning.record import Record, num_before
from aiornot.tuning.space import Stage, configure


def train_selected(
    stage: Stage,
    record: Record,
    ledger: Ledger,
    *,
    parents: Sequence[Trial],
    data: Path,
    num_workers: int,
    tick_seconds: float | None,
) -> None:
    """Run the trials of a stage that are missing in its ledger. Needs a connection to Ray.

    Failed ones are tried again where no candidate finished: without one the chain cannot go on.

    Raises:
        WorkError: The disk is full; the trials at hand stay unfinished.
    """
    known = {trial.number: trial for trial in ledger.read()}
    if not any(trial.state == "finished" for trial in contenders([*known.values()])):
        for trial in known.values():
            if trial.state == "failed":
                ledger.reopen(trial)
    trials = [known.get(trial.number, trial) for trial in planned(stage, record, parents)]
    job = {**copies.told(data), "tick_seconds": tick_seconds}
    runs = _Runs(stage, ledger, job, machines(num_workers), num_trials=len(trials))
    with _interruptible():
        try:
            runs.finish([trial for trial in trials if trial.state == "running"])
        finally:
            runs.close()


@contextmanager
def _interruptible() -> Iterator[None]:
    """Make Ctrl-C a KeyboardInterrupt: Tune leaves a handler behind that only notes it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def planned(stage: Stage, record: Record, parents: Sequence[Trial]) -> Iterator[Trial]:
    """Yield the trials of a stage as they are before any of them begins.

    The selected configurations with each seed, then those that are there to be compared with.
    """
    origins = {trial.id: trial for trial in parents}
    for number, (parent_id, seed) in enumerate(product(record["selected"], stage.seeds)):
        parent = origins[parent_id]
        yield Trial(
            id=name_of(stage.name, number),
            number=number,
            origin=f"from {parent.id}",
            params=parent.params,
            config=configure(stage, {}, base=parent.config, seed=seed).to_dict(),
        )
    for number, fields in enumerate(record.get("beside", []), num_before(stage, record)):
        yield Trial(id=name_of(stage.name, number), number=number, **fields)


class _Runs:
    """The runs of a stage, of which several are under way; their reports come in one queue.

    Each is a Ray Train run with a driver of its own, a task: so all that is written is written by
    this thread, and a run can be given up at any time.
    """

    def __init__(
        self,
        stage: Stage,
        ledger: Ledger,
        job: Mapping[str, Any],
        machines: Machines,
        *,
        num_trials: int,
    ) -> None:
        self._ledger = ledger
        self._job = job
        self._trials: dict[str, Trial] = {}
        self._running: dict[ray.ObjectRef, Trial] = {}
        self._reports = ray_worker.queue_here()
        # By the trials of the stage and not by those left: a resumed run has as many threads.
        self._num_places = min(machines.concurrent(stage), num_trials)
        self._how = {
            "num_workers": machines.num_workers,
            "cpus_per_worker": machines.threads(stage, num_trials),
            "use_gpu": machines.num_gpus > 0,
        }

    def finish(self, trials: Sequence[Trial]) -> None:
        """Run trials to their ends."""
        waiting = list(trials)
        while waiting or self._running:
            while waiting and len(self._running) < self._num_places:
                self._begin(waiting.pop(0))
            self._follow(ray_worker.LOOK_SECONDS)
            for ended in ray.wait([*self._running], timeout=0)[0]:
                self._follow(0.0)  # what it reported before its end
                self._end(self._running.pop(ended), ended)

    def _begin(self, trial: Trial) -> None:
        self._ledger.rewind(trial)
        self._ledger.begin(trial)
        self._trials[trial.id] = trial
        job = {
            **self._job,
            "config": trial.config,
            "root": self._ledger.trial_folder(trial.id),
            "told": trial.tick,
        }
        task = ray.remote(_train).options(num_cpus=0, resources=ON_THE_HEAD, max_retries=0)
        self._running[task.remote(job, trial.id, self._how, self._reports)] = trial

    def _follow(self, seconds: float) -> None:
        """Write the reports that are there into the ledger, waiting a while for the first."""
        while True:
            try:
                name, metrics = self._reports.get(timeout=seconds)
            except queue.Empty:
                return
            self._ledger.tick(self._trials[name], metrics)
            seconds = 0.0

    def _end(self, trial: Trial, task: ray.ObjectRef) -> None:
        try:
            error = str(ray.get(task))
        except ray.exceptions.RayError as failure:  # the run's own process died
            error = ray_worker.what_happened(failure)
        if any(text in error for text in OUTSIDE):
            raise WorkError(f"{trial.id}: {to_be_mended(error)}")
        self._ledger.end(trial, error=error)
        if trial.state == "finished":
            checkpoints.keep_best(self._ledger.trial_folder(trial.id), int(trial.last("best_tick")))

    def close(self) -> None:
        """Give up what still runs: its trials stay unfinished, and their workers die with it."""
        for task in self._running:
            ray.cancel(task, force=True)
        self._reports.shutdown()


def _train(job: dict[str, Any], name: str, how: dict[str, Any], reports: Queue) -> str:
    """Wait for a Ray Train run; return what happened, nothing where all went well."""
    try:
        ray_worker.train_run(job, name=name, listener=ray_worker.forward(reports, name), **how)
    except (ray.train.TrainingFailedError, ray.exceptions.RayError) as failure:
        return ray_worker.what_happened(failure)
    return ""
