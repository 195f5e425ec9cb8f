"""What several benchmarks need."""

import contextlib
import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig, OmegaConf

from grace_lightning.checkpoint import build_module
from grace_lightning.config import build, config_dir
from grace_lightning.module import CHECKPOINT_KEY
from grace_lightning.tasks.train import train


def compose(command: str, *overrides: str) -> DictConfig:
    """Return the configuration that ``grace-<command>`` gets with these overrides, on the CPU."""
    device = [] if command == "annotate" else ["trainer.accelerator=cpu"]
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        return hydra.compose(command, [*device, *overrides])


def trained(overrides: list[str]) -> tuple[dict[str, Any], float]:
    """Train as ``grace-train`` does, and return the best checkpoint's scores of the inference images, and CPU seconds.

    The seconds are those of the whole run, from after the imports.
    """
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        cfg = compose("train", *overrides, "callbacks.progress=null", f"log_dir={folder}", f"run_dir={folder}")
        start = time.process_time()
        return train(cfg)["infer"], time.process_time() - start


def untrained(path: Path, *overrides: str) -> Path:
    """Write a checkpoint of an untrained network."""
    config = OmegaConf.to_container(compose("train", "run_dir=.", *overrides), resolve=True)
    module = build_module(config, build(config["features"], "features"))
    torch.save({CHECKPOINT_KEY: config, "state_dict": module.state_dict()}, path)
    return path


def cpu_seconds(function: Callable[[], Any], repeats: int = 1) -> float:
    """Return the least CPU time of a call."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)
