"""Leaderboards, read from the ledger: which runs there are, their stages, a stage's trials.

``aiornot show demo explore`` prints one. Rows are plain dicts, so that ``--json`` prints the same.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from aiornot import storage
from aiornot.config import TICKS, InputError, TrainConfig
from aiornot.tuning import select
from aiornot.tuning.ledger import Ledger, Trial

Row = dict[str, Any]

RUN_COLUMNS = ("run", "stages", "trials", "best", "delivered")
STAGE_COLUMNS = ("stage", "state", "trials", "ended", "best", "se", "seconds", "data")
TRIAL_COLUMNS = ("trial", "state", "tick", "score", "se", "seconds", "origin")
"""``se``: one standard error of the score (Hanley-McNeil), from the size of val."""


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
    stages = [ledger.read() for ledger in _ledgers(root, name).values()]
    # Of the last stage that has one: a score on other data or epochs is another quantity.
    bests = [best for trials in stages if (best := _best(trials)) is not None]
    return {
        "run": name,
        "stages": len(stages),
        "trials": sum(len(trials) for trials in stages),
        "best": bests[-1] if bests else None,
        "delivered": storage.exists(storage.join(root, name, "bundle", "bundle.json")),
    }


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
    return [_stage_row(stage, ledger) for stage, ledger in _known(root, name).items()]


def _known(root: str, name: str) -> dict[str, Ledger]:
    ledgers = _ledgers(root, name)
    if not ledgers:
        known = ", ".join(row["run"] for row in runs(root))
        raise InputError(f"{root}: no run {name!r}; there are {known}")
    return ledgers


def _stage_row(stage: str, ledger: Ledger) -> Row:
    trials, record = ledger.read(), ledger.read_stage() or {}
    ended = [trial for trial in trials if trial.state != "running"]
    wanted = record.get("num_trials", 1)
    best = _best(trials)
    return {
        "stage": stage,
        "state": "finished" if len(ended) >= wanted else "unfinished",
        "trials": wanted,
        "ended": len(ended),
        "best": best,
        "se": _error(best, record),
        "seconds": sum(trial.seconds for trial in trials),
        "data": record.get("meaning", {}).get("data"),
        "warnings": record.get("warnings", []),
    }


def _best(trials: Sequence[Trial]) -> float | None:
    """Return the best score of a finished trial; before there is one, of those on their way."""
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


def trials(root: str, name: str, stage: str) -> list[Row]:
    """Return a stage's trials, best first; those without a standing come last."""
    ledgers = _known(root, name)
    if stage not in ledgers:
        known = ", ".join(ledgers)
        raise InputError(f"{root}: run {name!r} has no stage {stage!r}; it has {known}")
    ledger = ledgers[stage]
    record, found = ledger.read_stage() or {}, ledger.read()
    budget = record.get("meaning", {}).get("budget", {})
    rungs = _rungs(budget.get("grace_period", TICKS), budget.get("reduction_factor", 4))
    ranked = select.rank(found, rungs)
    rest = [trial for trial in found if trial not in ranked]
    return [_trial_row(trial, record) for trial in [*ranked, *rest]]


def _rungs(grace_period: int, reduction_factor: int) -> list[int]:
    from aiornot.tuning.space import Budget

    return select.rungs(
        Budget(num_trials=1, grace_period=grace_period, reduction_factor=reduction_factor)
    )


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
        "config": trial.config,
    }


def texts(row: Mapping[str, Any], columns: Sequence[str]) -> list[str]:
    """Return the cells of a row as people read them; a column may be a hyper-parameter."""
    values = {**row.get("config", {}), **row}
    return [_text(column, values.get(column)) for column in columns]


def _text(column: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if column in ("best", "score", "se"):
            return f"{value:.4f}"
        return f"{value:.0f}" if column == "seconds" else f"{value:.3g}"
    return str(value)


def varied(rows: Sequence[Row]) -> tuple[str, ...]:
    """Return the hyper-parameters in which the trials of a board differ."""
    names = sorted({name for row in rows for name in row["config"]})
    return tuple(name for name in names if len({str(row["config"].get(name)) for row in rows}) > 1)


def shared(rows: Sequence[Row]) -> str:
    """Return what all trials of a board have in common and is not TrainConfig's default."""
    if not rows:
        return ""
    default, differ = TrainConfig().to_dict(), varied(rows)
    common = {key: value for key, value in rows[0]["config"].items() if key not in differ}
    parts = [f"{key}={_text(key, v)}" for key, v in common.items() if v != default.get(key)]
    return f"all: {', '.join(parts)}" if parts else ""
