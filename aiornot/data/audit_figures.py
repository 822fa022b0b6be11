"""Tables and figures of an audit's page: the probe, the files by class, sizes, duplicates.

``aiornot audit SOURCE`` shows them; ``data/audit_page.py`` puts the page together.
"""

from collections.abc import Mapping
from typing import Any

from aiornot.data import markup
from aiornot.data.census import LISTED, MEMBERS
from aiornot.data.hdf5 import CLASSES
from aiornot.data.markup import Html, code, join, paragraph, say, table, text

_Table = Mapping[str, Any]


def probe(probe: _Table) -> Html:
    threshold = probe["threshold"]
    rows = [_feature(feature, threshold) for feature in probe["features"]]
    together = {"feature": "all together", "how": "", "in_pixels": None} | probe["metadata"]
    content = {"feature": "8 x 8 grey thumbnail", "how": "", "in_pixels": True} | probe["content"]
    explained = paragraph(
        "How well each property of a file tells its class, as AUROC of images that the probe has "
        f"not seen ({probe['num_folds']} folds, no cluster of duplicates in two of them): .5 is "
        f"nothing, 1 is all. Above {threshold:g}, the mark in the bars, it is a leak. JPEG "
        "features are judged among the JPEG files. What is not in the pixels no detector sees, "
        "but it tells of different origins."
    )
    control = paragraph(
        "For comparison, not a leak in itself: what can be told from the content alone, with all "
        "fine detail gone. If it is high, the classes show different things."
    )
    columns = ["feature", "AUROC", "95 % interval", "", "in the pixels", "how the classes differ"]
    return join(
        [
            Html("<h2>Could a detector cheat?</h2>"),
            explained,
            table(columns, [_feature(together, threshold), *rows], wide=5),
            control,
            table(columns[:4], [_feature(content, threshold)[:4]]),
        ]
    )


def _feature(feature: _Table, threshold: float) -> list[Html]:
    seen = {True: "yes", False: "no", None: ""}[feature["in_pixels"]]
    name, how = say(feature["feature"]), text(feature["how"])
    if feature["auroc"] is None:
        return [name, Html("-"), Html("too few"), Html(""), Html(seen), how]
    return [
        name,
        Html(f"{feature['auroc']:.3f}"),
        Html(f"{feature['low']:.3f} to {feature['high']:.3f}"),
        markup.auroc_bar(feature["auroc"], threshold=threshold),
        Html(seen),
        how,
    ]


def files(report: _Table) -> Html:
    tables = [
        Html(f"<div><h3>{say(name)}</h3>{_categories(values)}</div>")
        for name, values in report["categories"].items()
    ]
    figures = [_figure(name, number) for name, number in report["numbers"].items()]
    return Html(
        f"<h2>Files</h2>{markup.legend()}<div class=tables>{join(tables)}</div>"
        f"<h3>Numbers</h3><div class=figures>{join(figures)}</div>"
        + paragraph(
            "Each class as shares of its own; the outer bins also hold what lies beyond them. JPEG "
            "quality is that of libjpeg whose luminance table is nearest to the file's: exact for "
            "files that libjpeg wrote, an equivalent for those of cameras and Photoshop.",
            dim=True,
        )
    )


def _categories(values: list[dict[str, Any]]) -> Html:
    totals = {word: sum(value[word] for value in values) or 1 for word in CLASSES}
    rows = []
    for value in values:
        shares = {word: value[word] / totals[word] for word in CLASSES}
        cells = [Html(f"{value[word]:,}") for word in CLASSES]
        rows.append([text(value["value"]), *cells, markup.bars(shares)])
    return table(["", *CLASSES, ""], rows)


def _figure(name: str, number: _Table) -> Html:
    medians = ", ".join(f"{word} {_median(number['quartiles'][word])}" for word in CLASSES)
    if number["low"] == number["high"]:
        return Html(
            f"<figure class=chart><b>{say(name)}</b>"
            f"<figcaption>{number['low']:.4g} nearly everywhere</figcaption></figure>"
        )
    return Html(
        f"<figure class=chart><b>{say(name)}</b>{markup.histogram(name, number)}"
        f"<div class=axis><span>{number['low']:.4g}</span><span>{number['high']:.4g}</span></div>"
        f"<figcaption>median: {say(medians)}</figcaption></figure>"
    )


def _median(quartiles: list[float] | None) -> str:
    return "-" if quartiles is None else f"{quartiles[1]:.4g}"


def sizes(sizes: _Table) -> Html:
    columns = ["width x height", *CLASSES, "AUROC"]
    why = paragraph(
        "An image that has the wanted size is stored as it is; every other one is resampled, or "
        "cut with --geometry crop. Where that falls on one class more than on the other, a "
        "detector can learn the resampling. AUROC of the mere fact: above .5 it means generated, "
        "below it real."
    )
    common = table(columns, [_size(size) for size in sizes["common"]])
    kinds = table(["is", *columns[1:]], [_size(size) for size in sizes["kinds"]])
    return Html(
        f"<h2>Native size</h2>{why}<div class=tables><div><h3>Most common sizes</h3>{common}</div>"
        f"<div><h3>Kinds of size</h3>{kinds}</div></div>"
    )


def _size(size: _Table) -> list[Html]:
    counts = [Html(f"{size[word]:,} ({size['shares'][word]:.0%})") for word in CLASSES]
    figure = "-" if size["auroc"] is None else f"{size['auroc']:.3f}"
    return [text(size["size"]), *counts, Html(figure)]


def duplicates(copies: _Table) -> Html:
    head = Html("<h2>Duplicates</h2>")
    if not copies["clusters"]:
        return join([head, paragraph("No image is there twice.")])
    distance = copies["distance"]
    near = "" if distance is None else f", or hashes within {distance} of 128 bits"
    torn = copies["torn"]
    found = paragraph(
        f"{copies['rows']:,} images lie in {copies['clusters']:,} clusters of copies (equal files"
        f"{near}); {copies['equal_rows']:,} of them have an equal file. The notebook's own split, "
        f"which ignores copies, would tear {torn['clusters']:,} clusters apart and put "
        f"{torn['leaked_rows']:,} images into val or test that have a copy in train; aiornot "
        "prepare keeps each cluster in one split."
    )
    rows = [
        [
            Html(f"{cluster['rows']:,}"),
            *(Html(f"{cluster[word]:,}") for word in CLASSES),
            Html("equal files" if cluster["equal"] else "near"),
            _listed(cluster["listed"], cluster["rows"]),
        ]
        for cluster in copies["largest"]
    ]
    largest = table(["images", *CLASSES, "kind", "ids"], rows, wide=4)
    return join([head, found, Html("<h3>Largest clusters</h3>"), largest, _conflicts(copies)])


def _conflicts(copies: _Table) -> Html:
    groups = copies["conflicts"]
    if not groups:
        return paragraph("No cluster carries both labels.")
    rows = [[_listed(group[:MEMBERS], len(group))] for group in groups[:LISTED]]
    head = paragraph(
        f"{len(groups):,} clusters carry both labels, of which one must be wrong; audit.json names "
        "all of them."
    )
    return join([Html("<h3>Label conflicts</h3>"), head, table(["ids"], rows, wide=0)])


def _listed(named: list[dict[str, Any]], total: int) -> Html:
    more = [Html(f"and {total - len(named):,} more")] if total > len(named) else []
    return join([*(Html(f"{code(n['id'])} {n['class']}") for n in named), *more], ", ")
