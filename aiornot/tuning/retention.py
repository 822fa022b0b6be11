"""Which checkpoints of a stage are kept: the best of each of its best trials.

A trial that runs keeps its newest and its best besides (``training/checkpoints.py``). All others
are deleted as it goes, so that a search of a hundred trials needs the disk of a few.
"""

from collections.abc import Sequence

from aiornot import storage
from aiornot.training import checkpoints
from aiornot.tuning import select
from aiornot.tuning.ledger import Ledger, Trial, contenders

KEPT = 3
"""Trials of a stage whose weights stay."""


def kept(trials: Sequence[Trial], rungs: Sequence[int]) -> list[Trial]:
    """Return the ended candidates whose weights stay: the best finished ones, then stopped ones."""
    trials = contenders(trials)
    finished = [trial for trial in trials if trial.state == "finished"]
    stopped = [trial for trial in trials if trial.state == "stopped"]
    ranked = [*select.rank(finished, rungs), *select.rank(stopped, rungs)]
    return ranked[:KEPT]


def tidy(ledger: Ledger, trials: Sequence[Trial], ended: Trial, *, rungs: Sequence[int]) -> None:
    """Delete what is not to stay now that a trial has ended.

    Failed trials keep theirs: they may be tried again.

    Args:
        ledger: Of the stage.
        trials: All of its trials, ``ended`` among them.
        ended: The trial whose end was just recorded.
        rungs: Where ASHA decides.
    """
    if ended.state == "failed":
        return
    # Without it, who stayed; what it has displaced, or itself, goes.
    before = kept([trial for trial in trials if trial.id != ended.id], rungs)
    after = {trial.id for trial in kept(trials, rungs)}
    for trial in (*before, ended):
        if trial.id not in after:
            storage.delete(ledger.trial_folder(trial.id))
    if ended.id in after:
        checkpoints.keep_best(ledger.trial_folder(ended.id), int(ended.last("best_tick")))
