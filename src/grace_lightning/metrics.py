"""Scores of probabilities, for M nodes or edges, and of P predicted filaments, for T true ones."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from scipy.optimize import linear_sum_assignment, minimize_scalar
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional import classification as tm
from torchmetrics.utilities import dim_zero_cat

from grace_lightning.graph import Filament, Floats, Graph, Ints, Label, Truth
from grace_lightning.raster import draw_path
from grace_lightning.truth import MIN_NODES, annotated_objects, mostly_known

Scores = dict[str, float | None]  # by name; None if a score is undefined
Outcomes = Mapping[str, tuple[Tensor, Tensor]]  # probabilities (M,) float32 and labels (M,) int64 of nodes and of edges

THRESHOLD = 0.5  # above this counts as positive in accuracy, precision, recall, F1 and the confusion matrix
SCORES = ("accuracy", "precision", "recall", "f1", "auroc", "average_precision")

COLDEST, HOTTEST = 0.05, 20.0  # bounds of a temperature: without any error, probabilities still stay below one

MATCH_IOU = 0.5  # a true and a predicted object match if their intersection over union is above this
OBJECT_SCORES = (
    *("semantic_iou", "instance_iou_mean", "instance_iou_std"),
    *("f1_50", "precision_50", "recall_50", "mean_best_iou"),
)


def outcomes_of(graph: Graph, said: Mapping[str, Tensor]) -> Outcomes:
    """Return probabilities and labels of all ``nodes`` and of all ``edges``."""
    return {f"{head}s": (said[head], graph.label(head)) for head in ("node", "edge")}


def together(parts: Sequence[Outcomes]) -> Outcomes:
    """Return the outcomes of several images in one."""
    return {
        name: (torch.cat([part[name][0] for part in parts]), torch.cat([part[name][1] for part in parts]))
        for name in ("nodes", "edges")
    }


def known(probability: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Return both without the entries labelled UNKNOWN: (M,) float32 and (M,) int64."""
    keep = label != Label.UNKNOWN
    return probability[keep], label[keep]


def classification(probability: Tensor, label: Tensor) -> Scores:
    """Return the :data:`SCORES` by name of probabilities of the positive class (M,), over all known labels (M,).

    Undefined are: precision if nothing is predicted positive, recall and average precision if nothing is positive, F1
    if neither, AUROC if only one class occurs, all of them if no label is known.
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
    return {name: float(f(p, y, validate_args=False)) if defined else None for name, (defined, f) in scores.items()}


def confusion_matrix(probability: Tensor, label: Tensor) -> Tensor:
    """Return (2, 2) int64 counts; rows are the truth, columns the prediction, negative first."""
    return tm.binary_confusion_matrix(*known(probability, label), validate_args=False)


def roc(probability: Tensor, label: Tensor) -> Tensor:
    """Return false and true positive rate at every threshold, (2, any); (2, 0) unless both classes occur."""
    p, y = known(probability, label)
    if not 0 < int(y.sum()) < len(y):
        return torch.zeros(2, 0)
    false, true, _ = tm.binary_roc(p, y, validate_args=False)
    return torch.stack([false, true])


def precision_recall(probability: Tensor, label: Tensor) -> Tensor:
    """Return recall and precision at every threshold, (2, any); (2, 0) if nothing is positive."""
    p, y = known(probability, label)
    if not y.any():
        return torch.zeros(2, 0)
    precision, recall, _ = tm.binary_precision_recall_curve(p, y, validate_args=False)
    return torch.stack([recall, precision])


class Reliability(NamedTuple):
    """Probabilities and outcomes in B bins of equal width."""

    probability: Tensor  # (B,) float32, mean in each bin; NaN in an empty one
    fraction: Tensor  # (B,) float32, of positives in each bin; NaN in an empty one
    size: Tensor  # (B,) int64, number of entries
    error: float | None  # expected calibration error: mean of |probability - fraction| weighted by size; None if empty


def reliability(probability: Tensor, label: Tensor, bins: int = 15) -> Reliability:
    """Compare probabilities (M,) with how often they come true."""
    p, y = known(probability, label)
    number = (p * bins).long().clamp(max=bins - 1)
    size = torch.bincount(number, minlength=bins)
    mean, fraction = (torch.bincount(number, v.double(), minlength=bins) / size for v in (p, y))
    error = float(tm.binary_calibration_error(p, y, n_bins=bins, validate_args=False)) if len(y) else None
    return Reliability(mean.float(), fraction.float(), size, error)


def fit_temperature(margin: Tensor, label: Tensor, otherwise: float = 1.0) -> float:
    """Return the temperature T that makes ``sigmoid(margin / T)`` the likeliest (Guo et al., ICML 2017).

    ``margin`` (M,) are the log-odds of the positive class. Unless both classes occur, T is ``otherwise``.
    """
    margins, labels = (values.double().cpu().numpy() for values in known(margin, label))
    if len(np.unique(labels)) < 2:
        return otherwise
    against = np.where(labels == 1, -margins, margins)
    found = minimize_scalar(
        lambda log_temperature: np.logaddexp(0, against / math.exp(log_temperature)).mean(),
        bounds=(math.log(COLDEST), math.log(HOTTEST)),
        method="bounded",
    )
    return math.exp(float(found.x))


def calibration(probability: Tensor, label: Tensor, temperature: float) -> Scores:
    """Return ``temperature``, and the expected calibration error without it, ``error_before``, and ``error_after``.

    ``probability`` is of log-odds that were divided by the temperature.
    """
    before = torch.sigmoid(temperature * torch.logit(probability.double())).float()
    error_before, error_after = (reliability(p, label).error for p in (before, probability))
    return {"temperature": temperature, "error_before": error_before, "error_after": error_after}


class EpochOutcomes(Metric):
    """Collects log-odds and labels over an epoch, from all processes."""

    margin: list[Tensor]
    label: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("margin", default=[], dist_reduce_fx="cat")
        self.add_state("label", default=[], dist_reduce_fx="cat")

    def update(self, margin: Tensor, label: Tensor) -> None:
        self.margin.append(margin)
        self.label.append(label)

    def compute(self) -> tuple[Tensor, Tensor]:
        """Return all log-odds of the positive class (M,) and labels (M,) since the last reset."""
        if not len(self.label):
            return torch.zeros(0), torch.zeros(0, dtype=torch.int64)
        return dim_zero_cat(self.margin), dim_zero_cat(self.label)


@dataclass(frozen=True)
class Overlap:
    """How the predicted objects of one image lie on the true ones.

    ``pairs`` is the one-to-one assignment with the greatest sum of IoU, without pairs that do not overlap.
    """

    iou: Floats  # (T, P) float64, intersection over union of each true with each predicted object
    pairs: Ints  # (2, any) int64, true and predicted object of each pair
    common: int  # number of items that are in a true and in a predicted object
    joined: int  # number of items that are in a true or in a predicted object
    size: int | None = None  # number of items of the image if the background is scored too

    @property
    def matched(self) -> Ints:
        """(2, any) int64: the pairs with an IoU above :data:`MATCH_IOU`."""
        return self.pairs[:, self.iou[*self.pairs] > MATCH_IOU]

    @property
    def paired(self) -> Floats:
        """(T,) IoU of each true object with its partner, 0 if it has none."""
        paired = np.zeros(len(self.iou))
        paired[self.pairs[0]] = self.iou[*self.pairs]
        return paired


def overlap(true: Sequence[Ints], predicted: Sequence[Ints], size: int | None = None) -> Overlap:
    """Compare true and predicted objects of one image, each given by its items (numbers of nodes or pixels)."""
    sets = [*true, *predicted]
    owner = np.repeat(np.arange(len(sets)), [len(s) for s in sets])
    items, column = np.unique(np.concatenate([*sets, np.zeros(0, dtype=np.int64)]), return_inverse=True)
    member = sp.csr_array((np.ones(len(owner), dtype=np.int64), (owner, column)), shape=(len(sets), len(items)))
    member.data[:] = 1  # an item named twice counts once
    a, b = member[: len(true)], member[len(true) :]
    common = (a @ b.T).toarray()
    joined = a.sum(axis=1)[:, None] + b.sum(axis=1) - common
    iou = common / np.maximum(joined, 1)
    pairs = np.stack(linear_sum_assignment(iou, maximize=True)).astype(np.int64)
    in_true, in_predicted = (part.sum(axis=0) > 0 for part in (a, b))
    both, either = int((in_true & in_predicted).sum()), int((in_true | in_predicted).sum())
    return Overlap(iou, pairs[:, iou[*pairs] > 0], both, either, size)


def eligible(filaments: Sequence[Filament], graph: Graph) -> list[Filament]:
    """Return the filaments that count in scores: of :data:`MIN_NODES` detections or more, at most half of them UNKNOWN.

    What lies mostly where nothing is annotated is neither right nor wrong.
    """
    sets = [np.unique(filament.members) for filament in filaments]
    return [
        filament
        for filament, nodes in zip(filaments, sets, strict=True)
        if len(nodes) >= MIN_NODES and mostly_known(nodes, graph)
    ]


def compare(truth: Truth, filaments: Sequence[Filament], graph: Graph) -> Overlap:
    """Compare true and found filaments of one image as sets of detections, without those labelled UNKNOWN."""
    known = (graph.label("node") != Label.UNKNOWN).numpy()
    return overlap(truth.filaments, [filament.members[known[filament.members]] for filament in filaments])


def compare_pixels(annotation: Tensor, filaments: Sequence[Filament], brush: float) -> Overlap:
    """Compare annotated objects ((H, W) integers, 0 background) with found filaments, drawn ``brush`` pixels wide."""
    height, width = annotation.shape
    drawn = [draw_path(f.path, brush, (height, width), closed=f.closed) for f in filaments]
    return overlap(annotated_objects(annotation), drawn, size=height * width)


def object_scores(overlaps: Sequence[Overlap]) -> Scores:
    """Score all objects of all images together: the :data:`OBJECT_SCORES` by name, and ``pixel_accuracy``.

    A hit is a pair of the one-to-one assignment with an IoU above one half. A score that divides by zero is undefined.

    - ``semantic_iou`` takes all predicted objects as one, and all true ones.
    - ``instance_iou_mean`` and ``_std`` (over n, not n - 1) are of the IoU of each true object with its partner in the
      assignment, 0 without one; ``mean_best_iou`` is of the greatest IoU with any predicted one.
    - ``f1_50`` is the harmonic mean of ``precision_50``, hits by predicted, and ``recall_50``, hits by true objects.
    - ``pixel_accuracy`` is the fraction of items on which both agree, background included; only if all sizes are given.
    """
    hits = sum(o.matched.shape[1] for o in overlaps)
    true, predicted = (sum(o.iou.shape[axis] for o in overlaps) for axis in (0, 1))
    common, joined = sum(o.common for o in overlaps), sum(o.joined for o in overlaps)
    paired = np.concatenate([[], *(o.paired for o in overlaps)])
    best = np.concatenate([[], *(o.iou.max(axis=1, initial=0.0) for o in overlaps)])
    scores: Scores = {
        "semantic_iou": common / joined if joined else None,
        "instance_iou_mean": float(paired.mean()) if true else None,
        "instance_iou_std": float(paired.std()) if true else None,
        "f1_50": 2 * hits / (predicted + true) if predicted + true else None,
        "precision_50": hits / predicted if predicted else None,
        "recall_50": hits / true if true else None,
        "mean_best_iou": float(best.mean()) if true else None,
    }
    sizes = [o.size for o in overlaps if o.size is not None]
    if sizes and len(sizes) == len(overlaps):
        scores["pixel_accuracy"] = (sum(sizes) - (joined - common)) / sum(sizes)
    return scores
