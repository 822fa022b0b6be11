"""``stage.json``: what a stage draws from, fixed once when it first starts.

A resumed stage reads its narrowed space and its first points back from here, so that what the
parent does afterwards cannot move them. Written by ``aiornot tune``, read by ``aiornot show``.
"""

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import aiornot
from aiornot.config import InputError
from aiornot.data import hdf5
from aiornot.tuning import narrow, select
from aiornot.tuning.ledger import Trial, contenders
from aiornot.tuning.space import (
    Distribution,
    Stage,
    configure,
    distribution_from_json,
    distribution_to_json,
    original,
    stage_to_dict,
)

Record = dict[str, Any]


def meaning(stage: Stage, data: Path) -> Record:
    """Return what must not change between two runs of a stage: its file's meaning and its data.

    The number of trials is not in it: a finished stage may be given more.
    """
    values = stage_to_dict(stage)
    values["budget"] = {k: v for k, v in values["budget"].items() if k != "num_trials"}
    values["data_settings"] = hdf5.attributes(data)["settings"]
    return dict(json.loads(json.dumps(values)))


def check_unchanged(stage: Stage, data: Path, old: Record, *, place: str) -> None:
    """Refuse to go on with a stage that is not what it was.

    Raises:
        InputError: With every difference.
    """
    now = meaning(stage, data)
    for word in ("controls", "baseline", "pick_from"):
        # A stage that was begun before there were any goes on without them.
        if word not in old["meaning"]:
            now.pop(word)
    changes = differences(old["meaning"], now)
    if changes:
        raise InputError(
            f"stage {stage.name!r} is not what it was when {place} was begun: "
            f"{'; '.join(changes)}. Undo that, or start anew with --fresh (the old run is kept)"
        )


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """Return a text for every value that two nested dicts do not share."""
    if isinstance(old, dict) and isinstance(new, dict):
        changes = []
        for key in sorted(set(old) | set(new)):
            inner = f"{name}.{key}" if name else str(key)
            changes += differences(old.get(key, _ABSENT), new.get(key, _ABSENT), inner)
        return changes
    return [] if old == new else [f"{name} was {_text(old)}, is {_text(new)}"]


_ABSENT = object()
"""A key set to None is not a key left out, which has the parent's best value."""


def _text(value: Any) -> str:
    return "absent" if value is _ABSENT else repr(value)


def begin(
    stage: Stage,
    data: Path,
    *,
    num_trials: int,
    parent: Record | None,
    parent_trials: Sequence[Trial],
) -> Record:
    """Fix what a stage draws from.

    Args:
        stage: The stage.
        data: Its prepared file.
        num_trials: Trials to run, where it searches; controls come on top of them.
        parent: The record of the stage it comes after.
        parent_trials: That stage's trials; of all ``stages.sources`` where there are more.
    """
    labels = hdf5.read_labels(data, "val")
    record: Record = {
        "meaning": meaning(stage, data),
        "run": uuid.uuid4().hex[:8],
        "num_trials": num_trials,
        "num_positive": int(labels.sum()),
        "num_negative": int((labels == 0).sum()),
        "fingerprint": hdf5.attributes(data)["fingerprint"],
        "version": aiornot.__version__,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    if parent is None:
        return record | _from_file(stage)
    chosen = choose(stage, parent, parent_trials)
    beside = _beside(stage, parent_trials, chosen)
    record |= {"beside": beside, "num_trials": num_trials + len(beside)}
    if not stage.searches():
        return record | {
            "selected": [trial.id for trial in chosen],
            "num_trials": len(chosen) * len(stage.seeds) + len(beside),
            "warnings": _why(chosen, parent_trials),
        }
    return record | _from_parent(stage, parent, parent_trials, chosen)


def _beside(stage: Stage, trials: Sequence[Trial], chosen: Sequence[Trial]) -> list[Record]:
    """Return the trials to be compared with, as the ledger will have them but for id and number.

    A control keeps its own values where those lie outside of what the stage searches.
    """
    assert stage.after is not None
    rungs = select.rungs(stage.after.budget)
    found = [
        {
            "role": "control",
            "origin": f"control from {trial.id}",
            "params": trial.params,
            "config": configure(stage, {}, base=trial.config).to_dict(),
        }
        for trial in select.controls(trials, chosen, stage.controls, rungs=rungs)
    ]
    if stage.baseline is not None:
        config = configure(stage, stage.baseline).to_dict()
        params = dict(stage.baseline)
        found.append({"role": "baseline", "origin": "baseline", "params": params, "config": config})
    return found


def num_before(stage: Stage, record: Mapping[str, Any]) -> int:
    """Return how many trials were chosen: those to be compared with follow on them."""
    if stage.searches():
        return len(record["first"])
    return len(record["selected"]) * len(stage.seeds)


def choose(stage: Stage, parent: Record, trials: Sequence[Trial]) -> list[Trial]:
    """Pick the parent's configurations that go on into a stage, best first."""
    assert stage.after is not None
    counts = {key: int(parent[key]) for key in ("num_positive", "num_negative")}
    if not stage.after.searches() and stage.enqueue == 1:
        return [select.final_choice(trials, **counts)]
    rungs = select.rungs(stage.after.budget)
    # One at least: what a stage neither searches nor fixes is taken from the parent's best.
    return select.candidates(trials, max(1, stage.enqueue), rungs=rungs, **counts)


def _why(chosen: Sequence[Trial], trials: Sequence[Trial]) -> list[str]:
    """Say so where the best score is not what goes on."""
    best = _best(trials)
    if best is None or not chosen or chosen[0].id == best.id:
        return _above(trials)
    return [
        *_above(trials),
        f"{chosen[0].id} (score {chosen[0].score:.4f}) goes first though {best.id} has "
        f"{best.score:.4f}: within one standard error the smaller train-val gap wins",
    ]


def _above(trials: Sequence[Trial]) -> list[str]:
    """Say so where what there is to compare with did better than all candidates."""
    best = _best(trials)
    return [
        f"{trial.id} ({trial.origin}) has {trial.score:.4f}, more than any candidate; it is there "
        "to be compared with, and does not go on"
        for trial in trials
        if trial.state == "finished" and trial.role != "candidate"
        if best is not None and trial.score > best.score
    ]


def _best(trials: Sequence[Trial]) -> Trial | None:
    finished = [trial for trial in contenders(trials) if trial.state == "finished"]
    return max(finished, key=lambda trial: trial.score, default=None)


def _from_file(stage: Stage) -> Record:
    return {
        "space": _to_json({name: original(domain) for name, domain in stage.space.items()}),
        "first": [dict(point) for point in stage.first],
        "origins": ["first"] * len(stage.first),
        "beside": [],
        "base": None,
        "warnings": [],
    }


def _from_parent(
    stage: Stage, parent: Record, trials: Sequence[Trial], chosen: Sequence[Trial]
) -> Record:
    """Narrow the space and enqueue the parent's best. Configurations flow, scores do not."""
    assert stage.after is not None
    best, others = select.split_top(trials, select.rungs(stage.after.budget))
    searched = space_of(parent)
    space = narrow.narrow(stage.space, parent=searched, best=best, others=others)
    points = narrow.enqueued(stage.first, space)
    origins = ["first"] * len(points)
    for trial in chosen[: stage.enqueue]:
        for point in narrow.enqueued([_as_trained(trial, space)], space):
            if point not in points:
                points.append(point)
                origins.append(f"from {trial.id}")
    known = {name: original(d) for name, d in stage.space.items() if name in searched}
    return {
        "space": _to_json(space),
        "first": points,
        "origins": origins,
        "base": chosen[0].config if chosen else None,
        "warnings": [*_above(trials), *narrow.bound_hits(known, best)],
    }


def _as_trained(trial: Trial, space: Mapping[str, Distribution]) -> dict[str, Any]:
    """Return a trial's values of all that a space holds, also of what it did not search itself."""
    return {name: trial.config[name] for name in space if name in trial.config} | trial.params


def space_of(record: Mapping[str, Any]) -> dict[str, Distribution]:
    """Return the resolved space of a stage."""
    return {name: distribution_from_json(text) for name, text in record.get("space", {}).items()}


def _to_json(space: Mapping[str, Distribution]) -> dict[str, str]:
    return {name: distribution_to_json(domain) for name, domain in sorted(space.items())}
