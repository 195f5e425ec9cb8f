"""What several commands need."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import track

from grace_lightning.errors import InputError

Config = dict[str, Any]

Checkpoints = str | Path | Sequence[str | Path]
"""One checkpoint, or several, whose networks predict together; a folder stands for those of the runs in it."""

BEST = Path("model", "best.ckpt")
"""Where a run's folder has its best checkpoint."""


def checkpoint_paths(given: Checkpoints) -> list[Path]:
    """The files of the checkpoints.

    Parameters
    ----------
    given : files, folders of runs, or folders of sweeps, of which every run counts that has a checkpoint

    Raises
    ------
    InputError
        A folder has no checkpoint.
    """
    return [
        file for one in ([given] if isinstance(given, str | Path) else given) for file in _checkpoint_files(Path(one))
    ]


def _checkpoint_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = [path / BEST] if (path / BEST).is_file() else sorted(path.glob(f"*/{BEST.as_posix()}"))
    if not found:
        raise InputError(f"{path}: no checkpoint in it, expected a run's folder with {BEST}, or the folder of a sweep")
    return found


def same_in_all(configs: Sequence[Config], key: str, hint: str) -> Any:
    """The value that the configurations of all checkpoints have at ``group.key``, None where it is missing."""
    group, name = key.split(".")
    values = [config[group].get(name) for config in configs]
    if any(value != values[0] for value in values):
        found = ", ".join("null" if value is None else str(value) for value in values)
        raise InputError(f"checkpoint: trained with different {key}, {found}: {hint}")
    return values[0]


def plain(cfg: DictConfig) -> Config:
    """The configuration as plain containers, all references resolved."""
    return cast(Config, OmegaConf.to_container(cfg, resolve=True))


def write_json(path: Path, content: Any) -> None:
    """Write a file that is never seen half written; NaN is an error."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
    os.replace(part, path)


def short(path: Path) -> str:
    """The path from here, where it lies below."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def quiet_lightning() -> None:
    """Leave out what Lightning says to developers at every start."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning.fabric", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*smaller than the logging interval.*",
        ".*is deprecated.*",
        "Checkpoint directory .* exists and is not empty.*",  # a run that goes on in its folder
        "Detected pickle protocol.*",  # of a file that is refused anyway
    ):
        warnings.filterwarnings("ignore", message)


def each_image(names: Iterable[str], work: Callable[[str], None], *, doing: str) -> list[str]:
    """Do ``work`` for every image, behind a progress bar; one that fails does not keep the others from being done.

    Parameters
    ----------
    names : of the images
    work : given the name; an :class:`InputError` means that this image failed
    doing : what stands before the bar

    Returns
    -------
    What is wrong with those that failed, one line each
    """
    console, failures = Console(stderr=True), []
    for name in track(list(names), doing, console=console, disable=not console.is_terminal, transient=True):
        try:
            work(name)
        except InputError as error:
            failures.append(" ".join(str(error).split()))
    return failures


def exit_if_failed(command: str, failures: Sequence[str]) -> None:
    """Say on stderr what failed, one line each, and leave with status 1; go on where nothing did."""
    for failure in failures:
        print(f"{command}: {failure}", file=sys.stderr)
    if failures:
        sys.exit(1)
