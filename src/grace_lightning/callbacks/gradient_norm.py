"""How large the gradients are."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from grace_lightning.callbacks.board import log


class GradientNorm(pl.Callback):
    """Logs the Euclidean norm of all gradients before they are clipped, the mean over the steps of an epoch.

    A step whose norm is not finite does not count: with half precision, its update is left out.
    """

    def __init__(self) -> None:
        self._norms: list[Tensor] = []  # on the device, which is not waited for before the epoch's end

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Take the norm of this step."""
        if trainer.loggers:
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            self._norms.append(get_total_norm(gradients).detach())

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the mean."""
        norms = torch.stack(self._norms).cpu() if self._norms else torch.zeros(0)
        self._norms.clear()
        finite = norms[norms.isfinite()]
        if len(finite):
            log(trainer, {"optimizer/gradient_norm": float(finite.mean())}, trainer.current_epoch)
