"""What several commands need."""

from __future__ import annotations

import json
import logging
import os
import warnings
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

Config = dict[str, Any]


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
        "Detected pickle protocol.*",  # of a file that is refused anyway
    ):
        warnings.filterwarnings("ignore", message)
