"""Features that were computed once, kept on disk."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from torch import Tensor

from grace_lightning.errors import InputWarning

FORMAT = 1
"""Part of every key; goes up when the same parameters come to give other features."""


def content_key(*parts: Any) -> str:
    """A name for what is computed from ``parts``: the same for equal content, another for any other.

    Parameters
    ----------
    parts : tensors count by their bytes, type and shape, anything else by its ``repr``
    """
    digest = hashlib.blake2b(digest_size=20)
    for part in (FORMAT, *parts):
        if isinstance(part, Tensor):
            array = part.detach().cpu().contiguous().numpy()
            digest.update(f"{array.dtype} {array.shape};".encode())
            digest.update(array.reshape(-1).view(np.uint8).data)
        else:
            digest.update(f"{part!r};".encode())
    return digest.hexdigest()


def default_folder() -> Path:
    """Where features are kept unless the configuration says otherwise."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "grace-lightning" / "features"


class FeatureCache:
    """Arrays by key, a ``.npy`` file each; several runs may share a folder.

    Parameters
    ----------
    folder : made when the first array is kept

    Attributes
    ----------
    loaded, computed : how many arrays came from the folder, and how many did not
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.loaded = self.computed = 0
        self._writable = True

    def get(self, key: str, shape: tuple[int, ...], make: Callable[[], Tensor]) -> Tensor:
        """The float32 array of ``shape`` kept under ``key``, or made and kept; a damaged file is made anew."""
        found = self._read(key, shape)
        if found is not None:
            self.loaded += 1
            return found
        made = make()
        self.computed += 1
        self._write(key, made)
        return made

    def size(self) -> int:
        """Bytes of all files in the folder."""
        sizes = []
        for path in self.folder.glob("*"):
            try:
                sizes.append(path.stat().st_size)
            except FileNotFoundError:  # another run has just renamed it
                continue
        return sum(sizes)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.npy"

    def _read(self, key: str, shape: tuple[int, ...]) -> Tensor | None:
        path = self._path(key)
        try:
            with path.open("rb") as file:
                array = np.lib.format.read_array(file, allow_pickle=False)
            if array.shape != shape or array.dtype != np.float32:
                raise ValueError(f"{array.dtype} of shape {array.shape}, expected float32 of {shape}")
            return torch.from_numpy(array)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, EOFError) as error:
            warnings.warn(
                f"{path}: cannot be read ({error}); the features are computed anew", InputWarning, stacklevel=2
            )
            return None

    def _write(self, key: str, values: Tensor) -> None:
        if not self._writable:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            part = self.folder / f"{uuid4().hex}.part"
            try:
                with part.open("xb") as file:
                    np.save(file, values.numpy(), allow_pickle=False)
                os.replace(part, self._path(key))  # no other run ever sees half a file
            finally:
                part.unlink(missing_ok=True)
        except OSError as error:
            self._writable = False
            warnings.warn(
                f"features.cache_dir: {self.folder} cannot be written ({error}); features are not kept. "
                "Name another folder, or set features.cache=false",
                InputWarning,
                stacklevel=2,
            )
