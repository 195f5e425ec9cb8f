"""From annotation folders to batches of graphs."""

from grace_lightning.data.dataset import GraceDataset
from grace_lightning.data.graphs import GraphData, prepare
from grace_lightning.data.memory import Digests, MemoryCache
from grace_lightning.data.module import GraceDataModule, split_sources

__all__ = ["Digests", "GraceDataModule", "GraceDataset", "GraphData", "MemoryCache", "prepare", "split_sources"]
