"""A stage that searches nothing: selected configurations again, each as one Ray Train run.

``aiornot tune fast`` runs its ``full`` and ``final`` stages through this room, one run after the
other, on all of the workers asked for.
"""

import queue
import threading
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import ray
import ray.exceptions
import ray.train
from ray.util.queue import Queue

from aiornot.training import ray_worker
from aiornot.tuning.ledger import Ledger, Trial
from aiornot.tuning.ray_tuner import what_happened
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
) -> None:
    """Run the trials of a stage that are missing in its ledger. Needs a connection to Ray."""
    origins = {trial.id: trial for trial in parents}
    known = {trial.number: trial for trial in ledger.read()}
    for number, (parent_id, seed) in enumerate(product(record["selected"], stage.seeds)):
        trial = known.get(number) or _repeat(stage, number, origins[parent_id], seed)
        if trial.state == "running":
            ledger.rewind(trial)
            _run(trial, ledger, str(data.resolve()), num_workers)


def _repeat(stage: Stage, number: int, parent: Trial, seed: int) -> Trial:
    config = configure(stage, {}, base=parent.config, seed=seed)
    return Trial(
        id=f"{stage.name}-{number:03d}",
        number=number,
        origin=f"from {parent.id}",
        params=parent.params,
        config=config.to_dict(),
    )


def _run(trial: Trial, ledger: Ledger, data: str, num_workers: int) -> None:
    ledger.begin(trial)
    reports = Queue(actor_options={"num_cpus": 0})
    ended = threading.Event()
    follower = threading.Thread(target=_follow, args=(reports, trial, ledger, ended))
    follower.start()
    error = ""
    cpus, gpus = (int(ray.cluster_resources().get(name, 0)) for name in ("CPU", "GPU"))
    try:
        ray_worker.train_run(
            {"config": trial.config, "data": data, "root": ledger.trial_folder(trial.id)},
            name=trial.id,
            num_workers=num_workers,
            # Nothing else runs meanwhile: the workers share all that there is.
            cpus_per_worker=max(1, cpus // (gpus or num_workers)),
            use_gpu=gpus > 0,
            queue=reports,
        )
    except (ray.train.TrainingFailedError, ray.exceptions.RayError) as failure:
        error = what_happened(failure)
    finally:
        ended.set()
        follower.join()
        reports.shutdown()
    ledger.end(trial, error=error)


def _follow(reports: Queue, trial: Trial, ledger: Ledger, ended: threading.Event) -> None:
    """Write the reports of a Ray Train run into the ledger as they come."""
    while True:
        last_look = ended.is_set()  # read before the queue: what came first is still taken
        try:
            ledger.tick(trial, reports.get(timeout=0.0 if last_look else 0.5))
        except queue.Empty:
            if last_look:
                return
