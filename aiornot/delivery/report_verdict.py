"""The head of a report: what is judged, the verdict on the baseline, and the figures behind it."""

from collections.abc import Mapping, Sequence
from typing import Any

from aiornot.data.markup import Html, fold, join, paragraph, say, table, text
from aiornot.delivery.report_cells import (
    WORDS,
    Interval,
    absent,
    difference,
    flipped,
    judged,
    known,
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
    about += f" Model {report['delivered']['sha256'][:12]}, "
    about += f"{report['delivered']['config']['model']}. {_measured_on(report)}"
    return Html(f"{title}{paragraph(about, dim=True)}</header>{_verdict(report)}{_tiles(report)}")


def _measured_on(report: _Table) -> str:
    """Say on which images the figures of the head were measured."""
    split, shown = judged(report)
    counts = f"{shown['num_real']:,} real and {shown['num_generated']:,} generated images"
    if split == "val":
        return f"Judged on val, {counts}, by which it was chosen."
    opened = len(report["test_opened"])
    return f"Judged on test, {counts}, opened {'once' if opened == 1 else f'{opened} times'}."


def _verdict(report: _Table) -> Html:
    split, _ = judged(report)
    sealed = join([part for part in [absent(report, "test")] if part])
    compared = (report["comparison"] or {}).get("splits", {}).get(split)
    if compared is None:
        told = absent(report, "comparison") or paragraph(f"Nothing was compared on {split}.")
        return Html(f"<div class='verdict undecided'>{told}{sealed}</div>")
    differences = compared["differences"]
    better = differences["auroc"]["better"]
    tone = {True: "none", False: "leak", None: "undecided"}[better]
    word = {True: "Better than", False: "Worse than", None: "No better than"}[better]
    ours, theirs = (compared["metrics"][who]["auroc"] for who in ("final", "baseline"))
    where = "On val, by which it was chosen," if split == "val" else "On test"
    changes = [_told(name, found) for name, found in differences.items()]
    sentence = (
        f"{where} its AUROC is {ours:.4f} and the baseline's {theirs:.4f}. Differences, with 95 % "
        f"intervals: {'; '.join(changes)}."
    )
    return Html(
        f"<div class='verdict {tone}'><p><strong>{word} the baseline.</strong> {say(sentence)}</p>"
        f"{sealed}</div>"
    )


def _told(name: str, found: _Table) -> str:
    low, high = found["interval"]
    change = f"{METRICS[name]} {found['difference']:+.4f} [{low:+.4f}, {high:+.4f}]"
    return f"{change}, {WORDS[found['better']]}"


def _tiles(report: _Table) -> Html:
    """Show what a decision needs first: how good, how much better, how often wrong, the cost."""
    split, shown = judged(report)
    metrics, ends, calibration = shown["metrics"], shown["intervals"], shown["calibration"]
    compared = (report["comparison"] or {}).get("splits", {}).get(split, {})
    tiles = [(number(metrics["auroc"]), f"AUROC on {split}", _ends(ends.get("auroc")))]
    if compared:
        one = compared["differences"]["auroc"]
        tiles.append(
            (f"{one['difference']:+.3f}", "AUROC to baseline", _ends(one["interval"], "+"))
        )
    wrong, missed = ends.get("fpr@threshold"), flipped(ends.get("recall@threshold"))
    tiles += [
        (percent(metrics["fpr@threshold"]), "real called generated", _percents(wrong)),
        (percent(1 - metrics["recall@threshold"]), "generated called real", _percents(missed)),
        (
            percent(metrics["precision@threshold"]),
            "precision",
            _percents(ends.get("precision@threshold")),
        ),
        (f"{calibration['threshold']:.3f}", "threshold", f"rule {calibration['rule']}"),
        _damaged(report),
    ]
    seconds = sum(stage["stage"]["device_seconds"] for stage in report["stages"])
    trials = sum(stage["budget"]["trials"] for stage in report["stages"])
    stages = len(report["stages"])
    spent = f"{trials} trial{'s' * (trials != 1)}, {stages} stage{'s' * (stages != 1)}"
    tiles.append((duration(seconds), "device time", spent))
    note = paragraph("Two numbers below a figure are its 95 % interval.", dim=True)
    return Html(f"<div class=tiles>{''.join(map(_tile, tiles))}</div>{note}")


def _damaged(report: _Table) -> tuple[str, str, str]:
    """Say how it fares on images as the web has them, or that nobody has looked."""
    found = report["robustness"]
    tier = next((one for one in found["tiers"] if one["name"] == "web"), None) if found else None
    if found is None or tier is None:
        return "-", "AUROC on damaged images", "not measured"
    below = f"{_ends(tier['intervals']['auroc'])}, on {found['split']}"
    return number(tier["metrics"]["auroc"]), "AUROC, web quality", below


def _tile(tile: tuple[str, str, str]) -> str:
    number, name, below = tile
    return (
        f"<div class=tile><b>{say(number)}</b>{say(name)}<span class=dim>{say(below)}</span></div>"
    )


def _ends(interval: Interval, sign: str = "") -> str:
    ends = known(interval)
    return f"{ends[0]:{sign}.3f} to {ends[1]:{sign}.3f}" if ends else ""


def _percents(interval: Interval) -> str:
    ends = known(interval)
    return f"{100 * ends[0]:.1f} to {ends[1]:.1%}" if ends else ""


def results(report: _Table) -> Html:
    if told := absent(report, "delivered"):
        return told
    return join(
        [
            _baselines(report["results"]),
            paragraph(
                "In brackets 95 % intervals of resampled images, copies together; where none "
                "stands, none was kept. AUROC: how often a generated image scores above a real "
                "one; .5 is chance. Lower is better for log loss alone. The spread of training "
                "seeds is in no interval.",
                dim=True,
            ),
        ]
    )


def people(report: _Table) -> Html:
    """Show the model beside persons: one here, if any, and the notebook's."""
    if told := absent(report, "delivered"):
        return told
    human = report["human"]
    own = f" The person here saw images of {human['split']}, {human['time'][:10]}." if human else ""
    note = paragraph(
        "The notebook's figures are those of its own images, 50 for its person and its test split "
        f"at .5 for its model: they are here for scale and not to be beaten.{own}",
        dim=True,
    )
    asked = [part for part in [absent(report, "human")] if part]
    return join([_people(report["people"], with_person=human is not None), note, *asked])


_ABOUT = {
    "test": "",
    "val": ", by which the model was chosen",
    "train": ", as many of its images as val has: both models have learnt them",
}


def _baselines(rows: Sequence[_Table]) -> Html:
    """Show baseline against final on each split, that of the verdict unfolded."""
    parts = []
    for split in dict.fromkeys(row["split"] for row in rows):
        known = [row for row in rows if row["split"] == split]
        columns = {
            "": [say(METRICS[row["metric"]]) for row in known],
            "final": [value(row["final"]) for row in known],
        }
        if any(row["baseline"] for row in known):
            columns["baseline"] = [value(row["baseline"]) for row in known]
        if any(row["difference"] for row in known):  # of train none was asked for
            columns["difference"] = [difference(row["difference"]) for row in known]
        drawn = table(list(columns), list(zip(*columns.values(), strict=True)))
        parts.append((f"On {split}{_ABOUT[split]}", drawn))
    (title, first), *others = reversed(parts)
    shown = [Html(f"<h3>{say(title)}</h3>{first}")]
    return join([*shown, *(fold(title, body) for title, body in others)])


def _people(rows: Sequence[_Table], *, with_person: bool) -> Html:
    """Show person against model, as far as either was asked."""
    own = [("person here", "person")] if with_person else []
    tested = [("final, test", "final")] if any(row["final"] for row in rows) else []
    shown = [*own, *tested, ("notebook: person", "notebook_person")]
    cells = []
    for row in rows:
        theirs = row["notebook_final"]
        last = Html("-" if theirs is None else f"{theirs:.4f}")
        cells.append([say(row["metric"]), *(value(row[name]) for _, name in shown), last])
    columns = ["metric", *(title for title, _ in shown), "notebook: its final model"]
    return table(columns, cells)
