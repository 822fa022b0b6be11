"""From the ledger to whoever tracks it: nothing is left out, wherever a driver died."""

import math

import pytest

from aiornot.tuning.ledger import Ledger, Trial
from aiornot.tuning.tracking import Labels, Tracking, opened

LABELS = Labels(run="ab", group="explore", job_type="search", tags=["reduced"])


class Kept:
    """A tracker that keeps what it is told."""

    def __init__(self, *ended: str) -> None:
        self.runs: dict[str, dict] = {}
        self._ended = set(ended)

    def lacks(self, run_id: str) -> bool:
        return run_id not in self._ended

    def start(self, run_id: str, *, ticks=(), **labels) -> None:
        self.runs[run_id] = {"ticks": list(ticks), "labels": labels, "summary": None}

    def tick(self, run_id: str, metrics) -> None:
        self.runs[run_id]["ticks"].append(metrics)

    def end(self, run_id: str, summary) -> None:
        self.runs[run_id]["summary"] = summary

    def close(self) -> str:
        return ""


def make(number: int) -> Trial:
    return Trial(id=f"explore-{number:03d}", number=number, params={}, config={"lr": 0.1})


def train(ledger: Ledger, trial: Trial, ticks: int) -> None:
    for tick in range(trial.tick + 1, trial.tick + ticks + 1):
        values = {"tick": tick, "score": tick / 20, "seconds": 1.0, "diverged": 0.0}
        ledger.tick(trial, values | {"effective": {"batch_size": 8}})


@pytest.fixture
def root(tmp_path) -> str:
    """A ledger with one trial of each kind: finished, stopped, and two that run."""
    root = str(tmp_path / "explore")
    ledger = Ledger(root)
    for number, ticks in enumerate((16, 4, 4, 7)):
        trial = make(number)
        ledger.begin(trial)
        train(ledger, trial, ticks)
        if number < 2:
            ledger.end(trial)
    return root


def plain(ticks) -> list[dict]:
    return [{k: v for k, v in tick.items() if k != "effective"} for tick in ticks]


def test_what_a_tracker_lacks_is_told_when_a_stage_goes_on(root):
    known = Ledger(root).read()
    fresh, knowing = Kept(), Kept("explore-000-ab")
    ledger = Ledger(root, observers=[Tracking([fresh, knowing], LABELS, known=known)])
    assert list(fresh.runs) == ["explore-000-ab", "explore-001-ab"]
    assert list(knowing.runs) == ["explore-001-ab"]
    ledger.end(known[2])  # stopped by the rungs, of which the driver died
    ledger.begin(known[3])
    train(ledger, known[3], 9)
    ledger.end(known[3])
    for trial in Ledger(root).read():
        told = fresh.runs[f"{trial.id}-ab"]
        assert plain(told["ticks"]) == trial.ticks
        assert told["summary"] == {
            "state": trial.state,
            "reason": trial.reason,
            "score": trial.score,
        }
        assert told["labels"] == {
            "name": trial.id,
            "group": "explore",
            "job_type": "search",
            "tags": ["reduced"],
            "config": {"lr": 0.1, "effective": {"batch_size": 8}},
        }


def test_a_trial_without_a_report_ends_too(tmp_path):
    kept = Kept()
    ledger = Ledger(str(tmp_path), observers=[Tracking([kept], LABELS)])
    trial = make(0)
    ledger.begin(trial)
    ledger.end(trial, error="OSError: no room")
    (run,) = kept.runs.values()
    assert run["ticks"] == [] and math.isnan(run["summary"].pop("score"))
    assert run["summary"] == {"state": "failed", "reason": "OSError: no room"}


def test_hints_are_said_also_when_the_work_is_interrupted(tmp_path, monkeypatch):
    said: list[str] = []
    with (
        pytest.raises(KeyboardInterrupt),
        opened(tmp_path, wandb="off", tensorboard=True, say=said.append) as trackers,
    ):
        trackers.all[1].start("a", name="a", group="g", tags=[], config={})
        raise KeyboardInterrupt
    assert said == [f"to see the curves: tensorboard --logdir {tmp_path}/tensorboard"]
