"""Random numbers that depend on the seed and the epoch."""

from __future__ import annotations

import pytorch_lightning as pl

from grace_lightning.sampling import seed_of


class SeedEpochs(pl.Callback):
    """Seed Python's, NumPy's and torch's generators at the beginning of every epoch, in each process differently.

    A run that goes on after epoch k then draws what it would have drawn without a stop, whatever was drawn since.

    Parameters
    ----------
    seed : of the run
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Seed all generators."""
        seed = seed_of("epoch", self.seed, trainer.current_epoch, trainer.global_rank)
        pl.seed_everything(seed % 2**32, verbose=False)
