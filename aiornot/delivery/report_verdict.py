"""The head of a report: what is judged, the verdict on the baseline, and the figures behind it."""

from collections.abc import Mapping, Sequence
from typing import Any

from aiornot.data.markup import Html, join, paragraph, say, table, text
from aiornot.delivery.report_cells import (
    absent,
    difference,
    ends_of,
    judged,
    number,
    percent,
    value,
)
from aiornot.delivery.report_results import METRICS
from aiornot.tuning.tables import duration

_Table = Mapping[str, Any]


def head(report: _Table) -> Html:
    note = (
        Html(f"<div class=note>{say(report['note'][:500])}</div>") if report["note"] else Html("")
    )
    title = f"<header><h1>Report of {text(report['run'])}</h1>{note}"
    begun = min((s["created"] for s in report["stages"] if s["created"]), default="")
    about = f"Begun {begun.replace('T', ' ').replace('Z', ' UTC')}." if begun else ""
    if report["delivered"] is None:
        return Html(f"{title}{paragraph(about, dim=True)}</header>{absent(report, 'delivered')}")
    split, shown = judged(report)
    name, count = report["delivered"]["sha256"][:12], shown["num_real"] + shown["num_generated"]
    opened = len(report["test_opened"])
    about += f" Model {name}, {report['delivered']['config']['model']}; {count:,} images of {split}"
    about += f", which was opened {opened} time{'s' * (opened != 1)}." if split == "test" else "."
    return Html(f"{title}{paragraph(about, dim=True)}</header>{_verdict(report)}{_tiles(report)}")


def _verdict(report: _Table) -> Html:
    split, _ = judged(report)
    sealed = join([part for part in [absent(report, "test")] if part])
    compared = (report["comparison"] or {}).get("splits", {}).get(split)
    if compared is None:
        told = absent(report, "comparison") or paragraph(f"Nothing was compared on {split}.")
        return Html(f"<div class='verdict undecided'>{told}{sealed}</div>")
    better = compared["differences"]["auroc"]["better"]
    tone = {True: "none", False: "leak", None: "undecided"}[better]
    word = {True: "Better than", False: "Worse than", None: "No better than"}[better]
    where = "On val, by which it was chosen," if split == "val" else "On test"
    return Html(
        f"<div class='verdict {tone}'><p><strong>{word} the baseline.</strong> {where} the final "
        f"model is {say(compared['verdict'])}.</p>{sealed}</div>"
    )


def _tiles(report: _Table) -> Html:
    split, shown = judged(report)
    metrics, ends = shown["metrics"], shown["intervals"]
    compared = (report["comparison"] or {}).get("splits", {}).get(split, {})
    tiles = [(number(metrics["auroc"]), f"AUROC on {split}", ends_of(ends.get("auroc")))]
    if compared:
        one = compared["differences"]["auroc"]
        tiles.append(
            (
                f"{one['difference']:+.3f}",
                "AUROC, less the baseline's",
                ends_of(one["interval"], "+"),
            )
        )
    calibration = shown["calibration"]
    sides = (("fpr", "real called generated"), ("recall", "generated found"))
    for name, told in sides:
        key = f"{name}@threshold"
        tiles.append((percent(metrics[key]), told, ends_of(ends.get(key))))
    tiles.append(
        (
            number(metrics["precision@threshold"]),
            "precision",
            f"{number(metrics['precision@0.5'])} at .5",
        )
    )
    tiles.append((f"{calibration['threshold']:.3f}", "threshold", f"rule {calibration['rule']}"))
    if metrics.get("unsure_share") is not None:
        low, high = calibration.get("unsure") or (0.0, 0.0)
        tiles.append(
            (
                percent(metrics["unsure_share"]),
                "too close to call",
                f"from {low:.2f} to {high:.2f}",
            )
        )
    seconds = sum(stage["stage"]["device_seconds"] for stage in report["stages"])
    trials = sum(stage["budget"]["trials"] for stage in report["stages"])
    tiles.append(
        (duration(seconds), "of devices", f"{trials} trials, {len(report['stages'])} stages")
    )
    return Html(f"<div class=tiles>{''.join(map(_tile, tiles))}</div>")


def _tile(tile: tuple[str, str, str]) -> str:
    number, name, below = tile
    return (
        f"<div class=tile><b>{say(number)}</b>{say(name)}<span class=dim>{say(below)}</span></div>"
    )


def results(report: _Table) -> Html:
    if report["delivered"] is None:
        return absent(report, "delivered") or Html("")
    parts = [_baselines(report["results"])]
    parts.append(
        paragraph(
            "In brackets 95 % intervals of resampled images, copies together; where none stands, "
            "none was kept. Train: as many of its images as val has, and both models have learnt "
            "them. The spread of training seeds is in no interval.",
            dim=True,
        )
    )
    parts += [part for part in (absent(report, "comparison"), absent(report, "test")) if part]
    parts.append(Html("<h3>Person and model</h3>"))
    parts.append(_people(report["people"], with_person=report["human"] is not None))
    human = report["human"]
    own = f" The person here saw images of {human['split']}, {human['time'][:10]}." if human else ""
    parts.append(
        paragraph(
            "The notebook's figures are those of its own images, 50 for its person and its test "
            f"split at .5 for its model: they are here for scale and not to be beaten.{own}",
            dim=True,
        )
    )
    parts += [part for part in [absent(report, "human")] if part]
    return join(parts)


def _baselines(rows: Sequence[_Table]) -> Html:
    """Show baseline against final, a table for each split."""
    parts = []
    for split in dict.fromkeys(row["split"] for row in rows):
        cells = [
            [
                say(METRICS[row["metric"]]),
                value(row["baseline"]),
                value(row["final"]),
                difference(row["difference"]),
            ]
            for row in rows
            if row["split"] == split
        ]
        columns = ["", "baseline", "final", "difference"]
        if split == "train":  # no difference was asked for
            columns, cells = columns[:3], [cell[:3] for cell in cells]
        parts.append(Html(f"<h3>On {say(split)}</h3>{table(columns, cells)}"))
    return join(parts[::-1])


def _people(rows: Sequence[_Table], *, with_person: bool) -> Html:
    """Show person against model."""
    columns = ["metric", *(["person here"] if with_person else []), "final, test"]
    columns += ["notebook: person", "notebook: its final model"]
    cells = []
    for row in rows:
        own = [value(row["person"])] if with_person else []
        theirs = row["notebook_final"]
        last = Html("-" if theirs is None else f"{theirs:.4f}")
        cells.append(
            [say(row["metric"]), *own, value(row["final"]), value(row["notebook_person"]), last]
        )
    return table(columns, cells)
