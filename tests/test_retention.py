"""Whose weights stay when trials end, and what is left in the folders."""

from pathlib import Path

import pytest

from aiornot.tuning import retention
from aiornot.tuning.ledger import Ledger, Trial

RUNGS = [1, 4, 16]


def make_trial(number: int, score: float, *, state="finished", tick=16) -> Trial:
    trial = Trial(id=f"t-{number}", number=number, state=state, params={}, config={})
    best_tick = max(1, tick - 3)
    trial.ticks = [
        {"tick": t, "score": score, "best_tick": min(t, best_tick)} for t in range(1, tick + 1)
    ]
    return trial


@pytest.fixture
def ledger(tmp_path) -> Ledger:
    return Ledger(str(tmp_path))


def end(ledger: Ledger, trials: list[Trial], trial: Trial) -> set[str]:
    """Let a trial end that has left its newest and its best checkpoint; return what is there."""
    root = Path(ledger.trial_folder(trial.id))
    for tick in {trial.tick, int(trial.last("best_tick"))}:
        folder = root / f"tick_{tick:02d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "complete").touch()
    trials.append(trial)
    retention.tidy(ledger, trials, trial, rungs=RUNGS)
    found = Path(ledger.root, "checkpoints").glob("*/tick_*")
    return {f"{path.parent.name}/{path.name}" for path in found}


def test_the_best_checkpoint_of_the_best_three_stays(ledger):
    trials: list[Trial] = []
    for number, score in enumerate([0.7, 0.9, 0.6, 0.8]):
        left = end(ledger, trials, make_trial(number, score))
    assert left == {"t-0/tick_13", "t-1/tick_13", "t-3/tick_13"}


def test_a_finished_trial_displaces_a_stopped_one_whatever_its_score(ledger):
    trials: list[Trial] = []
    for number in range(3):
        left = end(ledger, trials, make_trial(number, 0.99, state="stopped", tick=4))
    assert len(left) == 3
    left = end(ledger, trials, make_trial(3, 0.6))
    assert left == {"t-0/tick_01", "t-1/tick_01", "t-3/tick_13"}


def test_weights_of_a_diverged_trial_go_and_those_of_a_failed_one_wait(ledger):
    trials: list[Trial] = []
    left = end(ledger, trials, make_trial(0, 0.0, state="diverged", tick=2))
    assert left == set()
    left = end(ledger, trials, make_trial(1, 0.9, state="failed", tick=6))
    assert left == {"t-1/tick_03", "t-1/tick_06"}  # it may be tried again, and go on


def test_a_running_trial_is_left_alone(ledger):
    trials = [make_trial(0, 0.5, state="running", tick=5)]
    root = Path(ledger.trial_folder("t-0"))
    (root / "tick_05").mkdir(parents=True)
    for number in range(1, 6):
        end(ledger, trials, make_trial(number, 0.9))
    assert (root / "tick_05").exists()
