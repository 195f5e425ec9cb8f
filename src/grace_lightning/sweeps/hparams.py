"""The end of a training, for comparisons: TensorBoard's HParams, and whether the run was stopped early."""

from __future__ import annotations

import math
from typing import Any

import pytorch_lightning as pl
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from pytorch_lightning.loggers import TensorBoardLogger

from grace_lightning.sweeps.jobs import flat_metrics
from grace_lightning.sweeps.pruning import Pruning

NAMED = ("model", "features", "augment")
"""Groups whose choice every run shows."""

COMPARED = ("average_precision", "f1", "f1_50", "mean_best_iou")
"""Metrics that HParams shows, by the ends of their names, beside the objective."""

ASIDE = ("experiment", "log_dir", "run_dir", "objective", "callbacks", "logger", "ckpt_path", "config_file")
"""Keys that say nothing about the network."""


def conclude(trainer: pl.Trainer, config: dict[str, Any], results: dict[str, Any]) -> None:
    """Log what tells this run from others, and how good its best checkpoint is; note why it was stopped early.

    Parameters
    ----------
    trainer : its loggers get the hyperparameters, its callbacks say whether the run was pruned
    config : plain containers
    results : by set; ``pruned`` is added, with the reason, where the run was stopped early
    """
    reasons = [c.reason for c in trainer.callbacks if isinstance(c, Pruning) and c.reason]  # type: ignore[attr-defined]
    if reasons:
        results["pruned"] = reasons[0]
    metrics = flat_metrics(results)
    # under names of their own: the curves of the epochs have the others
    shown = {
        f"best/{name.replace('/', '_')}": math.nan if value is None else value
        for name, value in metrics.items()
        if name.split("_", 1)[1] in COMPARED or name == config["objective"]
    }
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(hyperparameters(config), shown, step=trainer.global_step)
            logger.experiment.flush()


def hyperparameters(config: dict[str, Any]) -> dict[str, Any]:
    """The seed, the choices of :data:`NAMED`, and what the command line set; paths and loggers left out."""
    if not HydraConfig.initialized():  # called from Python: nobody chose anything
        return {"seed": config["seed"]}
    hydra = HydraConfig.get()
    choices = hydra.runtime.choices
    shown: dict[str, Any] = {name: choices[name] for name in NAMED if name in choices} | {"seed": config["seed"]}
    for override in OverridesParser.create().parse_overrides(list(hydra.overrides.task)):
        key = override.key_or_group
        if key.split(".")[0] in ASIDE or key.endswith(("_dir", ".root")):
            continue
        value = choices[key] if key in choices else OmegaConf.select(OmegaConf.create(config), key)
        shown[key] = value if isinstance(value, bool | int | float | str) else str(value).replace("None", "null")
    return shown
