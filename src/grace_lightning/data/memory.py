"""What is kept of what was read: samples between epochs, and their hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor

from grace_lightning.data.graphs import GraphData
from grace_lightning.graph import Sample
from grace_lightning.io import Source

T = TypeVar("T")


class MemoryCache:
    """Keeps what was made once, up to a number of bytes; what does not fit is made anew each time."""

    def __init__(self, limit: float) -> None:
        self.room = limit
        self.kept: dict[Any, Any] = {}

    def get(self, key: Any, make: Callable[[], T], size: Callable[[T], int]) -> T:
        """What is kept under ``key``, or made and, where its ``size`` in bytes still fits, kept."""
        if key in self.kept:
            kept: T = self.kept[key]
            return kept
        made = make()
        if size(made) <= self.room:
            self.room -= size(made)
            self.kept[key] = made
        return made


class Digests:
    """Hashes of what was read, by source: of pixels, points, edges, labels and annotation, not of bytes on disk."""

    def __init__(self) -> None:
        self.known: dict[Source, str] = {}

    def add(self, source: Source, sample: Sample) -> None:
        """Take the hash of a sample as its files have it, unless it is known already."""
        if source in self.known:
            return
        digest = hashlib.blake2b(digest_size=16)
        for name, value in {"image": sample.image, "annotation": sample.annotation, **vars(sample.graph)}.items():
            if isinstance(value, Tensor):
                digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
                digest.update(value.contiguous().numpy().data)
        self.known[source] = digest.hexdigest()


def sample_bytes(sample: Sample) -> int:
    """Bytes of a sample's tensors."""
    tensors = [sample.image, sample.annotation, *vars(sample.graph).values()]
    return sum(t.nbytes for t in tensors if isinstance(t, Tensor))


def data_bytes(data: GraphData) -> int:
    """Bytes of a prepared graph's tensors."""
    return sum(t.nbytes for t in data.to_dict().values() if isinstance(t, Tensor))
