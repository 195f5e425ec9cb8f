"""How long an epoch takes."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl
import torch

from grace_lightning.callbacks.board import log


class Speed(pl.Callback):
    """Logs the seconds of an epoch's training and validation, and the images per second of training alone.

    To be given before the callbacks that draw after validation, whose time does not count.
    """

    def __init__(self) -> None:
        self._start = 0.0
        self._images = 0
        self._trained: float | None = None
        self._validated: float | None = None

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._start, self._images, self._trained, self._validated = time.perf_counter(), 0, None, None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the images."""
        self._images += batch.num_graphs * trainer.world_size

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock of training."""
        self._trained = self._trained or _finished(pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock of the epoch."""
        self._validated = _finished(pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log both."""
        end = self._validated or _finished(pl_module)
        trained = (self._trained or end) - self._start
        values = {"time/epoch_seconds": end - self._start, "time/images_per_second": self._images / trained}
        log(trainer, values, trainer.current_epoch)


def _finished(module: pl.LightningModule) -> float:
    """The time, once the device has done what it was told; asked twice an epoch, this costs nothing."""
    if module.device.type == "cuda":
        torch.cuda.synchronize(module.device)
    return time.perf_counter()
