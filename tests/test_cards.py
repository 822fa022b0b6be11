"""What the page shows, without a browser: right words, nothing that tells too early, escaped."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import CPU

from aiornot.delivery import bundle, cards, human, results
from aiornot.delivery.predict import Prediction
from aiornot.delivery.saliency import Occlusion

PIXELS = np.full((32, 32, 3), 90, dtype=np.uint8)


@pytest.fixture(scope="module")
def loaded(delivered):
    """Unsure from .2 to .7, generated from .6 on."""
    found = bundle.load(delivered.folder, device=CPU)
    calibration = dataclasses.replace(found.calibration, threshold=0.6, unsure=(0.2, 0.7))
    return dataclasses.replace(found, calibration=calibration)


def verdict(loaded, probability: float) -> str:
    label = "generated" if probability >= 0.6 else "real"
    made = Prediction(
        file=Path("a.png"), probability=probability, label=label, threshold=0.6, model="m"
    )
    return cards.verdict(made, loaded, seen="")


@pytest.mark.parametrize(
    ("probability", "word"),
    [(0.1, "Real"), (0.2, "Unsure"), (0.65, "Unsure"), (0.7, "Generated"), (0.99, "Generated")],
)
def test_the_word_is_that_of_the_calibration(loaded, probability, word):
    assert f"<p class=word>{word}</p>" in verdict(loaded, probability)


def test_the_words_of_the_threshold_stand_below_its_mark(loaded):
    shown = verdict(loaded, 0.3)
    assert 'class=cut style="left:60.00%"' in shown
    assert re.search(r'class=at style="left:clamp\([^,]+, 60.00%, [^"]+">threshold 60.0 %', shown)


def test_an_unsure_verdict_says_where_it_leans(loaded):
    assert "leans to real" in verdict(loaded, 0.3)
    assert "leans to generated" in verdict(loaded, 0.65)


@pytest.mark.parametrize(
    ("probability", "shown"),
    [(0.99996, "above 99.9 %"), (0.00004, "below 0.1 %"), (0.5, "50.0 %"), (1.0, "100.0 %")],
)
def test_what_is_not_certain_does_not_look_so(probability, shown):
    assert cards.percent(probability) == shown


def test_a_reason_is_escaped(loaded):
    made = Prediction(file=Path("a"), threshold=0.6, model="m", error="<script>x</script>")
    said = cards.verdict(made, loaded, seen="")
    assert "No verdict" in said and "<script>" not in said and "&lt;script&gt;" in said


def test_a_question_is_the_picture_and_its_number_alone():
    said = cards.question(PIXELS, number=2, total=50)
    assert "Image 3 of 50" in said and 'alt="image 3"' in said
    plain = re.sub(r"base64,[^\"]*", "", said)
    assert "generated" in plain and plain.count("generated") == 1  # the key, the same each time


@pytest.mark.parametrize(
    ("geometry", "height", "width", "words"),
    [
        ("resize", 32, 32, "as they are"),
        ("resize", 60, 80, "squeezed from 80 x 60 to 32 x 32"),
        ("crop", 60, 80, "the central 32 x 32 of its 80 x 60"),
        ("crop", 20, 80, "mirror"),
    ],
)
def test_it_says_what_the_model_sees(loaded, geometry, height, width, words):
    shown = dataclasses.replace(loaded, geometry=geometry)
    assert words in cards.seen(shown, height, width)


def test_a_map_says_what_the_strongest_place_does(loaded):
    covered = np.full((3, 3), 2.0)
    covered[1, 2] = -1.0
    found = Occlusion(logit=2.0, covered=covered)
    said = cards.looks(PIXELS, found, loaded.calibration)
    before, after = (
        cards.percent(float(one)) for one in loaded.calibration.probabilities(np.array([2.0, -1.0]))
    )
    assert f"would be {after} instead of {before}" in said
    flat = Occlusion(logit=2.0, covered=np.full((3, 3), 2.01))
    assert "No single place decides" in cards.looks(PIXELS, flat, loaded.calibration)


def sat(delivered, **changes: object) -> dict:
    sample = human.draw(delivered.data, num=4)
    sitting = human.Sitting(sample=sample, shown=0.0)
    for label in sample.labels:
        sitting = sitting.answered(bool(label), now=1.0)
    return human.record(sitting) | changes


def test_a_summary_without_a_model_has_one_column(delivered):
    said = results.summary(sat(delivered), saved="Kept in <here>.")
    assert "<th>You</th>" in said and "<th>Model</th>" not in said
    assert "1.00" in said and "4 of 4" in said and "&lt;here&gt;" in said


def test_galleries_show_disagreements_and_shared_errors():
    def row(name: str, label: str, answer: str, verdict: str) -> dict:
        return {
            "id": name,
            "label": label,
            "answer": answer,
            "verdict": verdict,
            "probability": 0.3,
        }

    rows = [
        row("agreed", "real", "real", "real"),
        row("apart<b>", "real", "generated", "real"),
        row("missed", "generated", "real", "real"),
    ]
    said = results.galleries([PIXELS] * 3, rows)
    assert "disagree (1)" in said and "Both wrong (1)" in said
    assert "agreed" not in said and "apart&lt;b&gt;" in said and "missed" in said


def test_without_a_model_the_gallery_holds_the_errors():
    rows = [
        {"id": str(i), "label": "real", "answer": answer}
        for i, answer in enumerate(["real", "generated"])
    ]
    assert "Your errors (1)" in results.galleries([PIXELS] * 2, rows)
