"""The part of a report on the threshold: its error rates, those at .5, and precision in the world.

Precision depends on how many images are generated, and splits are balanced as the world is not:
so it is told for fewer as well, which takes the two error rates and no measurement.
"""

import shlex
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from aiornot.data.markup import Html, commands, join, paragraph, say, table
from aiornot.delivery.bootstrap import wilson
from aiornot.delivery.report_cells import (
    Interval,
    absent,
    counted,
    flipped,
    judged,
    percent,
    rate,
)

_Table = Mapping[str, Any]

RARE = (0.5, 0.1, 0.01)
"""Shares of generated images for which precision is told."""


def threshold(report: _Table) -> Html:
    if told := absent(report, "delivered"):
        return told
    split, shown = judged(report)
    calibration = shown["calibration"]
    told = paragraph(
        f"An image whose calibrated probability is {calibration['threshold']:.4f} or more is "
        f"called generated, as the rule {calibration['rule']} chose on val. To choose by another "
        "rule, without training:"
    )
    line = ["aiornot", "calibrate", report["delivered"]["folder"], "--data", report["data"]]
    again = commands([shlex.join([*line, "--rule", "RULE"])])
    return join([told, again, _errors(report), *_unsure(shown), _rare(shown, split)])


def _errors(report: _Table) -> Html:
    """Show error rates at the threshold and at .5, and on val, where the threshold was chosen."""
    split, shown = judged(report)
    columns = [
        (f"{split}, at the threshold", shown, "threshold"),
        (f"{split}, at .5", shown, "0.5"),
    ]
    if split == "test":
        columns.append(("val, at the threshold", report["evaluations"]["val"], "threshold"))
    rows: dict[str, Callable[[_Table, str], Html]] = {
        "real called generated": _false_positives,
        "generated called real": _false_negatives,
        "accuracy": partial(_share, "accuracy"),
        "precision": partial(_share, "precision"),
    }
    cells = [[say(name), *(cell(one, at) for _, one, at in columns)] for name, cell in rows.items()]
    return table(["", *(title for title, _, _ in columns)], cells)


def _false_positives(evaluation: _Table, at: str) -> Html:
    key = f"fpr@{at}"
    share, interval = evaluation["metrics"][key], evaluation["intervals"].get(key)
    return _of(share, interval, evaluation["num_real"])


def _false_negatives(evaluation: _Table, at: str) -> Html:
    key = f"recall@{at}"
    share, interval = 1 - evaluation["metrics"][key], flipped(evaluation["intervals"].get(key))
    return _of(share, interval, evaluation["num_generated"])


def _of(share: float, interval: Interval, images: int) -> Html:
    return join([rate(share, interval), counted(round(share * images), images)], " ")


def _share(name: str, evaluation: _Table, at: str) -> Html:
    key = f"{name}@{at}"
    return rate(evaluation["metrics"][key], evaluation["intervals"].get(key))


def _unsure(evaluation: _Table) -> list[Html]:
    """Say what is too close to call, where an evaluation knows of it."""
    band, metrics = evaluation["calibration"].get("unsure"), evaluation["metrics"]
    if not band or metrics.get("unsure_share") is None:
        return []
    told = (
        f"Probabilities from {band[0]:.3f} to below {band[1]:.3f} are marked as too close to call: "
        f"{percent(metrics['unsure_share'])} of the images."
    )
    if metrics.get("accuracy_when_sure") is not None:
        told += f" Of the others {percent(metrics['accuracy_when_sure'])} are judged right."
    return [paragraph(told)]


def _rare(evaluation: _Table, split: str) -> Html:
    """Show of how many images called generated that is true, if fewer are generated than here."""
    cells = [
        [say(f"{share:.0%}"), *(_precision(evaluation, at, share) for at in ("threshold", "0.5"))]
        for share in RARE
    ]
    note = paragraph(
        f"Of the images that it calls generated so many are, by its two error rates on {split}. In "
        "brackets what the 95 % interval (Wilson) of real ones called generated makes of it.",
        dim=True,
    )
    columns = ["generated, of all", "precision at the threshold", "at .5"]
    head = Html("<h3>If fewer images are generated</h3>")
    return join([head, table(columns, cells), note])


def _precision(evaluation: _Table, at: str, share: float) -> Html:
    metrics, images = evaluation["metrics"], evaluation["num_real"]
    recall, wrong = metrics[f"recall@{at}"], metrics[f"fpr@{at}"]
    low, high = wilson(round(wrong * images), images)
    return rate(
        precision_at(share, recall, wrong),
        [precision_at(share, recall, high), precision_at(share, recall, low)],
    )


def precision_at(share: float, recall: float, fpr: float) -> float | None:
    """Return the precision where a share of the images is generated; None if none is called so."""
    found, wrong = share * recall, (1 - share) * fpr
    return found / (found + wrong) if found + wrong else None
