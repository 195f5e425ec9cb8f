"""Stop when nothing gets better."""

from __future__ import annotations

from typing import Any, Literal

import pytorch_lightning as pl
from pytorch_lightning.callbacks import early_stopping


class EarlyStopping(early_stopping.EarlyStopping):
    """Stop the training after some epochs without a better score.

    Parameters
    ----------
    monitor : the score
    mode : whether ``max`` or ``min`` is better
    patience : epochs without a better score; None: never stop
    min_delta : what is better by less does not count
    """

    def __init__(
        self,
        monitor: str,
        mode: Literal["min", "max"] = "max",
        patience: int | None = None,
        min_delta: float = 0.0,
    ) -> None:
        self.never = patience is None
        # an undefined score is no reason to stop: a loss that is not finite is told elsewhere
        super().__init__(monitor, min_delta, patience or 0, mode=mode, check_finite=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting; the patience is that of this run."""
        patience = self.patience
        super().load_state_dict(state_dict)
        self.patience = patience

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A run that had come to its end does not go on."""
        if not self.never and self.wait_count >= self.patience > 0:
            trainer.should_stop = True

    def _should_skip_check(self, trainer: pl.Trainer) -> bool:
        return self.never or super()._should_skip_check(trainer)
