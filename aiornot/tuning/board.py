"""Leaderboards, read from the ledger: which runs there are, their stages, a stage's trials.

``aiornot show demo explore`` prints one. Rows are plain dicts, so that ``--json`` prints the same;
``tables.py`` turns them into what people read.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from aiornot import storage
from aiornot.config import InputError
from aiornot.tuning import asha, narrow, select, spending
from aiornot.tuning.agreement import agreement
from aiornot.tuning.importance import importances
from aiornot.tuning.ledger import Ledger, Trial, contenders
from aiornot.tuning.record import Record, space_of
from aiornot.tuning.space import Distribution, distribution_from_json

Row = dict[str, Any]


def runs(root: str) -> list[Row]:
    """Return a row for every run below ``root``: a chain, or one ``aiornot train``."""
    names = [path.rsplit("/", 1)[-1] for path in storage.list_folders(root)]
    rows = [_run_row(root, name) for name in names if _ledgers(root, name)]
    if not rows:
        raise InputError(
            f"{root}: no runs there; 'aiornot tune' and 'aiornot train' make them, "
            "--storage names another folder"
        )
    return rows


def _run_row(root: str, name: str) -> Row:
    read = [_read(ledger) for ledger in _ledgers(root, name).values()]
    # Of the last stage that has one: a score on other data or epochs is another quantity.
    bests = [best for _, trials in read if (best := _best(trials)) is not None]
    spends = [_spend(record, trials) for record, trials in read]
    return {
        "run": name,
        "stages": len(read),
        "trials": sum(len(trials) for _, trials in read),
        "best": bests[-1] if bests else None,
        **{key: sum(spend[key] for spend in spends) for key in spends[0]},
        "delivered": storage.exists(storage.join(root, name, "bundle", "bundle.json")),
    }


def _read(ledger: Ledger) -> tuple[Record, list[Trial]]:
    return ledger.read_stage() or {}, ledger.read()


def _ledgers(root: str, name: str) -> dict[str, Ledger]:
    """Return the ledgers of a run by stage, in the order in which the stages follow one another."""
    home = storage.join(root, name)
    if storage.exists(storage.join(home, "trials")):
        return {"train": Ledger(home)}
    found = {path.rsplit("/", 1)[-1]: Ledger(path) for path in storage.list_folders(home)}
    records = {stage: ledger.read_stage() for stage, ledger in found.items()}
    after = {stage: r["meaning"]["after"] for stage, r in records.items() if r is not None}
    order: list[str] = []
    while rest := [stage for stage in after if stage not in order]:
        ready = [stage for stage in rest if after[stage] in (None, *order)]
        order += sorted(ready or rest)
    return {stage: found[stage] for stage in order}


def stages(root: str, name: str) -> list[Row]:
    """Return a row for every stage of a run that was begun."""
    return [_stage_row(stage, *_read(ledger)) for stage, ledger in _known(root, name).items()]


def _known(root: str, name: str) -> dict[str, Ledger]:
    ledgers = _ledgers(root, name)
    if not ledgers:
        known = ", ".join(row["run"] for row in runs(root))
        raise InputError(f"{root}: no run {name!r}; there are {known}")
    return ledgers


def _stage_row(stage: str, record: Record, trials: Sequence[Trial]) -> Row:
    states: Counter[str] = Counter(trial.state for trial in trials)
    has_finished = any(trial.state == "finished" for trial in contenders(trials))
    state, reason = _state(record, states, has_finished)
    best = _best(trials)
    return {
        "stage": stage,
        "state": state,
        "reason": reason,
        "trials": record.get("num_trials", 1),
        "ended": len(trials) - states["running"],
        "by_state": dict(sorted(states.items())),
        "best": best,
        "se": _error(best, record),
        **_spend(record, trials),
        "data": record.get("meaning", {}).get("data"),
        "warnings": record.get("warnings", []),
    }


def _state(record: Record, states: Mapping[str, int], has_finished: bool) -> tuple[str, str]:
    """Return the state of a stage, and why it is not finished if it is not."""
    wanted = record.get("num_trials", 1)
    left = wanted - sum(count for state, count in states.items() if state != "running")
    if left > 0:
        to_go = f"{left} of {wanted} trials to go"
        closed = record.get("closed")
        return ("closed", f"{closed}, {to_go}") if closed else ("unfinished", to_go)
    # The chain would not go on from here: it tries the failed ones again.
    return ("finished", "") if has_finished else ("unfinished", "no candidate finished")


def _best(trials: Sequence[Trial]) -> float | None:
    """Return the best score of a finished candidate; before there is one, of those on their way."""
    trials = contenders(trials)
    for states in (("finished",), ("running", "stopped")):
        scores = [t.score for t in trials if t.state in states and math.isfinite(t.score)]
        if scores:
            return max(scores)
    return None


def _error(score: float | None, record: Mapping[str, Any]) -> float | None:
    if score is None or not 0 < score <= 1 or "num_positive" not in record:
        return None
    return select.standard_error(
        score, num_positive=record["num_positive"], num_negative=record["num_negative"]
    )


def _spend(record: Record, trials: Sequence[Trial]) -> Row:
    """Return seconds: of the trials, of their devices together, and by the clock on the wall."""
    seconds = sum(trial.seconds for trial in trials)
    spent = spending.spent(record, trials)
    return {
        "seconds": seconds,
        "device_seconds": spent.device_seconds,
        "wall_seconds": spent.wall_seconds if "sessions" in record else _span(trials),
    }


def _span(trials: Sequence[Trial]) -> float:
    """Return the seconds from the first begin to the last tick, pauses among them."""
    begins = [trial.started for trial in trials if trial.started]
    ticks = [trial.ticks[-1].get("time", 0.0) for trial in trials if trial.ticks]
    return max(0.0, max(ticks) - min(begins)) if begins and ticks else 0.0


def read_stage(root: str, name: str, stage: str) -> tuple[Record, list[Trial]]:
    """Return the record of a stage and its trials in the order of their numbers."""
    ledgers = _known(root, name)
    if stage not in ledgers:
        known = ", ".join(ledgers)
        raise InputError(f"{root}: run {name!r} has no stage {stage!r}; it has {known}")
    return _read(ledgers[stage])


def leaderboard(root: str, name: str, stage: str) -> Row:
    """Return all there is to say of a stage.

    ``stage`` is its row, ``trials`` have one each, best first, ``bounds`` are sentences on best
    values at a bound of the stage file's range, ``importances`` are those of ``importance.py``,
    None where nothing is searched, ``agreements`` one per next stage, see ``agreement.py``.
    """
    record, found = read_stage(root, name, stage)
    rungs = select.rungs(asha.budget_of(record))
    best, _ = select.split_top(found, rungs)
    space = space_of(record)
    return {
        "run": name,
        "stage": _stage_row(stage, record, found),
        "trials": trials(record, found),
        "bounds": narrow.bound_hits(_original(record), best),
        "importances": importances(space, contenders(found), rung=rungs[0]) if space else None,
        "agreements": _agreements(root, name, stage, found, rungs),
    }


def _original(record: Record) -> dict[str, Distribution]:
    """Return the ranges as the stage file has them, before any narrowing."""
    texts = record.get("meaning", {}).get("space", {})
    return {
        name: distribution_from_json(text.removeprefix("narrowed ")) for name, text in texts.items()
    }


def _agreements(
    root: str, name: str, stage: str, found: Sequence[Trial], rungs: Sequence[int]
) -> list[Row]:
    rows = []
    for child, ledger in _ledgers(root, name).items():
        record, trials = _read(ledger)
        if trials and record.get("meaning", {}).get("after") == stage:
            child_rungs = select.rungs(asha.budget_of(record))
            rows.append(agreement(found, trials, names=(stage, child), rungs=(rungs, child_rungs)))
    return [row for row in rows if row["num_pairs"]]


def trials(record: Record, found: Sequence[Trial]) -> list[Row]:
    """Return a row for every trial of a stage, best first; those without a standing come last."""
    budget = asha.budget_of(record)
    ranked = select.rank(found, select.rungs(budget))
    rest = [trial for trial in found if trial not in ranked]
    lowest = _lowest_equal(record, found)
    return [
        _trial_row(trial, record)
        | {
            "within_error": trial.state == "finished" and trial.score >= lowest,
            "cut": asha.cut(trial, found, budget),
        }
        for trial in [*ranked, *rest]
    ]


def _lowest_equal(record: Record, trials: Sequence[Trial]) -> float:
    """Return the score one standard error below that of the best finished trial."""
    finished = [trial for trial in trials if trial.state == "finished"]
    best = _best(finished)
    error = _error(best, record)
    return math.inf if best is None or error is None else best - error


def _trial_row(trial: Trial, record: Mapping[str, Any]) -> Row:
    score = trial.score if math.isfinite(trial.score) else None
    return {
        "trial": trial.id,
        "state": trial.state,
        "reason": trial.reason,
        "tick": trial.tick,
        "score": score,
        "se": _error(score, record),
        "seconds": trial.seconds,
        "origin": trial.origin,
        "role": trial.role,
        "config": trial.config,
        "effective": trial.effective,
        "traceback": trial.traceback,
    }
