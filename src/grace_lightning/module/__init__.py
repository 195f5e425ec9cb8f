"""The network in training: features, loss, metrics, optimiser, checkpoints."""

from grace_lightning.module.checkpoint import CHECKPOINT_KEY, read_checkpoint
from grace_lightning.module.grace import HEADS, GraceModule
from grace_lightning.module.loss import balanced_weights, class_counts, summed_cross_entropy
from grace_lightning.module.prediction import Prediction, gather, mean_prediction

__all__ = [
    "CHECKPOINT_KEY",
    "HEADS",
    "GraceModule",
    "Prediction",
    "balanced_weights",
    "class_counts",
    "gather",
    "mean_prediction",
    "read_checkpoint",
    "summed_cross_entropy",
]
