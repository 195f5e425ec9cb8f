"""Prepared graphs of annotated images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from grace_lightning.augment import Augmentation
from grace_lightning.data.graphs import GraphData, prepare
from grace_lightning.data.memory import Digests, MemoryCache, data_bytes, sample_bytes
from grace_lightning.features import FeatureKind, PatchAugmentation
from grace_lightning.graph import Connection, Sample, with_candidates
from grace_lightning.io import Source, read_instances
from grace_lightning.sampling import Pick, drawing_by, seed_of
from grace_lightning.targets import with_targets


@dataclass(frozen=True)
class _PatchSteps:
    """Augmentations of patches in order, with a ``repr`` that tells them from others."""

    steps: tuple[PatchAugmentation, ...]

    def __call__(self, patches: Tensor) -> Tensor:
        for step in self.steps:
            patches = step(patches)
        return patches


class GraceDataset(Dataset[GraphData]):
    """Prepared graphs of annotated images.

    Parameters
    ----------
    sources : the files of each image
    read : source -> Sample
    features : what to extract
    augment : drawn anew at every access; with frozen features, of which extraction is the greater part of a run, an
        access draws one of the image's views instead. None for none
    num_hops, connection : see :func:`prepare`
    cache : shared by the sets of a run
    views : augmented graphs that are made of an image, once, where the features are frozen
    seed : of the views; the same in another run gives the same ones
    max_candidate : pixels, of edges beyond the triangulation, see :func:`grace_lightning.graph.second_neighbours`; None
        for none
    digests : takes the hashes of what is read
    """

    def __init__(
        self,
        sources: Sequence[Source],
        read: Callable[[Source], Sample],
        features: FeatureKind,
        augment: Augmentation | None = None,
        num_hops: int | Literal["whole"] = "whole",
        connection: Connection = "spiderweb",
        cache: MemoryCache | None = None,
        views: int = 4,
        seed: int = 0,
        max_candidate: float | None = None,
        digests: Digests | None = None,
    ) -> None:
        self.sources = sources
        self.read = read
        self.features = features
        self.augment = augment
        self.num_hops = num_hops
        self.connection = connection
        self.cache = cache or MemoryCache(0)
        self.views = views if augment and features.frozen else 0
        self.seed = seed
        self.max_candidate = max_candidate
        self.digests = digests or Digests()

    def __len__(self) -> int:
        return len(self.sources)

    def annotated(self, index: int) -> Sample:
        """The sample as its files have it, its image preprocessed; read anew each time."""
        source = self.sources[index]
        sample = self.read(source)
        instances = read_instances(source.instances, sample.graph.num_nodes) if source.instances else None
        added = None
        if self.max_candidate is not None:
            graph, added = with_candidates(sample.graph, self.max_candidate)
            sample = sample.replace(graph=graph)
        sample = with_targets(sample, instances, added)
        self.digests.add(source, sample)
        return sample.replace(image=self.features.preprocess(sample.image))

    def sample(self, index: int) -> Sample:
        """The same without its annotation, unless an augmentation looks at it."""

        def load() -> Sample:
            sample = self.annotated(index)  # of which labels are in the graph: to keep the rest costs memory
            if sample.annotation is None or not (self.augment and self.augment.uses_annotation):
                return sample.replace(annotation=None)
            return sample.replace(annotation=_narrow(sample.annotation))

        if not self.augment:  # its image is needed but once
            return load()
        return self.cache.get(("sample", self.sources[index]), load, sample_bytes)

    def prepared(self, index: int) -> GraphData:
        """The graph without augmentation."""

        def make() -> GraphData:
            return prepare(self.sample(index), self.features, None, self.num_hops, self.connection)

        return self.cache.get(("data", self.sources[index]), make, data_bytes)

    def __getitem__(self, pick: int | Pick) -> GraphData:
        if isinstance(pick, int):
            return self._drawn(pick)
        with drawing_by(pick.seed):
            data = self._drawn(pick.image)
        return data if pick.counts else data.without_labels()

    def _drawn(self, index: int) -> GraphData:
        if not self.augment:
            return self.prepared(index)
        if self.views:
            return self.view(index, int(torch.randint(self.views, ())))
        sample = self.augment.sample(self.sample(index))
        return prepare(sample, self.features, self.augment.patches, self.num_hops, self.connection)

    def view(self, index: int, number: int) -> GraphData:
        """One of the augmented graphs of an image: drawn by seed, the image's name and ``number`` alone."""
        source, augment = self.sources[index], self.augment
        assert augment is not None

        def make() -> GraphData:
            with drawing_by(seed_of(self.seed, source.name, number)):
                sample = augment.sample(self.sample(index))
                patches = _PatchSteps(tuple(augment.on_patches)) if augment.on_patches else None
                return prepare(sample, self.features, patches, self.num_hops, self.connection)

        return self.cache.get(("view", source, number), make, data_bytes)


def _narrow(annotation: Tensor) -> Tensor:
    """The numbers in two bytes, where they and as many copies fit."""
    return annotation.to(torch.int16 if annotation.max() < 2**14 else torch.int32)
