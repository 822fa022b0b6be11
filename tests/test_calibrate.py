"""Calibration: the temperature against a grid, each rule against all thresholds by hand."""

import json

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, log_loss

from aiornot.config import InputError
from aiornot.delivery.calibrate import TEMPERATURES, Calibration, calibrate, choose_threshold


def draw(seed, count=300, *, ties=False):
    """Logits of an over-confident model and their labels."""
    rng = np.random.default_rng(seed)
    labels = rng.random(count) < 0.4
    logits = 3.0 * rng.normal(labels * 1.5 - 0.5, 1.0)
    return (np.round(logits) if ties else logits).astype(np.float32), labels.astype(np.int64)


def rates(probabilities, labels, threshold):
    verdicts = probabilities >= threshold
    return np.mean(verdicts[labels == 1]), np.mean(verdicts[labels == 0])


def all_thresholds(probabilities):
    return [*np.unique(probabilities), 1.0]


@pytest.mark.parametrize("seed", range(3))
def test_the_temperature_has_the_least_log_loss(seed):
    logits, labels = draw(seed)
    found = calibrate(logits, labels).temperature
    grid = np.geomspace(*TEMPERATURES, 401)
    losses = [log_loss(labels, 1 / (1 + np.exp(-logits.astype(float) / t))) for t in grid]
    assert found == pytest.approx(grid[np.argmin(losses)], rel=0.012)  # the grid's step
    assert found > 1.5


def test_a_hopeless_model_is_held_at_the_bound():
    logits, labels = draw(0)
    assert calibrate(-logits, labels).temperature == pytest.approx(TEMPERATURES[1])


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_separable_data_keep_the_temperature_at_one(scale):
    logits = scale * np.array([-3.0, -1.0, 2.0, 5.0])
    found = calibrate(logits, np.array([0, 0, 1, 1]))
    assert found.temperature == 1.0
    assert found.verdicts(logits).tolist() == [False, False, True, True]
    assert 0 < found.threshold < 1


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_the_balanced_rule_finds_the_best_balanced_accuracy(seed, ties):
    logits, labels = draw(seed, ties=ties)
    found = calibrate(logits, labels)
    probabilities = found.probabilities(logits)
    best = max(
        balanced_accuracy_score(labels, probabilities >= t) for t in all_thresholds(probabilities)
    )
    assert balanced_accuracy_score(labels, found.verdicts(logits)) == pytest.approx(best)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("bound", [0.0, 0.01, 0.05, 0.3])
def test_an_fpr_rule_keeps_its_promise_with_the_most_recall(bound, ties):
    logits, labels = draw(1, ties=ties)
    found = calibrate(logits, labels, rule=f"fpr<={bound}")
    probabilities = found.probabilities(logits)
    allowed = [rates(probabilities, labels, t) for t in all_thresholds(probabilities)]
    best = max(recall for recall, fpr in allowed if fpr <= bound)
    recall, fpr = rates(probabilities, labels, found.threshold)
    assert fpr <= bound
    assert recall == best


@pytest.mark.parametrize("bound", [0.0, 0.01, 0.3])
def test_an_fnr_rule_keeps_its_promise_with_the_fewest_false_alarms(bound):
    logits, labels = draw(1)
    found = calibrate(logits, labels, rule=f"fnr<={bound}")
    probabilities = found.probabilities(logits)
    allowed = [rates(probabilities, labels, t) for t in all_thresholds(probabilities)]
    least = min(fpr for recall, fpr in allowed if 1 - recall <= bound)
    recall, fpr = rates(probabilities, labels, found.threshold)
    assert 1 - recall <= bound
    assert fpr == least


@pytest.mark.parametrize("rule", ["balanced", "fpr<=0.01", "fpr<=0", "fnr<=0", "cost:FP=5"])
def test_a_verdict_outside_the_unsure_band_is_rarely_given_to_the_other_class(rule):
    logits, labels = draw(4, count=1000)
    found = calibrate(logits, labels, rule=rule)
    low, high = found.unsure
    assert low <= found.threshold <= high
    probabilities = found.probabilities(logits)
    unsure = found.unsure_at(probabilities)
    assert np.array_equal(unsure, (low <= probabilities) & (probabilities < high))
    called = found.verdicts(logits)
    wrong = ~unsure & (called != (labels == 1))
    assert np.sum(wrong & (labels == 0)) <= 0.01 * np.sum(labels == 0)
    assert np.sum(wrong & (labels == 1)) <= 0.01 * np.sum(labels == 1)
    # And no narrower band would do.
    real, generated = probabilities[labels == 0], probabilities[labels == 1]
    if high > found.threshold:
        assert np.mean(real >= probabilities[unsure].max()) > 0.01
    if low < found.threshold:
        assert np.mean(generated <= probabilities[unsure].min()) > 0.01


def test_where_the_classes_are_apart_no_verdict_is_unsure():
    logits = np.array([-3.0, -1.0, 2.0, 5.0])
    found = calibrate(logits, np.array([0, 0, 1, 1]))
    assert found.unsure is None
    assert not found.unsure_at(np.linspace(0, 1, 11)).any()


def test_a_rule_that_gives_up_recall_leaves_what_it_gives_up_unsure():
    """One of 200 real images lies high: a strict rule then calls generated ones real."""
    logits = np.concatenate([np.full(199, -5.0), [2.5], np.linspace(1, 4, 200)])
    labels = np.repeat([0, 1], 200)
    assert calibrate(logits, labels).unsure is None
    strict = calibrate(logits, labels, rule="fpr<=0")
    called_real = (labels == 1) & ~strict.verdicts(logits)
    assert called_real.sum() == 100
    assert strict.unsure_at(strict.probabilities(logits[called_real])).mean() > 0.9


@pytest.mark.parametrize("cost", [0.2, 1, 5, 1e6])
def test_a_cost_rule_finds_the_least_cost(cost):
    logits, labels = draw(2)
    found = calibrate(logits, labels, rule=f"cost:FP={cost:g}")

    def price(verdicts):
        return cost * np.sum(verdicts & (labels == 0)) + np.sum(~verdicts & (labels == 1))

    probabilities = found.probabilities(logits)
    least = min(price(probabilities >= t) for t in all_thresholds(probabilities))
    assert price(found.verdicts(logits)) == pytest.approx(least)


def test_a_threshold_lies_midway_between_its_neighbours():
    logits, labels = np.array([-1.0, 1.0, 0.5, -2.0]), np.array([0, 1, 1, 0])
    found = calibrate(logits, labels)
    low, high = found.probabilities(np.array([-1.0, 0.5]))
    assert found.threshold == pytest.approx((low + high) / 2)


def test_among_equally_good_cuts_the_widest_gap_is_taken():
    # Cutting above the first real or below the last generated image is equally good.
    labels = np.array([False, True, False, True])
    for scores, expected in (([0.1, 0.5, 0.6, 0.9], 0.3), ([0.3, 0.4, 0.5, 0.9], 0.7)):
        for order in (slice(None), slice(None, None, -1)):
            shuffled = np.array(scores)[order], labels[order]
            assert choose_threshold(*shuffled, rule="balanced") == pytest.approx(expected)


def test_thresholds_at_the_ends_of_saturated_scores_stay_probabilities():
    logits, labels = np.array([500.0, 900.0, -800.0]), np.array([0, 1, 1])
    strict = calibrate(logits, labels, rule="fpr<=0")
    assert strict.threshold < 1 and not strict.verdicts(logits).any()
    lenient = calibrate(logits, labels, rule="cost:FP=1e-3")
    assert lenient.threshold > 0 and lenient.verdicts(logits).all()


def test_neighbouring_floats_are_still_parted():
    low, high = 0.25, np.nextafter(0.25, 1)
    labels = np.array([False, True])
    assert choose_threshold(np.array([low, high]), labels, rule="balanced") == high


def test_the_order_of_the_images_does_not_matter():
    logits, labels = draw(3, ties=True)
    order = np.random.default_rng(0).permutation(len(labels))
    one, other = calibrate(logits, labels), calibrate(logits[order], labels[order])
    assert one.threshold == pytest.approx(other.threshold, abs=1e-12)


@pytest.mark.parametrize(
    "rule",
    ["", "best", "fpr", "fpr<=", "fpr<=1", "fpr<=-0.1", "fpr<=1%", "fpr<0.1", "cost:FP=0"]
    + ["cost:FP=-1", "cost:FN=2", "cost:FP=1e999", "fpr<=nan", "fpr<=0.1 ", "cost=5"],
)
def test_a_bad_rule_is_refused_with_the_known_forms(rule):
    with pytest.raises(InputError, match=r"balanced .*fpr<=0\.01.*cost:FP=5"):
        calibrate(*draw(0), rule=rule)


def test_one_class_or_a_nan_is_refused():
    logits, labels = draw(0)
    with pytest.raises(InputError, match="one class"):
        calibrate(logits, np.ones_like(labels))
    with pytest.raises(InputError, match="1 of 300 logits"):
        calibrate(np.where(np.arange(300) == 7, np.nan, logits), labels)


def test_a_calibration_survives_json():
    found = calibrate(*draw(0), rule="fpr<=0.05")
    assert Calibration.from_dict(json.loads(json.dumps(found.to_dict()))) == found
