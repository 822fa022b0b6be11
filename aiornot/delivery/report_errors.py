"""The part of a report on errors: how many, on which images, and the most confident ones."""

from collections.abc import Mapping
from typing import Any

from aiornot.data.markup import Html, code, join, paragraph, say, table, text
from aiornot.delivery.report_cells import absent, value

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
            paragraph(f"On {found['split']}, intervals after Wilson.", dim=True),
            _error_counts(found),
            _slices(found),
            _worst(found),
            link,
        ]
    )


def _error_counts(errors: _Table) -> Html:
    cells = [[say(told), *_count(errors[kind])] for kind, told in KINDS.items()]
    return table(["error", "images", "wrong", "share, 95 % interval"], cells)


def _count(found: _Table) -> list[Html]:
    share = value({"value": found["share"], "interval": found["interval"]})
    return [Html(f"{found['images']:,}"), Html(f"{found['errors']:,}"), share]


def _slices(errors: _Table) -> Html:
    """Show how often it errs on which images."""
    parts = []
    for name, rows in errors["slices"].items():
        cells = [
            [text(row["value"]), *_count(row["false_positives"]), *_count(row["false_negatives"])]
            for row in rows
        ]
        columns = [name, "real", "wrong", "share", "generated", "wrong", "share"]
        parts.append(
            Html(f"<details><summary>By {text(name)}</summary>{table(columns, cells)}</details>")
        )
    return join(parts)


def _worst(errors: _Table) -> Html:
    """Name the most confident errors; ids alone, no image."""
    parts = []
    for kind, told in KINDS.items():
        rows = errors["worst"][kind][:SHOWN]
        if rows:
            cells = [[code(row["id"]), Html(f"{row['probability']:.4f}")] for row in rows]
            parts.append(
                Html(
                    f"<div><h3>{told}</h3>{table(['id', 'probability of generated'], cells)}</div>"
                )
            )
    return Html(f"<div class=tables>{join(parts)}</div>")
