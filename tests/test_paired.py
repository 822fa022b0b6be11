"""Two models on the same images: differences by hand, and intervals that cover."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from aiornot.config import InputError
from aiornot.delivery import bootstrap
from aiornot.delivery.calibrate import Calibration, calibrate
from aiornot.delivery.paired import Answers, paired, verdict

NAMES = ["auroc", "accuracy@threshold", "log_loss_after_temperature"]


def draw(seed, *, gain=0.0, count=300):
    """Draw labels, and two models that see the same image in the same way but for a noise."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    shared = 1.5 * labels + rng.normal(0, 1, count)
    both = [shared + g * labels + rng.normal(0, 0.3, count) - 0.75 for g in (gain, 0.0)]
    return labels, *(Answers(logits, calibrate(logits, labels)) for logits in both)


def values(found, key):
    return [found[name][key] for name in NAMES]


def test_differences_are_those_of_scikit_learn():
    labels, final, baseline = draw(0, gain=0.3)
    found = paired(final, baseline, labels, num_draws=50)
    assert list(found) == NAMES

    def of(answers):
        probabilities = answers.calibration.probabilities(answers.logits)
        right = answers.calibration.verdicts(answers.logits) == labels
        return np.array(
            [
                metrics.roc_auc_score(labels, answers.logits),
                np.mean(right),
                metrics.log_loss(labels, probabilities),
            ]
        )

    assert values(found, "difference") == pytest.approx(of(final) - of(baseline))


def test_a_model_is_no_better_than_itself():
    labels, final, _ = draw(0)
    found = paired(final, final, labels, num_draws=50)
    assert values(found, "interval") == [[0, 0]] * 3 and values(found, "better") == [None] * 3
    assert verdict(found).startswith("no better than the baseline by AUROC +0.0000 [+0.0000, ")


@given(st.integers(0, 1000), st.floats(-1, 1), st.booleans())
@settings(max_examples=20, deadline=None)
def test_turned_round_the_signs_turn(seed, gain, grouped):
    labels, final, baseline = draw(seed, gain=gain, count=60)
    clusters = np.arange(60) // 3 if grouped else None
    there = paired(final, baseline, labels, clusters=clusters, num_draws=100)
    back = paired(baseline, final, labels, clusters=clusters, num_draws=100)
    for name in NAMES:
        one, other = there[name], back[name]
        assert other["difference"] == pytest.approx(-one["difference"], abs=1e-12)
        assert other["interval"] == pytest.approx([-end for end in one["interval"][::-1]], abs=1e-9)
        assert one["better"] is (None if other["better"] is None else not other["better"])


def test_a_plainly_better_model_is_called_so_and_a_worse_one_too():
    labels, final, baseline = draw(1, gain=2.0)
    found = paired(final, baseline, labels)
    assert values(found, "better") == [True] * 3
    assert found["log_loss_after_temperature"]["difference"] < 0  # less of it is better
    assert verdict(found).startswith("better than the baseline by AUROC +0.")
    told = verdict(paired(baseline, final, labels))
    assert told.startswith("worse than the baseline by AUROC -0.") and ";" not in told


def test_a_verdict_tells_what_one_metric_says_and_another_does_not():
    rows = {"auroc": (0.01, [-0.01, 0.02], None), "accuracy@threshold": (0.02, [0.01, 0.03], True)}
    keys = ("difference", "interval", "better")
    found = {name: dict(zip(keys, row, strict=True)) for name, row in rows.items()}
    assert verdict(found) == (
        "no better than the baseline by AUROC +0.0100 [-0.0100, +0.0200]; "
        "better than the baseline by accuracy +0.0200 [+0.0100, +0.0300]"
    )


def test_equal_models_are_told_apart_about_as_often_as_five_in_a_hundred():
    """And by pairs: the spread of one AUROC is several times that of the difference."""
    labelled = [draw(seed) for seed in range(60)]
    found = [paired(f, b, labels, num_draws=200)["auroc"] for labels, f, b in labelled]
    assert sum(one["better"] is not None for one in found) <= 9
    widths = [one["interval"][1] - one["interval"][0] for one in found]
    aurocs = [metrics.roc_auc_score(labels, f.logits) for labels, f, _ in labelled]
    assert np.mean(widths) < 0.5 * 2 * 1.96 * np.std(aurocs) * np.sqrt(2)


def test_copies_of_an_image_count_as_one():
    labels, final, baseline = draw(2, gain=0.3)
    alone = paired(final, baseline, labels)

    def four(values):
        return np.repeat(values, 4)

    many = [Answers(four(each.logits), each.calibration) for each in (final, baseline)]
    clusters = four(np.arange(len(labels)))
    whole = paired(*many, four(labels), clusters=clusters)
    naive = paired(*many, four(labels))
    for name in NAMES:
        assert whole[name]["interval"] == pytest.approx(alone[name]["interval"], abs=0.004)
        width, other = (np.diff(found[name]["interval"])[0] for found in (whole, naive))
        assert other < 0.7 * width


def test_a_cluster_of_both_labels_is_drawn_whole():
    labels, final, baseline = draw(3, count=20)
    found = paired(final, baseline, labels, clusters=np.arange(20) // 2 % 9, num_draws=50)
    assert np.isfinite(values(found, "interval")).all()


def test_many_images_are_drawn_in_pieces(monkeypatch):
    labels, final, baseline = draw(4)
    whole = paired(final, baseline, labels)["auroc"]["interval"]
    monkeypatch.setattr(bootstrap, "_CHUNK", 10_000)
    assert paired(final, baseline, labels)["auroc"]["interval"] == pytest.approx(whole, abs=0.005)


def test_one_class_cannot_be_compared():
    one = Answers(np.zeros(4), Calibration(temperature=1.0, threshold=0.5, rule="balanced"))
    with pytest.raises(InputError, match="images of one class"):
        paired(one, one, np.ones(4))
