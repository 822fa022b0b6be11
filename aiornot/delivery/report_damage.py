"""The part of a report on damaged images: tiers, curves over the strength, generators."""

from collections.abc import Mapping, Sequence
from typing import Any

from aiornot.data.markup import Html, join, paragraph, table, text
from aiornot.delivery import plot
from aiornot.delivery.plot import Plot, Scale
from aiornot.delivery.report_cells import absent, value

_Table = Mapping[str, Any]

CURVES = {
    "jpeg_quality": ("JPEG quality", True),
    "blur_sigma": ("blur, sigma in pixels", False),
    "rescale": ("rescaled to, share of the side", False),
    "crop": ("cropped to, share of the side", True),
}
"""By the name in ``robustness.json``: the axis, and whether more damage is a smaller number."""


def robustness(report: _Table) -> Html:
    if told := absent(report, "robustness"):
        return told
    found = report["robustness"]
    return join(
        [
            paragraph(f"On {found['split']}. {found['about']}", dim=True),
            _tiers(found),
            Html(f"<div class='charts two'>{join(_damages(found))}</div>"),
            paragraph("Dashed: clean images. Shaded: 95 % intervals.", dim=True),
            _generators(found),
        ]
    )


def _tiers(robustness: _Table) -> Html:
    """Show the tiers of damage."""
    metrics = {
        "auroc": "AUROC",
        "balanced_accuracy@threshold": "balanced accuracy",
        "fpr@threshold": "real called generated",
        "flip_rate": "verdict flips",
    }
    cells = [
        [
            text(row["name"]),
            *(
                value({"value": row["metrics"][m], "interval": row["intervals"][m]})
                for m in metrics
            ),
        ]
        for row in robustness["tiers"]
    ]
    return table(["tier", *metrics.values()], cells)


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
                *(value({"value": one["share"], "interval": one["interval"]}) for one in shares),
            ]
        )
    head = Html("<h3>Called generated, by generator</h3>")
    return join([head, table(["generator", "class", "images", *names], cells)])


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
