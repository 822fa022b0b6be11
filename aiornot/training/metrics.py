"""Logits and labels of a whole split -> metrics, equal to scikit-learn's.

Never averaged over batches: the mean of the AUROCs of batches is not the AUROC.
"""

import math

import torch
import torch.nn.functional as F
from torchmetrics.functional.classification import binary_auroc


def auroc(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Area under the ROC curve; NaN where a class or a finite logit is missing.

    Args:
        logits: (N,) scores, higher = generated.
        labels: (N,) 0 or 1.
    """
    if not bool(torch.isfinite(logits).all()) or labels.min() == labels.max():
        return math.nan
    # Ranks, not probabilities: those saturate beyond a logit of 37, and would make ties.
    values, ranks = logits.unique(return_inverse=True)
    return float(binary_auroc(ranks.double() / len(values), labels.long(), validate_args=False))


def log_loss(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Mean binary cross-entropy in nats, without label smoothing."""
    return float(F.binary_cross_entropy_with_logits(logits.double(), labels.double()))


def accuracy(logits: torch.Tensor, labels: torch.Tensor, *, threshold: float = 0.5) -> float:
    """Share of right verdicts; ``threshold`` is a probability."""
    verdicts = logits.double().sigmoid() >= threshold
    return float((verdicts == labels.bool()).double().mean())


def summary(logits: torch.Tensor, labels: torch.Tensor, *, split: str) -> dict[str, float]:
    """Return ``{"val/auroc": ..., "val/log_loss": ..., "val/accuracy": ...}``."""
    return {
        f"{split}/auroc": auroc(logits, labels),
        f"{split}/log_loss": log_loss(logits, labels),
        f"{split}/accuracy": accuracy(logits, labels),
    }
