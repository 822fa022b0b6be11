"""What the tests ask of a ledger: the trials of a run, as they lie in the storage."""

from typing import Any

Trials = dict[str, dict[str, Any]]
"""By their ids."""

TICKS = list(range(1, 17))


def num_under_way(trials: Trials, *, ticks: int = 3) -> int:
    """Count the trials that run and are in the middle of their ticks."""
    running = (trial for trial in trials.values() if trial["state"] == "running")
    return sum(len(trial["ticks"]) >= ticks for trial in running)


def lost(trials: Trials) -> int:
    return sum(trial["state"] != "finished" for trial in trials.values())


def repeated(before: Trials, after: Trials) -> int:
    """Count the ticks of a ledger that were trained again: their times are others now."""
    told = [(name, tick["tick"], tick["time"]) for name in before for tick in before[name]["ticks"]]
    kept = {(name, tick["tick"], tick["time"]) for name in after for tick in after[name]["ticks"]}
    return sum(tick not in kept for tick in told)


def assert_whole(trials: Trials) -> None:
    for name, trial in trials.items():
        assert [tick["tick"] for tick in trial["ticks"]] == TICKS, name
