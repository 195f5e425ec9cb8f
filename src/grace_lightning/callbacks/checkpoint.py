"""The checkpoints of a run."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it: under its name it is whole, at whatever moment a run ends.

    Lightning's own writes into the folder for temporary files, and where that lies on another disk, copies.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write, have it on the disk, rename."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        with part.open("wb") as file:
            torch.save(checkpoint, file)
        _rename(part, path)


def _rename(part: Path, path: Path) -> None:
    _to_disk(part)
    os.replace(part, path)
    _to_disk(path.parent)


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Checkpoint(ModelCheckpoint):
    """Keeps ``best.ckpt``, the epoch with the best score, and ``last.ckpt``, the last whole epoch.

    ``last.ckpt`` is there from the first step on: before the first epoch has ended it is the state at the beginning. A
    run that goes on in another folder takes the best checkpoint along, so that its own is the best of both.

    Parameters
    ----------
    dirpath : folder
    filename : of the best checkpoint
    monitor : the score; where an epoch has none, its best checkpoint stays
    mode : whether ``max`` or ``min`` is better
    """

    def __init__(
        self,
        dirpath: str,
        filename: str = "best",
        monitor: str = "valid/average_precision",
        mode: Literal["min", "max"] = "max",
    ) -> None:
        super().__init__(
            dirpath,
            filename,
            monitor,
            mode=mode,
            save_last=True,
            auto_insert_metric_name=False,
            enable_version_counter=False,
            save_on_train_epoch_end=True,
        )
        self.resumed_from: Path | None = None

    @property
    def last(self) -> Path:
        """Where the last checkpoint is."""
        assert self.dirpath is not None
        return Path(self.dirpath) / f"{self.CHECKPOINT_NAME_LAST}{self.FILE_EXTENSION}"

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Have files written as wholes."""
        super().setup(trainer, pl_module, stage)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = WholeFiles()

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Have a last checkpoint from the beginning in a run that goes on."""
        if trainer.ckpt_path is None or trainer.state.fn != "fit":
            return
        self.resumed_from = Path(trainer.ckpt_path)
        if trainer.is_global_zero and self.resumed_from.resolve() != self.last.resolve():
            _copy(self.resumed_from, self.last)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the best checkpoint so far, wherever that run's folder lies now."""
        assert self.dirpath is not None
        if state_dict.get("dirpath") == self.dirpath:
            super().load_state_dict(state_dict)
            return
        kept = Path(state_dict["best_model_path"])
        if not kept.name:
            return
        beside = [self.resumed_from.with_name(kept.name)] if self.resumed_from else []
        best = next((path for path in [*beside, kept] if path.is_file()), None)
        score = _score_of(best, self.state_key) if best else None
        if best is None or score is None:
            return
        own = Path(self.dirpath) / best.name
        if getattr(rank_zero_only, "rank", 0) == 0:
            _copy(best, own)
        self.best_model_path = self.kth_best_model_path = str(own)
        self.best_model_score = self.current_score = self.kth_value = score
        self.best_k_models = {str(own): score}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Have a last checkpoint from the beginning."""
        super().on_train_start(trainer, pl_module)
        if self.resumed_from is None:
            trainer.save_checkpoint(self.last)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep this epoch: as the last one in any case, as the best where its score is."""
        if self._should_skip_saving_checkpoint(trainer):
            return
        candidates = self._monitor_candidates(trainer)
        if self.monitor in candidates:
            self._save_topk_checkpoint(trainer, candidates)
        self._save_last_checkpoint(trainer, candidates)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Nothing is left to keep, nor in a run that had come to its end before."""


def _copy(source: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    shutil.copyfile(source, part)
    _rename(part, path)


def _score_of(path: Path, key: str) -> Tensor | None:
    """The score that a checkpoint was kept for."""
    content = torch.load(path, map_location="cpu", weights_only=True)
    score: Tensor | None = content.get("callbacks", {}).get(key, {}).get("best_model_score")
    return score
