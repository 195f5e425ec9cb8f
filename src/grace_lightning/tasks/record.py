"""What a run was: enough to do it again, and to see whether two runs saw the same."""

from __future__ import annotations

import hashlib
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from grace_lightning.data import Digests
from grace_lightning.io import Source
from grace_lightning.tasks.common import Config, write_json

PACKAGES = (
    *("grace-lightning", "torch", "pytorch-lightning", "torch-geometric", "torchmetrics", "torchvision", "timm"),
    *("hydra-core", "omegaconf", "numpy", "scipy", "pandas", "pyarrow", "h5py", "scikit-image", "mrcfile", "tifffile"),
)
"""Those whose version may change a result."""


def write_record(config: Config, run_dir: Path, data: Mapping[str, Any]) -> None:
    """Write ``config.yaml``, the resolved configuration, and ``run.json``: command, versions, git states, data.

    Parameters
    ----------
    config : plain containers
    run_dir : the run folder
    data : see :func:`describe_data`
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    part = run_dir / "config.yaml.part"
    part.write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    part.replace(run_dir / "config.yaml")
    record = {
        "command": shlex.join(sys.argv),
        "folder": str(Path.cwd()),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "packages": {name: _version(name) for name in PACKAGES},
        "git": {"folder": git_state(Path.cwd()), "grace-lightning": git_state(Path(__file__).parent, Path(__file__))},
        "data": dict(data),
    }
    write_json(run_dir / "run.json", record)


def describe_data(sources: Mapping[str, Sequence[Source]], digests: Digests) -> dict[str, Any]:
    """By set a hash of all its images, whatever their order, and of each by name."""

    def describe(images: Mapping[str, str]) -> dict[str, Any]:
        lines = "".join(f"{name} {digest}\n" for name, digest in sorted(images.items()))
        return {"hash": hashlib.blake2b(lines.encode(), digest_size=16).hexdigest(), "images": dict(images)}

    return {name: describe({s.name: digests.known[s] for s in part}) for name, part in sources.items()}


def resume_command(checkpoint: str) -> str:
    """What to type to go on from a checkpoint: the overrides of this run, and no others."""
    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    kept = [word for word in overrides if word.partition("=")[0].lstrip("+") != "ckpt_path"]
    return shlex.join(["grace-train", f"ckpt_path={_quoted(checkpoint)}", *kept])


def _quoted(value: str) -> str:
    """A value as Hydra's command line takes it."""
    if all(letter.isalnum() or letter in "/._-:" for letter in value):
        return value
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def git_state(folder: Path, tracked: Path | None = None) -> dict[str, Any] | None:
    """Commit of the repository that ``folder`` lies in, and whether files differ from it; None outside of any.

    Parameters
    ----------
    folder : anywhere in the repository
    tracked : None as well, unless the repository has this file: an installed package may lie in another's folder
    """
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None or (tracked is not None and _git(folder, "ls-files", "--error-unmatch", str(tracked)) is None):
        return None
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "changed": changes.splitlines() if changes is not None else None}


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip("\n") if done.returncode == 0 else None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
