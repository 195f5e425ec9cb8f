"""Pictures; every function returns a Figure. The only package that imports matplotlib."""

from grace_lightning.figures.curves import (
    Outcomes,
    confusion_matrices,
    iou_histogram,
    precision_recall_curves,
    probability_histograms,
    reliability_diagram,
    roc_curves,
)
from grace_lightning.figures.jpeg import Jpeg, jpeg
from grace_lightning.figures.manifold import manifold
from grace_lightning.figures.micrographs import attention, contrast, filaments, probabilities, probability_colours
from grace_lightning.figures.overview import overview, thumbnail
from grace_lightning.figures.style import pixels

__all__ = [
    "Jpeg",
    "Outcomes",
    "attention",
    "confusion_matrices",
    "contrast",
    "filaments",
    "iou_histogram",
    "jpeg",
    "manifold",
    "overview",
    "pixels",
    "precision_recall_curves",
    "probabilities",
    "probability_colours",
    "probability_histograms",
    "reliability_diagram",
    "roc_curves",
    "thumbnail",
]
