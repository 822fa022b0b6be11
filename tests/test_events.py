"""TensorBoard: each event file holds the ledger's curve, once, also after a restart."""

import math
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from aiornot.config import InputError
from aiornot.training import watch
from aiornot.training.events import EventFiles

RUN = "explore-000-ab"
CONFIG = {"lr": 1e-3, "clip_grad": None, "hflip": True, "model": "a.b", "effective": {"x": 1}}


def events(folder: Path) -> list[Event]:
    """Read the one event file of a folder: TFRecords, each with two checksums."""
    (path,) = folder.iterdir()
    data, found = path.read_bytes(), []
    while data:
        header, (length,) = data[:8], struct.unpack("<Q", data[:8])
        text = data[12 : 12 + length]
        sums = [struct.pack("<I", masked_crc32c(part)) for part in (header, text)]
        assert sums == [data[8:12], data[12 + length : 16 + length]]
        data = data[16 + length :]
        found.append(Event.FromString(text))
    return found


def curves(folder: Path) -> list[dict[str, float]]:
    """Return each report of a run's folder, with its step and its time."""
    found = []
    for event in events(folder):
        values = {value.tag: value.simple_value for value in event.summary.value}
        if event.step:
            found.append(values | {"tick": event.step, "time": event.wall_time})
    return found


def report(tick: int, **changes: object) -> dict:
    return {"tick": tick, "score": 1 / (1 + tick), "val/auroc": tick / 7, "time": 1.7e9 + tick} | (
        changes
    )


def as_kept(reports) -> list[dict[str, float]]:
    """TensorBoard keeps single precision, of all but the time."""
    return [
        {k: v if k == "time" else float(np.float32(v)) for k, v in one.items()} for one in reports
    ]


def start(files: EventFiles, run_id: str = RUN, ticks=()) -> None:
    files.start(run_id, name="n", group="g", tags=["full"], config=CONFIG, ticks=ticks)


def test_every_value_is_there_and_trials_lie_side_by_side(tmp_path):
    files = EventFiles(tmp_path / "tensorboard")
    given = {RUN: [], "explore-001-ab": []}
    for run_id in given:
        start(files, run_id)
    for tick in range(1, 17):
        for run_id, reports in given.items():
            reports.append(report(tick, score=tick / 16 + len(run_id)))
            files.tick(run_id, reports[-1] | {"effective": {"lr": 1}})
    files.end(RUN, {"state": "finished"})
    assert files.close() == f"to see the curves: tensorboard --logdir {tmp_path}/tensorboard"
    for run_id, reports in given.items():
        assert curves(tmp_path / "tensorboard" / run_id) == as_kept(reports)
    named = b"".join(event.SerializeToString() for event in events(tmp_path / "tensorboard" / RUN))
    assert b"hflip" in named and b"a.b" in named and b"effective" not in named


def test_after_a_kill_the_folder_holds_every_tick_once(tmp_path):
    ticks = [report(tick) for tick in range(1, 9)]
    before = EventFiles(tmp_path)
    start(before)
    for values in ticks[:3]:
        before.tick(RUN, values)
    before.close()
    (path,) = (tmp_path / RUN).iterdir()
    path.write_bytes(path.read_bytes()[:-7])  # torn
    path.rename(path.with_name("events.out.tfevents.1600000000.elsewhere"))
    after = EventFiles(tmp_path)
    start(after, ticks=ticks[:5])
    for values in ticks[5:]:
        after.tick(RUN, values)
    after.close()
    assert curves(tmp_path / RUN) == as_kept(ticks)


def test_numbers_that_are_not_finite_and_histograms_are_kept(tmp_path):
    seen = watch.Histogram(counts=list(range(watch.BINS)), zeros=5, beyond=1)
    files = EventFiles(tmp_path)
    start(files)
    files.tick(RUN, report(1, score=math.nan, **{"probe/grad/fc": seen}))
    files.close()
    (event,) = [event for event in events(tmp_path / RUN) if event.step]
    values = {value.tag: value for value in event.summary.value}
    assert math.isnan(values["score"].simple_value)
    drawn = values["probe/grad/fc"].histo
    assert list(drawn.bucket) == seen.counts and list(drawn.bucket_limit) == watch.EDGES[1:]


def test_nothing_is_written_and_nothing_said_where_nothing_ran(tmp_path):
    assert EventFiles(tmp_path / "tensorboard").close() == ""
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_full_is_one_warning(tmp_path, caplog):
    (tmp_path / RUN).write_text("in the way")
    files = EventFiles(tmp_path)
    start(files)
    files.tick(RUN, report(1))
    files.close()
    assert len(caplog.records) == 1 and "TensorBoard is switched off" in caplog.text


def test_without_the_package_the_option_is_refused_in_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(InputError, match="pip install"):
        EventFiles(tmp_path)


def test_what_was_written_to_its_end_is_known_the_next_time(tmp_path):
    files = EventFiles(tmp_path)
    for run_id in (RUN, "explore-001-ab"):
        start(files, run_id)
    files.end(RUN, {"state": "finished"})
    files.close()
    assert not files.lacks(RUN) and files.lacks("explore-001-ab")
    assert not EventFiles(tmp_path).lacks(RUN)
