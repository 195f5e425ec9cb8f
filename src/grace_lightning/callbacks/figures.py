"""Pictures of the validation set."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, cast

import pytorch_lightning as pl
from torch import Tensor

from grace_lightning import figures
from grace_lightning.callbacks.attention import attention
from grace_lightning.callbacks.board import evaluating, galleries, validation_graphs, validation_set
from grace_lightning.errors import InputError
from grace_lightning.graph import Sample
from grace_lightning.io import read_instances
from grace_lightning.link import Linker
from grace_lightning.metrics import Predicted, Truth, counted, overlap, true_filaments
from grace_lightning.module import GraceModule, Prediction, gather

CURVES, MICROGRAPH, FILAMENTS = 450, 800, 640
"""Pixels, widths of the pictures."""

Drawn = Iterator[tuple[str, figures.Jpeg]]


class _Shown(NamedTuple):
    """A validation image that is drawn, without its annotation, and its true filaments."""

    sample: Sample
    truth: Truth


class Figures(pl.Callback):
    """Draws what the network makes of the validation images, after validation, for TensorBoard, wandb and mlflow.

    Of all images together confusion matrices, precision-recall curves and reliability; of the first ones the
    probabilities, the filaments beside the true ones and, of a network with attention, that of each head of its last
    layer. One pass over the validation images serves all; training goes on as without.

    Parameters
    ----------
    link : makes filaments of the probabilities
    every_n_epochs : how often; in any case after the last epoch
    max_images : the most that are drawn
    """

    def __init__(self, link: Linker, every_n_epochs: int = 100, max_images: int = 4) -> None:
        if every_n_epochs < 1 or max_images < 0:
            found = f"callbacks.figures.every_n_epochs: {every_n_epochs}, callbacks.figures.max_images: {max_images}"
            raise InputError(f"{found}, expected 1 or more, and 0 or more; callbacks.figures=null for no pictures")
        self.link = link
        self.every_n_epochs = every_n_epochs
        self.max_images = max_images
        self._validated = self._drawn = -1  # the last epoch of each
        self._shown: dict[int, _Shown] = {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A run that goes on with another does not draw the other's epochs."""
        self._validated = self._drawn = trainer.current_epoch - 1

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw, where it is time; the temperatures of this epoch are known by now."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self._validated = trainer.current_epoch
        if (self._validated + 1) // self.every_n_epochs > (self._drawn + 1) // self.every_n_epochs:
            self._draw(trainer, cast(GraceModule, pl_module))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw what the last epoch led to, also where training stopped early."""
        if self._drawn < self._validated:
            self._draw(trainer, cast(GraceModule, pl_module))
        self._shown.clear()

    def _draw(self, trainer: pl.Trainer, module: GraceModule) -> None:
        self._drawn = self._validated
        takers = galleries(trainer)
        if not takers:
            return
        for tag, picture in self._pictures(trainer, module):
            for take in takers:
                take(tag, picture, self._drawn)

    def _pictures(self, trainer: pl.Trainer, module: GraceModule) -> Drawn:
        """Tags and pictures, one at a time."""
        predictions: list[Prediction] = []
        attended: list[Tensor | None] = []
        with evaluating(trainer, module):
            for k, batch in enumerate(validation_graphs(trainer, module)):
                predictions += module.predict_step(batch, 0)
                if k < self.max_images:
                    attended.append(attention(module, batch))
        outcomes = gather(predictions)
        if not all(probability.isfinite().all() for probability, _ in outcomes.values()):
            return  # a training that diverged
        images = [self._image(trainer, k) for k in range(len(attended))]
        with ThreadPoolExecutor(1) as pool:  # the solver works while the rest is drawn
            linked = pool.map(self._link, images, predictions)
            yield from _of_set(outcomes)
            for shown, prediction, weights in zip(images, predictions, attended, strict=False):
                yield from _of_image(shown, prediction, weights)
            for shown, predicted in zip(images, linked, strict=True):
                yield _filaments(shown, predicted)

    def _link(self, shown: _Shown, prediction: Prediction) -> list[Predicted]:
        return counted(prediction.filaments(self.link, shown.sample.graph))

    def _image(self, trainer: pl.Trainer, number: int) -> _Shown:
        """The image and its true filaments; read once, not in every epoch."""
        if number not in self._shown:
            dataset = validation_set(trainer)
            source, sample = dataset.sources[number], dataset.annotated(number)
            instances = read_instances(source.instances, sample.graph.num_nodes) if source.instances else None
            truth = true_filaments(sample.graph, sample.annotation, instances)
            self._shown[number] = _Shown(sample.replace(annotation=None), truth)
        return self._shown[number]


def _of_set(outcomes: figures.Outcomes) -> Drawn:
    """Pictures of all images together; one for each head, since TensorBoard shows them small."""
    for head, outcome in outcomes.items():
        yield f"valid_confusion/{head}", figures.jpeg(figures.confusion_matrices({head: outcome}), CURVES)
    yield "valid_precision_recall/both", figures.jpeg(figures.precision_recall_curves(outcomes), CURVES)
    for head, outcome in outcomes.items():
        yield f"valid_reliability/{head}", figures.jpeg(figures.reliability_diagram({head: outcome}), CURVES)


def _of_image(shown: _Shown, prediction: Prediction, weights: Tensor | None) -> Drawn:
    sample, (node, edge) = shown.sample, (prediction.node_probability, prediction.edge_probability)
    picture = figures.probabilities(sample.image, sample.graph, node, edge, title=sample.name, plain=False)
    yield f"valid_graphs/{sample.name}", figures.jpeg(picture, MICROGRAPH)
    if weights is not None:
        picture = figures.attention(sample.image, sample.graph, weights, title=sample.name)
        yield f"valid_attention/{sample.name}", figures.jpeg(picture, MICROGRAPH)


def _filaments(shown: _Shown, predicted: list[Predicted]) -> tuple[str, figures.Jpeg]:
    sample, truth = shown
    exact = overlap(truth.nodes, [filament.nodes for filament in predicted])
    picture = figures.filaments(sample.image, sample.graph, predicted, truth, exact, title=sample.name, stacked=True)
    return f"valid_filaments/{sample.name}", figures.jpeg(picture, FILAMENTS)
