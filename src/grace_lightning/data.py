"""From annotation folders to batches of graphs."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader

from grace_lightning.augment import Augmentation
from grace_lightning.errors import InputError
from grace_lightning.features import FeatureKind, PatchAugmentation
from grace_lightning.graph import Connection, Label, Sample, subgraphs, with_candidates
from grace_lightning.io import Source, find_sources, read_instances, read_sample
from grace_lightning.sampling import EpochSampler, Pick, drawing_by, seed_of
from grace_lightning.targets import with_targets

T = TypeVar("T")


class GraphData(Data):
    """A prepared graph, or a batch of them.

    Holds what the feature kind extracts (such as ``x`` (N, F) and ``edge_attr`` (E, G), raw), ``edge_index`` (2, E)
    with each undirected edge once, ``node_label`` (N,), ``edge_label`` (E,), ``end_label`` (N,),
    ``link_label`` (E,), ``pos`` (N, 2) and ``name``.
    With neighbourhoods also the ``member_*`` of :class:`grace_lightning.graph.Subgraphs`.
    """

    def __inc__(self, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        """What to add to numbers in ``key`` when another graph comes before this one in a batch."""
        if key in ("member_node", "member_centre"):
            return self.num_nodes
        if key == "member_edges":
            return len(self.member_node)
        if key == "member_edge":
            return self.edge_index.shape[1]
        return super().__inc__(key, value, *args, **kwargs)

    def __cat_dim__(self, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        """Along which dimension ``key`` is joined in a batch."""
        return 1 if key == "member_edges" else super().__cat_dim__(key, value, *args, **kwargs)

    @property
    def has_subgraphs(self) -> bool:
        """Whether the network sees the neighbourhood of each node instead of the whole graph."""
        return "member_node" in self

    # Plain numbers, not tensors: asking a GPU for them would make it wait.

    @property
    def nodes_per_image(self) -> list[int]:
        """Number of nodes of each image of a batch."""
        return [nodes for nodes, _ in self._by_image("graph_size")]

    @property
    def edges_per_image(self) -> list[int]:
        """Number of edges of each image of a batch."""
        return [edges for _, edges in self._by_image("graph_size")]

    @property
    def image_shapes(self) -> list[tuple[int, int]]:
        """Rows and columns of each image of a batch, where the features took the image along."""
        return self._by_image("image_shape")

    @property
    def num_counted(self) -> int:
        """Number of images of a batch that count, see :class:`grace_lightning.sampling.Pick`."""
        return sum(counted for (counted,) in self._by_image("counted"))

    def without_labels(self) -> GraphData:
        """The same graph, everything in it UNKNOWN and itself not counted."""
        data = copy.copy(self)
        for key in ("node_label", "edge_label", "end_label", "link_label"):
            data[key] = torch.full_like(data[key], Label.UNKNOWN)
        data.counted = (0,)
        return data

    def _by_image(self, key: str) -> list[Any]:
        value = self[key]  # a batch has a list of what a single graph has
        return value if isinstance(value, list) else [value]


def prepare(
    sample: Sample,
    features: FeatureKind,
    augment: PatchAugmentation | None = None,
    num_hops: int | Literal["whole"] = "whole",
    connection: Connection = "spiderweb",
) -> GraphData:
    """The graph of a sample as the network takes it.

    Parameters
    ----------
    sample : its image already went through ``features.preprocess``
    features : what to extract
    augment : applied to the patches
    num_hops : size of the neighbourhood that the network sees around each node, or ``whole``
    connection : see :func:`grace_lightning.graph.subgraphs`
    """
    graph = sample.graph
    data = GraphData(
        edge_index=graph.edges,
        node_label=graph.node_label,
        edge_label=graph.edge_label,
        end_label=graph.end_label,
        link_label=graph.link_label,
        pos=graph.pos,
        num_nodes=graph.num_nodes,
        name=sample.name,
        graph_size=(graph.num_nodes, graph.num_edges),
        counted=(1,),
        **features.extract(sample, augment),
    )
    if num_hops != "whole":
        parts = subgraphs(graph.edges, graph.num_nodes, num_hops=num_hops, connection=connection)
        data.member_centre, data.member_node = parts.centre, parts.node
        data.member_edges, data.member_edge = parts.edges, parts.edge
    return data


class MemoryCache:
    """Keeps what was made once, up to a number of bytes; what does not fit is made anew each time."""

    def __init__(self, limit: float) -> None:
        self.room = limit
        self.kept: dict[Any, Any] = {}

    def get(self, key: Any, make: Callable[[], T], size: Callable[[T], int]) -> T:
        """What is kept under ``key``, or made and, where its ``size`` in bytes still fits, kept."""
        if key in self.kept:
            return self.kept[key]  # type: ignore[no-any-return]
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


def _sample_bytes(sample: Sample) -> int:
    tensors = [sample.image, sample.annotation, *vars(sample.graph).values()]
    return sum(t.nbytes for t in tensors if isinstance(t, Tensor))


def _data_bytes(data: GraphData) -> int:
    return sum(t.nbytes for t in data.to_dict().values() if isinstance(t, Tensor))


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
        """The same without its annotation."""

        def load() -> Sample:
            # the labels are in the graph: the annotation need not be kept, nor turned with every augmentation
            return self.annotated(index).replace(annotation=None)

        if not self.augment:  # its image is needed but once
            return load()
        return self.cache.get(("sample", self.sources[index]), load, _sample_bytes)

    def prepared(self, index: int) -> GraphData:
        """The graph without augmentation."""

        def make() -> GraphData:
            return prepare(self.sample(index), self.features, None, self.num_hops, self.connection)

        return self.cache.get(("data", self.sources[index]), make, _data_bytes)

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

        return self.cache.get(("view", source, number), make, _data_bytes)


class GraceDataModule(pl.LightningDataModule):
    """Training, validation and inference images.

    Either three folders, or one that is split.

    Parameters
    ----------
    features : what to extract; given at run time
    augment : for the training set; given at run time
    views : of each training image, see :class:`GraceDataset`; given at run time
    train_image_dir, valid_image_dir, infer_image_dir : folders of images; inference may be left out
    train_grace_dir, valid_grace_dir, infer_grace_dir : folders of their ``X.grace``; None: the image folder
    image_dir, grace_dir : one folder to split instead
    split : fractions of training, validation and inference images
    seed : of the split, the order of the images, their augmentation, and the views
    batch_size : images in a step of each process
    num_workers : processes that prepare samples
    frame : what to take of a stack: an index or ``mean``
    keep_node_unknown_labels, keep_edge_unknown_labels : leave UNKNOWN out of loss and metrics; else it is negative
    num_hops : the network sees this neighbourhood of each node, or the ``whole`` graph
    connection : ``spiderweb`` keeps all edges of a neighbourhood, ``fireworks`` those that touch its centre
    cache_gib : GiB of memory for samples that are kept between epochs
    simulation : called first; makes the folders
    max_candidate : pixels, see :class:`GraceDataset`
    """

    def __init__(
        self,
        features: FeatureKind,
        augment: Augmentation | None = None,
        views: int = 4,
        train_image_dir: str | None = None,
        train_grace_dir: str | None = None,
        valid_image_dir: str | None = None,
        valid_grace_dir: str | None = None,
        infer_image_dir: str | None = None,
        infer_grace_dir: str | None = None,
        image_dir: str | None = None,
        grace_dir: str | None = None,
        split: Sequence[float] = (0.7, 0.15, 0.15),
        seed: int = 0,
        batch_size: int = 1,
        num_workers: int = 0,
        frame: int | Literal["mean"] | None = None,
        keep_node_unknown_labels: bool = False,
        keep_edge_unknown_labels: bool = False,
        num_hops: int | Literal["whole"] = "whole",
        connection: Connection = "spiderweb",
        cache_gib: float = 4.0,
        simulation: Callable[[], None] | None = None,
        max_candidate: float | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise InputError(f"data.batch_size: {batch_size}, expected 1 image or more")
        if num_hops != "whole" and num_hops < 1:
            raise InputError(f"data.num_hops: {num_hops}, expected 1 or more, or 'whole'")
        self.features = features
        self.augment, self.views = augment, views
        self.folders = {
            "train": (train_image_dir, train_grace_dir),
            "valid": (valid_image_dir, valid_grace_dir),
            "infer": (infer_image_dir, infer_grace_dir),
        }
        self.image_dir, self.grace_dir = image_dir, grace_dir
        self.split, self.seed = split, seed
        self.batch_size, self.num_workers = batch_size, num_workers
        self.frame = frame
        self.keep_node_unknown_labels = keep_node_unknown_labels
        self.keep_edge_unknown_labels = keep_edge_unknown_labels
        self.num_hops: int | Literal["whole"] = num_hops
        self.connection: Connection = connection
        self.simulation = simulation
        self.max_candidate = max_candidate
        self.cache = MemoryCache(cache_gib * 2**30)
        self.digests = Digests()
        self.sources: dict[str, list[Source]] = {}

    def prepare_data(self) -> None:
        """Simulate, where that is configured."""
        if self.simulation is not None:
            self.simulation()

    def setup(self, stage: str | None = None) -> None:
        """Find the files: of all sets for ``fit``, of the inference images for ``predict``."""
        if self.sources:
            return
        if self.image_dir is not None:
            given = [f"data.{name}_image_dir" for name, (folder, _) in self.folders.items() if folder is not None]
            if given:
                raise InputError(
                    f"data.image_dir and {given[0]} are both set; give one folder to split, or a folder each"
                )
            self.sources = split_sources(find_sources(self.image_dir, self.grace_dir), self.split, self.seed)
            return
        needed = ("train", "valid") if stage == "fit" else ("infer",)
        for name in needed:
            if self.folders[name][0] is None:
                raise InputError(f"data.{name}_image_dir is not set; give the folder of the {name} images")
        wanted = ("train", "valid", "infer") if stage == "fit" else ("infer",)
        self.sources = {
            name: find_sources(folder, grace) if folder is not None else []
            for name, (folder, grace) in self.folders.items()
            if name in wanted
        }

    def dataset(self, name: str, *, augmented: bool = False) -> GraceDataset:
        """The images of ``train``, ``valid`` or ``infer``."""
        return GraceDataset(
            self.sources[name],
            self._read,
            self.features,
            self.augment if augmented else None,
            self.num_hops,
            self.connection,
            self.cache,
            self.views,
            self.seed,
            self.max_candidate,
            self.digests,
        )

    def _read(self, source: Source) -> Sample:
        return read_sample(
            source,
            frame=self.frame,
            keep_node_unknown_labels=self.keep_node_unknown_labels,
            keep_edge_unknown_labels=self.keep_edge_unknown_labels,
        )

    def loader(self, name: str, *, training: bool = False, shared: bool = False) -> DataLoader:
        """Batches of ``train``, ``valid`` or ``infer``: all, or where they are ``shared`` this process' part."""
        dataset = self.dataset(name, augmented=training)
        trainer = self.trainer if shared else None
        processes, rank = (trainer.world_size, trainer.global_rank) if trainer else (1, 0)
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=EpochSampler(dataset, self.seed, self._epoch, training, processes, rank),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            generator=torch.Generator(),  # its own: what a loader draws is not to shift what dropout draws
        )

    def _epoch(self) -> int:
        # whole epochs, also in a resumed run, of which ``current_epoch`` is known only once it has begun
        return int(self.trainer.fit_loop.epoch_progress.current.processed) if self.trainer else 0  # type: ignore[attr-defined]

    def train_dataloader(self) -> DataLoader:
        """Training images, shuffled and augmented; with several processes the share of this one."""
        return self.loader("train", training=True, shared=True)

    def val_dataloader(self) -> DataLoader:
        """Validation images; with several processes the share of this one."""
        return self.loader("valid", shared=True)

    def predict_dataloader(self) -> DataLoader:
        """Inference images, all of them."""
        return self.loader("infer")


def split_sources(sources: Sequence[Source], split: Sequence[float], seed: int) -> dict[str, list[Source]]:
    """Images dealt at random to training, validation and inference.

    Parameters
    ----------
    sources : all images, two at least
    split : three fractions that add up to 1; training and validation get one image at least
    seed : same seed, same split
    """
    if len(split) != 3 or min(split) < 0 or abs(sum(split) - 1) > 1e-6:
        raise InputError(f"data.split: {list(split)}, expected three fractions that add up to 1")
    if len(sources) < 2:
        raise InputError(f"data.image_dir: {len(sources)} annotated image, expected 2 or more to split")
    order = torch.randperm(len(sources), generator=torch.Generator().manual_seed(seed)).tolist()
    infer = min(round(split[2] * len(sources)), len(sources) - 2)
    valid = min(max(1, round(split[1] * len(sources))), len(sources) - infer - 1)
    bounds = {"valid": (0, valid), "infer": (valid, valid + infer), "train": (valid + infer, len(sources))}
    return {name: sorted((sources[k] for k in order[a:b]), key=lambda s: s.name) for name, (a, b) in bounds.items()}
