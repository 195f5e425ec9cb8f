"""What the callbacks that fill the dashboards share.

The x axis of everything is the epoch, counted from 0 as by the progress bar and in checkpoints. What a logger cannot
take is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
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
    """What takes pictures: the writers of the TensorBoard loggers, in the first process alone."""
    if not trainer.is_global_zero:
        return []
    return [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def add_picture(board: SummaryWriter, tag: str, picture: figures.Jpeg, epoch: int) -> None:
    """A picture as it is: ``SummaryWriter.add_image`` would store it anew as a PNG, noise and all."""
    image = Summary.Image(
        height=picture.height, width=picture.width, colorspace=3, encoded_image_string=picture.content
    )
    file_writer = board._get_file_writer()  # type: ignore[no-untyped-call]  # torch's has no types
    file_writer.add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), epoch)


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
