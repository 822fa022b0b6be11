"""One trial under Ray: inside a Tune trial's process, or as the workers of a Ray Train run."""

import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.queue import Queue

from aiornot.training import job as training
from aiornot.training.job import Tell


def train_in_process(job: dict[str, Any], *, num_threads: int, tell: Tell) -> None:
    """Train a job in this process, on its GPU if Ray gave it one.

    Args:
        job: ``config``, ``data`` (path) and ``root`` (checkpoint folder).
        num_threads: CPU threads this trial may use.
        tell: Receives the metrics of each tick; it may not return when the trial is stopped.
    """
    torch.set_num_threads(num_threads)
    device = torch.device("cuda" if ray.get_gpu_ids() else "cpu")
    try:
        _train(job, device, tell)
    finally:
        # The process is reused for the next trial: give back what the allocator caches.
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _train(job: dict[str, Any], device: torch.device, tell: Tell) -> None:
    training.run(job["config"], data=Path(job["data"]), device=device, root=job["root"], tell=tell)


def _work(job: dict[str, Any]) -> None:
    """The function of every Ray Train worker."""
    torch.set_num_threads(int(job["num_threads"]))
    _train(job, ray.train.torch.get_device(), ray.train.report)


class _Forward(ray.train.UserCallback):  # type: ignore[misc]
    """Pass rank 0's metrics from the controller on to the driver, as they come."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def after_report(
        self, run_context: object, metrics: list[dict[str, float]], checkpoint: object
    ) -> None:
        self._queue.put(metrics[0])


@contextmanager
def _own_interrupts() -> Iterator[None]:
    """Make Ctrl-C a KeyboardInterrupt: Ray Train leaves a handler behind that exits with 0."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


def train_run(
    job: dict[str, Any],
    *,
    name: str,
    num_workers: int,
    cpus_per_worker: int,
    use_gpu: bool,
    queue: Queue,
) -> None:
    """Train a job as one Ray Train run (``TorchTrainer``, Train V2) and wait for its end.

    A lost worker is started again and goes on from the newest checkpoint.

    Args:
        job: As for ``train_in_process``.
        name: Of the run.
        num_workers: Ranks; DDP where there is more than one.
        cpus_per_worker: Cores, and CPU threads, of each.
        use_gpu: One GPU per worker, with NCCL; else gloo on CPUs.
        queue: Receives the metrics of each tick.

    Raises:
        ray.train.TrainingFailedError: It failed more often than it may.
    """
    resources = {"CPU": float(cpus_per_worker)} | ({"GPU": 1.0} if use_gpu else {})
    with tempfile.TemporaryDirectory(prefix="aiornot-train-") as scratch, _own_interrupts():
        TorchTrainer(
            _work,
            train_loop_config=job | {"num_threads": cpus_per_worker},
            torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
            scaling_config=ray.train.ScalingConfig(
                num_workers=num_workers, use_gpu=use_gpu, resources_per_worker=resources
            ),
            run_config=ray.train.RunConfig(
                name=name,
                storage_path=scratch,  # Ray's own files; ours are in the trial's folder
                callbacks=[_Forward(queue)],
                # Without a limit on the controller a worker group that cannot start is a hang.
                failure_config=ray.train.FailureConfig(max_failures=2, controller_failure_limit=3),
                logging_config=ray.train.LoggingConfig("ERROR"),
            ),
        ).fit()
