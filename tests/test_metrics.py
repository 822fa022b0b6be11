"""Metrics: equal to scikit-learn's, over the whole split and never over batches."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, roc_auc_score
from sklearn.metrics import log_loss as sklearn_log_loss

from aiornot.training import metrics


def case(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Make float32 logits of one size, scale and coarseness; many are ties, some extreme."""
    rng = np.random.default_rng(number)
    count, scale = int(rng.integers(2, 400)), float(rng.choice([0.1, 3, 30, 300]))
    labels = rng.permutation(np.arange(count) % int(rng.integers(2, 6)) == 0)
    logits = rng.normal(labels * scale / 2, scale)
    if number % 2:
        logits = np.round(logits / scale * 4) / 4 * scale
    return torch.tensor(logits, dtype=torch.float32), torch.tensor(labels).float()


@pytest.mark.parametrize("number", range(20))
def test_metrics_equal_those_of_scikit_learn(number):
    logits, labels = case(number)
    found = metrics.summary(logits, labels, split="val")
    scores, truth = logits.double().numpy(), labels.numpy()
    assert found["val/auroc"] == pytest.approx(roc_auc_score(truth, scores), abs=1e-6)
    assert found["val/accuracy"] == pytest.approx(accuracy_score(truth, scores >= 0), abs=1e-12)
    # scikit-learn's own loss takes probabilities, which saturate.
    exact = np.logaddexp(0, np.where(truth == 1, -scores, scores)).mean()
    assert found["val/log_loss"] == pytest.approx(exact, rel=1e-9)
    if np.abs(scores).max() < 20:
        probabilities = 1 / (1 + np.exp(-scores))
        assert exact == pytest.approx(sklearn_log_loss(truth, probabilities), rel=1e-6)


@pytest.mark.parametrize("shift", [-1000, -90, -40, 0, 17, 40, 90, 1000])
def test_a_confident_model_keeps_its_order(shift):
    logits = torch.tensor([0.0, 1.0, 2.0, 3.0]) + shift
    assert metrics.auroc(logits, torch.tensor([0.0, 0, 1, 1])) == pytest.approx(1)
    assert metrics.auroc(logits, torch.tensor([1.0, 1, 0, 0])) == pytest.approx(0)
    assert metrics.auroc(logits, torch.tensor([1.0, 0, 1, 0])) == pytest.approx(0.25)


def test_ties_count_half():
    assert metrics.auroc(torch.full((4,), 60.0), torch.tensor([0.0, 1, 0, 1])) == 0.5


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_one_class_alone_has_no_auroc(label):
    found = metrics.summary(torch.randn(5), torch.full((5,), label), split="val")
    assert math.isnan(found["val/auroc"])
    assert math.isfinite(found["val/log_loss"])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_logit_that_is_not_finite_leaves_no_auroc(bad):
    assert math.isnan(metrics.auroc(torch.tensor([0.0, 1.0, bad]), torch.tensor([0.0, 1.0, 1.0])))


def test_mistake_5_the_mean_over_batches_is_not_the_auroc():
    first, second = torch.tensor([-3.0, -2.0]), torch.tensor([2.0, 3.0])
    labels = torch.tensor([0.0, 1.0])
    batches = [metrics.auroc(first, labels), metrics.auroc(second, labels)]
    assert batches == pytest.approx([1, 1])
    whole = metrics.auroc(torch.cat((first, second)), labels.repeat(2))
    assert whole == pytest.approx(0.75)


def test_accuracy_counts_a_probability_at_the_threshold_as_generated():
    logits, labels = torch.tensor([0.0, -1.0, 2.0]), torch.tensor([1.0, 0.0, 0.0])
    assert metrics.accuracy(logits, labels) == pytest.approx(2 / 3)
    assert metrics.accuracy(logits, labels, threshold=0.9) == pytest.approx(2 / 3)
    assert metrics.accuracy(logits, labels, threshold=0.2) == pytest.approx(1 / 3)
