"""What a training keeps, when it ends, and how its random numbers are seeded."""

import ctypes
import signal
import subprocess
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from pytorch_lightning import Callback, LightningModule, Trainer, callbacks, seed_everything
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor

from grace_lightning.checkpoint import write_checkpoint
from grace_lightning.data import seed_of
from grace_lightning.errors import InputError, InputWarning
from grace_lightning.module import TRAINED, whole_epochs
from grace_lightning.stopping import end_with_parent, handle, stop
from grace_lightning.sweeps import optuna_storage


class WholeFiles(TorchCheckpointIO):
    """Writes checkpoints whole or not at all: Lightning's class copies them if its folder lies on another disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        write_checkpoint(checkpoint, path)


class Checkpoint(callbacks.ModelCheckpoint):
    """Keeps ``best.ckpt``, the epoch with the best score, and ``last.ckpt``, the last whole epoch.

    NaN is never better than another score. Until the first epoch has ended, ``last.ckpt`` is the state at the start.
    Lightning's own ``save_last`` follows only the epochs that are kept as the best ones.
    """

    def __init__(self, dirpath: str, monitor: str, filename: str = "best", mode: Literal["min", "max"] = "max") -> None:
        names: Any = {"auto_insert_metric_name": False, "enable_version_counter": False}
        super().__init__(dirpath, filename, monitor, mode=mode, save_on_train_epoch_end=True, **names)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.ckpt_path is None:  # a run that goes on has the checkpoint that it goes on from
            trainer.save_checkpoint(f"{self.dirpath}/last.ckpt")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.monitor in trainer.callback_metrics:  # not in a run without validation
            super().on_train_epoch_end(trainer, pl_module)
        trainer.save_checkpoint(f"{self.dirpath}/last.ckpt")


class WeightAveraging(Callback):
    """From epoch ``start`` on, validates and keeps the mean of the weights after each epoch (Izmailov et al. 2018).

    The first epoch is 0; a float from 0.0 to 1.0 is a fraction of ``trainer.max_epochs``; None: no averaging. Training
    goes on with its own weights. Statistics of batch normalisation are averaged, too. The less the learning rate falls,
    the better the mean. Lightning's class of this name keeps untrained weights at first, and cannot average bool.
    """

    def __init__(self, start: int | float | None = None) -> None:
        if start is not None and (start < 0 or (isinstance(start, float) and start > 1)):
            found = f"callbacks.weight_averaging.start: {start}"
            raise InputError(f"{found}, expected an epoch, or a fraction from 0.0 to 1.0")
        self.start = start
        self.mean: dict[str, Tensor] = {}  # while the module holds the mean, the trained weights
        self.count = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if isinstance(self.start, float):
            if trainer.max_epochs in (None, -1):
                raise InputError(f"callbacks.weight_averaging.start: {self.start} of endless epochs, expected an epoch")
            self.start = round(self.start * trainer.max_epochs)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        last = batch_idx + 1 == trainer.num_training_batches  # of the epoch, which is then validated
        if not last or self.start is None or trainer.current_epoch < self.start:
            return
        self.count += 1
        for name, value in _copy(pl_module).items():
            if self.count > 1 and value.is_floating_point():
                mean = self.mean[name].to(value.device)  # a checkpoint is read before the module is moved
                value = mean + (value - mean) / self.count
            self.mean[name] = value

    def _swap(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.mean:
            held = _copy(pl_module)  # after validation, with the temperatures that it has fitted to the mean
            pl_module.load_state_dict(self.mean)
            self.mean = held

    on_validation_start = on_validation_end = on_train_end = _swap

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.count = state_dict["count"] if self.mean else 0

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self.mean:
            checkpoint |= {TRAINED: checkpoint["state_dict"], "state_dict": self.mean}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        epochs, count = whole_epochs(checkpoint), checkpoint["callbacks"].get(self.state_key, {"count": 0})["count"]
        if TRAINED in checkpoint:
            pl_module.load_state_dict(checkpoint[TRAINED])
        if self.start is None or self.start >= epochs:  # what was averaged before is not wanted now
            return
        if TRAINED in checkpoint:
            self.mean = checkpoint["state_dict"]
        if count != epochs - self.start:
            found = f"callbacks.weight_averaging.start: {self.start}, but the checkpoint has the mean of {count} epochs"
            warnings.warn(f"{found}, not {epochs - self.start}; it goes on from there", InputWarning, stacklevel=2)


def _copy(module: LightningModule) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


class EarlyStopping(callbacks.EarlyStopping):
    """Stops a training after ``patience`` epochs without a score that is better by ``min_delta``; None: never.

    That a score is undefined or missing is no reason to stop.
    """

    def __init__(
        self, monitor: str, mode: Literal["min", "max"] = "max", patience: int | None = None, min_delta: float = 0.0
    ) -> None:
        limit = sys.maxsize if patience is None else patience
        super().__init__(monitor, min_delta, limit, mode=mode, check_finite=False, strict=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        waited = 0 if state_dict["patience"] == sys.maxsize else state_dict["wait_count"]
        super().load_state_dict({**state_dict, "wait_count": waited, "patience": self.patience})  # of this run

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.wait_count >= self.patience > 0:
            trainer.should_stop = True


class StopOnSignal(Callback):
    """Raises ``Stopped`` on Ctrl-C and SIGTERM in training, too; the first of several processes ends the rest.

    Lightning's own handler waits for all of them to come to the same place, and they may be waiting for the first one.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # in the place of Lightning's, which restores them at the end
        handle(stop if trainer.is_global_zero else signal.SIG_IGN)
        if not trainer.is_global_zero:  # if the first process was killed, waiting for it would hold the device for ever
            end_with_parent()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        processes = getattr(trainer.strategy.launcher, "procs", [])
        started = [process for process in processes if isinstance(process, subprocess.Popen)]
        if started:
            processes.clear()  # Lightning's observer kills this process if it finds one of them dead
        for process in started:
            process.kill()
            process.wait()


class SeedEpochs(Callback):
    """Seeds all random numbers by epoch and process, so that a run that goes on draws as it would without a stop."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        seed = seed_of("epoch", self.seed, trainer.current_epoch, trainer.global_rank)
        seed_everything(seed % 2**32, verbose=False)


class FreeMemory(Callback):
    """Gives free memory back to the system after every epoch.

    Each step has crops of other sizes, between which glibc keeps ever more memory that nothing is in.
    """

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        with suppress(AttributeError, OSError, TypeError):  # other C libraries do not have it
            ctypes.CDLL(None).malloc_trim(0)


class Pruning(Callback):
    """Reports a metric, larger is better, to the run's trial after every validation.

    It stops the run if ``pruner``, an ``optuna.pruners.BasePruner``, says so, which compares it with other trials at
    the same epoch of the study ``study_name``, in the database with the URL ``storage``.
    """

    def __init__(self, monitor: str, pruner: Any, study_name: str, storage: str, trial: int) -> None:
        self.monitor, self.pruner = monitor, pruner
        self.study_name, self.storage, self.number = study_name, storage, trial
        self.reason: str | None = None  # for stopping the run

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.is_global_zero:
            storage = optuna_storage(self.storage)
            import optuna

            study = optuna.load_study(study_name=self.study_name, storage=storage, pruner=self.pruner)
            study_id = storage.get_study_id_from_name(self.study_name)
            trial_id = storage.get_trial_id_from_study_id_trial_number(study_id, self.number)
            self.trial = optuna.trial.Trial(study, trial_id)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        if self.monitor not in trainer.callback_metrics:
            logged = ", ".join(sorted(trainer.callback_metrics))
            raise InputError(f"callbacks.pruning.monitor: {self.monitor!r} is not logged; there are {logged}")
        if trainer.is_global_zero:
            value, epoch = trainer.callback_metrics[self.monitor].item(), trainer.current_epoch
            self.trial.report(value, epoch)
            if self.trial.should_prune():
                self.reason = f"{self.monitor} was {value:.3f} after epoch {epoch + 1}, less than other runs had"
        if trainer.strategy.reduce_boolean_decision(self.reason is not None, all=False):
            trainer.should_stop = True
