"""Runs of an Optuna sweep that are worse than the others stop early."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
from hydra.core.hydra_config import HydraConfig

from grace_lightning.errors import InputError
from grace_lightning.sweeps.jobs import in_sweep
from grace_lightning.sweeps.study import quiet_optuna

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.trial import Trial


class Pruning(pl.Callback):
    """Report a metric to the study after every validation, and stop the run when the study's pruner says so.

    Hydra's Optuna sweeper gives a run its parameters, not its trial. The trial is found in the study's storage: it is
    the one that runs with these parameters and that no other run has claimed; the run's folder is noted as its
    ``run``. The sweeper also insists on a value for every trial. A run that was stopped therefore counts as complete,
    with what it had reached; the trial's attribute ``pruned`` says at which epoch it was stopped.

    Parameters
    ----------
    monitor : metric that is logged in validation, the higher the better
    pruner : decides from what the study's trials had at the same epoch

    Attributes
    ----------
    reason : why the run was stopped, or None

    Raises
    ------
    InputError
        On setup: the run is not one of an Optuna sweep with a stored study.
    """

    def __init__(self, monitor: str, pruner: BasePruner) -> None:
        self.monitor = monitor
        self.pruner = pruner
        self.reason: str | None = None
        self._trial: Trial | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Find the trial that this run is."""
        if stage == "fit" and trainer.is_global_zero:
            self._trial = _claim_trial(self.pruner)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report, and stop where the pruner says so."""
        if trainer.sanity_checking or self._trial is None:
            return
        if self.monitor not in trainer.callback_metrics:
            logged = ", ".join(sorted(trainer.callback_metrics))
            raise InputError(f"callbacks.pruning.monitor: {self.monitor!r} is not logged; there are {logged}")
        value, epoch = trainer.callback_metrics[self.monitor].item(), trainer.current_epoch
        self._trial.report(value, epoch)
        if self._trial.should_prune():
            self.reason = f"{self.monitor} was {value:.3f} after epoch {epoch + 1}, less than other runs had"
            self._trial.set_user_attr("pruned", epoch)
            trainer.should_stop = True


def _claim_trial(pruner: BasePruner) -> Trial:
    hydra = HydraConfig.get() if in_sweep() else None
    sweeper: Any = hydra.sweeper if hydra is not None else {}
    if hydra is None or "optuna" not in sweeper["_target_"] or not sweeper["storage"]:
        raise InputError(
            "callbacks.pruning: works in a sweep of Optuna's with hydra.sweeper.storage only; "
            "add -m experiment=optuna, or set callbacks.pruning=null"
        )
    optuna = quiet_optuna()
    study = optuna.load_study(study_name=sweeper["study_name"], storage=sweeper["storage"], pruner=pruner)
    overrides, run = set(hydra.overrides.task), str(Path(hydra.runtime.output_dir))
    for frozen in reversed(study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.RUNNING])):
        given = {f"{name}={value}" for name, value in frozen.params.items()}  # as the sweeper writes them
        if given <= overrides and "run" not in frozen.user_attrs:
            trial: Trial = optuna.trial.Trial(study, frozen._trial_id)
            trial.set_user_attr("run", run)
            return trial
    raise RuntimeError(f"study {study.study_name} in {sweeper['storage']} has no running trial with {overrides}")
