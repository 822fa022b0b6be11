"""The delivered model in W&B: an artifact of its trial's run, and there its test scores, too.

``aiornot tune`` and ``train`` log it when they deliver; ``aiornot evaluate`` finds beside the
bundle which run that was.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aiornot import storage
from aiornot.delivery import manifest
from aiornot.training.track import Tracker
from aiornot.training.watch import Histogram
from aiornot.tuning import tracking
from aiornot.tuning.ledger import Trial
from aiornot.tuning.tracking import Labels, More, nothing_more

NOTE = "delivered.json"
"""In the folder of W&B: the bundle that was logged last, and all that its run was told."""

CONTENTS = ("story", "summary", "files")
"""What its run is told of anew with every score."""


def deliver(
    tracker: Tracker, bundle: Path, trial: Trial, labels: Labels, *, more: More = nothing_more
) -> None:
    """Log a bundle, once however often it is delivered; what W&B makes of it is seen at its close.

    Args:
        tracker: It may be off.
        bundle: A whole bundle.
        trial: Whose weights it holds; its run is opened once more.
        labels: Of that trial's ledger.
        more: As for ``tracking.story``.
    """
    # Without what grows, and without the baseline: that one is not what is delivered.
    growing = (manifest.EVALUATIONS, manifest.COMPARISON)
    files = sorted(p for p in bundle.iterdir() if p.is_file() and p.name not in growing)
    note = {
        "bundle": manifest.sha256(bundle / manifest.DESCRIPTION),
        "weights": manifest.read(bundle)["sha256"],
        "story": tracking.story(trial, labels, more=more),
        "summary": tracking.summary(trial),
        "files": [path.name for path in files],
    }
    path = tracker.folder / NOTE
    old = _read(path)
    if tracker.mode == "off" or (old and old["bundle"] == note["bundle"]):
        return
    run_id = tracking.run_id(trial, labels)
    tracker.start(**note["story"])
    tracker.model(
        run_id,
        name=_name(bundle),
        files=files,
        then=lambda: storage.write_text(str(path), json.dumps(note, default=dataclasses.asdict)),
    )
    tracker.end(run_id, note["summary"])


def evaluated(bundle: Path, result: Mapping[str, Any], *, mode: str) -> str:
    """Write the scores of the test split into the run of a bundle's trial, where it has one.

    Args:
        bundle: A bundle; one that was moved, or delivered without W&B, has no run.
        result: As ``evaluate.evaluation`` makes it.
        mode: ``auto`` or ``off``, as of a ``Tracker``.

    Returns:
        What a user should know, or nothing.
    """
    folder = bundle.absolute().parent / "wandb"
    note = _read(folder / NOTE)
    weights = manifest.read(bundle)["sha256"]
    if note is None or note["weights"] != weights or result["split"] != "test":
        return ""
    tracker = Tracker(tracking.PROJECT, folder, mode=mode)
    run_id = note["story"]["run_id"]
    tracker.start(**note["story"])
    if tracker.mode == "offline":  # the new file stands for the older one, artifact and all
        files = [path for name in note["files"] if (path := bundle / name).is_file()]
        tracker.model(run_id, name=_name(bundle), files=files)
    tracker.end(run_id, note["summary"] | _scores(result))
    return tracker.close()


def _name(bundle: Path) -> str:
    return f"{bundle.absolute().parent.name}-model"


def _scores(result: Mapping[str, Any]) -> dict[str, float]:
    split = result["split"]
    values = {f"{split}/{name}": value for name, value in result["metrics"].items()}
    for name, (low, high) in result["intervals"].items():
        values |= {f"{split}/{name}/low": low, f"{split}/{name}/high": high}
    return {name: value for name, value in values.items() if value is not None}


def _read(path: Path) -> dict[str, Any] | None:
    try:
        note = json.loads(path.read_text(encoding="utf-8"), object_hook=_histogram)
    except (OSError, ValueError):  # it is a convenience; without it nothing is lost but that
        return None
    whole = isinstance(note, dict) and note.keys() >= {"bundle", "weights", *CONTENTS}
    return note if whole else None


def _histogram(values: dict[str, Any]) -> Any:
    names = {field.name for field in dataclasses.fields(Histogram)}
    return Histogram(**values) if values.keys() == names else values
