"""The mirror of a study: what Optuna reads from it is what the ledger says, whatever happened."""

import json
import math
import time
from pathlib import Path

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from aiornot.config import TICKS
from aiornot.tuning.ledger import Ledger, Trial
from aiornot.tuning.mirror import Mirror
from aiornot.tuning.space import choice, loguniform, original

SPACE = {
    name: original(domain)
    for name, domain in {"lr": loguniform(1e-5, 1e-2), "clip_grad": choice(None, 1.0)}.items()
}
STATES = {
    "running": TrialState.RUNNING,
    "finished": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "diverged": TrialState.FAIL,
    "failed": TrialState.FAIL,
}


class Stage:
    """A ledger, its mirror, and trials that run by hand."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "explore" / "optuna.journal"
        self.root = str(folder / "explore")
        self.open()

    def open(self) -> None:
        read = Ledger(self.root).read
        self.mirror = Mirror(self.path, name="explore", space=SPACE, read=read)
        self.ledger = Ledger(self.root, observers=[self.mirror])

    def begin(self, number: int) -> Trial:
        params = {"lr": 1e-4 * (number + 1), "clip_grad": (None, 1.0)[number % 2]}
        trial = Trial(id=f"explore-{number:03d}", number=number, params=params, config={})
        self.ledger.begin(trial)
        return trial

    def train(self, trial: Trial, ticks: int, **changes: float) -> None:
        for tick in range(trial.tick + 1, trial.tick + ticks + 1):
            values = {"tick": tick, "score": 0.5 + tick / 100 + trial.number / 1000}
            self.ledger.tick(trial, values | {"seconds": 1.0, "diverged": 0.0} | changes)

    def study(self) -> optuna.Study:
        self.mirror.close()
        return read(self.path)

    def check(self) -> None:
        """Compare every trial of the journal with the ledger."""
        assert_mirrored(self.study(), Path(self.root))


def read(path: Path) -> optuna.Study:
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(path)))
    return optuna.load_study(study_name=None, storage=storage)


def assert_mirrored(study: optuna.Study, root: Path) -> None:
    """Compare every trial of a study with a stage's ledger."""
    told = {trial.user_attrs["trial"]: trial for trial in study.trials}
    ledger = [json.loads(path.read_text()) for path in sorted(root.glob("trials/*.json"))]
    ledger = [trial for trial in ledger if trial["role"] == "candidate"]
    assert [trial.number for trial in study.trials] == list(range(len(ledger)))
    assert sorted(told) == [trial["id"] for trial in ledger]
    for trial in ledger:
        found = told[trial["id"]]
        scores = {tick["tick"]: tick["score"] for tick in trial["ticks"]}
        assert found.state == STATES[trial["state"]]
        assert found.params == trial["params"]
        assert {k: None if math.isnan(v) else v for k, v in found.intermediate_values.items()} == (
            scores
        )
        assert found.user_attrs["state"] == trial["state"]
        assert found.user_attrs["reason"] == trial["reason"]
        assert found.value == (scores[TICKS] if found.state == TrialState.COMPLETE else None)


@pytest.fixture
def stage(tmp_path) -> Stage:
    return Stage(tmp_path)


def with_all_states(stage: Stage) -> list[Trial]:
    """Leave one trial of each state, begun side by side, and one that has not reported yet."""
    trials = [stage.begin(number) for number in range(6)]
    for trial, ticks in zip(trials, (TICKS, 4, 3, 2, 5, 0), strict=True):
        stage.train(trial, ticks)
    stage.train(trials[2], 1, score=math.nan, diverged=1.0)
    for trial, error in zip(trials[:4], ("", "", "", "OSError: no room"), strict=True):
        stage.ledger.end(trial, error=error)
    return trials


def test_every_trial_is_told_with_its_state_parameters_and_curve(stage):
    with_all_states(stage)
    stage.check()
    study = stage.study()
    assert study.direction == optuna.study.StudyDirection.MAXIMIZE
    assert study.best_trial.user_attrs["trial"] == "explore-000"
    assert len({state for state in (trial.state for trial in study.trials)}) == 4


def test_made_again_from_the_ledger_it_is_the_same_and_goes_on(stage):
    """As after a kill: what was written last is lost, and a lock is left behind."""
    trials = with_all_states(stage)
    live = [(t.params, t.state, t.intermediate_values, t.user_attrs) for t in stage.study().trials]
    whole = stage.path.read_bytes()
    stage.path.write_bytes(whole[: len(whole) * 2 // 3])
    Path(f"{stage.path}.lock").symlink_to(stage.path)
    began = time.monotonic()
    stage.open()
    stage.check()
    again = [(t.params, t.state, t.intermediate_values, t.user_attrs) for t in stage.study().trials]
    assert repr(again) == repr(live)
    assert time.monotonic() - began < 10  # Optuna waits 30 s for a lock
    stage.open()
    stage.ledger.begin(trials[4])
    stage.train(trials[4], TICKS - 5)
    stage.ledger.end(trials[4])
    stage.train(stage.begin(6), 1)
    stage.check()


def test_a_trial_that_is_opened_again_or_loses_ticks_is_told_as_it_is_then(stage):
    trials = with_all_states(stage)
    stage.ledger.reopen(trials[3])
    stage.ledger.begin(trials[3])
    trials[4].ticks = trials[4].ticks[:2]  # their checkpoints are gone
    stage.ledger.begin(trials[4])
    stage.train(trials[4], 1)
    stage.ledger.end(trials[4])
    stage.check()


def test_a_disk_that_cannot_be_written_costs_a_warning_and_nothing_else(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    mirror = Mirror(tmp_path / "file" / "optuna.journal", name="x", space=SPACE, read=list)
    mirror.close()
    assert "the mirror of the Optuna study is switched off" in caplog.text
