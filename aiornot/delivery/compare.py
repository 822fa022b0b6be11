"""Is the delivered model better than the baseline? Both on the same images, with a verdict.

``aiornot tune`` asks it on val, and puts the baseline into the bundle, as a small bundle of its
own; ``aiornot evaluate BUNDLE --split test`` asks again on test, in the one opening of that split.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aiornot import storage
from aiornot.config import InputError
from aiornot.data import hdf5, layout
from aiornot.delivery import bootstrap, evaluate, manifest
from aiornot.delivery import bundle as bundles
from aiornot.delivery.bundle import Bundle
from aiornot.delivery.manifest import BASELINE, COMPARISON
from aiornot.delivery.paired import METRICS, Answers, paired, verdict


def deliver(
    final: Path,
    baseline: Path | None,
    *,
    data: Path,
    device: torch.device,
    lineage: Mapping[str, Any] | None = None,
) -> dict[str, Any] | None:
    """Put the baseline into a bundle and compare both on train and val; what is there stays.

    Args:
        final: The bundle of the delivered model.
        baseline: The baseline's checkpoint; None leaves the bundle without a comparison.
        data: The prepared file of both.
        device: Where to compute.
        lineage: Where the baseline comes from.

    Returns:
        The content of ``comparison.json``, None without a baseline.
    """
    if baseline is None:
        (final / COMPARISON).unlink(missing_ok=True)
        shutil.rmtree(final / BASELINE, ignore_errors=True)
        return None
    rule = manifest.read(final)["calibration"]["rule"]
    bundles.write(
        baseline, final / BASELINE, data=data, device=device, rule=rule, lineage=lineage or {}
    )
    for split in ("train", "val"):
        on_split(final, data=data, split=split, device=device)
    return read(final)


def on_split(
    final: Path, *, data: Path, split: str, device: torch.device, again: bool = False
) -> dict[str, Any] | None:
    """Compare a bundle with its baseline on a split and record that; what is recorded stays.

    Of train as many images as val has are taken, and no verdict: both have learnt them.

    Args:
        final: The bundle.
        data: The prepared file.
        split: ``train``, ``val``, or ``test``, which has to be opened by ``evaluate`` before.
        device: Where to compute.
        again: Do it anew.

    Returns:
        What ``comparison.json`` has of the split, None where the bundle has no baseline.

    Raises:
        InputError: The test split was not opened, what was recorded is damaged, or what
            ``evaluate`` would refuse.
    """
    if not (final / BASELINE).is_dir():
        return None
    settings = hdf5.attributes(data).get("settings")
    kept = read(final) or {"splits": {}}
    found: dict[str, Any] | None = kept["splits"].get(split)
    if found is not None and found["settings"] == settings and not again:
        return found
    if split == "test" and evaluate.recorded(final, data=data, split=split) is None:
        raise InputError(f"{final}: 'aiornot evaluate' opens the test split, and compares then")
    models = {
        "final": bundles.load(final, device=device),
        BASELINE: bundles.load(final / BASELINE, device=device),
    }
    found = _measured(models, data=data, split=split) | {"settings": settings}
    splits = {**kept["splits"], split: found}
    content = {"models": _names(models), "splits": splits}
    storage.write_text(str(final / COMPARISON), manifest.sealed(content))
    return found


def complete(
    final: Path, *, data: Path, split: str, device: torch.device, again: bool = False
) -> dict[str, Any] | None:
    """Compare a bundle with its baseline on a split, and on train and val where that is missing.

    Arguments and errors are those of ``on_split``.

    Returns:
        The content of ``comparison.json``, None where the bundle has no baseline.
    """
    if not (final / BASELINE).is_dir():
        return None
    trained_on = manifest.read(final)["data"]["settings"]
    own = hdf5.attributes(data).get("settings") == trained_on
    for each in ("train", "val") if own else ():
        on_split(final, data=data, split=each, device=device)
    on_split(final, data=data, split=split, device=device, again=again)
    return read(final)


def _measured(models: Mapping[str, Bundle], *, data: Path, split: str) -> dict[str, Any]:
    labels = hdf5.read_labels(data, split)
    fraction = 1.0
    if split == "train":
        count = min(len(labels), len(hdf5.read_labels(data, "val")))
        labels, fraction = labels[:count], count / len(labels)
    answers = {
        name: Answers(
            bundles.score(model, data=data, split=split, fraction=fraction)[0], model.calibration
        )
        for name, model in models.items()
    }
    metrics = {
        name: evaluate.measure(each.logits, labels, each.calibration)
        for name, each in answers.items()
    }
    found: dict[str, Any] = {
        "num_images": len(labels),
        "metrics": {
            name: {metric: evaluate.plain(values[metric]) for metric in METRICS}
            for name, values in metrics.items()
        },
    }
    if split == "train":
        return found
    clusters = layout.read_clusters(data, split)
    differences = paired(answers["final"], answers[BASELINE], labels, clusters=clusters)
    return found | {
        "num_clusters": len(labels) if clusters is None else len(np.unique(clusters)),
        "num_draws": bootstrap.NUM_DRAWS,
        "differences": differences,
        "verdict": verdict(differences),
    }


def _names(models: Mapping[str, Bundle]) -> dict[str, Any]:
    return {
        name: {
            "model": model.name,
            "sha256": model.sha256,
            "calibration": model.calibration.to_dict(),
            "trial": model.description["lineage"].get("trial"),
        }
        for name, model in models.items()
    }


def read(final: Path) -> dict[str, Any] | None:
    """Return ``comparison.json``, None where there is none of these two models as they are now."""
    path = final / COMPARISON
    if not path.is_file():
        return None
    content = manifest.read_sealed(path)
    for name, folder in (("final", final), (BASELINE, final / BASELINE)):
        now, then = manifest.read(folder), content["models"][name]
        if (now["sha256"], now["calibration"]) != (then["sha256"], then["calibration"]):
            return None  # calibrated anew since: its accuracies are others
    return content


COLUMNS = ("", "baseline", "final", "difference", "95 % interval")


def rows(comparison: Mapping[str, Any]) -> list[list[str]]:
    """Return the table of results: split, metric, baseline, final, difference and its interval."""
    found = []
    for split, each in comparison["splits"].items():
        for name, label in METRICS.items():
            baseline, final = (each["metrics"][who][name] for who in (BASELINE, "final"))
            known = each.get("differences", {}).get(name)
            difference = f"{known['difference']:+.4f}" if known else ""
            interval = "{:+.4f} - {:+.4f}".format(*known["interval"]) if known else ""
            cells = [f"{split} {label}", _cell(baseline), _cell(final), difference, interval]
            found.append(cells)
    return found


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
