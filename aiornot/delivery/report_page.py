"""The page of a run: one HTML file that needs no other, from the verdict down to the commands.

``aiornot report demo`` writes ``report.html`` and ``report.json``; ``aiornot tune`` does so when it
is done. Where something was not measured one sentence stands in its place.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aiornot import storage
from aiornot.config import InputError
from aiornot.data import markup
from aiornot.data.markup import Html, join, paragraph, say, text
from aiornot.delivery import report_figures, report_parts
from aiornot.delivery.report_style import STYLE
from aiornot.tuning.tables import duration

_Table = Mapping[str, Any]

PAGE = "report.html"

MAX_BYTES = 2_000_000
"""Of the page, of a chain of some hundred trials."""


def write(path: Path, report: _Table, *, gallery: str | None = None) -> Path:
    """Write the page and its JSON beside it; a file that says the same already is left alone.

    Args:
        path: Of the page.
        report: As ``report.collect`` gives it.
        gallery: Address of a page with the images that the model gets wrong, to be linked.

    Returns:
        ``path``.

    Raises:
        InputError: It cannot be written there.
    """
    texts = {
        path.with_suffix(".json"): json.dumps(report, indent=1) + "\n",
        path: page(report, gallery=gallery),
    }
    try:
        for place, content in texts.items():
            if not place.is_file() or place.read_text(encoding="utf-8") != content:
                storage.write_text(str(place), content)
    except OSError as error:
        raise InputError(
            f"--out {path}: {' '.join(str(error).split())}; give another file"
        ) from None
    return path


def page(report: _Table, *, gallery: str | None = None) -> str:
    """Return the HTML of a report."""
    sections = {
        "results": ("Baseline, final, person", _results(report)),
        "funnel": ("From many trials to one model", _funnel(report)),
        "budget": ("What was planned and what it cost", _budget(report)),
        "learning": ("Learning curves", _learning(report)),
        "leaderboards": ("Leaderboards", _leaderboards(report)),
        "importances": ("Which hyper-parameters mattered", _importances(report)),
        "agreement": ("Did each stage rank as the next one does?", _agreement(report)),
        "curves": ("How good its scores are", _curves(report)),
        "robustness": ("On damaged images", _robustness(report)),
        "errors": ("Where it errs", _errors(report, gallery)),
        "model": ("The model and its data", _model(report)),
        "again": ("Do it again, use it", _again(report)),
    }
    links = join([Html(f'<a href="#{name}">{name}</a>') for name in sections], " ")
    parts = [
        Html(f'<section id="{name}"><h2>{say(title)}</h2>{body}</section>')
        for name, (title, body) in sections.items()
    ]
    return markup.document(
        f"Report of {report['run']}",
        [_head(report), Html(f"<nav>{links}</nav>"), *parts],
        style=STYLE,
    )


def _absent(report: _Table, name: str) -> Html | None:
    """Return the sentence that stands for something which is not there."""
    missing = report["missing"]
    told = missing.get("delivered") or missing.get(name)
    return paragraph(told) if told else None


def _shown(report: _Table) -> tuple[str, _Table]:
    """Return the evaluation to show: of test where that was opened, else of val."""
    test = report["evaluations"].get("test")
    return ("test", test) if test else ("val", report["evaluations"]["val"])


def _head(report: _Table) -> Html:
    note = (
        Html(f"<div class=note>{say(report['note'][:500])}</div>") if report["note"] else Html("")
    )
    title = f"<header><h1>Report of {text(report['run'])}</h1>{note}"
    begun = min((s["created"] for s in report["stages"] if s["created"]), default="")
    about = f"Begun {begun.replace('T', ' ').replace('Z', ' UTC')}." if begun else ""
    if report["delivered"] is None:
        return Html(f"{title}{paragraph(about, dim=True)}</header>{_absent(report, 'delivered')}")
    split, shown = _shown(report)
    name, count = report["delivered"]["sha256"][:12], shown["num_real"] + shown["num_generated"]
    opened = len(report["test_opened"])
    about += f" Model {name}, {report['delivered']['config']['model']}; {count:,} images of {split}"
    about += f", which was opened {opened} time{'s' * (opened != 1)}." if split == "test" else "."
    return Html(f"{title}{paragraph(about, dim=True)}</header>{_verdict(report)}{_tiles(report)}")


def _verdict(report: _Table) -> Html:
    split, _ = _shown(report)
    sealed = join([part for part in [_absent(report, "test")] if part])
    compared = (report["comparison"] or {}).get("splits", {}).get(split)
    if compared is None:
        told = _absent(report, "comparison") or paragraph(f"Nothing was compared on {split}.")
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
    split, shown = _shown(report)
    metrics, ends = shown["metrics"], shown["intervals"]
    compared = (report["comparison"] or {}).get("splits", {}).get(split, {})
    tiles = [(_number(metrics["auroc"]), f"AUROC on {split}", _ends(ends.get("auroc")))]
    if compared:
        one = compared["differences"]["auroc"]
        tiles.append(
            (f"{one['difference']:+.3f}", "AUROC, less the baseline's", _ends(one["interval"], "+"))
        )
    calibration = shown["calibration"]
    sides = (("fpr", "real called generated"), ("recall", "generated found"))
    for name, told in sides:
        key = f"{name}@threshold"
        tiles.append((_percent(metrics[key]), told, _ends(ends.get(key))))
    tiles.append(
        (
            _number(metrics["precision@threshold"]),
            "precision",
            f"{_number(metrics['precision@0.5'])} at .5",
        )
    )
    tiles.append((f"{calibration['threshold']:.3f}", "threshold", f"rule {calibration['rule']}"))
    if metrics.get("unsure_share") is not None:
        low, high = calibration.get("unsure") or (0.0, 0.0)
        tiles.append(
            (
                _percent(metrics["unsure_share"]),
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


def _number(found: float | None) -> str:
    return "-" if found is None else f"{found:.3f}"


def _percent(found: float) -> str:
    return f"{found:.1%}"


def _ends(ends: Any, sign: str = "") -> str:
    return "" if not ends or ends[0] is None else f"{ends[0]:{sign}.3f} to {ends[1]:{sign}.3f}"


def _results(report: _Table) -> Html:
    if report["delivered"] is None:
        return paragraph(report["missing"]["delivered"])
    parts = [report_parts.results(report["results"])]
    parts.append(
        paragraph(
            "In brackets 95 % intervals of resampled images, copies together; where none stands, "
            "none was kept. Train: as many of its images as val has, and both models have learnt "
            "them. The spread of training seeds is in no interval.",
            dim=True,
        )
    )
    parts += [part for part in (_absent(report, "comparison"), _absent(report, "test")) if part]
    parts.append(Html("<h3>Person and model</h3>"))
    parts.append(report_parts.people(report["people"], with_person=report["human"] is not None))
    human = report["human"]
    own = f" The person here saw images of {human['split']}, {human['time'][:10]}." if human else ""
    parts.append(
        paragraph(
            "The notebook's figures are those of its own images, 50 for its person and its test "
            f"split at .5 for its model: they are here for scale and not to be beaten.{own}",
            dim=True,
        )
    )
    parts += [part for part in [_absent(report, "human")] if part]
    return join(parts)


def _funnel(report: _Table) -> Html:
    return report_figures.funnel(report["stages"])


def _budget(report: _Table) -> Html:
    stages = report["stages"]
    saved = sum(stage["budget"]["whole_ticks"] - stage["budget"]["ticks"] for stage in stages)
    whole = sum(stage["budget"]["whole_ticks"] for stage in stages)
    limits = (
        " Allowed: what --hours and --gpu-hours left to a search before it had to end."
        if any(stage["budget"]["allowed"] for stage in stages)
        else ""
    )
    note = paragraph(
        "A tick is 1/16 of a trial's own training. Expected: what is trained where ASHA lets as "
        f"many pass as its factor says.{limits} Of {whole:,} ticks {saved / (whole or 1):.0%} were "
        "saved.",
        dim=True,
    )
    return join([report_parts.budget(stages), note])


def _learning(report: _Table) -> Html:
    drawn = [figure for stage in report["stages"] if (figure := report_figures.learning(stage))]
    if not drawn:
        return paragraph("No trial has a score yet.")
    return Html(f"<div class='charts two'>{join(drawn)}</div>")


def _leaderboards(report: _Table) -> Html:
    return join([report_parts.leaderboard(report["run"], stage) for stage in report["stages"]])


def _importances(report: _Table) -> Html:
    found = [report_parts.importances(stage) for stage in report["stages"] if stage["importances"]]
    return join(found) if found else paragraph("No stage searches anything.")


def _agreement(report: _Table) -> Html:
    rows = [row for stage in report["stages"] for row in stage["agreements"]]
    if not rows:
        return paragraph("No configuration ran in two stages yet.")
    told = [
        Html(f"<li>{say(row['verdict'][:1].upper() + row['verdict'][1:])}.</li>") for row in rows
    ]
    drawn = [figure for row in rows if (figure := report_figures.agreement(row))]
    return Html(f"<ul>{join(told)}</ul><div class=charts>{join(drawn)}</div>")


def _curves(report: _Table) -> Html:
    if absent := _absent(report, "curves"):
        return absent
    split, shown = _shown(report)
    human = report["human"]
    figures = [
        report_figures.reliability(shown),
        report_figures.roc(shown, human),
        report_figures.precision_recall(shown, human),
        report_figures.scores(shown),
    ]
    note = f"Of {shown['num_real'] + shown['num_generated']:,} images of {split}."
    return join([paragraph(note, dim=True), Html(f"<div class='charts two'>{join(figures)}</div>")])


def _robustness(report: _Table) -> Html:
    if absent := _absent(report, "robustness"):
        return absent
    found = report["robustness"]
    return join(
        [
            paragraph(f"On {found['split']}. {found['about']}", dim=True),
            report_parts.tiers(found),
            Html(f"<div class='charts two'>{join(report_figures.damages(found))}</div>"),
            paragraph("Dashed: clean images. Shaded: 95 % intervals.", dim=True),
            report_parts.generators(found),
        ]
    )


def _errors(report: _Table, gallery: str | None) -> Html:
    if absent := _absent(report, "errors"):
        return absent
    found = report["errors"]
    link = (
        Html(f'<p><a href="{text(gallery)}">The images themselves</a></p>') if gallery else Html("")
    )
    return join(
        [
            paragraph(f"On {found['split']}, intervals after Wilson.", dim=True),
            report_parts.error_counts(found),
            report_parts.slices(found),
            report_parts.worst(found),
            link,
        ]
    )


def _model(report: _Table) -> Html:
    parts = [_absent(report, "delivered") or report_parts.model(report["delivered"])]
    if report["splits"]:
        parts.append(report_parts.splits(report["splits"]))
    return join(parts)


def _again(report: _Table) -> Html:
    parts = [Html("<h3>Make it again</h3>"), _commands(report["commands"])]
    if report["delivered"] is not None:
        folder = report["delivered"]["folder"]
        lines = [
            f"aiornot predict {folder} photo.jpg",
            "",
            "# in Python, one logit, before calibration",
        ]
        lines.append(f'timm.create_model("local-dir:{folder}", pretrained=True).eval()')
        parts += [Html("<h3>Use it</h3>"), _commands(lines)]
    return join(parts)


def _commands(lines: list[str]) -> Html:
    return Html(f"<pre>{join([say(line) for line in lines], chr(10))}</pre>")
