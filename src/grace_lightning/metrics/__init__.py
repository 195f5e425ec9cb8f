"""How good nodes, edges and filaments are.

Symbols used in the shapes below

M   number of nodes, or of edges
T   number of true objects
P   number of predicted objects
H W rows and columns of the image
"""

from grace_lightning.metrics.calibration import Calibration, calibration, fit_temperature
from grace_lightning.metrics.classification import (
    SCORES,
    THRESHOLD,
    Curve,
    EpochOutcomes,
    Reliability,
    Scores,
    classification,
    confusion_matrix,
    known,
    precision_recall,
    reliability,
    roc,
)
from grace_lightning.metrics.filaments import (
    Predicted,
    Truth,
    annotated_objects,
    counted,
    draw_path,
    grouped,
    true_filaments,
)
from grace_lightning.metrics.objects import MATCH_IOU, OBJECT_SCORES, Overlap, object_scores, overlap

__all__ = [
    "MATCH_IOU",
    "OBJECT_SCORES",
    "SCORES",
    "THRESHOLD",
    "Calibration",
    "Curve",
    "EpochOutcomes",
    "Overlap",
    "Predicted",
    "Reliability",
    "Scores",
    "Truth",
    "annotated_objects",
    "calibration",
    "classification",
    "confusion_matrix",
    "counted",
    "draw_path",
    "fit_temperature",
    "grouped",
    "known",
    "object_scores",
    "overlap",
    "precision_recall",
    "reliability",
    "roc",
    "true_filaments",
]
