"""The record of a run: enough to do it again, whether two saw the same data, and what tells it from other runs."""

import hashlib
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import TensorBoardLogger
from torch.utils.tensorboard import FileWriter
from torch.utils.tensorboard.summary import hparams

from grace_lightning.config import differing, selected
from grace_lightning.data import GraceDataModule
from grace_lightning.errors import InputError
from grace_lightning.files import one_line, replacing, short, some, write_json
from grace_lightning.legacy import key_of, render
from grace_lightning.sweeps import flat_metrics
from grace_lightning.tasks.common import Config, plain, versions


def write_record(config: Config, run_dir: Path, datamodule: GraceDataModule) -> None:
    """Write ``config.yaml``, the resolved configuration, and ``run.json``: command, versions, git states, data.

    ``datamodule`` has read all images.
    """
    with replacing(run_dir / "config.yaml") as unfinished:
        unfinished.write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    data = {
        name: _described({source.name: datamodule.digests[source] for source in part})
        for name, part in datamodule.sources.items()
    }
    record = {
        "command": shlex.join(sys.argv),
        "folder": str(Path.cwd()),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "packages": versions(),
        "git": {"folder": git_state(Path.cwd()), "grace-lightning": git_state(Path(__file__))},
        "data": data,
    }
    write_json(run_dir / "run.json", record)


def _described(images: Mapping[str, str]) -> dict[str, Any]:
    """Return a hash of all images of a set, whatever their order, and of each by name."""
    lines = "".join(f"{name} {digest}\n" for name, digest in sorted(images.items()))
    return {"hash": hashlib.blake2b(lines.encode(), digest_size=16).hexdigest(), "images": dict(images)}


def git_state(path: Path) -> dict[str, Any] | None:
    """Return the commit of the repository that has ``path``, and which files differ; None outside of any.

    A file must be tracked: an installed package may lie in the folder of another repository.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(path if path.is_dir() else path.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip("\n")

    try:
        if path.is_file():
            git("ls-files", "--error-unmatch", path.name)
        changes = git("status", "--porcelain", "--untracked-files=no")
        return {"commit": git("rev-parse", "HEAD"), "changed": changes.splitlines()}
    except (OSError, subprocess.SubprocessError):
        return None


def typed_overrides() -> list[str]:
    """Return the overrides of this run but for ``ckpt_path``; none if it was called from Python."""
    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    return [word for word in overrides if key_of(word) != "ckpt_path"]


def resume_command(checkpoint: str, others: Sequence[str] = ()) -> str:
    """Return the command that goes on from a checkpoint: with ``others`` and the overrides of this run."""
    simple = all(letter.isalnum() or letter in "/._-:" for letter in checkpoint)
    given = checkpoint if simple else render(checkpoint)
    typed = typed_overrides()
    keys = {"ckpt_path", *map(key_of, typed)}
    return shlex.join(["grace-train", f"ckpt_path={given}", *(w for w in others if key_of(w) not in keys), *typed])


SHAPING = (
    *("data", "features", "model", "augment", "module", "optimizer", "scheduler", "seed", "trainer"),
    *("callbacks.checkpoint", "callbacks.early_stopping", "callbacks.weight_averaging"),
)
"""Groups whose values shape a training."""

NOT_SHAPING = (
    *("data.num_workers", "data.cache_gib", "features.cache_dir", "trainer.accelerator", "trainer.strategy"),
    *("trainer.deterministic", "trainer.log_every_n_steps", "trainer.num_sanity_val_steps"),
    "trainer.enable_model_summary",
)
"""Keys in them that do not."""


def expect_typed(path: Path, trained: Config, cfg: DictConfig) -> None:
    """Raise an :class:`InputError` if a run that goes on has other settings than the checkpoint, which nobody typed.

    It prints the command with the settings that the checkpoint's run was given. A reference to another key, such as
    ``${trainer.max_epochs}``, follows that key. From Python, everything counts as typed.
    """
    if not HydraConfig.initialized():
        return
    config = plain(cfg)
    differ = [key for name in SHAPING for key in differing(selected(trained, name), selected(config, name), name)]
    given = [key_of(word) for word in typed_overrides()]
    changed = [key for key in differ if not (_covered(key, given) or key in NOT_SHAPING or _refers(cfg, key))]
    if not changed:
        return
    file = path.parent.parent / ".hydra" / "overrides.yaml"
    own: list[str] = []
    with suppress(Exception):  # whatever is in that file
        own = [str(word) for word in cast(list[Any], OmegaConf.to_container(OmegaConf.load(file), resolve=False))]
    own += [f"{key}={render(selected(trained, key))}" for key in changed if not _covered(key, map(key_of, own))]
    command = resume_command(short(path), own)
    raise InputError(
        f"ckpt_path: {path} was trained with another {some(changed)}, which this command does not give; to go on with "
        f"the settings of that run: {command} (to change one of them, type it)"
    )


def _covered(key: str, given: Iterable[str]) -> bool:
    return any(f"{key}.".startswith(f"{one}.") for one in given)


def _refers(cfg: DictConfig, key: str) -> bool:
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    return isinstance(node, DictConfig) and OmegaConf.is_interpolation(node, name)


COMPARED = {"average_precision": "AP", "f1": "F1", "f1_50": "F1_50", "mean_best_iou": "IoU"}
"""Metrics that are logged beside the objective, by the ends of their names, and how they are called there."""

NOT_SHOWN = (
    *("experiment", "log_dir", "run_dir", "objective", "callbacks", "logger", "ckpt_path", "config_file"),
    *("data.simulation", "seed"),
)
"""How keys begin that say nothing about the network, or are shown anyway; nor are keys shown that end with ``_dir``."""


def log_hyperparameters(trainer: pl.Trainer, config: dict[str, Any]) -> None:
    """Give the hyperparameters to all loggers, before training.

    TensorBoard gets them in a file, and shows them once :func:`log_best_metrics` has been called. An
    :class:`InputError` says that a service does not know the user, or cannot be reached.
    """
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.hparams.update(hyperparameters(config))  # written to hparams.yaml
            continue
        try:
            _ = logger.experiment  # type: ignore[attr-defined]  # services ask now who is there
        except Exception as error:  # whatever a library raises
            found = f"logger: {type(logger).__name__} does not start ({one_line(error)})"
            raise InputError(f"{found}; logger=tensorboard or csv needs nobody") from error
        logger.log_hyperparams(hyperparameters(config))


def log_best_metrics(trainer: pl.Trainer, config: dict[str, Any], results: dict[str, Any]) -> None:
    """Log how good the best checkpoint is, after training, and what TensorBoard needs to list the run in HParams.

    Of ``results``, by set as ``grace-train`` returns them, the objective and :data:`COMPARED` are logged, such as
    ``best/AP_valid_edge``. No curve has such a name, and the first five are those that TensorBoard shows at once.
    """
    metrics = {}
    for name, value in flat_metrics(results).items():
        part, score = name.split("_", 1)
        if value is not None and (score in COMPARED or name == config["objective"]):
            metrics[f"best/{COMPARED.get(score, score)}_{part.replace('/', '_')}"] = value
    for logger in trainer.loggers:
        logger.log_metrics(metrics, step=max(trainer.current_epoch - 1, 0))
        if isinstance(logger, TensorBoardLogger):
            # The first of three summaries is the experiment: TensorBoard would show this run's columns for all runs.
            _, *session = hparams(hyperparameters(config), {})  # type: ignore[no-untyped-call]  # torch's has no types
            writer = FileWriter(logger.log_dir)
            for summary in session:
                writer.add_summary(summary)
            writer.close()
        logger.save()


def hyperparameters(config: dict[str, Any]) -> dict[str, Any]:
    """Return the seed, the options of three groups, and what the command line set, but for :data:`NOT_SHOWN`."""
    shown: dict[str, Any] = {"seed": str(config["seed"])}  # as text: no quantity, and TensorBoard would show 0.0000
    if not HydraConfig.initialized():  # called from Python, without a command line
        return shown
    hydra = HydraConfig.get()
    choices, values = hydra.runtime.choices, OmegaConf.create(config)
    for key in ("model", "features", "augment", *map(key_of, hydra.overrides.task)):
        if not key.startswith(NOT_SHOWN) and not key.endswith("_dir"):
            value = choices[key] if key in choices else OmegaConf.select(values, key)
            shown[key] = value if isinstance(value, bool | int | float | str) else str(value).replace("None", "null")
    return shown
