"""A stage that searches nothing: selected configurations again, each as one Ray Train run.

``aiornot tune fast`` runs its ``full`` and ``final`` stages through this room, one run after the
other, on all of the workers asked for.
"""

import queue
import threading
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
import ray.train
from ray.util.queue import Queue

from aiornot.config import WorkError
from aiornot.training import checkpoints, ray_worker
from aiornot.tuning.ledger import Ledger, Trial
from aiornot.tuning.ray_tuner import FULL
from aiornot.tuning.record import Record
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

    Failed ones are tried again where none finished: without one the chain cannot go on.

    Raises:
        WorkError: The disk is full; the trial at hand stays unfinished.
    """
    origins = {trial.id: trial for trial in parents}
    known = {trial.number: trial for trial in ledger.read()}
    if not any(trial.state == "finished" for trial in known.values()):
        for trial in known.values():
            if trial.state == "failed":
                ledger.reopen(trial)
    for number, (parent_id, seed) in enumerate(product(record["selected"], stage.seeds)):
        trial = known.get(number) or _repeat(stage, number, origins[parent_id], seed)
        if trial.state == "running":
            ledger.rewind(trial)
            job = {
                "config": trial.config,
                "data": str(data.resolve()),
                "root": ledger.trial_folder(trial.id),
                "told": trial.tick,
                "tick_seconds": tick_seconds,
            }
            _run(trial, ledger, job, num_workers)


def _repeat(stage: Stage, number: int, parent: Trial, seed: int) -> Trial:
    config = configure(stage, {}, base=parent.config, seed=seed)
    return Trial(
        id=f"{stage.name}-{number:03d}",
        number=number,
        origin=f"from {parent.id}",
        params=parent.params,
        config=config.to_dict(),
    )


def _run(trial: Trial, ledger: Ledger, job: dict[str, Any], num_workers: int) -> None:
    ledger.begin(trial)
    reports = Queue(actor_options={"num_cpus": 0})
    ended = threading.Event()
    follower = threading.Thread(target=_follow, args=(reports, trial, ledger, ended))
    follower.start()
    error = ""
    cpus, gpus = (int(ray.cluster_resources().get(name, 0)) for name in ("CPU", "GPU"))
    try:
        ray_worker.train_run(
            job,
            name=trial.id,
            num_workers=num_workers,
            # Nothing else runs meanwhile: the workers share all that there is.
            cpus_per_worker=max(1, cpus // (gpus or num_workers)),
            use_gpu=gpus > 0,
            listener=ray_worker.forward(reports),
        )
    except (ray.train.TrainingFailedError, ray.exceptions.RayError) as failure:
        error = ray_worker.what_happened(failure)
    finally:
        ended.set()
        follower.join()
        reports.shutdown()
    if any(text in error for text in FULL):
        raise WorkError(f"{trial.id}: {error}: make room, and the same command goes on")
    ledger.end(trial, error=error)
    if trial.state == "finished":
        checkpoints.keep_best(ledger.trial_folder(trial.id), int(trial.last("best_tick")))


def _follow(reports: Queue, trial: Trial, ledger: Ledger, ended: threading.Event) -> None:
    """Write the reports of a Ray Train run into the ledger as they come."""
    while True:
        last_look = ended.is_set()  # read before the queue: what came first is still taken
        try:
            ledger.tick(trial, reports.get(timeout=0.0 if last_look else 0.5))
        except queue.Empty:
            if last_look:
                return
