"""The table of the notebook's results section: baseline against final, person against model.

``delivery/report.py`` puts it into the report. Every figure says on which split it was measured,
and a figure of the notebook says that it comes from other images.
"""

from collections.abc import Mapping
from typing import Any

from aiornot.data.splits import SPLITS
from aiornot.delivery.bootstrap import wilson

METRICS = {
    "auroc": "AUROC",
    "accuracy@threshold": "accuracy",
    "log_loss_after_temperature": "log loss",
    "precision@0.5": "precision at .5",
    "precision@threshold": "precision at the threshold",
    "recall@threshold": "recall",
}
"""Of the table, with the names that people read."""

NOTEBOOK_HUMAN = {"accuracy": (42, 50), "recall": (21, 22), "precision": (21, 28), "fpr": (7, 28)}
"""The person of the notebook this project started from: 50 of its own images, real or generated."""

NOTEBOOK_FINAL = {"accuracy": 0.9296, "recall": 0.9990, "precision": 0.8882}
"""Its final model, on its own test split, at .5."""

Values = Mapping[str, Any]


def against_baseline(
    evaluations: Mapping[str, Values | None],
    baseline: Mapping[str, Values | None],
    comparison: Values | None,
) -> list[dict[str, Any]]:
    """Return a row per split and metric of which at least one of both models has a figure.

    Args:
        evaluations: Of the final model by split, as ``evaluate.evaluation`` gives them.
        baseline: The same of the baseline.
        comparison: What ``comparison.json`` holds, if anything.

    Returns:
        Rows of ``split``, ``metric``, ``final`` and ``baseline`` (each a value with its interval,
        either of them None) and ``difference``, the same, with ``better``.
    """
    splits = (comparison or {}).get("splits", {})
    rows = []
    for split in SPLITS:
        compared = splits.get(split, {})
        for metric in METRICS:
            row = {
                "split": split,
                "metric": metric,
                "final": _found(metric, evaluations.get(split), compared, "final"),
                "baseline": _found(metric, baseline.get(split), compared, "baseline"),
                "difference": compared.get("differences", {}).get(metric),
            }
            if row["final"] or row["baseline"]:
                rows.append(row)
    return rows


def _found(
    metric: str, evaluation: Values | None, compared: Values, who: str
) -> dict[str, Any] | None:
    """Return a figure of the model's own evaluation, with its interval, or of the comparison."""
    if evaluation is not None and evaluation["metrics"].get(metric) is not None:
        value, interval = evaluation["metrics"][metric], evaluation["intervals"].get(metric)
        return {"value": value, "interval": interval}
    value = compared.get("metrics", {}).get(who, {}).get(metric)
    return None if value is None else {"value": value, "interval": None}


def against_person(evaluation: Values | None, human: Values | None) -> list[dict[str, Any]]:
    """Return rows of ``metric``, ``final``, ``person``, ``notebook_person``, ``notebook_final``.

    Args:
        evaluation: Of the final model on test.
        human: A record of ``aiornot human``, if there is one.
    """
    rows = []
    for metric, ours, notebooks in (
        ("accuracy", "accuracy@threshold", NOTEBOOK_FINAL["accuracy"]),
        ("recall", "recall@threshold", NOTEBOOK_FINAL["recall"]),
        ("precision at .5", "precision@0.5", NOTEBOOK_FINAL["precision"]),
        ("precision at the threshold", "precision@threshold", None),
    ):
        word = metric.partition(" ")[0]
        # A person has no threshold, and so one precision beside the model's two.
        rows.append(
            {
                "metric": metric,
                "final": _found(ours, evaluation, {}, "final"),
                "person": _of_person(human["human"]["counts"], word) if human else None,
                "notebook_person": _of_person(NOTEBOOK_HUMAN, word),
                "notebook_final": notebooks,
            }
        )
    return rows


def _of_person(counts: Values, metric: str) -> dict[str, Any]:
    part, whole = counts[metric]
    return {"value": part / whole if whole else None, "interval": list(wilson(part, whole))}
