"""Stochastic weight averaging."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from grace_lightning.errors import InputError

TRAINED = "trained_weights"
"""Where a checkpoint keeps the weights that training goes on from, when ``state_dict`` has their average."""


class WeightAveraging(pl.Callback):
    """From some epoch on, validate and keep the mean of the weights at the ends of the epochs (Izmailov et al. 2018).

    Training itself goes on with its own weights. Statistics of batch normalisation are averaged like weights. The
    mean is the better the less the learning rate falls: give ``scheduler=none``, or one that ends at a high rate.

    Parameters
    ----------
    start : the first epoch that counts, the run's first being 0; a number between 0 and 1 is a fraction of
        ``trainer.max_epochs``. None: no averaging
    """

    def __init__(self, start: int | float | None = None) -> None:
        if start is not None and (start < 0 or (isinstance(start, float) and start > 1)):
            raise InputError(
                f"callbacks.weight_averaging.start: {start}, expected an epoch, or a fraction from 0.0 to 1.0"
            )
        self.start = start
        self.mean: dict[str, Tensor] = {}
        self.trained: dict[str, Tensor] = {}  # kept while the module holds the mean
        self.count = 0
        self.latest = -1  # the last epoch that counted

    def _update(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        epoch = trainer.current_epoch
        if self.start is None or epoch <= self.latest or epoch < self._first(trainer):
            return
        self.count, self.latest = self.count + 1, epoch
        for name, value in module.state_dict().items():
            if self.count == 1 or not value.is_floating_point():
                self.mean[name] = value.detach().clone()
            else:
                self.mean[name] += (value.detach() - self.mean[name]) / self.count

    def _first(self, trainer: pl.Trainer) -> int:
        assert self.start is not None
        if isinstance(self.start, int):
            return self.start
        if trainer.max_epochs in (None, -1):
            raise InputError(
                "callbacks.weight_averaging.start: a fraction of endless epochs; give the number of an epoch"
            )
        return round(self.start * (trainer.max_epochs or 0))

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add this epoch's weights, and let the module have the mean."""
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            self._update(trainer, pl_module)
            if self.mean:
                self.trained = {name: value.detach().clone() for name, value in pl_module.state_dict().items()}
                _fill(pl_module, self.mean)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the mean back, and with it what validation found out about it."""
        if self.trained:
            self.mean = {name: value.detach().clone() for name, value in pl_module.state_dict().items()}
            _fill(pl_module, self.trained)
            self.trained = {}

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add this epoch's weights, where no validation did."""
        self._update(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the mean in the module."""
        if self.mean:
            _fill(pl_module, self.mean)

    def state_dict(self) -> dict[str, Any]:
        """How many epochs have counted, up to which."""
        return {"count": self.count, "latest": self.latest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The reverse."""
        self.count, self.latest = state_dict["count"], state_dict["latest"]

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Let the checkpoint have the mean, beside the weights to go on from."""
        if self.mean:
            checkpoint[TRAINED] = self.trained or checkpoint["state_dict"]
            checkpoint["state_dict"] = self.mean

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Go on from a checkpoint, of a run with averaging or without."""
        if TRAINED in checkpoint:
            device = pl_module.device
            self.mean = {name: value.to(device) for name, value in checkpoint["state_dict"].items()}
            _fill(pl_module, checkpoint[TRAINED])


@torch.no_grad()
def _fill(module: pl.LightningModule, weights: dict[str, Tensor]) -> None:
    for name, value in module.state_dict().items():
        value.copy_(weights[name])
