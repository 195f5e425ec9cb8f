"""Cross-entropies over what is labelled, and weights of classes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from grace_lightning.graph import Label


def summed_cross_entropy(logits: Tensor, label: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Sum of the cross-entropy over what is labelled, and the number (or sum of weights) of that.

    Parameters
    ----------
    logits : (M, 2)
    label : (M,) int64
    weight : (2,) per class or None
    """
    total = functional.cross_entropy(logits, label, weight, ignore_index=Label.UNKNOWN, reduction="sum")
    known = (label != Label.UNKNOWN).to(total.dtype)
    if weight is not None:
        known = known * weight[label.clamp(max=1)]
    return total, known.sum()


def margin(logits: Tensor) -> Tensor:
    """Log-odds of the positive class: (M, 2) to (M,)."""
    return logits[:, 1] - logits[:, 0]


def class_counts(label: Tensor) -> Tensor:
    """Number of negatives and of positives among labels (M,): (2,) int64."""
    return torch.bincount(label, minlength=3)[:2]


def balanced_weights(counts: Tensor) -> Tensor:
    """Class weights inversely proportional to the classes' counts (2,), 1 on the mean over all examples: (2,) float32.

    A class that never occurs weighs like the other.
    """
    weights = counts.sum() / (2 * counts.clamp(min=1))
    return torch.where((counts > 0).all(), weights, torch.ones(2)).float()
