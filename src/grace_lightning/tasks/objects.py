"""Filaments of the inference images: linked, compared with the truth, and drawn."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from grace_lightning import figures
from grace_lightning.config import check_value
from grace_lightning.errors import InputError
from grace_lightning.graph import Sample
from grace_lightning.io import Source, read_instances
from grace_lightning.link import Linker
from grace_lightning.metrics import (
    OBJECT_SCORES,
    Overlap,
    Predicted,
    Scores,
    Truth,
    annotated_objects,
    counted,
    draw_path,
    object_scores,
    overlap,
    true_filaments,
)
from grace_lightning.module import Prediction
from grace_lightning.tasks.common import Config

PIXEL_SCORES = (*OBJECT_SCORES, "pixel_accuracy")


class Objects(NamedTuple):
    """Filaments of one image, and how they lie on the true ones: as sets of nodes, and drawn on the annotation."""

    predicted: list[Predicted]
    truth: Truth
    exact: Overlap
    approx: Overlap | None


def brush_width(config: Config, scale: float) -> float:
    """The width in pixels that ``evaluate.brush`` asks for; ``scale``, a filament's, where it is empty."""
    brush = config["evaluate"]["brush"]
    check_value(brush, float | None, "evaluate.brush")
    if brush is not None and brush < 1:
        raise InputError(f"evaluate.brush: {brush}, expected 1 pixel or more")
    return float(scale if brush is None else brush)


def wants_pictures(config: Config) -> bool:
    """Whether ``evaluate.pictures`` asks for pictures of the inference images."""
    pictures = config["evaluate"]["pictures"]
    check_value(pictures, bool, "evaluate.pictures")
    return bool(pictures)


def find_objects(sample: Sample, source: Source, prediction: Prediction, linker: Linker, brush: float) -> Objects:
    """Link the filaments of one image and compare them with the true ones.

    Parameters
    ----------
    sample : with labels and annotation
    source : its files
    prediction : its probabilities
    linker : makes filaments of them
    brush : width of the line that a filament is drawn with, pixels
    """
    graph = sample.graph
    instances = read_instances(source.instances, graph.num_nodes) if source.instances else None
    truth = true_filaments(graph, sample.annotation, instances)
    predicted = counted(prediction.filaments(linker, graph))
    exact = overlap(truth.nodes, [filament.nodes for filament in predicted])
    approx = None
    if sample.annotation is not None:
        height, width = sample.annotation.shape
        pos = graph.pos.numpy()
        drawn = [draw_path(pos[f.path], brush, (height, width), closed=f.closed) for f in predicted]
        approx = overlap(annotated_objects(sample.annotation), drawn, size=height * width)
    return Objects(predicted, truth, exact, approx)


def score_objects(found: Sequence[Objects]) -> dict[str, Scores]:
    """Scores of the filaments of all images together.

    Returns
    -------
    ``exact``: values of :data:`grace_lightning.metrics.OBJECT_SCORES` for sets of nodes; ``approx``: the same and
    ``pixel_accuracy`` for the images with an annotation
    """
    masks = [objects.approx for objects in found if objects.approx is not None]
    return {
        "exact": object_scores([objects.exact for objects in found]),
        "approx": dict.fromkeys(PIXEL_SCORES) | object_scores(masks),
    }


def draw_objects(sample: Sample, objects: Objects, name: str, folder: Path, taken: Collection[str]) -> None:
    """Write ``<name>_filaments.png`` and ``<name>_iou.png``.

    Parameters
    ----------
    sample, objects : of one image
    name : the image's
    folder : to write to
    taken : names of all images: a picture that would be called as another image's is, gets a longer underscore
    """
    exact = objects.exact
    picture = figures.filaments(sample.image, sample.graph, objects.predicted, objects.truth, exact, title=name)
    picture.savefig(folder / f"{_clear_of(taken, name, 'filaments')}.png")
    histogram = figures.iou_histogram(_paired([objects]), title=name)
    histogram.savefig(folder / f"{_clear_of(taken, name, 'iou')}.png")


def _clear_of(taken: Collection[str], name: str, what: str) -> str:
    underscore = "_"
    while f"{name}{underscore}{what}" in taken:
        underscore += "_"
    return f"{name}{underscore}{what}"


def _paired(found: Sequence[Objects]) -> dict[str, np.ndarray]:
    masks = [objects.approx.paired for objects in found if objects.approx is not None]
    paired = {"nodes": np.concatenate([objects.exact.paired for objects in found])}
    return paired | ({"masks": np.concatenate(masks)} if masks else {})


def draw_set(outcomes: figures.Outcomes, found: Sequence[Objects], folder: Path) -> None:
    """Write the pictures of all images together: how good the probabilities are, and the filaments.

    Parameters
    ----------
    outcomes : probabilities and labels of all nodes and of all edges
    found : of each image
    folder : made where missing
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {
        "confusion": figures.confusion_matrices(outcomes),
        "roc": figures.roc_curves(outcomes),
        "precision_recall": figures.precision_recall_curves(outcomes),
        "probabilities": figures.probability_histograms(outcomes),
        "reliability": figures.reliability_diagram(outcomes),
        "iou": figures.iou_histogram(_paired(found), title="all images"),
    }
    for name, picture in pictures.items():
        picture.savefig(folder / f"{name}.png")


def print_objects(console: Console, objects: dict[str, Scores]) -> None:
    """A table of the scores of the filaments."""
    heads = {"f1_50": "f1", "precision_50": "precision", "recall_50": "recall", "mean_best_iou": "best IoU"}
    heads |= {"instance_iou_mean": "mean IoU", "semantic_iou": "semantic", "pixel_accuracy": "pixels"}
    table = Table("", *heads.values())
    for column in table.columns[1:]:
        column.justify = "right"
    for way, compared in (("exact", "nodes"), ("approx", "masks")):
        values = [objects[way].get(key) for key in heads]
        table.add_row(compared, *("-" if value is None else f"{value:.3f}" for value in values))
    console.print(table)
