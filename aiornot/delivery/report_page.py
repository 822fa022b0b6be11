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
    sections = {
        "results": ("Baseline, final, person", report_verdict.results(report)),
        "funnel": ("From many trials to one model", report_search.funnel(report["stages"])),
        "budget": ("What was planned and what it cost", report_search.spent(report)),
        "learning": ("Learning curves", report_search.learning_curves(report)),
        "leaderboards": ("Leaderboards", report_search.leaderboards(report)),
        "importances": ("Which hyper-parameters mattered", report_search.which_mattered(report)),
        "agreement": (
            "Did each stage rank as the next one does?",
            report_search.agreements(report),
        ),
        "curves": ("How good its scores are", report_scores.curves(report)),
        "robustness": ("On damaged images", report_damage.robustness(report)),
        "errors": ("Where it errs", report_errors.errors(report, gallery)),
        "model": ("The model and its data", report_model.model(report)),
        "use": ("Use it", report_model.use(report)),
        "again": ("Make it again", report_model.again(report)),
    }
    links = join([Html(f'<a href="#{name}">{name}</a>') for name in sections], " ")
    parts = [
        Html(f'<section id="{name}"><h2>{say(title)}</h2>{body}</section>')
        for name, (title, body) in sections.items()
    ]
    return markup.document(
        f"Report of {report['run']}",
        [report_verdict.head(report), Html(f"<nav>{links}</nav>"), *parts],
        style=STYLE,
    )
