"""What tells a run from others: hyperparameters, final metrics, and whether it was stopped early."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from pytorch_lightning.loggers import TensorBoardLogger

from grace_lightning.errors import InputError
from grace_lightning.sweeps.jobs import flat_metrics, one_line
from grace_lightning.sweeps.pruning import Pruning

NAMED = ("model", "features", "augment")
"""Groups whose choice every run shows."""

COMPARED = ("average_precision", "f1", "f1_50", "mean_best_iou")
"""Metrics that are shown, by the ends of their names, beside the objective."""

ASIDE = (
    *("experiment", "log_dir", "run_dir", "objective", "callbacks", "logger", "ckpt_path", "config_file"),
    "data.simulation",
)
"""Keys that say nothing about the network."""


def introduce(trainer: pl.Trainer, config: dict[str, Any]) -> None:
    """Log the hyperparameters, except to TensorBoard, which takes them with the metrics at the end.

    Raises
    ------
    InputError
        A service does not know the user, or cannot be reached.
    """
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            continue
        try:
            _ = logger.experiment  # type: ignore[attr-defined]  # services ask now who is there
        except Exception as error:  # whatever a library raises
            name = type(logger).__name__
            raise InputError(
                f"logger: {name} does not start ({one_line(error)}); logger=tensorboard or csv needs nobody"
            ) from error
        logger.log_hyperparams(hyperparameters(config))


def conclude(trainer: pl.Trainer, config: dict[str, Any], results: dict[str, Any]) -> None:
    """Log what tells this run from others, and how good its best checkpoint is; note why it was stopped early.

    Parameters
    ----------
    trainer : its loggers get the metrics, its callbacks say whether the run was pruned
    config : plain containers
    results : by set; ``pruned`` is added, with the reason, where the run was stopped early
    """
    reasons = [c.reason for c in trainer.callbacks if isinstance(c, Pruning) and c.reason]  # type: ignore[attr-defined]
    if reasons:
        results["pruned"] = reasons[0]
    metrics = best_metrics(flat_metrics(results), config["objective"])
    epoch = max(trainer.current_epoch - 1, 0)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            shown = {name: math.nan if value is None else value for name, value in metrics.items()}
            logger.log_hyperparams(hyperparameters(config), shown, step=epoch)
        else:
            logger.log_metrics({name: value for name, value in metrics.items() if value is not None}, step=epoch)
        logger.save()


def best_metrics(metrics: Mapping[str, float | None], objective: str) -> dict[str, float | None]:
    """The objective and then those of :data:`COMPARED`, under names that no curve has: ``best/valid_edge_AP``."""
    names = [name for name in metrics if name.split("_", 1)[1] in COMPARED]
    ordered = dict.fromkeys([name for name in (objective, *names) if name in metrics])
    return {f"best/{name.replace('/', '_').replace('average_precision', 'AP')}": metrics[name] for name in ordered}


def hyperparameters(config: dict[str, Any]) -> dict[str, Any]:
    """The seed, the choices of :data:`NAMED`, and what the command line set; paths and loggers left out."""
    seed = {"seed": str(config["seed"])}  # as text: no quantity, and TensorBoard would show 0.0000
    if not HydraConfig.initialized():  # called from Python: nobody chose anything
        return dict(seed)
    hydra = HydraConfig.get()
    choices = hydra.runtime.choices
    shown: dict[str, Any] = {name: choices[name] for name in NAMED if name in choices} | seed
    for override in OverridesParser.create().parse_overrides(list(hydra.overrides.task)):
        key = override.key_or_group
        if key == "seed" or key.endswith("_dir") or any(f"{key}.".startswith(f"{aside}.") for aside in ASIDE):
            continue
        value = choices[key] if key in choices else OmegaConf.select(OmegaConf.create(config), key)
        shown[key] = value if isinstance(value, bool | int | float | str) else str(value).replace("None", "null")
    return shown
