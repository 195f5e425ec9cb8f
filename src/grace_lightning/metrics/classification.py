"""How good the node and edge probabilities are."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional import classification as tm
from torchmetrics.utilities import dim_zero_cat

from grace_lightning.graph import Label

THRESHOLD = 0.5
"""A probability above this counts as positive in accuracy, precision, recall, F1 and the confusion matrix."""

SCORES = ("accuracy", "precision", "recall", "f1", "auroc", "average_precision")

Scores = dict[str, float | None]


def known(probability: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Both without the entries labelled UNKNOWN: (M,) float32 and (M,) int64."""
    keep = label != Label.UNKNOWN
    return probability[keep], label[keep]


def classification(probability: Tensor, label: Tensor) -> Scores:
    """Scores of the positive class over all that is labelled; None where a score is undefined.

    Undefined are: precision where nothing is predicted positive, recall and average precision where nothing is
    positive, F1 where neither, AUROC where only one class occurs, all of them where nothing is labelled.

    Parameters
    ----------
    probability : (M,) float32, of the positive class
    label : (M,) int64, see :class:`grace_lightning.graph.Label`

    Returns
    -------
    values of :data:`SCORES` by name
    """
    p, y = known(probability, label)
    positives, total = int(y.sum()), len(y)
    predicted = int((p > THRESHOLD).sum())
    scores: dict[str, tuple[int, Callable[..., Tensor]]] = {
        "accuracy": (total, tm.binary_accuracy),
        "precision": (predicted, tm.binary_precision),
        "recall": (positives, tm.binary_recall),
        "f1": (positives + predicted, tm.binary_f1_score),
        "auroc": (positives * (total - positives), tm.binary_auroc),
        "average_precision": (positives, tm.binary_average_precision),
    }
    return {
        name: float(score(p, y, validate_args=False)) if defined else None for name, (defined, score) in scores.items()
    }


def confusion_matrix(probability: Tensor, label: Tensor) -> Tensor:
    """(2, 2) int64 counts; rows are the truth, columns the prediction, negative first."""
    return tm.binary_confusion_matrix(*known(probability, label), validate_args=False)


class Curve(NamedTuple):
    """Points of a curve, (P,) float32 each."""

    x: Tensor
    y: Tensor


def roc(probability: Tensor, label: Tensor) -> Curve | None:
    """False positive rate and true positive rate at every threshold; None unless both classes occur.

    Parameters
    ----------
    probability : (M,) float32, of the positive class
    label : (M,) int64
    """
    p, y = known(probability, label)
    if not 0 < int(y.sum()) < len(y):
        return None
    false, true, _ = tm.binary_roc(p, y, validate_args=False)
    return Curve(false, true)


def precision_recall(probability: Tensor, label: Tensor) -> Curve | None:
    """Recall and precision at every threshold; None where nothing is positive. Arguments as for :func:`roc`."""
    p, y = known(probability, label)
    if not int(y.sum()):
        return None
    precision, recall, _ = tm.binary_precision_recall_curve(p, y, validate_args=False)
    return Curve(recall, precision)


class Reliability(NamedTuple):
    """Probabilities and outcomes in bins of equal width.

    Attributes
    ----------
    probability : (B,) float32, mean in each bin; NaN in an empty one
    fraction : (B,) float32, of positives in each bin; NaN likewise
    size : (B,) int64, how many
    error : expected calibration error: mean of ``|probability - fraction|`` weighted by ``size``; None where all are
        empty
    """

    probability: Tensor
    fraction: Tensor
    size: Tensor
    error: float | None


def reliability(probability: Tensor, label: Tensor, bins: int = 15) -> Reliability:
    """How often what is predicted with some probability is so. Arguments as for :func:`roc`."""
    p, y = known(probability, label)
    number = (p * bins).long().clamp(max=bins - 1)
    size = torch.bincount(number, minlength=bins)
    mean, fraction = (torch.bincount(number, v.double(), minlength=bins) / size for v in (p, y))
    error = float(tm.binary_calibration_error(p, y, n_bins=bins, validate_args=False)) if len(y) else None
    return Reliability(mean.float(), fraction.float(), size, error)


class EpochScores(Metric):
    """Collects probabilities and labels over an epoch, across processes; computes :func:`classification` of all."""

    full_state_update = False
    probability: list[Tensor]
    label: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("probability", default=[], dist_reduce_fx="cat")
        self.add_state("label", default=[], dist_reduce_fx="cat")

    def update(self, probability: Tensor, label: Tensor) -> None:
        """Add probabilities (M,) and labels (M,)."""
        self.probability.append(probability)
        self.label.append(label)

    def compute(self) -> tuple[Scores, Tensor]:
        """Scores and (2, 2) confusion matrix of everything since the last reset."""
        if isinstance(self.label, list) and not self.label:
            return dict.fromkeys(SCORES), torch.zeros(2, 2, dtype=torch.int64)
        probability, label = dim_zero_cat(self.probability), dim_zero_cat(self.label)
        return classification(probability, label), confusion_matrix(probability, label)
