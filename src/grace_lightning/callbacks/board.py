"""What the callbacks that fill the dashboards share.

The x axis of everything is the epoch, counted from 0 as by the progress bar and in checkpoints. What a logger cannot
take is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from typing import Any, cast

import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter
from torch_geometric.data import Batch

from grace_lightning import figures
from grace_lightning.data import GraceDataModule, GraceDataset, GraphData
from grace_lightning.module import GraceModule


def log(trainer: pl.Trainer, values: Mapping[str, float], epoch: int) -> None:
    """Numbers of an epoch to all loggers, past Lightning's own log, which takes its time and is for monitors."""
    for logger in trainer.loggers:
        logger.log_metrics(dict(values), step=epoch)


def boards(trainer: pl.Trainer) -> list[SummaryWriter]:
    """The writers of the TensorBoard loggers, in the first process alone."""
    if not trainer.is_global_zero:
        return []
    return [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


Gallery = Callable[[str, figures.Jpeg, int], None]
"""Takes a tag, a picture and its epoch."""


def galleries(trainer: pl.Trainer) -> list[Gallery]:
    """Of each logger that can take pictures what takes them, in the first process alone."""
    if not trainer.is_global_zero:
        return []
    hang: dict[type, Callable[..., None]] = {
        TensorBoardLogger: _to_tensorboard,
        WandbLogger: _to_wandb,
        MLFlowLogger: _to_mlflow,
    }
    return [
        partial(add, logger) for logger in trainer.loggers for kind, add in hang.items() if isinstance(logger, kind)
    ]


def _to_tensorboard(logger: TensorBoardLogger, tag: str, picture: figures.Jpeg, epoch: int) -> None:
    # As it is: ``SummaryWriter.add_image`` would store it anew as a PNG, noise and all.
    image = Summary.Image(
        height=picture.height, width=picture.width, colorspace=3, encoded_image_string=picture.content
    )
    file_writer = logger.experiment._get_file_writer()
    file_writer.add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), epoch)


def _to_wandb(logger: WandbLogger, tag: str, picture: figures.Jpeg, epoch: int) -> None:
    logger.log_image(tag, [Image.open(BytesIO(picture.content))], step=epoch, file_type=["jpg"])


def _to_mlflow(logger: MLFlowLogger, tag: str, picture: figures.Jpeg, epoch: int) -> None:
    logger.experiment.log_image(logger.run_id, Image.open(BytesIO(picture.content)), key=tag, step=epoch)


def validation_set(trainer: pl.Trainer) -> GraceDataset:
    """The validation images of the run."""
    return cast(GraceDataModule, cast(Any, trainer).datamodule).dataset("valid")


def validation_graphs(trainer: pl.Trainer, module: GraceModule) -> Iterator[GraphData]:
    """The validation images one by one as batches on the module's device.

    A data loader would draw a seed from the generator that training draws from.
    """
    dataset = validation_set(trainer)
    for k in range(len(dataset)):
        yield Batch.from_data_list([dataset.prepared(k)]).to(module.device)


@contextmanager
def evaluating(trainer: pl.Trainer, module: GraceModule) -> Iterator[None]:
    """The module as it validates; afterwards each of its parts trains, or does not, as before."""
    training = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad(), trainer.precision_plugin.val_step_context():
            yield
    finally:
        for part, before in training.items():
            part.training = before
