"""The part of a report on the scores: calibration, ROC, precision and recall, both classes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from aiornot.data.hdf5 import CLASSES
from aiornot.data.markup import Html, join, paragraph
from aiornot.delivery import plot
from aiornot.delivery.bootstrap import wilson
from aiornot.delivery.plot import Plot, Scale
from aiornot.delivery.report_cells import absent, judged
from aiornot.delivery.report_results import NOTEBOOK_HUMAN

_Table = Mapping[str, Any]


def scores(report: _Table) -> Html:
    if told := absent(report, "curves"):
        return told
    split, shown = judged(report)
    human = report["human"]
    figures = [
        _reliability(shown),
        _roc(shown, human),
        _precision_recall(shown, human),
        _classes(shown),
    ]
    note = f"Of {shown['num_real'] + shown['num_generated']:,} images of {split}."
    return join([paragraph(note, dim=True), Html(f"<div class='charts two'>{join(figures)}</div>")])


def _reliability(evaluation: _Table) -> Html:
    """Draw how often an image is generated where the model says how probable that is."""
    frame = Plot(plot.unit("said: probability of generated"), plot.unit("true: share generated"))
    parts = [frame.line([(0, 0), (1, 1)], "rung")]
    for one in evaluation["curves"]["reliability"]:
        share = one["generated"] / one["num"]
        tip = f"{one['generated']} of {one['num']} generated, said {one['probability']:.3f}"
        ends = wilson(one["generated"], one["num"])
        parts += [
            frame.line([(one["probability"], end) for end in ends], "whisker"),
            frame.dot((one["before_temperature"], share), "hollow", radius=2.5),
            frame.dot((one["probability"], share), "one", radius=3.5, tip=tip),
        ]
    names = [("dot", "one", "calibrated"), ("dot", "hollow", "before temperature")]
    names += [("line", "whisker", "95 % interval"), ("line", "rung", "what is said is true")]
    error = evaluation["metrics"]["ece"]
    return plot.figure(
        "Calibration",
        frame,
        parts,
        legend=plot.key(names),
        below=f"{len(evaluation['curves']['reliability'])} bins of equally many images. Mean "
        f"distance from the diagonal (ECE) {error:.3f}.",
    )


_RATES = {
    "fpr": "real images called generated",
    "recall": "recall of generated",
    "precision": "precision",
}


def _roc(evaluation: _Table, human: _Table | None) -> Html:
    chance = [(0.0, 0.0), (1.0, 1.0)]
    told = f"AUROC {evaluation['metrics']['auroc']:.4f}"
    return _over_thresholds("ROC", evaluation, human, ("fpr", "recall"), chance, told)


def _precision_recall(evaluation: _Table, human: _Table | None) -> Html:
    share = evaluation["num_generated"] / (evaluation["num_generated"] + evaluation["num_real"])
    chance = [(0.0, share), (1.0, share)]
    told = f"Average precision {evaluation['metrics']['average_precision']:.4f}"
    return _over_thresholds(
        "Precision and recall", evaluation, human, ("recall", "precision"), chance, told
    )


def _over_thresholds(
    title: str,
    evaluation: _Table,
    human: _Table | None,
    rates: tuple[str, str],
    chance: Sequence[plot.Point],
    told: str,
) -> Html:
    """Draw one rate over another, with the two thresholds and the person of the notebook."""
    verdicts, metrics = evaluation["curves"]["verdicts"], evaluation["metrics"]
    frame = Plot(*(plot.unit(_RATES[rate]) for rate in rates))
    found = zip(*(verdicts[rate] for rate in rates), strict=True)
    points = [point for point in found if None not in point]  # precision, where none is called so
    parts = [frame.line(chance, "rung"), frame.line(points, "curve one")]
    for at, kind, radius, tip in (
        ("0.5", "hollow", 4.5, "at .5"),
        ("threshold", "best", 5, "at the threshold"),
    ):
        across, up = (metrics[f"{rate}@{at}"] or 0.0 for rate in rates)
        parts.append(frame.dot((across, up), kind, radius=radius, tip=tip))
    parts += _people(frame, human, *rates)
    return plot.figure(
        title,
        frame,
        parts,
        legend=plot.key(_names(evaluation, human)),
        below=f"{told}. {_ABOUT_PERSON}",
    )


_ABOUT_PERSON = "The notebook's person saw 50 other images: recall .9545, precision .7500."


def _names(evaluation: _Table, human: _Table | None) -> list[tuple[str, str, str]]:
    names = [
        ("line", "curve one", "model"),
        ("dot", "best", f"at its threshold, {evaluation['calibration']['threshold']:.3f}"),
        ("dot", "hollow", "at .5"),
        ("line", "rung", "by chance"),
        ("dot", "person", "person of the notebook"),
    ]
    return names + ([("dot", "control", "person here")] if human else [])


def _people(frame: Plot, human: _Table | None, across: str, up: str) -> list[Html]:
    """Draw persons as crosses whose arms are the 95 % intervals."""
    found = [("person", {k: tuple(v) for k, v in NOTEBOOK_HUMAN.items()})]
    if human is not None:
        counts = human["human"]["counts"]
        right, real = counts["accuracy_real"]
        found.append(("control", {**counts, "fpr": (real - right, real)}))
    parts = []
    for kind, counts in found:
        (part, whole), (rise, height) = counts[across], counts[up]
        if not whole or not height:
            continue
        x, y = part / whole, rise / height
        parts += [
            frame.line([(end, y) for end in wilson(part, whole)], f"arm {kind}"),
            frame.line([(x, end) for end in wilson(rise, height)], f"arm {kind}"),
            frame.dot((x, y), kind, radius=4, tip="a person"),
        ]
    return parts


def _classes(evaluation: _Table) -> Html:
    """Draw the scores of both classes with the threshold and the band of the unsure."""
    shown, calibration = evaluation["curves"]["histogram"], evaluation["calibration"]
    edges = shown["edges"]
    shares = {name: [n / max(1, sum(shown[name])) for n in shown[name]] for name in CLASSES}
    top = 1.05 * max(max(shares[name]) for name in CLASSES)
    places = [(math.log(p / (1 - p)), f"{p:g}") for p in (0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999)]
    frame = Plot(
        Scale(edges[0], edges[-1], places, "probability of generated (log odds)"),
        plot.shares(top, "share of the images of a class"),
    )
    parts = []
    if calibration.get("unsure"):
        low, high = (_log_odds(end, edges) for end in calibration["unsure"])
        parts.append(frame.bar(low, high, top, "band"))
    for number, name in enumerate(CLASSES):
        for left, right, share in zip(edges, edges[1:], shares[name], strict=False):
            begin = left + (0.06 + 0.44 * number) * (right - left)
            if share:
                parts.append(frame.bar(begin, begin + 0.44 * (right - left), share, name))
    parts.append(frame.upright(_log_odds(calibration["threshold"], edges)))
    names = [*(("area", name, name) for name in CLASSES), ("line", "mark", "threshold")]
    names += [("area", "band", "too close to call")] if calibration.get("unsure") else []
    return plot.figure(
        "Scores by class",
        frame,
        parts,
        legend=plot.key(names),
        below="The outermost bars hold what lies beyond.",
    )


def _log_odds(probability: float, edges: Sequence[float]) -> float:
    """Return where a probability lies on the axis, cut at its ends."""
    inside = min(max(probability, 1e-12), 1 - 1e-12)
    return min(max(math.log(inside / (1 - inside)), edges[0]), edges[-1])
