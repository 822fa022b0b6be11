"""TensorBoard: an event file per trial, written from the ledger by the process that owns it.

``aiornot tune fast --tensorboard``, then ``tensorboard --logdir runs/fast/tensorboard``. The only
tensorboardX import: Ray Tune brings it along, and it writes without TensorBoard itself.
"""

import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from aiornot.config import InputError
from aiornot.training.errands import Errands
from aiornot.training.track import CLOSE_SECONDS, EFFECTIVE, Ended, Metrics
from aiornot.training.watch import EDGES, Histogram

NOT_DRAWN = ("tick", "time", EFFECTIVE)
"""A report's step, when it was made, and what is no curve."""


class EventFiles:
    """One folder per trial, for TensorBoard; nothing is begun before the first trial.

    Args:
        folder: What TensorBoard is to be pointed at.

    Raises:
        InputError: The package is not installed.
    """

    def __init__(self, folder: Path) -> None:
        if importlib.util.find_spec("tensorboardX") is None:
            raise InputError(
                "--tensorboard needs the package tensorboardX: pip install tensorboardX"
            )
        self._folder = folder
        self._errands = Errands("TensorBoard", at_end=self._close_all)
        self._files: dict[str, Any] = {}
        self._ended = Ended(folder)

    def lacks(self, run_id: str) -> bool:
        """Whether a run was never written to its end."""
        return run_id not in self._ended

    def start(
        self,
        run_id: str,
        *,
        name: str,
        group: str,
        tags: Iterable[str],
        config: Mapping[str, Any],
        job_type: str = "",
        ticks: Iterable[Metrics] = (),
    ) -> None:
        """Open a trial's folder; ``ticks`` are those from before a restart.

        What an earlier process left there, perhaps torn, is replaced by them.
        """
        plain = {k: v for k, v in config.items() if isinstance(v, str | bool | int | float)}
        earlier = [dict(metrics) for metrics in ticks]
        self._errands.put(lambda: self._open(run_id, plain, earlier))

    def tick(self, run_id: str, metrics: Metrics) -> None:
        values = dict(metrics)
        self._errands.put(lambda: _write(self._files[run_id], [values]))

    def end(self, run_id: str, summary: Metrics) -> None:
        self._errands.put(lambda: self._end(run_id))

    def close(self) -> str:
        """Write what is left; say how it is looked at."""
        self._errands.close(CLOSE_SECONDS)
        if not self._errands.has_begun:
            return ""
        return f"to see the curves: tensorboard --logdir {self._folder}"

    def _open(self, run_id: str, config: dict[str, Any], earlier: list[dict[str, Any]]) -> None:
        # Not its SummaryWriter: that has a queue and a thread, too, and is never forgotten.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import hparams

        folder = self._folder / run_id
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        file = self._files[run_id] = EventsWriter(str(folder / "events"))
        for summary in hparams(config, {"score": 0.0})[:2]:
            file.write_event(Event(summary=summary))
        _write(file, earlier)

    def _end(self, run_id: str) -> None:
        self._files.pop(run_id).close()
        self._ended.add(run_id)

    def _close_all(self) -> None:
        for file in self._files.values():
            file.close()


def _write(file: Any, reports: Iterable[Metrics]) -> None:
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.summary_pb2 import Summary

    for metrics in reports:
        event = Event(step=int(metrics["tick"]), summary=Summary(value=_values(metrics)))
        event.wall_time = float(metrics.get("time", 0.0))
        file.write_event(event)
    file.flush()


def _values(metrics: Metrics) -> Iterator[Any]:
    from tensorboardX.proto.summary_pb2 import Summary

    for name, value in metrics.items():
        if isinstance(value, Histogram):
            yield Summary.Value(tag=name, histo=_histogram(value))
        elif name not in NOT_DRAWN:
            yield Summary.Value(tag=name, simple_value=float(value))


def _histogram(found: Histogram) -> Any:
    from tensorboardX.proto.summary_pb2 import HistogramProto

    middles = [(low + high) / 2 for low, high in zip(EDGES, EDGES[1:], strict=False)]
    moments = [sum(m**k * n for m, n in zip(middles, found.counts, strict=True)) for k in (1, 2)]
    return HistogramProto(
        min=EDGES[0],
        max=EDGES[-1],
        num=sum(found.counts),
        sum=moments[0],
        sum_squares=moments[1],
        bucket_limit=EDGES[1:],
        bucket=found.counts,
    )
