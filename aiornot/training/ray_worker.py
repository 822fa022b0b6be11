"""One trial under Ray: inside a Tune trial's process, or as the workers of a Ray Train run."""

import faulthandler
import queue
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import ray
import ray.train
import ray.train.collective  # not brought along by ray.train
import ray.train.torch
import ray.tune
import torch
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.queue import Queue

from aiornot.data import copies
from aiornot.ray_session import beside_me
from aiornot.training import job as training
from aiornot.training.job import Tell

LOOK_SECONDS = 0.5
"""How often it is looked whether a run has ended."""

MAX_DEATHS = 2
"""Times in a row, without a tick between, that what died is started again."""


@ray.remote(num_cpus=0)
class Stops:
    """The trials that the scheduler has given up: a board that their workers look at."""

    def __init__(self) -> None:
        self._trials: set[str] = set()

    def add(self, trial: str) -> None:
        self._trials.add(trial)

    def has(self, trial: str) -> bool:
        return trial in self._trials


class _GivenUp(Exception):
    """The scheduler has stopped this trial; its workers leave by themselves."""


def train_in_process(job: dict[str, Any], *, num_threads: int, tell: Tell) -> None:
    """Train a job in this process, on its GPU if Ray gave it one.

    Args:
        job: ``config``, ``data`` and ``version`` (``copies.told``), ``root`` (checkpoint folder)
            and ``told``, the last tick that the ledger holds; ``tick_seconds`` limits the time of
            a tick.
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
    data = copies.here(job["data"], job["version"])
    with _time_limit(job.get("tick_seconds")) as not_counted:

        def told(metrics: dict[str, float]) -> None:
            # Whoever listens may be slow, or be held with Ctrl-Z: that is no hanging trial.
            with not_counted():
                tell(metrics)

        training.run(
            job["config"],
            data=data,
            device=device,
            root=job["root"],
            tell=told,
            told=job["told"],
        )


@contextmanager
def _time_limit(seconds: float | None) -> Iterator[Callable[[], Any]]:
    """End this process if a tick takes longer; gives a context whose time does not count.

    A thread in C does it, which neither a deadlock nor a call that holds the interpreter keeps
    from it; it also says on stderr, which is Ray's log of the worker, where every thread stood.
    """

    def start() -> None:
        if seconds is not None:
            faulthandler.dump_traceback_later(seconds, exit=True)

    @contextmanager
    def not_counted() -> Iterator[None]:
        faulthandler.cancel_dump_traceback_later()
        try:
            yield
        finally:
            start()

    start()
    try:
        yield not_counted
    finally:
        faulthandler.cancel_dump_traceback_later()


def _work(job: dict[str, Any]) -> None:
    """The function of every Ray Train worker."""
    torch.set_num_threads(int(job["num_threads"]))
    with suppress(_GivenUp):
        _train(job, ray.train.torch.get_device(), _teller(job))


def _teller(job: dict[str, Any]) -> Tell:
    stops = job.get("stops")

    def tell(metrics: dict[str, float]) -> None:
        ray.train.report(metrics)
        if stops is not None and _is_stopped(stops, job["trial"]):
            raise _GivenUp

    return tell


def _is_stopped(stops: Any, trial: str) -> bool:
    """Ask the board once for all ranks: all must leave at the same tick."""
    answer = None
    if ray.train.get_context().get_world_rank() == 0:
        answer = ray.get(stops.has.remote(trial))
    return bool(ray.train.collective.broadcast_from_rank_zero(answer))


class _Forward(ray.train.UserCallback):  # type: ignore[misc]
    """Pass rank 0's metrics from the controller on to the driver, as they come."""

    def __init__(self, reports: Queue, name: str) -> None:
        self._queue = reports
        self._name = name

    def after_report(
        self, run_context: object, metrics: list[dict[str, float]], checkpoint: object
    ) -> None:
        self._queue.put((self._name, metrics[0]))


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
    listener: ray.train.UserCallback,
) -> None:
    """Train a job as one Ray Train run (``TorchTrainer``, Train V2) and wait for its end.

    A lost worker is started again and goes on from the newest checkpoint.

    Args:
        job: As for ``train_in_process``; with ``trial`` and ``stops``, its workers leave when that
            board holds the trial.
        name: Of the run.
        num_workers: Ranks; DDP where there is more than one.
        cpus_per_worker: Cores, and CPU threads, of each.
        use_gpu: One GPU per worker, with NCCL; else gloo on CPUs.
        listener: Told the metrics of each tick, in the process of Ray Train's controller.

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
                callbacks=[listener],
                # Without a limit on the controller a worker group that cannot start is a hang.
                failure_config=ray.train.FailureConfig(
                    max_failures=MAX_DEATHS, controller_failure_limit=3
                ),
                logging_config=ray.train.LoggingConfig("ERROR"),
            ),
        ).fit()


def queue_here() -> Queue:
    """Return a queue of reports that no other machine takes along when it dies."""
    return Queue(actor_options={"num_cpus": 0, "scheduling_strategy": beside_me()})


def forward(reports: Queue, name: str) -> ray.train.UserCallback:
    """Return a listener that puts the name and the metrics of each tick into a queue."""
    return _Forward(reports, name)


def train_nested(
    job: dict[str, Any], *, num_workers: int, cpus_per_worker: int, use_gpu: bool
) -> None:
    """Train a job as a Ray Train run that reports to the Tune trial from which this is called."""
    # Tune has a callback for this, whose queue may lie on a worker, and be lost with it.
    reports = queue_here()
    try:
        with ThreadPoolExecutor(max_workers=1) as pool:
            run = pool.submit(
                train_run,
                job,
                name=job["trial"],
                num_workers=num_workers,
                cpus_per_worker=cpus_per_worker,
                use_gpu=use_gpu,
                listener=forward(reports, job["trial"]),
            )
            for _, metrics in _until(run.done, reports):
                ray.tune.report(metrics)
            run.result()
    finally:
        reports.shutdown()


def _until(done: Callable[[], bool], reports: Queue) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield reports as they come, the last ones after the end of what sends them."""
    while not done() or not reports.empty():
        with suppress(queue.Empty):
            yield reports.get(timeout=LOOK_SECONDS)


def what_happened(error: BaseException | None) -> str:
    """Return the last line of a traceback, remote or not, which says what happened."""
    if error is None:
        return "the trial ended with an error that Ray did not keep"
    cause = getattr(error, "cause", None) or error
    lines: Sequence[str] = [line for line in str(cause).strip().splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[-1].strip()}" if lines else type(cause).__name__
