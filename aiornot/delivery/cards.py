"""What the page of the app shows, as HTML: verdicts, maps, the image at hand, the final comparison.

``delivery/app.py`` puts them where they belong. Nothing here knows of a browser or a session.
"""

import base64
import io

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

THUMBNAIL = 160
"""Pixels of its longer side."""

_COARSE = 256  # an image smaller than this is enlarged by whole pixels, not smoothed


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
        f"<div class=ends><span>{CLASSES[0]}</span>"
        f'<span class=at style="left:clamp(5.5rem, {cut:.2f}%, 100% - 8rem)">'
        f"threshold {percent(cut / 100)}</span><span>{CLASSES[1]}</span></div>"
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
        picture(painted, alt="map over the image", classes="shown"),
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
    image = picture(pixels, alt=f"image {number + 1}", classes=coarse)
    return wrap(
        Html(
            f"<div class=count><span>Image {number + 1} of {total}</span>"
            f"<span>R real, G generated</span></div>"
            f'<div class=bar><i style="width:{share:.1f}%"></i></div><div class=stage>{image}</div>'
        )
    )


def picture(pixels: Pixels, *, alt: str, classes: str = "", thumbnail: bool = False) -> Html:
    """Return an image inside the page itself: no file of it, whose name could tell something."""
    image, stream = Image.fromarray(pixels), io.BytesIO()
    if thumbnail:
        image.thumbnail((THUMBNAIL, THUMBNAIL))
    image.save(stream, "PNG", compress_level=1)
    data = base64.b64encode(stream.getvalue()).decode("ascii")
    return Html(f'<img alt="{text(alt)}" class="{classes}" src="data:image/png;base64,{data}">')
