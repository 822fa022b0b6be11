"""What the page of the app shows, as HTML: verdicts, maps, the image at hand, the final comparison.

``delivery/app.py`` puts them where they belong. Nothing here knows of a browser or a session.
"""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from aiornot.data.hdf5 import CLASSES
from aiornot.data.images import Pixels
from aiornot.data.markup import Html, code, join, paragraph, say, text
from aiornot.delivery.bundle import Bundle
from aiornot.delivery.calibrate import Calibration
from aiornot.delivery.human import Sample
from aiornot.delivery.predict import Prediction
from aiornot.delivery.saliency import Occlusion

_THUMBNAIL = 160  # pixels of its longer side
_COARSE = 256  # an image smaller than this is enlarged by whole pixels, not smoothed

STYLE = """
.gradio-container { --real: #2563a8; --generated: #c2571a; --unsure: #c9a227; --doubt: #80640a;
  --dim: #5a6472; --rim: #d5dae1; --soft: #eef0f3; --on-tone: #fff; width: 100%;
  max-width: 66rem !important; margin: 0 auto !important;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, sans-serif !important; }
.dark .gradio-container, .gradio-container.dark { --real: #7db3ef; --generated: #f3a06b;
  --unsure: #c9a227; --doubt: #e2bd4b; --dim: #a3abb8; --rim: #3b424d; --soft: #262b33;
  --on-tone: #14171c; }
.gradio-container .html-container { padding: 0 !important; }
.aion { color: var(--body-text-color); font-size: 1rem; line-height: 1.5; font-family:
  system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
.aion h1 { font-size: 1.5rem; line-height: 1.2; margin: 0; font-weight: 650; }
.aion h2 { font-size: 1.1rem; margin: 1.4rem 0 .5rem; font-weight: 650; }
.aion p { margin: .35rem 0; max-width: 46rem; color: inherit; }
.aion p.dim, .aion .dim { color: var(--dim); font-size: .88rem; }
.aion code { font: .86em/1.4 ui-monospace, Menlo, Consolas, monospace; overflow-wrap: anywhere;
  background: none; border: 0; padding: 0; color: inherit; }
.aion .empty { border: 1px dashed var(--rim); border-radius: .6rem; padding: 2rem 1.2rem;
  text-align: center; }
.aion .empty p { margin: .35rem auto; color: var(--dim); }
.aion .answer { border-style: solid; border-width: 1px 1px 1px .4rem;
  border-color: var(--rim) var(--rim) var(--rim) var(--tone); border-radius: .6rem;
  padding: 1rem 1.2rem; }
.aion .real { --tone: var(--real); } .aion .generated { --tone: var(--generated); }
.aion .unsure { --tone: var(--doubt); } .aion .broken { --tone: var(--dim); }
.aion .word { font-size: 2rem; line-height: 1.15; font-weight: 700; color: var(--tone); margin: 0; }
.aion .share { font-weight: 600; font-variant-numeric: tabular-nums; }
.aion .gauge { position: relative; height: .6rem; border-radius: .3rem; margin: 1.1rem 0 .5rem; }
.aion .gauge .cut { position: absolute; top: -.2rem; bottom: -.2rem; width: 2px;
  background: var(--body-text-color); transform: translateX(-1px); }
.aion .gauge .dot { position: absolute; top: 50%; width: 1.1rem; height: 1.1rem;
  border-radius: 50%; transform: translate(-50%, -50%); background: var(--body-text-color);
  border: 3px solid var(--body-background-fill); box-shadow: 0 0 0 2px var(--body-text-color); }
.aion .ends { display: flex; justify-content: space-between; font-size: .8rem; color: var(--dim); }
.aion details { margin-top: .7rem; font-size: .88rem; }
.aion summary { cursor: pointer; color: var(--dim); padding: .2rem 0; }
.aion dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem .9rem;
  margin: .4rem 0 0; }
.aion dt { color: var(--dim); font-weight: 400; } .aion dd { margin: 0; min-width: 0; }
.aion .shown { display: block; width: 100%; max-width: 28rem; border-radius: .5rem; margin: 0; }
.aion .coarse { image-rendering: pixelated; }
.aion .key { margin-right: 1rem; white-space: nowrap; font-size: .88rem; }
.aion .key::before { content: ""; display: inline-block; width: .75em; height: .75em;
  border-radius: 2px; margin-right: .4em; background: var(--tone); }
.aion .count { display: flex; justify-content: space-between; font-size: .88rem;
  color: var(--dim); margin-bottom: .35rem; font-variant-numeric: tabular-nums; }
.aion .bar { height: .4rem; border-radius: .2rem; background: var(--soft); overflow: hidden; }
.aion .bar i { display: block; height: 100%; background: var(--dim); }
.aion .stage { display: flex; justify-content: center; background: var(--soft);
  border-radius: .6rem; padding: .6rem; margin-top: .7rem; }
.aion .stage img { width: min(100%, 56vh); aspect-ratio: 1; object-fit: contain; margin: 0;
  border-radius: .3rem; }
.aion .scroll { overflow-x: auto; }
.aion table { border-collapse: collapse; font-size: .95rem; width: auto; margin: 0; }
.aion tr { border: 0; background: none; }
.aion th, .aion td { text-align: right; padding: .45rem 0 .45rem 2rem;
  border-style: solid; border-width: 0 0 1px; border-color: var(--rim); vertical-align: top;
  font-variant-numeric: tabular-nums; background: none; color: inherit; }
.aion th { color: var(--dim); font-weight: 600; }
.aion th:first-child, .aion td:first-child { text-align: left; padding-left: 0; }
.aion td b { font-size: 1.15rem; }
.aion td small { display: block; color: var(--dim); font-size: .8rem; white-space: nowrap; }
.aion .grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.2rem, 1fr));
  gap: .8rem; margin: .6rem 0 1rem; }
.aion figure { margin: 0; border-style: solid; border-width: 1px 1px .25rem;
  border-color: var(--rim) var(--rim) var(--tone); border-radius: .5rem; overflow: hidden; }
.aion figure img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; margin: 0;
  border-radius: 0; background: var(--soft); }
.aion figcaption { font-size: .8rem; line-height: 1.4; padding: .35rem .5rem .45rem;
  overflow-wrap: anywhere; }
#answers { position: sticky; bottom: 0; z-index: 5; padding: .6rem 0; gap: .6rem;
  background: var(--body-background-fill); flex-wrap: nowrap; }
#answers button { min-width: 0; font-size: 1.05rem; padding: .85rem .5rem; }
#answers button, #begin, #again { color: var(--on-tone); border-radius: .5rem; border: 0; }
#answer-real { background: var(--real); } #answer-generated { background: var(--generated); }
#begin, #again { background: var(--body-text-color); color: var(--body-background-fill);
  max-width: 16rem; }
@media (max-width: 40rem) { .aion .word { font-size: 1.7rem; }
  .aion th, .aion td { padding-left: .9rem; } .aion .answer { padding: .8rem .9rem; }
  .gradio-container .main { padding: 1rem .9rem !important; } }
"""


def wrap(*parts: Html) -> Html:
    return Html(f"<div class=aion>{join(parts)}</div>")


def heading(about: str, *, note: str = "") -> Html:
    """Return the head of the page.

    Args:
        about: What model or data it is of.
        note: What the data says of itself, such as that it is synthetic.
    """
    shown = f"{about}; {note}" if note else about
    return wrap(Html("<h1>Real or generated?</h1>"), paragraph(shown, dim=True))


def about(bundle: Bundle) -> str:
    model = bundle.description["config"]["model"]
    return f"{model}, {bundle.size} x {bundle.size} pixels, weights {bundle.name}"


def empty(*sentences: str) -> Html:
    inner = join([paragraph(sentence) for sentence in sentences])
    return wrap(Html(f"<div class=empty>{inner}</div>"))


def percent(probability: float) -> str:
    """Say a probability in percent; what is not certain does not look so."""
    if 0 < probability < 0.001:
        return "below 0.1 %"
    if 0.999 < probability < 1:
        return "above 99.9 %"
    return f"{100 * probability:.1f} %"


def verdict(prediction: Prediction, bundle: Bundle, *, seen: str) -> Html:
    """Return the answer of the model to one image, or why there is none.

    Args:
        prediction: From ``predict.predict``.
        bundle: That it is of.
        seen: What the model was given, as a sentence.
    """
    if prediction.probability is None:
        word = Html("<p class=word>No verdict</p>")
        reason = paragraph(f"This file cannot be judged: {prediction.error}")
        return wrap(Html(f'<div class="answer broken">{word}{reason}</div>'))
    probability, calibration = prediction.probability, bundle.calibration
    label = str(prediction.label)
    unsure = bool(calibration.unsure_at(np.array([probability]))[0])
    tone = "unsure" if unsure else label
    sentence = (
        f"It leans to {label}, but among images with scores like this one the model errs too often."
        if unsure
        else f"The model calls this image {label}."
    )
    share = f"Probability that it is generated: {percent(probability)}"
    parts = [
        Html(f"<p class=word>{say(tone.capitalize())}</p>"),
        paragraph(sentence),
        Html(f"<p class=share>{say(share)}</p>"),
        _gauge(probability, calibration),
        paragraph(seen, dim=True),
        _details(prediction, bundle),
    ]
    return wrap(Html(f'<div class="answer {tone}">{join(parts)}</div>'))


def _gauge(probability: float, calibration: Calibration) -> Html:
    """Draw probability, threshold and unsure band on a line from real to generated."""
    cut = 100 * calibration.threshold
    low, high = (100 * end for end in calibration.unsure or (calibration.threshold,) * 2)
    stops = (
        f"var(--real) 0 {low:.2f}%, var(--unsure) {low:.2f}% {high:.2f}%, "
        f"var(--generated) {high:.2f}% 100%"
    )
    label = text(f"probability {percent(probability)}, threshold {percent(cut / 100)}")
    return Html(
        f'<div class=gauge role=img aria-label="{label}" '
        f'style="background:linear-gradient(90deg, {stops})">'
        f'<i class=cut style="left:{cut:.2f}%"></i>'
        f'<i class=dot style="left:{100 * probability:.2f}%"></i></div>'
        f"<div class=ends><span>{CLASSES[0]}</span><span>threshold {percent(cut / 100)}</span>"
        f"<span>{CLASSES[1]}</span></div>"
    )


def _details(prediction: Prediction, bundle: Bundle) -> Html:
    calibration = bundle.calibration
    band = "-"
    if calibration.unsure is not None:
        band = " to ".join(repr(end) for end in calibration.unsure)
    rows = {
        "probability": repr(prediction.probability),
        "threshold": repr(calibration.threshold),
        "unsure": band,
        "rule": calibration.rule,
        "temperature": repr(calibration.temperature),
        "weights": bundle.name,
    }
    cells = join(
        [Html(f"<dt>{say(name)}</dt><dd>{code(value)}</dd>") for name, value in rows.items()]
    )
    return Html(f"<details><summary>Exact figures</summary><dl>{cells}</dl></details>")


def seen(bundle: Bundle, height: int, width: int) -> str:
    """Say what part of an image (H, W) the model is given."""
    size = bundle.size
    if (height, width) == (size, size):
        return f"The model sees all of its {size} x {size} pixels as they are."
    if bundle.geometry == "resize":
        return (
            f"The model sees it whole, squeezed from {width} x {height} to {size} x {size} pixels."
        )
    if min(height, width) >= size:
        return f"The model sees the central {size} x {size} of its {width} x {height} pixels."
    return (
        f"It has {width} x {height} pixels and the model needs {size} x {size}: what is missing is "
        "continued by mirror images."
    )


def looks(painted: Pixels, found: Occlusion, calibration: Calibration) -> Html:
    """Return the map of where the model looks, with what it says in words."""
    inner = [
        Html("<h2>Where the model looks</h2>"),
        _image(painted, alt="map over the image", classes="shown"),
        Html(f"<p>{_key(CLASSES[1])}{_key(CLASSES[0])}</p>"),
        paragraph(_in_words(found, calibration)),
        paragraph(
            "Each place was covered with the mean colour of the image, one after the other, and "
            "the model asked again. Colour shows where that changed its mind, and in which "
            "direction the place speaks.",
            dim=True,
        ),
    ]
    return wrap(*inner)


def _in_words(found: Occlusion, calibration: Calibration) -> str:
    if found.is_flat:
        return "No single place decides: whichever is covered, the answer hardly changes."
    logits = np.array([found.logit, found.covered[found.strongest()]])
    before, after = calibration.probabilities(logits)
    return (
        f"Without the strongest place the probability would be {percent(after)} instead of "
        f"{percent(before)}."
    )


def _key(name: str) -> Html:
    return Html(f'<span class="key {name}">speaks for {name}</span>')


def introduction(sample: Sample, *, with_model: bool) -> Html:
    """Say what the benchmark is before it begins."""
    half = len(sample) // 2
    then = "what the model says of the same images, and where you disagree" if with_model else ""
    return wrap(
        Html("<h2>Can you tell?</h2>"),
        paragraph(
            f"You will see {len(sample)} images, {half} real and {half} generated, in random "
            "order. Say of each what it is, with the buttons or the keys R and G. "
            "There is no going back, and no word on how you do before the end."
        ),
        paragraph(
            "Then come your accuracy on either class, precision and recall with their intervals"
            + (f", {then}." if then else ".")
        ),
    )


def question(pixels: Pixels, *, number: int, total: int) -> Html:
    """Show the image at hand; nothing in it tells its class.

    Args:
        pixels: (S, S, 3).
        number: From 0.
        total: How many there are.
    """
    share = 100 * number / total
    coarse = "coarse" if len(pixels) < _COARSE else ""
    image = _image(pixels, alt=f"image {number + 1}", classes=coarse)
    return wrap(
        Html(
            f"<div class=count><span>Image {number + 1} of {total}</span>"
            f"<span>R real, G generated</span></div>"
            f'<div class=bar><i style="width:{share:.1f}%"></i></div><div class=stage>{image}</div>'
        )
    )


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
    coarse = "coarse" if len(pixels) < _THUMBNAIL else ""
    image = _image(pixels, alt=str(row["label"]), thumbnail=True, classes=coarse)
    caption = "<br>".join(lines)
    return Html(f"<figure class={row['label']}>{image}<figcaption>{caption}</figcaption></figure>")


def _image(pixels: Pixels, *, alt: str, classes: str = "", thumbnail: bool = False) -> Html:
    """Return an image inside the page itself: no file of it, whose name could tell something."""
    image, stream = Image.fromarray(pixels), io.BytesIO()
    if thumbnail:
        image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    image.save(stream, "PNG", compress_level=1)
    data = base64.b64encode(stream.getvalue()).decode("ascii")
    return Html(f'<img alt="{text(alt)}" class="{classes}" src="data:image/png;base64,{data}">')


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
