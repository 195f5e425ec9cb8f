"""How good found objects are, each a set of nodes or of pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from grace_lightning.metrics.classification import Scores

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

MATCH_IOU = 0.5
"""A true and a predicted object match where their intersection over union is above this."""

OBJECT_SCORES = (
    *("semantic_iou", "instance_iou_mean", "instance_iou_std"),
    *("f1_50", "precision_50", "recall_50", "mean_best_iou"),
)


@dataclass(frozen=True)
class Overlap:
    """How the predicted objects of one image lie on the true ones.

    Parameters
    ----------
    iou : (T, P) float64, intersection over union of each true with each predicted object
    pairs : (2, any) int64, true and predicted object of each pair: the one-to-one assignment with the greatest sum
        of IoU, without pairs that do not overlap
    common : items that are in a true and in a predicted object
    joined : items that are in a true or in a predicted object
    size : items of the image, counted where the background is scored too; else None
    """

    iou: Floats
    pairs: Ints
    common: int
    joined: int
    size: int | None = None

    @property
    def matched(self) -> Ints:
        """(2, any) int64: the pairs with an IoU above :data:`MATCH_IOU`."""
        return self.pairs[:, self.iou[*self.pairs] > MATCH_IOU]

    @property
    def best(self) -> Floats:
        """(T,) the greatest IoU of each true object, 0 where nothing overlaps it."""
        best: Floats = self.iou.max(axis=1, initial=0.0)
        return best

    @property
    def paired(self) -> Floats:
        """(T,) IoU of each true object with its partner, 0 where it has none."""
        paired = np.zeros(len(self.iou))
        paired[self.pairs[0]] = self.iou[*self.pairs]
        return paired


def overlap(true: Sequence[Ints], predicted: Sequence[Ints], size: int | None = None) -> Overlap:
    """Compare true and predicted objects of one image.

    Parameters
    ----------
    true, predicted : the items (nodes or pixels, by number) of each object; one named twice counts once
    size : see :class:`Overlap`
    """
    sets = [*true, *predicted]
    owner = np.repeat(np.arange(len(sets)), [len(s) for s in sets])
    items, column = np.unique(np.concatenate([*sets, np.zeros(0, dtype=np.int64)]), return_inverse=True)
    member = sp.csr_array((np.ones(len(owner), dtype=np.int64), (owner, column)), shape=(len(sets), len(items)))
    member.data[:] = 1
    a, b = member[: len(true)], member[len(true) :]
    common = (a @ b.T).toarray()
    joined = a.sum(axis=1)[:, None] + b.sum(axis=1) - common
    iou = common / np.maximum(joined, 1)
    pairs = np.stack(linear_sum_assignment(iou, maximize=True)).astype(np.int64)
    in_true, in_predicted = (part.sum(axis=0) > 0 for part in (a, b))
    return Overlap(
        iou=iou,
        pairs=pairs[:, iou[*pairs] > 0],
        common=int((in_true & in_predicted).sum()),
        joined=int((in_true | in_predicted).sum()),
        size=size,
    )


def object_scores(overlaps: Sequence[Overlap]) -> Scores:
    """Scores of all objects of all images together; None where a score is undefined.

    ==================  ============================================================================================
    semantic_iou        of the union of all predicted with the union of all true objects; undefined where neither
                        has anything
    instance_iou_mean   over the true objects, of the IoU with the partner in the one-to-one assignment, 0 for an
                        object without one; undefined where nothing is true
    instance_iou_std    standard deviation of the same, over their number (not one less)
    f1_50               harmonic mean of the next two, ``2 hits / (predicted + true)``; undefined where there is
                        neither
    precision_50        hits by predicted objects; undefined where nothing is predicted. A hit is a pair of the
                        assignment with an IoU above one half.
    recall_50           hits by true objects; undefined where nothing is true
    mean_best_iou       over the true objects, of the greatest IoU with any predicted one; undefined where nothing
                        is true
    pixel_accuracy      items on which both agree, background included; only where the images' sizes are known
    ==================  ============================================================================================

    Parameters
    ----------
    overlaps : of each image

    Returns
    -------
    values of :data:`OBJECT_SCORES` by name, and ``pixel_accuracy``
    """
    hits = sum(o.matched.shape[1] for o in overlaps)
    true, predicted = (sum(o.iou.shape[axis] for o in overlaps) for axis in (0, 1))
    paired, best = (np.concatenate([getattr(o, name) for o in overlaps] or [[]]) for name in ("paired", "best"))
    common, joined = (sum(getattr(o, name) for o in overlaps) for name in ("common", "joined"))
    scores: Scores = {
        "semantic_iou": _ratio(common, joined),
        "instance_iou_mean": float(paired.mean()) if true else None,
        "instance_iou_std": float(paired.std()) if true else None,
        "f1_50": _ratio(2 * hits, predicted + true),
        "precision_50": _ratio(hits, predicted),
        "recall_50": _ratio(hits, true),
        "mean_best_iou": float(best.mean()) if true else None,
    }
    sizes = [o.size for o in overlaps if o.size is not None]
    if sizes and len(sizes) == len(overlaps):
        scores["pixel_accuracy"] = _ratio(sum(sizes) - (joined - common), sum(sizes))
    return scores


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
