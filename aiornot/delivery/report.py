"""What there is to report of a run, gathered from its ledgers and its bundle into one plain dict.

``aiornot report demo`` shows it as a page (``report_page.py``) and writes it as JSON beside that.
Nothing is measured here and no model is loaded. What was never measured is named in ``missing``,
each with a sentence and, where one makes it, the command.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from aiornot.config import TICKS
from aiornot.data import copies, hdf5
from aiornot.data.hdf5 import CLASSES
from aiornot.data.splits import SPLITS
from aiornot.delivery import manifest, report_commands, report_results
from aiornot.delivery.calibrate import DEFAULT_RULE
from aiornot.tuning import asha, board, figures, select, spending
from aiornot.tuning.ledger import Trial
from aiornot.tuning.record import Record

SCHEMA_VERSION = 1

ERRORS = "errors/errors.json"
"""Beside the bundle."""

GALLERY = "errors/errors.html"
HUMAN = "human"
"""Beside the runs: where ``aiornot human`` keeps its records."""

Report = dict[str, Any]


def collect(run: str, *, root: str, folder: Path, data: str, human: Path) -> Report:
    """Return all that is known of a run; the same files give the same dict.

    Args:
        run: A chain, or a run of ``aiornot train``.
        root: Where runs lie, a folder or ``s3://...``.
        folder: Local, of this run: its bundle and what was measured of it.
        data: Folder of the prepared files, for the sizes of the splits. Of one in an object store
            they are read from its copies here, and not fetched for them.
        human: Folder of the records of ``aiornot human``.

    Raises:
        InputError: No such run, or a damaged file.
    """
    stages = [_stage(root, run, row["stage"]) for row in board.stages(root, run)]
    bundle = folder / "bundle"
    found: Report = {"schema_version": SCHEMA_VERSION, "run": run, "data": data, "stages": stages}
    found |= {"delivered": None, "note": "", "evaluations": {}, "comparison": None}
    found |= {"robustness": None, "errors": None, "human": None, "test_opened": []}
    if (bundle / manifest.DESCRIPTION).exists():
        found |= _delivered(bundle, human)
        if stages[0]["created"] is None:  # of aiornot train: its bundle alone knows its data
            settings = json.loads(found["delivered"]["data"]["settings"] or "{}")
            stages[0]["settings"] = settings
            stages[0]["budget"]["size"] = settings.get("size")
    found["splits"] = _splits(copies.folder_of(data), stages)
    rule = found["delivered"]["calibration"]["rule"] if found["delivered"] else DEFAULT_RULE
    found["commands"] = report_commands.remaking(run, root, bundle, data, stages, rule=rule)
    found["results"] = report_results.against_baseline(
        found["evaluations"], found.pop("baseline", {}), found["comparison"]
    )
    found["people"] = report_results.against_person(
        found["evaluations"].get("test"), found["human"]
    )
    return found | {"missing": report_commands.missing(found, bundle, data)}


def _stage(root: str, run: str, name: str) -> dict[str, Any]:
    """Return what ``board`` knows of a stage, with its budget and its learning curves."""
    shown = board.leaderboard(root, run, name)
    record, trials = board.read_stage(root, run, name)
    settings = json.loads(record.get("meaning", {}).get("data_settings") or "{}")
    dropped = ("traceback", "effective")
    return {
        **{key: value for key, value in shown.items() if key not in ("run", "trials")},
        "trials": [{k: v for k, v in row.items() if k not in dropped} for row in shown["trials"]],
        "budget": _budget(record, trials, settings),
        "settings": settings,
        "created": record.get("created"),
        "version": record.get("version"),
        "rungs": select.rungs(asha.budget_of(record))[:-1],
        "curves": [_curve(trial) for trial in trials if figures.score_curve(trial)[0]],
    }


def _curve(trial: Trial) -> dict[str, Any]:
    ticks, scores = figures.score_curve(trial)
    found = {"trial": trial.id, "state": trial.state, "role": getattr(trial, "role", "candidate")}
    return found | {"ticks": ticks, "scores": [round(score, 5) for score in scores]}


def _budget(record: Record, trials: Sequence[Trial], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a stage was to cost and what it did; a tick is 1/16 of a trial's training."""
    searches = record.get("meaning", {}).get("sampler") is not None
    share = spending.expected_share(asha.budget_of(record))
    planned = int(record.get("num_trials", 1))
    epochs = sorted({int(trial.config["epochs"]) for trial in trials})
    images = [
        int(trial.effective["num_train"]) for trial in trials if "num_train" in trial.effective
    ]
    return {
        "searches": searches,
        "trials": planned,
        "ended": sum(trial.state != "running" for trial in trials),
        "epochs": [epochs[0], epochs[-1]] if epochs else None,
        "images": max(images, default=None),
        "size": settings.get("size"),
        "expected_ticks": round(planned * TICKS * share),
        "whole_ticks": planned * TICKS,
        "ticks": sum(trial.tick for trial in trials),
        "samples": sum(int(trial.ticks[-1].get("samples", 0)) for trial in trials if trial.ticks),
        "allowed": record.get("allowed"),
    }


def _delivered(bundle: Path, human: Path) -> Report:
    """Return what a bundle and the files in and beside it tell."""
    description = manifest.read(bundle)
    names = ("calibration", "config", "lineage", "data", "versions", "preprocessing", "sha256")
    kept = _kept(bundle / manifest.EVALUATIONS) or {"test_opened": [], "evaluations": []}
    tests = [one for one in kept["evaluations"] if one["split"] == "test"]
    compared = _kept(bundle / manifest.COMPARISON)
    if compared is not None and not _is_of(description, compared["models"]["final"]):
        compared = None
    return {
        "delivered": {name: description[name] for name in names} | {"folder": str(bundle)},
        "note": description["data"]["source_note"],
        "evaluations": {"val": description["val"], "test": _newest(tests, description)},
        "baseline": _baseline(bundle / manifest.BASELINE),
        "comparison": compared,
        "test_opened": kept["test_opened"],
        "robustness": _of_splits(_kept(bundle / manifest.ROBUSTNESS), description),
        "errors": _newest([one for one in [_kept(bundle.parent / ERRORS)] if one], description),
        "human": _human(human, description),
    }


def _kept(path: Path) -> Report | None:
    return manifest.read_json(path, why="nothing there") if path.is_file() else None


def _is_of(description: Mapping[str, Any], result: Mapping[str, Any]) -> bool:
    """Whether a result is of these weights at this threshold, and not of what was here before."""
    same = result.get("sha256") or result["model"]
    return (
        str(description["sha256"]).startswith(same)
        and result["calibration"] == description["calibration"]
    )


def _newest(results: Sequence[Report], description: Mapping[str, Any]) -> Report | None:
    return next((one for one in reversed(results) if _is_of(description, one)), None)


def _of_splits(kept: Report | None, description: Mapping[str, Any]) -> Report | None:
    """Return what was measured on test, else on val."""
    splits = (kept or {}).get("splits", {})
    return _newest([splits[name] for name in ("val", "test") if name in splits], description)


def _baseline(folder: Path) -> dict[str, Any]:
    if not (folder / manifest.DESCRIPTION).is_file():
        return {}
    return {"val": manifest.read(folder)["val"]}


def _human(folder: Path, description: Mapping[str, Any]) -> Report | None:
    """Return the newest record of a person beside this model, without what was shown."""
    for path in sorted(folder.glob("*.json"), reverse=True):
        found = _kept(path) or {}
        model = found.get("model") or {}
        if model.get("sha256") == description["sha256"]:
            return {key: found[key] for key in ("time", "split", "human", "model")}
    return None


def gallery(folder: Path, page: Path) -> str | None:
    """Return the address of the errors page, as seen from a page, if it holds images."""
    path = folder / GALLERY
    if not path.is_file() or "<img" not in path.read_text(encoding="utf-8"):
        return None
    return quote(os.path.relpath(path.absolute(), page.absolute().parent))


def _splits(data: Path, stages: Sequence[Report]) -> dict[str, dict[str, dict[str, int]]]:
    """Return the images of each prepared file that the run used, by split and class."""
    found = {}
    for settings in (stage["settings"] for stage in stages):
        path = data / f"{settings.get('name')}.h5"
        if not path.is_file() or json.loads(hdf5.attributes(path)["settings"]) != settings:
            continue  # not there, or prepared anew and other images now
        labels = {split: hdf5.read_labels(path, split) for split in SPLITS}
        found[settings["name"]] = {
            split: {name: int((each == n).sum()) for n, name in enumerate(CLASSES)}
            for split, each in labels.items()
        }
    return found
