"""Evaluation: every metric equals scikit-learn's, intervals cover, the test split stays sealed."""

import json
import math
import time

import numpy as np
import pytest
from sklearn import metrics

from aiornot.config import InputError
from aiornot.delivery import evaluate
from aiornot.delivery.calibrate import Calibration, calibrate


def draw(seed, count=400, *, ties=False):
    rng = np.random.default_rng(seed)
    labels = (rng.random(count) < 0.3).astype(np.int64)
    logits = 2.0 * rng.normal(labels * 1.5 - 0.5, 1.0)
    return (np.round(logits) if ties else logits).astype(np.float32), labels


def of_verdicts(labels, verdicts, suffix):
    return {
        f"accuracy{suffix}": metrics.accuracy_score(labels, verdicts),
        f"balanced_accuracy{suffix}": metrics.balanced_accuracy_score(labels, verdicts),
        f"precision{suffix}": metrics.precision_score(labels, verdicts),
        f"recall{suffix}": metrics.recall_score(labels, verdicts),
        f"fpr{suffix}": np.mean(verdicts[labels == 0]),
    }


def recall_at(labels, scores, bound):
    fpr, tpr, _ = metrics.roc_curve(labels, scores, drop_intermediate=False)
    return tpr[fpr <= bound].max()


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_metrics_equal_those_of_scikit_learn(seed, ties):
    logits, labels = draw(seed, ties=ties)
    calibration = calibrate(logits, labels, rule="fpr<=0.05")
    found = evaluate.measure(logits, labels, calibration)
    raw = 1 / (1 + np.exp(-logits.astype(np.float64)))
    probabilities = calibration.probabilities(logits)
    expected = {
        "auroc": metrics.roc_auc_score(labels, logits),
        "average_precision": metrics.average_precision_score(labels, logits),
        "log_loss_before_temperature": metrics.log_loss(labels, raw),
        "log_loss_after_temperature": metrics.log_loss(labels, probabilities),
        "brier": metrics.brier_score_loss(labels, probabilities),
        "tpr@fpr=0.01": recall_at(labels, logits, 0.01),
        "tpr@fpr=0.05": recall_at(labels, logits, 0.05),
        **of_verdicts(labels, probabilities >= 0.5, "@0.5"),
        **of_verdicts(labels, probabilities >= calibration.threshold, "@threshold"),
    }
    assert found == pytest.approx(expected | {"ece": found["ece"]}, abs=1e-9)


def test_calibration_error_is_the_mean_gap_over_fifteen_equal_bins():
    rng = np.random.default_rng(0)
    probabilities = np.sort(rng.random(1500))
    labels = rng.random(1500) < probabilities**2
    parts = np.split(probabilities - labels, 15)
    expected = np.mean([abs(part.mean()) for part in parts])
    order = rng.permutation(1500)
    for rows in (slice(None), order):
        found = evaluate.calibration_error(probabilities[rows], labels[rows])
        assert found == pytest.approx(expected)


def test_a_constant_probability_equal_to_the_prior_is_calibrated():
    labels = np.arange(1000) < 300
    assert evaluate.calibration_error(np.full(1000, 0.3), labels) == pytest.approx(0, abs=1e-12)


def test_resampled_auroc_equals_scikit_learn_with_weights():
    logits, labels = draw(0, ties=True)
    weights = np.random.default_rng(1).integers(0, 4, size=(5, len(labels))).astype(float)
    found = evaluate.auroc(logits, labels.astype(bool), weights)
    expected = [metrics.roc_auc_score(labels, logits, sample_weight=row) for row in weights]
    assert found == pytest.approx(np.array(expected))


def test_an_auroc_interval_of_800_images_is_quick_seeded_and_around_the_value():
    logits, labels = draw(0, count=800)
    started = time.perf_counter()
    low, high = evaluate.interval(evaluate.auroc, logits, labels)
    assert time.perf_counter() - started < 2
    assert low < metrics.roc_auc_score(labels, logits) < high
    assert evaluate.interval(evaluate.auroc, logits, labels) == (low, high)
    assert evaluate.interval(evaluate.auroc, logits, labels, seed=1) != (low, high)


def test_intervals_of_accuracy_cover_the_truth_about_as_often_as_they_say():
    # Right with chance 0.8 in either class: the truth is known. 95 +- 3 % of 60 would be 54 to 60.
    calibration = Calibration(temperature=1.0, threshold=0.5, rule="balanced")
    covered = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        labels = np.arange(300) % 2
        logits = np.where(rng.random(300) < 0.8, 1.0, -1.0) * (2 * labels - 1)
        low, high = evaluate.interval(
            evaluate.accuracy(calibration), logits, labels, num_resamples=200, seed=seed
        )
        covered += low <= 0.8 <= high
    assert covered >= 52


def test_many_images_are_resampled_in_pieces(monkeypatch):
    logits, labels = draw(0)
    whole = evaluate.interval(evaluate.auroc, logits, labels)
    monkeypatch.setattr(evaluate, "_CHUNK", 1000)
    assert evaluate.interval(evaluate.auroc, logits, labels) == pytest.approx(whole, abs=0.01)


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
    assert set(result["intervals"]) <= set(result["metrics"])


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
    (tmp_path / evaluate.EVALUATIONS).write_text(text)
    with pytest.raises(InputError, match="damaged"):
        evaluate.open_split(tmp_path, "test")
    assert (tmp_path / evaluate.EVALUATIONS).read_text() == text
