"""The end of the human benchmark as HTML: person and model side by side, and where they disagree.

``delivery/app.py`` shows it when the last image is answered.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aiornot.data.images import Pixels
from aiornot.data.markup import Html, join, paragraph, say, text
from aiornot.delivery.cards import THUMBNAIL, percent, picture, wrap

_ROWS = {
    "accuracy": "Accuracy",
    "accuracy_real": "on real images",
    "accuracy_generated": "on generated images (recall)",
    "precision": "Precision",
}


def summary(record: Mapping[str, Any], *, saved: str) -> Html:
    """Return the result of a sitting: the person and, if there is one, the model side by side.

    Args:
        record: From ``human.record``.
        saved: Where it is kept, or why not, as a sentence.
    """
    model = record["model"]
    who = {"You": record["human"]} | ({"Model": model} if model else {})
    heads = join([Html(f"<th>{name}</th>") for name in ("", *who)])
    lines = [
        Html(f"<tr><td>{say(label)}</td>{join([_cell(one, key) for one in who.values()])}</tr>")
        for key, label in _ROWS.items()
    ]
    parts = [
        Html("<h2>How it went</h2>"),
        Html(f"<div class=scroll><table><tr>{heads}</tr>{join(lines)}</table></div>"),
        paragraph(_remark(record), dim=True),
        Html(f"<p class=dim>{say(saved)}</p>"),
    ]
    return wrap(*parts)


def _cell(found: Mapping[str, Any], key: str) -> Html:
    value, (low, high) = found["metrics"][key], found["intervals"][key]
    part, whole = found["counts"][key]
    shown = "-" if value is None else f"{value:.2f}"
    return Html(
        f"<td>{shown}<small>{low:.2f} - {high:.2f}</small><small>{part} of {whole}</small></td>"
    )


def _remark(record: Mapping[str, Any]) -> str:
    total, seconds = len(record["images"]), record["human"]["median_seconds"]
    words = [
        f"{total} images of the {record['split']} split, seed {record['seed']}; below each share "
        f"its 95 % interval (Wilson). Your median answer took {seconds:.1f} s."
    ]
    if record["model"] and record["split"] == "val":
        words.append(
            "The model was chosen and calibrated on this split, which flatters it a little; "
            "--split test asks about images that neither of you knows."
        )
    if record["data"]["source_note"]:
        words.append(f"The data is a {record['data']['source_note']}.")
    return " ".join(words)


def gallery(title: str, hint: str, pictures: Iterable[tuple[Pixels, Mapping[str, Any]]]) -> Html:
    """Show images with what they are and what was said of them.

    Args:
        title: Of the gallery.
        hint: What it holds.
        pictures: Pixels, and their entry in ``images`` of a record.
    """
    figures = [_figure(pixels, row) for pixels, row in pictures]
    if not figures:
        return Html("")
    head = f"<h2>{say(title)} ({len(figures)})</h2>"
    return wrap(
        Html(head), paragraph(hint, dim=True), Html(f"<div class=grid>{join(figures)}</div>")
    )


def _figure(pixels: Pixels, row: Mapping[str, Any]) -> Html:
    lines = [f"<b>{text(row['label'])}</b>", f"you: {text(row['answer'])}"]
    if "verdict" in row:
        lines.append(f"model: {text(row['verdict'])}, {say(percent(row['probability']))}")
    lines.append(f"<span class=dim>{text(row['id'])}</span>")
    coarse = "coarse" if len(pixels) < THUMBNAIL else ""
    image = picture(pixels, alt=str(row["label"]), thumbnail=True, classes=coarse)
    caption = "<br>".join(lines)
    return Html(f"<figure class={row['label']}>{image}<figcaption>{caption}</figcaption></figure>")


def galleries(images: Sequence[Pixels], rows: Sequence[Mapping[str, Any]]) -> Html:
    """Return what is worth a second look: where person and model disagree, and who erred alone."""
    pairs = list(zip(images, rows, strict=True))
    if not rows or "verdict" not in rows[0]:
        wrong = [pair for pair in pairs if pair[1]["answer"] != pair[1]["label"]]
        return gallery("Your errors", "What each image is stands first.", wrong)
    apart = [pair for pair in pairs if pair[1]["answer"] != pair[1]["verdict"]]
    both = [pair for pair in pairs if pair[1]["answer"] == pair[1]["verdict"] != pair[1]["label"]]
    return join(
        [
            gallery(
                "You and the model disagree",
                "What each image is stands first, then both answers, the model's with its "
                "probability of being generated.",
                apart,
            ),
            gallery("Both wrong", "Neither of you saw it.", both),
        ]
    )
