"""The learning rate of every epoch."""

from __future__ import annotations

import pytorch_lightning as pl

from grace_lightning.callbacks.board import log


class LearningRate(pl.Callback):
    """Logs the learning rate that an epoch begins with; of several groups of parameters, each one's."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the rate."""
        rates = [group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups]
        names = [f"_{k}" if k else "" for k in range(len(rates))]
        values = {f"optimizer/learning_rate{name}": float(rate) for name, rate in zip(names, rates, strict=True)}
        log(trainer, values, trainer.current_epoch)
