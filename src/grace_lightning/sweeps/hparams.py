"""What tells a run from others: hyperparameters, final metrics, and whether it was stopped early."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from pytorch_lightning.loggers import TensorBoardLogger
from torch.utils.tensorboard.summary import hparams

from grace_lightning.errors import InputError
from grace_lightning.sweeps.jobs import flat_metrics, one_line
from grace_lightning.sweeps.pruning import Pruning

NAMED = ("model", "features", "augment")
"""Groups whose choice every run shows."""

COMPARED = {"average_precision": "AP", "f1": "F1", "f1_50": "F1_50", "mean_best_iou": "IoU"}
"""Metrics that are shown beside the objective, by the ends of their names, and how they are called there."""

ASIDE = (
    *("experiment", "log_dir", "run_dir", "objective", "callbacks", "logger", "ckpt_path", "config_file"),
    "data.simulation",
)
"""Keys that say nothing about the network."""


def introduce(trainer: pl.Trainer, config: dict[str, Any]) -> None:
    """Give the hyperparameters to all loggers; TensorBoard shows them once there are metrics, at the end.

    Raises
    ------
    InputError
        A service does not know the user, or cannot be reached.
    """
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.hparams.update(hyperparameters(config))  # for its hparams.yaml
            continue
        try:
            _ = logger.experiment  # type: ignore[attr-defined]  # services ask now who is there
        except Exception as error:  # whatever a library raises
            found = f"logger: {type(logger).__name__} does not start ({one_line(error)})"
            raise InputError(f"{found}; logger=tensorboard or csv needs nobody") from error
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
    for logger in trainer.loggers:
        logger.log_metrics(metrics, step=max(trainer.current_epoch - 1, 0))
        if isinstance(logger, TensorBoardLogger):
            # Without the first of these, the experiment: TensorBoard would show the columns of one run for all.
            _, *session = hparams(hyperparameters(config), {})  # type: ignore[no-untyped-call]  # torch's has no types
            for summary in session:
                logger.experiment._get_file_writer().add_summary(summary)
        logger.save()


def best_metrics(metrics: Mapping[str, float | None], objective: str) -> dict[str, float]:
    """The objective and those of :data:`COMPARED` that are defined, under names that no curve has.

    Such as ``best/AP_valid_edge``, ``best/F1_50_infer_filament``: of the names in their order, TensorBoard shows the
    first five unless told otherwise.
    """
    found = {}
    for name, value in metrics.items():
        part, score = name.split("_", 1)
        if value is not None and (score in COMPARED or name == objective):
            found[f"best/{COMPARED.get(score, score)}_{part.replace('/', '_')}"] = value
    return found


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
