"""Metrics of weighted splits equal scikit-learn's; draws keep clusters whole and both classes."""

import numpy as np
import pytest
from sklearn import metrics
from test_evaluate import draw

from aiornot.delivery import bootstrap, measures
from aiornot.delivery.calibrate import Calibration, calibrate


def of_verdicts(labels, verdicts, suffix):
    return {
        f"accuracy{suffix}": metrics.accuracy_score(labels, verdicts),
        f"balanced_accuracy{suffix}": metrics.balanced_accuracy_score(labels, verdicts),
        f"precision{suffix}": metrics.precision_score(labels, verdicts),
        f"recall{suffix}": metrics.recall_score(labels, verdicts),
        f"fpr{suffix}": np.mean(verdicts[labels == 0]),
    }


def recall_at(labels, scores, weights, bound):
    fpr, tpr, _ = metrics.roc_curve(labels, scores, sample_weight=weights, drop_intermediate=False)
    return tpr[fpr <= bound].max()


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_every_metric_of_a_draw_equals_scikit_learn_with_weights(seed, ties):
    logits, labels = draw(seed, ties=ties)
    calibration = calibrate(logits, labels, rule="fpr<=0.05")
    rows = np.random.default_rng(1).integers(0, 4, size=(3, len(labels)))
    rows[0] = 1  # the split itself
    raw = 1 / (1 + np.exp(-logits.astype(np.float64)))
    found = measures.measure(logits.astype(float), labels == 1, calibration, rows)
    probabilities = calibration.probabilities(logits)
    for number, weights in enumerate(rows):
        drawn = np.repeat(np.arange(len(labels)), weights)  # what the weights stand for
        expected = {
            "auroc": metrics.roc_auc_score(labels, logits, sample_weight=weights),
            "average_precision": metrics.average_precision_score(
                labels, logits, sample_weight=weights
            ),
            "log_loss_before_temperature": metrics.log_loss(labels[drawn], raw[drawn]),
            "log_loss_after_temperature": metrics.log_loss(labels[drawn], probabilities[drawn]),
            "brier": metrics.brier_score_loss(labels[drawn], probabilities[drawn]),
            "tpr@fpr=0.01": recall_at(labels, logits, weights, 0.01),
            "tpr@fpr=0.05": recall_at(labels, logits, weights, 0.05),
            **of_verdicts(labels[drawn], probabilities[drawn] >= 0.5, "@0.5"),
            **of_verdicts(labels[drawn], calibration.verdicts(logits[drawn]), "@threshold"),
        }
        own = {name: float(found[name][number]) for name in expected}
        assert own == pytest.approx(expected, abs=1e-9)
        unsure = calibration.unsure_at(probabilities[drawn])
        right = calibration.verdicts(logits[drawn]) == (labels[drawn] == 1)
        assert found["unsure_share"][number] == pytest.approx(unsure.mean())
        assert found["accuracy_when_sure"][number] == pytest.approx(right[~unsure].mean())


def error(probabilities, labels, weights=None):
    weights = np.ones((1, len(labels))) if weights is None else weights
    return measures.calibration_error(probabilities, labels, weights)[0]


def test_calibration_error_is_the_mean_gap_over_fifteen_equal_bins():
    rng = np.random.default_rng(0)
    probabilities = np.sort(rng.random(1500))
    labels = rng.random(1500) < probabilities**2
    parts = np.split(probabilities - labels, 15)
    expected = np.mean([abs(part.mean()) for part in parts])
    order = rng.permutation(1500)
    for rows in (slice(None), order):
        assert error(probabilities[rows], labels[rows]) == pytest.approx(expected)
    # A weight of 2 is the image twice, also for where the bins are.
    weights = rng.integers(0, 3, size=(1, 1500))
    drawn = np.repeat(np.arange(1500), weights[0])
    assert error(probabilities, labels, weights) == pytest.approx(
        error(probabilities[drawn], labels[drawn]), rel=0.05
    )


def test_a_constant_probability_equal_to_the_prior_is_calibrated():
    assert error(np.full(1000, 0.3), np.arange(1000) < 300) == pytest.approx(0, abs=1e-12)


def auroc(logits, labels):
    return lambda weights: {"auroc": measures.auroc(measures.curve(logits, labels, weights))}


def test_draws_are_seeded_and_lie_around_the_value():
    logits, labels = draw(0, count=800)
    statistics = auroc(logits, labels == 1)
    low, high = bootstrap.intervals(statistics, labels == 1)["auroc"]
    assert low < metrics.roc_auc_score(labels, logits) < high
    assert bootstrap.intervals(statistics, labels == 1)["auroc"] == (low, high)
    assert bootstrap.intervals(statistics, labels == 1, seed=1)["auroc"] != (low, high)


def test_intervals_of_accuracy_cover_the_truth_about_as_often_as_they_say():
    # Right with chance 0.8 in either class: the truth is known. 95 +- 3 % of 60 would be 54 to 60.
    covered = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        labels = np.arange(300) % 2 == 1
        called = np.where(rng.random(300) < 0.8, labels, ~labels)
        low, high = bootstrap.intervals(
            lambda weights, called=called, labels=labels: measures.of_verdicts(
                called, labels, weights, suffix=""
            ),
            labels,
            num_draws=200,
            seed=seed,
        )["accuracy"]
        covered += low <= 0.8 <= high
    assert covered >= 52


def test_many_images_are_drawn_in_pieces(monkeypatch):
    logits, labels = draw(0)
    whole = bootstrap.intervals(auroc(logits, labels == 1), labels == 1)["auroc"]
    monkeypatch.setattr(bootstrap, "_CHUNK", 1000)
    pieces = bootstrap.intervals(auroc(logits, labels == 1), labels == 1)["auroc"]
    assert pieces == pytest.approx(whole, abs=0.01)


def test_a_draw_takes_clusters_whole_and_keeps_their_numbers_by_class():
    labels = np.array([0, 0, 0, 1, 1, 1, 0, 1]).astype(bool)
    clusters = np.array([5, 5, 9, 7, 7, 8, 2, 2])  # the last two are one image under both labels
    seen = []

    def statistics(weights):
        seen.append(weights)
        return {"n": weights.sum(axis=1)}

    bootstrap.sample(statistics, labels, clusters=clusters, num_draws=50)
    weights = np.concatenate(seen)
    assert len(weights) == 50
    assert np.array_equal(weights[:, 0], weights[:, 1])
    assert np.array_equal(weights[:, 3], weights[:, 4])
    assert (weights[:, 6:] == 1).all()  # the only cluster of its kind
    assert (weights[:, 0] + weights[:, 2] == 2).all()
    assert (weights[:, 3] + weights[:, 5] == 2).all()
    assert len(np.unique(weights, axis=0)) == 9


def test_an_undefined_value_is_left_out_and_nothing_but_such_has_no_interval():
    assert bootstrap.interval(np.array([np.nan, 1.0, 1.0])) == (1.0, 1.0)
    assert np.isnan(bootstrap.interval(np.full(3, np.nan))).all()


@pytest.mark.parametrize("part, whole", [(0, 10), (3, 10), (10, 10), (1, 400)])
def test_wilsons_interval_is_where_the_score_test_says_yes(part, whole):
    """Its ends p solve (part/whole - p)^2 = 1.96^2 p (1 - p) / whole."""
    for end in bootstrap.wilson(part, whole):
        distance = (part / whole - end) ** 2 - 1.959964**2 * end * (1 - end) / whole
        assert distance == pytest.approx(0, abs=1e-9)
    assert bootstrap.wilson(0, 0) == (0.0, 1.0)


def test_a_calibration_without_a_band_is_always_sure():
    logits, labels = draw(0)
    sure = Calibration(temperature=1.0, threshold=0.5, rule="balanced")
    ones = np.ones((1, len(labels)))
    found = measures.measure(logits.astype(np.float64), labels == 1, sure, ones)
    assert found["unsure_share"][0] == 0
    assert found["accuracy_when_sure"] == found["accuracy@threshold"]
