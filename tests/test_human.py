"""The human benchmark without a page: what is drawn, how it is scored, what is kept."""

import json
import shutil

import numpy as np
import pytest
from conftest import CPU
from PIL import Image

from aiornot.config import InputError
from aiornot.data import hdf5
from aiornot.delivery import bundle, human, manifest, predict


def sit(sample: human.Sample, answers: np.ndarray) -> human.Sitting:
    """Answer all, one second later each time."""
    sitting = human.Sitting(sample=sample, shown=100.0)
    for number, answer in enumerate(answers):
        sitting = sitting.answered(bool(answer), now=100.5 + number)
    return sitting


def test_half_are_generated_and_no_image_comes_twice(delivered):
    sample = human.draw(delivered.data, num=50, seed=3)
    assert len(sample) == 50 and np.count_nonzero(sample.labels) == 25
    assert len(set(sample.ids)) == 50
    labels = hdf5.read_labels(delivered.data, "val")
    ids = hdf5.read_ids(delivered.data, "val")
    for number, row in enumerate(sample.rows):
        assert sample.labels[number] == bool(labels[row]) and sample.ids[number] == ids[row]
    stored = hdf5.map_images(delivered.data, "val")[sample.rows[7]]
    assert np.array_equal(sample.pixels(7), stored)


def test_the_order_tells_nothing_of_the_class(delivered):
    """Not one class after the other, nor by turns."""
    labels = human.draw(delivered.data, num=50, seed=0).labels
    assert 15 < np.count_nonzero(labels[1:] != labels[:-1]) < 35


def test_the_seed_decides(delivered):
    one, same, other = (human.draw(delivered.data, num=20, seed=seed).ids for seed in (1, 1, 2))
    assert one == same and one != other


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"split": "train"}, "'val' or 'test'"),
        ({"num": 7}, "even"),
        ({"num": 0}, "even"),
        ({"num": 66}, "33 real images are needed and the split holds 32"),
        ({"split": "test"}, "holds 24"),
    ],
)
def test_what_cannot_be_drawn_is_said(delivered, arguments, match):
    with pytest.raises(InputError, match=match):
        human.draw(delivered.data, **arguments)


NOTEBOOK_TRUE = "00110011010100001001100101100101110111000010011000"
NOTEBOOK_GUESS = "01110111011100101011000111100111110111000010011000"


def test_the_score_is_that_of_the_notebook():
    """Its author's own answers, and what scikit-learn made of them there."""
    labels, called = (np.array(list(text)) == "1" for text in (NOTEBOOK_TRUE, NOTEBOOK_GUESS))
    found = human.score(labels, called)
    rounded = {name: round(value, 4) for name, value in found["metrics"].items()}
    assert rounded == {
        "accuracy": 0.84,
        "accuracy_real": 0.75,
        "accuracy_generated": 0.9545,
        "precision": 0.75,
        "recall": 0.9545,
    }
    assert found["counts"]["precision"] == [21, 28]
    low, high = found["intervals"]["accuracy"]
    assert (low, high) == pytest.approx((0.7149, 0.9166), abs=1e-3)


def test_who_calls_nothing_generated_has_no_precision():
    labels = np.array([True, False])
    found = human.score(labels, np.zeros(2, dtype=bool))
    assert found["metrics"]["precision"] is None and found["intervals"]["precision"] == [0.0, 1.0]
    assert json.dumps(found, allow_nan=False)


def test_a_record_holds_the_answers_with_their_ids_and_times(delivered):
    sample = human.draw(delivered.data, num=10)
    found = human.record(sit(sample, sample.labels))
    assert found["human"]["metrics"]["accuracy"] == 1.0
    assert found["human"]["median_seconds"] == 1.0
    assert [row["id"] for row in found["images"]] == list(sample.ids)
    assert [row["seconds"] for row in found["images"]] == [0.5, *[1.0] * 9]
    assert all(row["label"] == row["answer"] for row in found["images"])
    assert found["data"]["fingerprint"] == "f0" and found["split"] == "val" and found["seed"] == 0
    assert found["model"] is None and "probability" not in found["images"][0]


def test_the_model_is_asked_about_the_same_pixels(delivered, tmp_path):
    loaded = bundle.load(delivered.folder, device=CPU)
    sample = human.draw(delivered.data, num=10)
    probabilities = human.ask_model(sample, loaded, folder=delivered.folder)
    files = []
    for number in range(10):
        files.append(tmp_path / f"{number}.png")
        Image.fromarray(sample.pixels(number)).save(files[-1])
    expected = [one.probability for one in predict.predict(loaded, files)]
    assert probabilities == pytest.approx(expected, abs=1e-6)
    found = human.record(sit(sample, ~sample.labels), bundle=loaded, probabilities=probabilities)
    assert found["human"]["metrics"]["accuracy"] == 0.0
    assert found["model"]["sha256"] == loaded.sha256
    called = np.array([row["verdict"] == "generated" for row in found["images"]])
    assert called.tolist() == (probabilities >= loaded.calibration.threshold).tolist()
    share = np.mean(called == sample.labels)
    assert found["model"]["metrics"]["accuracy"] == pytest.approx(share)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_asking_the_model_about_test_images_opens_the_test_split(delivered, tmp_path):
    folder = shutil.copytree(delivered.folder, tmp_path / "bundle")
    loaded = bundle.load(folder, device=CPU)
    for split, opened in (("val", 0), ("test", 1), ("test", 2)):
        human.ask_model(human.draw(delivered.data, split=split, num=4), loaded, folder=folder)
        kept = folder / manifest.EVALUATIONS
        times = json.loads(kept.read_text())["test_opened"] if kept.exists() else []
        assert len(times) == opened


def test_a_record_that_is_there_is_kept(tmp_path):
    out = tmp_path / "new" / "me.json"
    assert human.save({"a": 1}, out) == out
    assert human.save({"a": 2}, out) == out.with_name("me-2.json")
    assert human.save({"a": 3}, out) == out.with_name("me-3.json")
    assert json.loads(out.read_text()) == {"a": 1}
    assert len(list(out.parent.iterdir())) == 3
