"""The part of a report on damaged images: tiers, curves over the strength, generators."""

from collections.abc import Mapping, Sequence
from typing import Any

from aiornot.data.markup import Html, join, paragraph, table, text
from aiornot.delivery import plot
from aiornot.delivery.plot import Plot, Scale
from aiornot.delivery.report_cells import absent, flipped, rate, value

_Table = Mapping[str, Any]

CURVES = {
    "jpeg_quality": ("JPEG", "quality", True),
    "blur_sigma": ("Blur", "sigma in pixels", False),
    "rescale": ("Rescaling", "side, as a share of what it was", False),
    "crop": ("Crop", "side, as a share of what it was", True),
}
"""By the name in ``robustness.json``: title, axis, and whether more damage is a smaller number."""


def robustness(report: _Table) -> Html:
    if told := absent(report, "robustness"):
        return told
    found = report["robustness"]
    return join(
        [
            paragraph(f"On {found['split']}. {found['about']}", dim=True),
            _tiers(found),
            Html(f"<div class='charts two'>{join(_damages(found))}</div>"),
            _generators(found),
        ]
    )


def _tiers(robustness: _Table) -> Html:
    """Show the tiers of damage, with both error rates at the stored threshold."""
    cells = []
    for row in robustness["tiers"]:
        metrics, ends = row["metrics"], row["intervals"]
        missed = flipped(ends["recall@threshold"])
        cells.append(
            [
                text(row["name"]),
                value({"value": metrics["auroc"], "interval": ends["auroc"]}),
                rate(metrics["fpr@threshold"], ends["fpr@threshold"]),
                rate(1 - metrics["recall@threshold"], missed),
                rate(metrics["flip_rate"], ends["flip_rate"]),
            ]
        )
    columns = ["tier", "AUROC", "real called generated", "generated called real", "verdict flips"]
    return table(columns, cells)


def _generators(robustness: _Table) -> Html:
    """Show what is said of each generator's images, where the source names them."""
    rows = robustness.get("generators")
    if not rows:
        return Html("")
    names = list(rows[0]["called_generated"])
    cells = []
    for row in rows:
        held = " (held out of training)" * (row["generator"] == robustness.get("held_out"))
        shares = [row["called_generated"][name] for name in names]
        cells.append(
            [
                text(row["generator"] + held),
                text(row["class"]),
                Html(f"{row['num']:,}"),
                *(rate(one["share"], one["interval"]) for one in shares),
            ]
        )
    head = Html("<h3>Called generated, by generator</h3>")
    return join([head, table(["generator", "class", "images", *names], cells, words={1})])


def _damages(robustness: _Table) -> list[Html]:
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
        title, axis, falling = CURVES.get(name, (name, name, False))
        strengths = sorted((point["value"] for point in points), reverse=falling)
        ticks = [(value, f"{value:g}") for value in strengths]
        frame = Plot(Scale(strengths[0], strengths[-1], ticks, axis), upright)
        parts = []
        for metric, (kind, _) in _DAMAGED.items():
            parts += _with_band(frame, points, metric, kind, clean[metric])
        legend = plot.key(
            [
                *(("line", f"curve {kind}", word) for kind, word in _DAMAGED.values()),
                ("line", f"clean {_DAMAGED['auroc'][0]}", "clean images"),
                ("area", "shade one", "95 % interval"),
            ]
        )
        found.append(plot.figure(title, frame, parts, legend=legend))
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
