"""The page of a model's errors: one HTML file that needs no other, for a person to look through.

``aiornot errors BUNDLE`` writes ``errors.html`` and, beside it, ``errors.json``. Neither holds an
image unless ``--with-images`` asks for it: many datasets may not be passed on.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from aiornot.data import markup, pages
from aiornot.data.hdf5 import CLASSES
from aiornot.data.markup import Html, code, join, paragraph, say, table, text
from aiornot.delivery.errors import LISTED, Errors

NAME = "errors"

_Table = Mapping[str, Any]

KINDS = {
    "false_positives": ("Real, called generated", CLASSES[0]),
    "false_negatives": ("Generated, called real", CLASSES[1]),
}
"""Heading and true class of either kind of error, the one that hurts more first."""


def write(out: str, errors: Errors) -> str:
    """Write page and report into a folder and return the path of the page.

    Raises:
        InputError: They cannot be written there.
    """
    return pages.write(out, NAME, page=page(errors), report=errors.report)


def page(errors: Errors) -> str:
    """Return the HTML of a model's errors."""
    report = errors.report
    sections = [
        _head(report),
        _tiles(report),
        *(_worst(report, kind, errors.thumbnails) for kind in KINDS),
        _slices(report),
        _method(report, bool(errors.thumbnails)),
    ]
    return markup.document(f"Errors of {report['model']} on {report['split']}", sections)


def _head(report: _Table) -> Html:
    calibration, note = report["calibration"], report["data"]["source_note"]
    shown = Html(f"<div class=note>{say(note[:500])}</div>") if note else Html("")
    band = calibration["unsure"]
    unsure = f"unsure from {band[0]:.3f} to below {band[1]:.3f}" if band else "never unsure"
    when = report["time"].replace("T", " ").replace("+00:00", " UTC")
    about = (
        f"{when}. Model {report['model']}, threshold {calibration['threshold']:.3f} by the rule "
        f"{calibration['rule']}, {unsure}."
    )
    title = f"<h1>Errors on {say(report['split'])}</h1>"
    return Html(f"<header>{title}{shown}{paragraph(about, dim=True)}</header>")


def _tiles(report: _Table) -> Html:
    parts = []
    for kind, (heading, word) in KINDS.items():
        count = report[kind]
        parts.append(
            f"<div class=tile><b>{count['errors']:,}</b>{say(heading.lower())}<br>"
            f"<span class=dim>{_rate(count)} of {count['images']:,} {word}</span></div>"
        )
    return Html(f"<div class=tiles>{''.join(parts)}</div>")


def _rate(count: _Table) -> str:
    if count["share"] is None:
        return "-"
    low, high = count["interval"]
    return f"{count['share']:.1%} ({100 * low:.1f} to {100 * high:.1f})"


def _worst(report: _Table, kind: str, thumbnails: Mapping[int, bytes]) -> Html:
    heading, word = KINDS[kind]
    found, total = report["worst"][kind], report[kind]["errors"]
    head = Html(f"<h2>{say(heading)}</h2>")
    if not found:
        return join([head, paragraph("None.")])
    listed = f"All {total:,}" if total <= LISTED else f"The worst {LISTED:,} of {total:,}"
    said = paragraph(f"{listed}, the most confident first.")
    if not thumbnails:
        return join([head, said, _listed(found)])
    pictures = [
        markup.picture(thumbnails[row["row"]], word=word, caption=_caption(row)) for row in found
    ]
    return join([head, said, Html(f"<div class=samples>{join(pictures)}</div>")])


def _caption(row: _Table) -> Html:
    unsure = " unsure" if row["unsure"] else ""
    return Html(f"<b>{row['probability']:.3f}</b>{unsure}<br>{code(row['id'])}")


def _listed(rows: Sequence[_Table]) -> Html:
    others = [name for name in rows[0] if name not in ("row", "id", "probability", "unsure")]
    columns = ["id", "probability", "unsure", *others]
    cells = [
        [
            code(row["id"]),
            Html(f"{row['probability']:.3f}"),
            Html("yes" if row["unsure"] else ""),
            *(text(row[name]) for name in others),
        ]
        for row in rows
    ]
    return Html(f"<div class=tall>{table(columns, cells)}</div>")


def _slices(report: _Table) -> Html:
    parts = [
        Html(f"<h3>By {say(name)}</h3><div class=tables>{join(list(_tables(rows)))}</div>")
        for name, rows in report["slices"].items()
    ]
    why = paragraph(
        "The share of wrong verdicts, with its 95 % interval, the line in a bar. Where a line lies "
        "to the right of others, this kind of images is judged worse; lines that overlap may be "
        "chance."
    )
    return join([Html("<h2>On which images it errs</h2>"), why, *parts])


def _tables(rows: Sequence[_Table]) -> Iterator[Html]:
    """Yield one table of a property for each class that has such images."""
    for kind, (_, word) in KINDS.items():
        counts = [(row["value"], row[kind]) for row in rows if row[kind]["images"]]
        cells = [
            [text(value), Html(f"{count['images']:,}"), Html(_rate(count)), _bar(count, word)]
            for value, count in counts
        ]
        yield table([word, "images", "wrong", ""], cells)


def _bar(count: _Table, word: str) -> Html:
    return markup.share_bar(count["share"], interval=count["interval"], word=word)


def _method(report: _Table, with_images: bool) -> Html:
    images = (
        "This page holds images of the data, made small: mind its terms before passing it on."
        if with_images
        else "No image is here, as nothing of a dataset should leave a machine unasked; "
        "--with-images shows them."
    )
    return join(
        [
            Html("<h2>How this was measured</h2>"),
            paragraph(images),
            paragraph(
                "Probabilities are calibrated, of being generated. Intervals after Wilson; copies "
                "of an image count as so many. Brightness is the mean grey level, detail the mean "
                "step between neighbouring pixels, both of the prepared image and cut at their "
                "quartiles. Format, long side and JPEG quality are those of the source's files, "
                "where --source gives it."
            ),
        ]
    )
