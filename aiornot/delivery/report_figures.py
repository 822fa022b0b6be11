"""The figures of a report: funnel, learning curves, calibration, ROC, scores, robustness.

``delivery/report_page.py`` places them. Colours are those of Okabe and Ito, and no figure says
anything by colour alone: lines differ in kind, dots in shape, and hovering names a trial.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from aiornot.config import TICKS
from aiornot.data.hdf5 import CLASSES
from aiornot.data.markup import Html, join, say, text
from aiornot.delivery import plot
from aiornot.delivery.bootstrap import wilson
from aiornot.delivery.plot import Plot, Scale
from aiornot.delivery.report_results import NOTEBOOK_HUMAN
from aiornot.tuning.tables import duration

_Table = Mapping[str, Any]

CURVES = {
    "jpeg_quality": ("JPEG quality", True),
    "blur_sigma": ("blur, sigma in pixels", False),
    "rescale": ("rescaled to, share of the side", False),
    "crop": ("cropped to, share of the side", True),
}
"""By the name in ``robustness.json``: the axis, and whether more damage is a smaller number."""

_ROW, _MIDDLE, _HALF = 66, 64, 58


def funnel(stages: Sequence[_Table]) -> Html:
    """Draw what the search narrows and what it spends: trials, data of each, time, by stage."""
    counts = [stage["budget"]["trials"] for stage in stages]
    shows = [
        (stage["budget"]["images"] or 0) * (stage["budget"]["epochs"] or [0])[-1]
        for stage in stages
    ]
    seconds = [stage["stage"]["device_seconds"] for stage in stages]
    parts = [
        _heading(x, heading)
        for x, heading in ((6, "trials"), (140, "images x epochs"), (274, "time"))
    ]
    halves = [max(3.0, _HALF * count / max(counts)) for count in counts]
    for number, half in enumerate(halves):
        top = 24 + _ROW * number
        if number + 1 < len(halves):
            parts.append(_slope(top, half, halves[number + 1]))
        budget = stages[number]["budget"]
        parts += [
            _block(_MIDDLE - half, 2 * half, top, "one"),
            _block(140, 116 * shows[number] / (max(shows) or 1), top, "two"),
            _block(274, 60 * seconds[number] / (max(seconds) or 1), top, "three"),
            _count(half, top, counts[number]),
            _label(6, top + 34, stages[number]["stage"]["stage"], "strong", "start"),
            _label(140, top + 34, _seen(budget), "", "start"),
            _label(274, top + 34, duration(seconds[number]), "", "start"),
        ]
    height = 24 + _ROW * len(stages) - 20
    return Html(
        f'<figure class="plot wide"><b>The funnel</b><svg viewBox="0 0 {plot.WIDTH} {height}" '
        f'role=img aria-label="trials, images and time of each stage">{join(parts)}</svg>'
        "<figcaption>Trials begun; images of train times epochs of a whole training, and the side "
        "of an image; time of the devices. Bars are in proportion.</figcaption></figure>"
    )


def _count(half: float, top: float, count: int) -> Html:
    """Write the number of trials into its bar, or beside one that is too narrow."""
    if half > 14:
        return _label(_MIDDLE, top + 13, f"{count:,}", "strong inside", "middle")
    return _label(_MIDDLE + half + 4, top + 13, f"{count:,}", "strong", "start")


def _heading(x: float, told: str) -> Html:
    return Html(f'<text class=dim x="{x}" y="14">{say(told)}</text>')


def _block(x: float, width: float, top: float, kind: str) -> Html:
    return Html(
        f'<rect class="{kind}" x="{x:.1f}" y="{top}" width="{max(2.0, width):.1f}" height="18" '
        'rx="2"/>'
    )


def _slope(top: float, half: float, after: float) -> Html:
    ends = ((-half, top + 18), (half, top + 18), (after, top + _ROW), (-after, top + _ROW))
    corners = " ".join(f"{_MIDDLE + aside:.1f},{down}" for aside, down in ends)
    return Html(f'<polygon class=pale points="{corners}"/>')


def _label(x: float, y: float, told: str, kind: str, anchor: str) -> Html:
    return Html(
        f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor={anchor}>{text(told)}</text>'
    )


def _seen(budget: _Table) -> str:
    if budget["images"] is None or budget["epochs"] is None:
        return "unknown"
    low, high = budget["epochs"]
    epochs = str(high) if low == high else f"{low}-{high}"
    size = f", {budget['size']} px" if budget["size"] else ""
    return f"{budget['images']:,} x {epochs}{size}"


def learning(stage: _Table) -> Html | None:
    """Draw the score of every trial of a stage over its ticks; None where none has a score."""
    curves = stage["curves"]
    if not curves:
        return None
    ranked = [row["trial"] for row in stage["trials"]]
    best = next((name for name in ranked for one in curves if one["trial"] == name), None)
    scores = [score for one in curves for score in one["scores"]]
    frame = Plot(
        Scale(
            0.5, TICKS + 0.5, [(n, str(n)) for n in (1, 4, 8, 12, 16)], "tick, 1/16 of a training"
        ),
        plot.around(scores, "validation AUROC, best so far"),
    )
    parts = [frame.upright(rung, "rung") for rung in stage["rungs"]]
    for one in sorted(curves, key=lambda one: (one["trial"] == best, one["state"] != "stopped")):
        kind = "best" if one["trial"] == best else _kind(one)
        points = list(zip(one["ticks"], one["scores"], strict=True))
        tip = f"{one['trial']}, {one['state']}: {points[-1][1]:.4f} at tick {points[-1][0]}"
        parts += [
            frame.line(points, f"curve {kind}", tip=tip),
            frame.dot(points[-1], kind, radius=4 if kind == "best" else 2.5, tip=tip),
        ]
    kinds = {_kind(one) for one in curves if one["trial"] != best}
    names = [("best", f"best: {best}"), *((k, n) for k, n in _KINDS.items() if k in kinds)]
    return plot.figure(
        stage["stage"]["stage"],
        frame,
        parts,
        legend=plot.key(names),
        below="Dotted: where ASHA decides." if stage["rungs"] else "",
    )


_KINDS = {
    "one": "finished or running",
    "pale": "stopped early, or failed",
    "control": "control",
    "baseline": "baseline",
}


def _kind(curve: _Table) -> str:
    if curve["role"] != "candidate":
        return str(curve["role"])
    return "one" if curve["state"] in ("finished", "running") else "pale"


def agreement(row: _Table) -> Html | None:
    """Draw the scores of configurations that ran in two stages."""
    pairs = [(one["parent_score"], one["child_score"], one["trial"]) for one in row["pairs"]]
    if len(pairs) < 2:
        return None
    frame = Plot(
        plot.around([one for one, _, _ in pairs], f"score in {row['parent']}"),
        plot.around([other for _, other, _ in pairs], f"score in {row['child']}"),
    )
    parts = [
        frame.dot(
            (one, other), "control" if name in row["controls"] else "one", radius=4.5, tip=name
        )
        for one, other, name in pairs
    ]
    names = [("one", "taken as one of the best"), ("control", "control")]
    return plot.figure(
        f"{row['parent']} and {row['child']}",
        frame,
        parts,
        legend=plot.key(names[: 1 + bool(row["controls"])]),
    )


def reliability(evaluation: _Table) -> Html:
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
    names = [("one", "calibrated"), ("hollow", "before temperature")]
    error = evaluation["metrics"]["ece"]
    return plot.figure(
        "Calibration",
        frame,
        parts,
        legend=plot.key(names),
        below=f"{len(evaluation['curves']['reliability'])} bins of equal size with 95 % intervals; "
        f"on the diagonal it says what is true. Mean distance (ECE) {error:.3f}.",
    )


def roc(evaluation: _Table, human: _Table | None) -> Html:
    """Draw recall over the false-positive rate, with the person of the notebook."""
    verdicts, metrics = evaluation["curves"]["verdicts"], evaluation["metrics"]
    frame = Plot(plot.unit("real images called generated"), plot.unit("recall of generated"))
    points = list(zip(verdicts["fpr"], verdicts["recall"], strict=True))
    chosen = (metrics["fpr@threshold"], metrics["recall@threshold"])
    parts = [frame.line([(0, 0), (1, 1)], "rung"), frame.line(points, "curve one")]
    parts += _operating(frame, chosen, (metrics["fpr@0.5"], metrics["recall@0.5"]))
    parts += _people(frame, human, across=("fpr", False), up="recall")
    return plot.figure(
        "ROC",
        frame,
        parts,
        legend=plot.key(_names(human)),
        below=f"AUROC {metrics['auroc']:.4f}. {_ABOUT_PERSON}",
    )


def precision_recall(evaluation: _Table, human: _Table | None) -> Html:
    """Draw precision over recall, with the person of the notebook."""
    verdicts, metrics = evaluation["curves"]["verdicts"], evaluation["metrics"]
    found = zip(verdicts["recall"], verdicts["precision"], strict=True)
    points = [(one, other) for one, other in found if other is not None]
    share = evaluation["num_generated"] / (evaluation["num_generated"] + evaluation["num_real"])
    frame = Plot(plot.unit("recall of generated"), plot.unit("precision"))
    parts = [frame.line([(0, share), (1, share)], "rung"), frame.line(points, "curve one")]
    operating = [
        (metrics[f"recall@{at}"], metrics[f"precision@{at}"] or 0.0) for at in ("threshold", "0.5")
    ]
    parts += _operating(frame, *operating)
    parts += _people(frame, human, across=("recall", False), up="precision")
    return plot.figure(
        "Precision and recall",
        frame,
        parts,
        legend=plot.key(_names(human)),
        below=f"Average precision {metrics['average_precision']:.4f}. {_ABOUT_PERSON}",
    )


_ABOUT_PERSON = "The notebook's person saw 50 other images: recall .9545, precision .7500."


def _names(human: _Table | None) -> list[tuple[str, str]]:
    names = [("one", "model"), ("best", "its threshold"), ("hollow", "at .5")]
    names.append(("person", "person of the notebook"))
    return names + ([("control", "person here")] if human else [])


def _operating(frame: Plot, chosen: plot.Point, half: plot.Point) -> list[Html]:
    return [
        frame.dot(half, "hollow", radius=4.5, tip="at .5"),
        frame.dot(chosen, "best", radius=5, tip="at the threshold"),
    ]


def _people(frame: Plot, human: _Table | None, *, across: tuple[str, bool], up: str) -> list[Html]:
    """Draw persons as crosses whose arms are the 95 % intervals."""
    found = [("person", {k: tuple(v) for k, v in NOTEBOOK_HUMAN.items()})]
    if human is not None:
        counts = human["human"]["counts"]
        right, real = counts["accuracy_real"]
        found.append(("control", {**counts, "fpr": (real - right, real)}))
    parts = []
    for kind, counts in found:
        (part, whole), (rise, height) = counts[across[0]], counts[up]
        if not whole or not height:
            continue
        x, y = part / whole, rise / height
        parts += [
            frame.line([(end, y) for end in wilson(part, whole)], f"arm {kind}"),
            frame.line([(x, end) for end in wilson(rise, height)], f"arm {kind}"),
            frame.dot((x, y), kind, radius=4, tip="a person"),
        ]
    return parts


def scores(evaluation: _Table) -> Html:
    """Draw the scores of both classes with the threshold and the band of the unsure."""
    shown, calibration = evaluation["curves"]["histogram"], evaluation["calibration"]
    edges = shown["edges"]
    shares = {name: [n / max(1, sum(shown[name])) for n in shown[name]] for name in CLASSES}
    top = 1.05 * max(max(shares[name]) for name in CLASSES)
    places = [(math.log(p / (1 - p)), f"{p:g}") for p in (0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999)]
    frame = Plot(
        Scale(edges[0], edges[-1], places, "probability of generated (log odds)"),
        Scale(
            0.0,
            top,
            [(n * top / 4, f"{100 * n * top / 4:.0f} %") for n in range(5)],
            "of its class",
        ),
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
    names = [*((name, name) for name in CLASSES), ("mark", "threshold")]
    names += [("band", "unsure")] if calibration.get("unsure") else []
    return plot.figure(
        "Scores by class",
        frame,
        parts,
        legend=plot.key(names),
        below="Each class as shares of its own; the outermost bars hold what lies beyond.",
    )


def _log_odds(probability: float, edges: Sequence[float]) -> float:
    """Return where a probability lies on the axis, cut at its ends."""
    inside = min(max(probability, 1e-12), 1 - 1e-12)
    return min(max(math.log(inside / (1 - inside)), edges[0]), edges[-1])


def damages(robustness: _Table) -> list[Html]:
    """Draw AUROC and balanced accuracy over the strength of each damage."""
    clean = robustness["tiers"][0]["metrics"]
    known = {name: points for name, points in robustness["curves"].items() if points}
    values = [
        end
        for points in known.values()
        for point in points
        for metric in _DAMAGED
        for end in point["intervals"][metric]
    ]
    upright = plot.around([*values, *(clean[metric] for metric in _DAMAGED)], "score")
    found = []
    for name, points in known.items():
        title, falling = CURVES.get(name, (name, False))
        strengths = sorted((point["value"] for point in points), reverse=falling)
        ticks = [(value, f"{value:g}") for value in strengths]
        frame = Plot(Scale(strengths[0], strengths[-1], ticks, title), upright)
        parts = []
        for metric, (kind, _) in _DAMAGED.items():
            parts += _with_band(frame, points, metric, kind, clean[metric])
        legend = plot.key([(kind, word) for kind, word in _DAMAGED.values()])
        found.append(plot.figure(title.partition(",")[0], frame, parts, legend=legend))
    return found


_DAMAGED = {
    "auroc": ("one", "AUROC"),
    "balanced_accuracy@threshold": ("best", "balanced accuracy"),
}


def _with_band(
    frame: Plot, points: Sequence[_Table], metric: str, kind: str, clean: float
) -> list[Html]:
    lower = [(point["value"], point["intervals"][metric][0]) for point in points]
    upper = [(point["value"], point["intervals"][metric][1]) for point in points]
    middle = [(point["value"], point["metrics"][metric]) for point in points]
    return [
        frame.area([*lower, *upper[::-1]], f"shade {kind}"),
        frame.line([(frame.x.low, clean), (frame.x.high, clean)], f"clean {kind}"),
        frame.line(middle, f"curve {kind}"),
        *(frame.dot(point, kind, radius=2.5, tip=f"{point[1]:.4f}") for point in middle),
    ]
