"""The part of a report on errors: how many, on which images, and the most confident ones."""

from collections.abc import Mapping
from typing import Any

from aiornot.data.markup import Html, code, fold, join, paragraph, say, table, text
from aiornot.delivery.report_cells import absent, counted, rate

_Table = Mapping[str, Any]

SHOWN = 12
"""Errors of a kind; the JSON beside the page has the rest."""

KINDS = {"false_positives": "Real, called generated", "false_negatives": "Generated, called real"}


def errors(report: _Table, gallery: str | None) -> Html:
    if told := absent(report, "errors"):
        return told
    found = report["errors"]
    link = (
        Html(f'<p><a href="{text(gallery)}">The images themselves</a></p>') if gallery else Html("")
    )
    return join(
        [
            paragraph(f"On {found['split']}, with 95 % intervals after Wilson.", dim=True),
            _error_counts(found),
            _harder(found),
            *_slices(found),
            *_worst(found),
            link,
        ]
    )


def _error_counts(errors: _Table) -> Html:
    cells = [[say(told), _wrong(errors[kind])] for kind, told in KINDS.items()]
    return table(["error", "share"], cells)


def _wrong(found: _Table) -> Html:
    share = rate(found["share"], found["interval"])
    return join([share, counted(found["errors"], found["images"])], " ")


def _harder(errors: _Table) -> Html:
    """Name the images on which it errs more often than on all, beyond their interval."""
    asked = [
        (kind, name, row["value"], row[kind])
        for kind in KINDS
        for name, rows in errors["slices"].items()
        for row in rows
        if row[kind]["images"]
    ]
    hard = [one for one in asked if one[3]["interval"][0] > errors[one[0]]["share"]]
    head = Html("<h3>Where it errs more often than over all</h3>")
    if not hard:
        return join(
            [head, paragraph(f"On none of {len(asked)} kinds of images, beyond their intervals.")]
        )
    hard.sort(key=lambda one: one[3]["share"] - errors[one[0]]["share"], reverse=True)
    cells = [
        [say(KINDS[kind]), text(f"{name}: {value}"), _wrong(found)]
        for kind, name, value, found in hard[:SHOWN]
    ]
    note = (
        f"{len(hard)} of {len(asked)} kinds of images whose interval lies above the share of all; "
        "by chance alone one in forty would."
    )
    columns = ["error", "on images with", "share"]
    return join([head, table(columns, cells, words={1}), paragraph(note, dim=True)])


def _slices(errors: _Table) -> list[Html]:
    """Show how often it errs on which images."""
    found = []
    for name, rows in errors["slices"].items():
        cells = [[text(row["value"]), *(_wrong(row[kind]) for kind in KINDS)] for row in rows]
        found.append(fold(f"By {name}", table(["", *map(str.lower, KINDS.values())], cells)))
    return found


def _worst(errors: _Table) -> list[Html]:
    """Name the most confident errors; ids alone, no image."""
    parts = []
    for kind, told in KINDS.items():
        rows = errors["worst"][kind][:SHOWN]
        cells = [[code(row["id"]), Html(f"{row['probability']:.4f}")] for row in rows]
        if cells:
            title = f"{told}: the {len(cells)} most confident"
            parts.append(fold(title, table(["id", "probability of generated"], cells)))
    return parts
