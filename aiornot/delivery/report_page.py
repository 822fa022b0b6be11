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
from aiornot.data.markup import Html, join, say
from aiornot.delivery import (
    report_damage,
    report_errors,
    report_model,
    report_scores,
    report_search,
    report_threshold,
    report_verdict,
)
from aiornot.delivery.report_style import STYLE

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
    parts = _parts(report, gallery)
    sections = [
        Html(f'<section id="{name}"><h2>{say(title)}</h2>{body}</section>')
        for part in parts.values()
        for name, (title, body) in part.items()
        if body
    ]
    return markup.document(
        f"Report of {report['run']}",
        [report_verdict.head(report), _links(parts), Html("<main>"), *sections, Html("</main>")],
        style=STYLE,
    )


def _parts(report: _Table, gallery: str | None) -> dict[str, dict[str, tuple[str, Html | None]]]:
    """Return title and body of each section by its id, in three parts; None: it has no place."""
    return {
        "How good it is": {
            "results": ("Is it better than the baseline?", report_verdict.results(report)),
            "threshold": ("Which threshold, which errors", report_threshold.threshold(report)),
            "scores": ("How good its scores are", report_scores.scores(report)),
            "damage": ("On damaged images", report_damage.robustness(report)),
            "errors": ("Where it errs", report_errors.errors(report, gallery)),
            "person": ("Beside a person", report_verdict.people(report)),
        },
        "How it was found": {
            "search": ("What was searched, and what it cost", report_search.search(report)),
            "learning": ("Learning curves", report_search.learning_curves(report)),
            "leaderboards": ("Leaderboards", report_search.leaderboards(report)),
            "parameters": ("Which hyper-parameters mattered", report_search.parameters(report)),
            "ranking": ("Did each stage rank as the next?", report_search.agreements(report)),
        },
        "What it is": {
            "model": ("The model and its data", report_model.model(report)),
            "use": ("Use it", report_model.use(report)),
            "again": ("Make it again", report_model.again(report)),
        },
    }


def _links(parts: Mapping[str, Mapping[str, tuple[str, Html | None]]]) -> Html:
    rows = []
    for told, part in parts.items():
        links = [_link(name) for name, (_, body) in part.items() if body]
        rows.append(Html(f"<dt>{say(told)}</dt><dd>{join(links, ' ')}</dd>"))
    return Html(f'<nav aria-label="sections"><dl>{join(rows)}</dl></nav>')


def _link(name: str) -> Html:
    return Html(f'<a href="#{name}">{name}</a>')
