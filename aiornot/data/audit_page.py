"""The page of an audit: one HTML file that needs no other, for a person to read and pass on.

``aiornot audit SOURCE --out runs/audit`` writes ``audit.html`` and, beside it, ``audit.json``.
"""

from collections.abc import Mapping
from typing import Any

from aiornot.data import audit_figures, markup, pages
from aiornot.data.audit import Audit
from aiornot.data.hdf5 import CLASSES
from aiornot.data.markup import Html, code, join, paragraph, say, table, text

NAME = "audit"
"""Of both files."""

MAX_BYTES = 3_000_000
"""Of the page, whatever the source: lists, texts and thumbnails are all bounded."""

_Table = Mapping[str, Any]


def write(out: str, audit: Audit) -> str:
    """Write page and report into a folder, each whole or not at all.

    Args:
        out: A local folder, made if absent, or ``s3://...``.
        audit: What to write.

    Returns:
        The path of the page.

    Raises:
        InputError: They cannot be written there.
    """
    return pages.write(out, NAME, page=page(audit), report=audit.report)


def page(audit: Audit) -> str:
    """Return the HTML of an audit, at most ``MAX_BYTES``."""
    report = audit.report
    sections = [
        _head(report),
        _rows(report),
        _samples(report, audit.thumbnails),
        audit_figures.probe(report["probe"]),
        audit_figures.files(report),
        audit_figures.sizes(report["sizes"]),
        audit_figures.duplicates(report["duplicates"]),
        _unreadable(report["unreadable"]),
        _method(report),
    ]
    return markup.document(f"Audit of {report['source']}", sections)


def _head(report: _Table) -> Html:
    verdict = report["verdict"]
    note = (
        Html(f"<div class=note>{say(report['note'][:500])}</div>") if report["note"] else Html("")
    )
    mends = join([Html(f"<li>{say(advice)}</li>") for advice in verdict["mend"]])
    mend = Html(f"<p>How to mend it:</p><ul>{mends}</ul>") if mends else Html("")
    # The sentence opens with the finding, which is set in bold.
    lead, colon, rest = verdict["text"].partition(": ")
    shards = f"{report['num_shards']} shard{'s' * (report['num_shards'] > 1)}"
    about = (
        f"{report['counts']['rows']:,} rows in {shards}, fingerprint "
        f"{report['fingerprint']}, {report['time']}, {report['wall_seconds']:g} s"
    )
    return Html(
        f"<header><h1>Audit of {text(report['source'])}</h1>{note}{paragraph(about, dim=True)}"
        f"</header><div class='verdict {verdict['finding']}'><p><strong>{say(lead)}</strong>"
        f"{say(colon + rest)}.</p>{mend}</div>"
    )


def _rows(report: _Table) -> Html:
    counts, bad, copies = (report[key] for key in ("counts", "unreadable", "duplicates"))
    tiles = {
        "rows": counts["rows"],
        **{name: counts[name] for name in CLASSES},
        "have copies": copies["rows"],
        "unreadable": bad["rows"],
    }
    shown = "".join(
        f"<div class=tile><b>{count:,}</b>{say(name)}</div>" for name, count in tiles.items()
    )
    lines = [("all", {name: counts[name] for name in CLASSES}), *counts["splits"].items()]
    rows = []
    for name, found in lines:
        total = sum(found.values()) or 1
        shares = {word: found[word] / total for word in CLASSES}
        cells = [Html(f"{found[word]:,}") for word in CLASSES]
        rows.append([say(name), *cells, _percent(shares["generated"]), markup.bars(shares)])
    head = "<h2>Rows and splits</h2>"
    splits = table(["split", *CLASSES, "share generated", ""], rows)
    why = paragraph(
        "Splits as aiornot prepare makes them with this seed: the notebook's ten stratified folds "
        "over all rows (fold 0 val, folds 1 and 2 test), duplicates kept together.",
        dim=True,
    )
    return Html(f"{head}<div class=tiles>{shown}</div>{markup.legend()}{splits}{why}")


def _percent(share: float) -> Html:
    return Html(f"{share:.1%}")


def _samples(report: _Table, thumbnails: Mapping[int, bytes]) -> Html:
    if not thumbnails:
        return join([Html("<h2>Samples</h2>"), paragraph("Left out, as asked: no image is here.")])
    parts = [
        Html("<h2>Samples</h2>"),
        paragraph(
            f"This page holds {len(thumbnails)} images of the source, made small: mind the terms "
            "of the source before passing it on (--no-images leaves them out). Compression has "
            "blurred what a detector looks at; they show the content only."
        ),
    ]
    titles = {"both": "Both classes, drawn at random", CLASSES[1]: "Generated ones only"}
    for name, chosen in report["samples"].items():
        pictures = [
            markup.picture(
                thumbnails[sample["row"]],
                word=sample["class"],
                caption=Html(f"{sample['class']} {code(sample['id'])}"),
            )
            for sample in chosen
        ]
        parts.append(Html(f"<h3>{titles[name]}</h3><div class=samples>{join(pictures)}</div>"))
    return join(parts)


def _unreadable(bad: _Table) -> Html:
    head = Html("<h2>Images that cannot be read</h2>")
    if not bad["rows"]:
        return join([head, paragraph("None.")])
    by_class = ", ".join(f"{bad[word]:,} {word}" for word in CLASSES)
    found = paragraph(
        f"{bad['rows']:,} ({by_class}), of which {bad['without_bytes']:,} hold no bytes at all. "
        "They are in no figure but the number of rows and the splits."
    )
    reasons = [[text(row["reason"]), Html(f"{row['rows']:,}")] for row in bad["reasons"]]
    listed = [[code(row["id"]), say(row["class"]), text(row["reason"])] for row in bad["listed"]]
    return join(
        [
            head,
            found,
            table(["reason", "images"], reasons),
            Html("<h3>The first of them</h3>"),
            table(["id", "class", "reason"], listed, wide=2),
        ]
    )


def _method(report: _Table) -> Html:
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    return join(
        [
            Html("<h2>How this was measured</h2>"),
            paragraph(
                "Headers by Pillow, pixels by the decoder of aiornot prepare. All features "
                "together: a random forest; one alone: a small tree; thumbnails: logistic "
                "regression; all with balanced classes. Intervals after Hanley and McNeil, a "
                "cluster of copies counted once. Width and height as stored, before EXIF turns an "
                "image."
            ),
            paragraph(versions, dim=True),
        ]
    )
