"""Checkpoints, read without running anything in them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from grace_lightning.errors import InputError

CHECKPOINT_KEY = "grace_lightning"
"""Where a checkpoint keeps the resolved configuration it was trained with."""


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint's content, without running anything in it.

    Raises
    ------
    InputError
        The file is missing, cannot be read, or is not a checkpoint of this package.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint; a run keeps its own in <run folder>/model/best.ckpt")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = "it holds more than numbers and text, which is never loaded"
        raise InputError(f"{path}: cannot be read as a checkpoint ({reason}); is it one of grace-train?") from error
    except Exception as error:  # torch raises whatever zip and pickle raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{path}: cannot be read as a checkpoint ({reason}); is the file complete?") from error
    if not isinstance(content, dict) or not {CHECKPOINT_KEY, "state_dict"} <= content.keys():
        raise InputError(f"{path}: not a checkpoint of grace-train (it has no '{CHECKPOINT_KEY}' and 'state_dict')")
    return content
