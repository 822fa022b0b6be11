"""The ledger: what is written is read again, and nothing that is torn passes for a trial."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aiornot import storage
from aiornot.config import TICKS, InputError, TrainConfig
from aiornot.tuning.ledger import Ledger, Trial


def make(number=0, **changes) -> Trial:
    values = {
        "id": f"explore-{number:03d}",
        "number": number,
        "params": {"lr": 1e-3, "clip_grad": None, "random_resized_crop": True},
        "config": TrainConfig(lr=1e-3).to_dict(),
    }
    return Trial(**(values | changes))


def report(tick, **changes) -> dict:
    values = {"tick": tick, "score": 0.5 + tick / 100, "seconds": 2.0, "diverged": 0.0}
    return values | changes


def strict(path) -> dict:
    """Read a file as JSON that other programs read too: NaN and Infinity are not in it."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


@pytest.fixture
def ledger(tmp_path) -> Ledger:
    return Ledger(str(tmp_path / "runs" / "explore"))


def test_what_is_written_is_read(ledger):
    trial = make(origin="from parent-003")
    ledger.begin(trial)
    assert ledger.read() == [trial]
    for tick in (1, 2, 3):
        ledger.tick(trial, report(tick))
        assert ledger.read() == [trial]
    ledger.end(trial)
    (found,) = ledger.read()
    assert found == trial
    assert (found.tick, found.score, found.seconds) == (3, 0.53, 6.0)
    assert TrainConfig.from_dict(found.config) == TrainConfig(lr=1e-3)


def test_a_ledger_that_never_began_is_empty(ledger):
    assert ledger.read() == []
    assert ledger.read_stage() is None


def test_a_trial_before_its_first_tick_has_no_score(ledger):
    trial = make()
    assert trial.tick == 0 and trial.seconds == 0
    assert math.isnan(trial.score) and math.isnan(trial.last("val/auroc"))


def test_trials_are_read_in_the_order_of_their_numbers(ledger):
    for number in (1000, 2, 999, 10):
        ledger.begin(make(number))
    assert [trial.number for trial in ledger.read()] == [2, 10, 999, 1000]


def test_a_repeated_tick_is_ignored(ledger):
    trial = make()
    ledger.begin(trial)
    assert trial.add_tick(report(1)) and trial.add_tick(report(2))
    assert not trial.add_tick(report(2, score=0.9)) and not trial.add_tick(report(1, score=0.9))
    ledger.tick(trial, report(2, score=0.9))
    assert [tick["score"] for tick in trial.ticks] == [0.51, 0.52]


def test_ticks_are_timed(ledger):
    trial = make()
    ledger.begin(trial)
    ledger.tick(trial, report(1))
    ledger.tick(trial, report(2))
    times = [trial.started, *(tick["time"] for tick in trial.ticks)]
    assert times == sorted(times) and times[0] > 1.7e9
    ledger.begin(trial)  # it goes on after a restart
    assert trial.started == times[0]


@pytest.mark.parametrize(
    ("last", "error", "state", "reason"),
    [
        (report(TICKS), "", "finished", ""),
        (report(4), "", "stopped", "below the cut at tick 4"),
        (report(4, score=0.0, diverged=1.0), "", "diverged", "the loss was not finite at tick 4"),
        (report(TICKS, diverged=1.0), "", "diverged", "the loss was not finite at tick 16"),
        (report(4), "OSError: no room", "failed", "OSError: no room"),
        (report(4, diverged=1.0), "OSError: no room", "failed", "OSError: no room"),
        (None, "OSError: no room", "failed", "OSError: no room"),
    ],
)
def test_the_last_tick_and_the_error_tell_how_a_trial_ended(ledger, last, error, state, reason):
    trial = make()
    ledger.begin(trial)
    if last is not None:
        ledger.tick(trial, last)
    ledger.end(trial, error=error)
    (found,) = ledger.read()
    assert (found.state, found.reason) == (state, reason)


class Watcher:
    """An observer that looks at what is on disk when it is told."""

    def __init__(self, ledger):
        self.ledger, self.seen = ledger, []

    def _look(self, event, trial, *values):
        (found,) = self.ledger.read()
        self.seen.append((event, found == trial, found.state, found.tick, *values))

    def begin(self, trial):
        self._look("begin", trial)

    def tick(self, trial, metrics):
        self._look("tick", trial, metrics["score"])

    def end(self, trial):
        self._look("end", trial)


def test_observers_are_told_after_the_write_and_once_for_each_change(ledger):
    watchers = [Watcher(ledger), Watcher(ledger)]
    told = Ledger(ledger.root, observers=watchers)
    trial = make()
    told.begin(trial)
    told.tick(trial, report(1))
    told.tick(trial, report(1))
    told.end(trial)
    assert (
        watchers[0].seen
        == watchers[1].seen
        == [
            ("begin", True, "running", 0),
            ("tick", True, "running", 1, 0.51),
            ("end", True, "stopped", 1),
        ]
    )


def test_numpy_and_torch_scalars_are_written_as_numbers(ledger, tmp_path):
    trial = make(params={"lr": np.float32(0.5), "batch_size": np.int64(3), "x": np.bool_(True)})
    ledger.begin(trial)
    ledger.tick(trial, {"tick": np.int64(1), "score": np.float64(0.7), "loss": torch.tensor(0.25)})
    (found,) = ledger.read()
    assert found.params == {"lr": 0.5, "batch_size": 3, "x": True}
    assert (found.tick, found.score, found.last("loss")) == (1, 0.7, 0.25)
    ledger.write_stage({"count": np.int32(7)})
    assert ledger.read_stage() == {"count": 7}


def test_what_is_no_number_is_a_bug_of_ours(ledger):
    with pytest.raises(AssertionError, match="not JSON"):
        ledger.begin(make(params={"lr": object()}))
    assert ledger.read() == []


@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, -math.inf, np.float32("nan"), np.float64("inf"), torch.tensor(math.nan)],
)
def test_a_number_that_is_not_finite_is_null_on_disk_and_nan_in_memory(ledger, tmp_path, value):
    trial = make()
    ledger.begin(trial)
    ledger.tick(trial, report(1, score=value, **{"train/loss": value}))
    path = tmp_path / "runs" / "explore" / "trials" / "explore-000.json"
    assert strict(path)["ticks"][0]["train/loss"] is None
    (found,) = ledger.read()
    for one in (trial, found):
        assert math.isnan(one.score) and math.isnan(one.last("train/loss"))
    ledger.end(found)
    assert strict(path)["state"] == "stopped"


def test_a_stage_that_is_not_json_is_not_written(ledger):
    ledger.write_stage({"x": 1.0})
    with pytest.raises(ValueError, match="JSON"):
        ledger.write_stage({"x": math.nan})
    assert ledger.read_stage() == {"x": 1.0}


metrics = st.dictionaries(
    st.text(min_size=1, max_size=8), st.floats() | st.integers() | st.booleans(), max_size=4
)


@given(st.lists(metrics, max_size=5))
@settings(max_examples=30, deadline=None)
def test_any_report_survives_the_disk(tmp_path_factory, reports):
    folder = tmp_path_factory.mktemp("ledger")
    ledger, trial = Ledger(str(folder)), make()
    ledger.begin(trial)
    for tick, values in enumerate(reports, 1):
        ledger.tick(trial, values | {"tick": tick})
    strict(folder / "trials" / "explore-000.json")
    (found,) = ledger.read()
    assert repr(found) == repr(trial)  # NaN is not equal to itself


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"id": "explo',
        b"\xff\xfe\x00",
        b"[]",
        b"null",
        b'"text"',
        b'{"id": NaN',
        b"\x00" * 64,
    ],
)
def test_a_torn_file_is_a_sentence_with_its_path(ledger, tmp_path, content):
    ledger.begin(make(0))
    ledger.begin(make(1))
    ledger.write_stage({"x": 1})
    paths = [
        tmp_path / "runs" / "explore" / "trials" / "explore-001.json",
        tmp_path / "runs" / "explore" / "stage.json",
    ]
    for path, read in zip(paths, (ledger.read, ledger.read_stage), strict=True):
        path.write_bytes(content)
        with pytest.raises(InputError) as caught:
            read()
        assert str(caught.value).startswith(f"{path} is not valid JSON")
        assert "restore it" in str(caught.value)


@pytest.mark.parametrize("change", [{"colour": 1}, {"number": None}])
def test_a_trial_of_another_version_is_a_sentence_with_its_path(ledger, tmp_path, change):
    ledger.begin(make())
    path = tmp_path / "runs" / "explore" / "trials" / "explore-000.json"
    values = json.loads(path.read_text()) | change
    path.write_text(json.dumps({key: v for key, v in values.items() if v is not None}))
    with pytest.raises(InputError, match="is not a trial of this version"):
        ledger.read()


def test_a_trial_from_before_there_were_roles_is_a_candidate(ledger):
    ledger.begin(Trial(id="t-0", number=0, params={}, config={}, role="control"))
    path = Path(ledger.root) / "trials/t-0.json"
    values = json.loads(path.read_text())
    assert values.pop("role") == "control"
    path.write_text(json.dumps(values))
    assert [trial.role for trial in ledger.read()] == ["candidate"]


def test_a_leftover_of_a_killed_writer_is_not_a_trial(ledger, tmp_path):
    ledger.begin(make())
    folder = tmp_path / "runs" / "explore" / "trials"
    (folder / ".explore-001.json.1a2b3c4d.tmp").write_text('{"id": "explo')
    assert [trial.number for trial in ledger.read()] == [0]


def test_a_writer_that_dies_leaves_the_old_file(ledger, monkeypatch):
    trial = make()
    ledger.begin(trial)
    monkeypatch.setattr("pathlib.Path.replace", lambda *paths: (_ for _ in ()).throw(OSError))
    with pytest.raises(OSError):
        ledger.tick(trial, report(1))
    (found,) = ledger.read()
    assert found.tick == 0


def test_checkpoints_lie_beside_the_trials(ledger):
    assert ledger.trial_folder("explore-003") == f"{ledger.root}/checkpoints/explore-003"


def test_ticks_behind_the_newest_checkpoint_are_forgotten(tmp_path):
    """A checkpoint that is gone must not leave a curve that two runs made."""
    ledger = Ledger(str(tmp_path))
    trial = Trial(id="a-000", number=0, params={}, config={})
    for tick in range(1, 6):
        trial.add_tick({"tick": tick, "score": 0.5, "seconds": 1.0})
    (tmp_path / "kept").mkdir()
    storage.put_folder(tmp_path / "kept", storage.join(ledger.trial_folder("a-000"), "tick_03"))
    ledger.rewind(trial)
    assert trial.tick == 3
    storage.delete(ledger.trial_folder("a-000"))
    ledger.rewind(trial)
    assert trial.tick == 0
