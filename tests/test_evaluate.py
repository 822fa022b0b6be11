"""Evaluation: metrics with intervals as plain values, and the test split stays sealed."""

import json
import math
import time

import numpy as np
import pytest

from aiornot.config import InputError
from aiornot.delivery import evaluate, manifest
from aiornot.delivery.calibrate import Calibration, calibrate


def draw(seed, count=400, *, ties=False):
    rng = np.random.default_rng(seed)
    labels = (rng.random(count) < 0.3).astype(np.int64)
    logits = 2.0 * rng.normal(labels * 1.5 - 0.5, 1.0)
    return (np.round(logits) if ties else logits).astype(np.float32), labels


def test_an_evaluation_is_strict_json_and_says_what_the_data_is():
    logits, labels = draw(0)
    never = Calibration(temperature=1.0, threshold=1.0, rule="fpr<=0")
    attributes = {"fingerprint": "abc", "source_note": "synthetic demo images", "size": 32}
    result = evaluate.evaluation(logits, labels, never, split="val", attributes=attributes)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["metrics"]["precision@threshold"] is None
    assert result["intervals"]["precision@threshold"] == [None, None]
    assert result["data"]["fingerprint"] == "abc"
    assert result["data"]["source_note"] == "synthetic demo images"
    assert result["num_real"] + result["num_generated"] == 400
    assert set(result["intervals"]) == set(result["metrics"])
    assert result["resampling"] == {"num_draws": 2000, "of": "images", "num_drawn": 400}


def test_every_metric_lies_in_its_interval_also_the_calibration_error():
    logits, labels = draw(1)
    found = calibrate(logits, labels)
    result = evaluate.evaluation(logits, labels, found, split="val", attributes={})
    for name, (low, high) in result["intervals"].items():
        assert low <= result["metrics"][name] <= high, name


def test_four_thousand_images_take_seconds():
    """All metrics, 2,000 draws: 2 s on two busy cores."""
    logits, labels = draw(0, count=4000)
    found = calibrate(logits, labels)
    started = time.process_time()
    evaluate.evaluation(logits, labels, found, split="val", attributes={})
    assert time.process_time() - started < 10


def test_copies_are_one_witness():
    """Each image ten times: the same intervals as of the images alone, if that is known."""
    logits, labels = draw(2, count=60)
    found = calibrate(logits, labels)
    tenfold = np.repeat(logits, 10), np.repeat(labels, 10)

    def width(logits, labels, clusters=None):
        result = evaluate.evaluation(
            logits, labels, found, split="val", attributes={}, clusters=clusters
        )
        low, high = result["intervals"]["auroc"]
        return high - low

    alone, blind = width(logits, labels), width(*tenfold)
    aware = width(*tenfold, clusters=np.repeat(np.arange(60), 10))
    assert aware == pytest.approx(alone, rel=0.1)
    assert blind < 0.5 * alone


def test_precision_is_nan_where_nothing_is_called_generated():
    logits, labels = draw(0)
    never = Calibration(temperature=1.0, threshold=1.0, rule="fpr<=0")
    assert math.isnan(evaluate.measure(logits, labels, never)["precision@threshold"])


def test_opening_test_is_counted_and_val_is_free(tmp_path):
    assert [evaluate.open_split(tmp_path, "test") for _ in range(3)] == [0, 1, 2]
    assert [evaluate.open_split(tmp_path, "val") for _ in range(2)] == [0, 0]
    assert evaluate.open_split(tmp_path, "test") == 3


@pytest.mark.parametrize("split", ["train", "Test", ""])
def test_other_splits_are_refused(tmp_path, split):
    with pytest.raises(InputError, match="use 'val' or 'test'"):
        evaluate.open_split(tmp_path, split)


def test_records_keep_their_order_and_the_count_of_openings(tmp_path):
    evaluate.open_split(tmp_path, "test")
    evaluate.record(tmp_path, {"split": "test", "n": 1})
    dated = evaluate.record(tmp_path, {"split": "val", "n": 2})
    assert [one["n"] for one in evaluate.history(tmp_path)] == [1, 2]
    assert dated["time"].endswith("+00:00")
    assert evaluate.open_split(tmp_path, "test") == 1


@pytest.mark.parametrize("text", ["{", "[]", '{"evaluations": []}'])
def test_a_damaged_list_is_refused_and_not_begun_afresh(tmp_path, text):
    (tmp_path / manifest.EVALUATIONS).write_text(text)
    with pytest.raises(InputError, match="damaged"):
        evaluate.open_split(tmp_path, "test")
    assert (tmp_path / manifest.EVALUATIONS).read_text() == text
