"""From annotation folders to batches of graphs."""

import hashlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from functools import partial
from itertools import accumulate, tee
from math import inf
from statistics import median
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset, DistributedSampler
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader

from grace_lightning.augment import Augmentation, magnified_sample
from grace_lightning.config import check_value
from grace_lightning.errors import InputError, InputWarning
from grace_lightning.estimate import MOST_IMAGES, POLARITIES, estimate
from grace_lightning.files import MAX_GIB, expect_folder
from grace_lightning.flatten import flatten_image, flattened
from grace_lightning.graph import (
    Connection,
    Label,
    Labelled,
    Sample,
    edge_geometry,
    encode_geometry,
    subgraphs,
)
from grace_lightning.io import Source, find_sources, pixel_size, read_sample
from grace_lightning.io.grace import METADATA
from grace_lightning.memory import Memory
from grace_lightning.raster import values_at
from grace_lightning.ridges import Polarity
from grace_lightning.splits import Dealt, cut_in_two, deal

Hops = int | Literal["whole"]

MOST_TYPES = 100
"""More types of filaments than anybody tells apart: a larger number is a mistake."""


class GraphData(Labelled, Data):
    """An image with its graph as the network takes it, or a batch of images.

    Holds ``pixels`` (all images in one row), ``pos`` (N, 2), ``edge_index`` (2, E) with each undirected edge once,
    ``edge_attr`` (E, 15), see :func:`grace_lightning.graph.encode_geometry`, ``node_label`` (N, 4), ``edge_label``
    (E, 2) and ``node_type`` (N,), see :class:`grace_lightning.graph.Graph`. If the network is to see neighbourhoods,
    also the ``member_*`` of :class:`grace_lightning.graph.Subgraphs`.
    """

    def __inc__(self, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        if key in ("member_node", "member_centre"):
            return self.num_nodes
        if key == "member_edges":
            return len(self.member_node)
        if key == "member_edge":
            return self.edge_index.shape[1]
        return super().__inc__(key, value, *args, **kwargs)

    def __cat_dim__(self, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        return 1 if key == "member_edges" else super().__cat_dim__(key, value, *args, **kwargs)

    @property
    def has_subgraphs(self) -> bool:
        """Whether the network sees the neighbourhood of each node instead of the whole graph."""
        return "member_node" in self

    # Plain values, not tensors: asking a GPU for them would make it wait.

    @property
    def names(self) -> list[str]:
        """Names of the images."""
        return self._by_image("name")

    @property
    def seeds(self) -> list[int]:
        """Seed that the augmentation of each image was drawn with."""
        return [seed for (seed,) in self._by_image("seed")]

    @property
    def num_counted(self) -> int:
        """Number of images that count, see :class:`Pick`."""
        return sum(counted for (counted,) in self._by_image("counted"))

    def _by_image(self, key: str) -> list[Any]:
        return self[key] if "ptr" in self else [self[key]]  # a batch has a list of what a single graph has

    def images(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Return of each image its pixels (1, H, W), positions (n, 2), and edges (2, e) numbered within the image."""
        shapes, sizes = self._by_image("image_shape"), self._by_image("graph_size")
        pixels = torch.split(self.pixels, [height * width for height, width in shapes])
        pos = torch.split(self.pos, [nodes for nodes, _ in sizes])
        edges = torch.split(self.edge_index, [edges for _, edges in sizes], dim=1)
        first = accumulate((nodes for nodes, _ in sizes), initial=0)
        parts = zip(pixels, shapes, pos, edges, first, strict=False)
        return [(image.view(1, *shape), points, ends - start) for image, shape, points, ends, start in parts]


def as_seen(sample: Sample, sigma: float | None, factor: float = 1.0, polarity: Polarity | None = None) -> Sample:
    """Return a sample as networks see it: resampled to ``factor`` times its size, flattened, filaments dark.

    Positions and annotation are resampled with the image; labels and truth stay as they are. ``sigma`` is of
    :func:`flattened`; without ``polarity``, what filaments are, grey values keep their sign.
    """
    sample = magnified_sample(sample, factor)
    image = flattened(sample.image, sigma)
    return sample.replace(image=-image if polarity == "bright" else image)


def _polarity(samples: Iterable[Sample]) -> Polarity | None:
    """Return what filaments are by the pixels around positive nodes; None if there are none."""
    values = []
    for sample in samples:
        pixels = functional.avg_pool2d(flatten_image(sample.image, 40.0), 5, stride=1, padding=2)[0].numpy()
        positive = sample.graph.label("node") == Label.TRUE_POSITIVE
        values.append(values_at(pixels, sample.graph.pos[positive].numpy()))
    around = np.concatenate(values)
    return POLARITIES[1 if around.mean() > 0 else -1] if len(around) else None


def graph_data(
    sample: Sample, num_hops: Hops = "whole", connection: Connection = "spiderweb", seed: int = 0
) -> GraphData:
    """Return a sample, its image flattened and augmented with ``seed``, as the network takes it.

    ``num_hops`` is the size of the neighbourhood that the network sees around each node, or ``whole``.
    """
    graph = sample.graph
    data = GraphData(
        pixels=sample.image.flatten(),
        image_shape=tuple(sample.image.shape[1:]),
        edge_index=graph.edges,
        edge_attr=encode_geometry(edge_geometry(graph.pos, graph.edges)),
        node_label=graph.node_label,
        edge_label=graph.edge_label,
        node_type=graph.node_type,
        pos=graph.pos,
        num_nodes=graph.num_nodes,
        name=sample.name,
        graph_size=(graph.num_nodes, graph.num_edges),
        counted=(1,),
        seed=(seed,),
    )
    if num_hops != "whole":
        parts = subgraphs(graph.edges, graph.num_nodes, num_hops=num_hops, connection=connection)
        data.member_centre, data.member_node = parts.centre, parts.node
        data.member_edges, data.member_edge = parts.edges, parts.edge
    return data


# The order of images and the draws of their augmentation depend on seed and epoch alone, not on the number of processes
# that prepare samples or train, nor on a stop in between.


class Pick(NamedTuple):
    """One access to an image."""

    image: int  # index in its set
    seed: int  # of the augmentation
    counts: bool = True  # False if the image comes a second time, so that all processes take as many steps


def seed_of(*parts: object) -> int:
    """Return a seed of 56 bits that depends on all ``parts``."""
    return int.from_bytes(hashlib.blake2b(" ".join(map(str, parts)).encode(), digest_size=7).digest(), "big")


@contextmanager
def drawing_by(seed: int) -> Iterator[None]:
    """Seed torch's CPU generator for a while; afterwards it is as it was before."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


class EpochSampler(DistributedSampler[Any]):
    """The images of an epoch for one process of several.

    Together, a step of R processes with B images each takes the images that a step of one process with R * B takes.

    ``epoch`` returns the number of the epoch that begins. If ``shuffle``, each has another order, else the dataset's.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        seed: int,
        epoch: Callable[[], int] = lambda: 0,
        shuffle: bool = False,
        processes: int = 1,
        rank: int = 0,
    ) -> None:
        self.images = len(dataset)  # type: ignore[arg-type]
        # Lightning leaves loaders alone that have a DistributedSampler.
        super().__init__(dataset, processes, rank, shuffle=shuffle, seed=seed)
        self.current = epoch

    def __iter__(self) -> Iterator[Pick]:
        # Not set_epoch: processes that prepare samples are given work before Lightning calls it in a resumed run.
        epoch = self.current()
        if self.shuffle:
            generator = torch.Generator().manual_seed(seed_of(self.seed, epoch))
            order = torch.randperm(self.images, generator=generator).tolist()
        else:
            order = list(range(self.images))
        for position in range(self.rank, self.total_size, self.num_replicas):
            index = order[position % self.images]
            yield Pick(index, seed_of(self.seed, epoch, index), counts=position < self.images)


class GraceDataset(Dataset[GraphData]):
    """Annotated images with their graphs; ``read`` returns the sample of a source as the network sees it.

    Augmentation is drawn anew at every access, or with ``views`` is one of so many fixed ones of each image (by
    ``seed``), which are kept in a ``memory``. ``hops`` are of :func:`graph_data`.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        read: Callable[[Source], Sample],
        augment: Augmentation | None = None,
        *,
        views: int | None = None,
        memory: Memory | None = None,
        seed: int = 0,
        **hops: Any,
    ) -> None:
        self.sources, self.read = sources, read
        self.augment, self.views, self.seed = augment, views, seed
        self.memory = memory or Memory(0)
        self.as_data: Callable[..., GraphData] = partial(graph_data, **hops)

    def __len__(self) -> int:
        return len(self.sources)

    def sample(self, index: int) -> Sample:
        """Return the sample without augmentation."""
        return self.read(self.sources[index])

    def graph(self, index: int) -> GraphData:
        """Return the graph without augmentation."""
        return self.as_data(self.sample(index))

    def __getitem__(self, pick: Pick) -> GraphData:
        seed = pick.seed
        if self.views and self.augment:
            with drawing_by(seed):
                seed = seed_of(self.seed, self.sources[pick.image].name, int(torch.randint(self.views, ())))
            made = partial(self._augmented, pick.image, seed)
            data = copy(self.memory.get(("view", seed), made, lambda view: view.to_dict().values()))
        else:
            data = self._augmented(pick.image, seed)
        if not pick.counts:
            data.counted = (0,)
            data.node_label = torch.full_like(data.node_label, Label.UNKNOWN)
            data.edge_label = torch.full_like(data.edge_label, Label.UNKNOWN)
            data.node_type = torch.zeros_like(data.node_type)
        return data

    def _augmented(self, index: int, seed: int) -> GraphData:
        sample = self.sample(index)
        if self.augment:
            with drawing_by(seed):
                sample = self.augment.sample(sample)
        return self.as_data(sample, seed=seed)


class GraceDataModule(pl.LightningDataModule):
    """Training, validation and inference images: three folders, or one that is split.

    Parameters
    ----------
    sigma : pixels, see :func:`grace_lightning.flatten.flattened`; given at run time, as the features ask for it
    features_scale : width of a filament as the network sees it, pixels; given at run time
    augment, views : of the training set, see :class:`GraceDataset`; given at run time
    dealt : how ``image_dir`` was split before, which is kept; given at run time
    train_image_dir, valid_image_dir, infer_image_dir : folders of images; inference may be left out
    train_grace_dir, valid_grace_dir, infer_grace_dir : folders of ``X.grace``; None: the image folder
    image_dir, grace_dir : one folder to split instead; a single image is cut in two, see :func:`.cut_in_two`
    split, split_seed : fractions of training, validation and inference images, and which are which
    scale : width of a filament in the images, pixels; they are resampled so that it becomes ``features_scale``.
        ``each``: by the metadata of each image; ``auto``: estimated from training images; None: taken as they are
    polarity : ``dark`` or ``bright``, what filaments are; the network sees dark ones. ``each``, ``auto``, None: as
        for ``scale``
    seed : of the order of the images, their augmentation, and the views
    batch_size, num_workers : images in a step of each process, and how many further processes prepare samples
    frame : what to take of a stack: an index or ``mean``
    max_gib : GiB that an image may unpack to
    keep_node_unknown_labels, keep_edge_unknown_labels : leave UNKNOWN out of loss and metrics, or count it as
        negative; None: as the annotation says
    num_classes : how many types of filaments the annotation tells apart; None: types are not learned
    num_hops : the network sees this neighbourhood of each node, or the ``whole`` graph
    connection : ``spiderweb`` keeps all edges of a neighbourhood, ``fireworks`` those that touch its centre
    cache_gib : GiB of memory for samples that are kept between epochs
    simulation : called first; makes the folders
    """

    def __init__(
        self,
        sigma: float | None = None,
        features_scale: float | None = None,
        augment: Augmentation | None = None,
        views: int | None = None,
        dealt: Dealt | None = None,
        train_image_dir: str | None = None,
        train_grace_dir: str | None = None,
        valid_image_dir: str | None = None,
        valid_grace_dir: str | None = None,
        infer_image_dir: str | None = None,
        infer_grace_dir: str | None = None,
        image_dir: str | None = None,
        grace_dir: str | None = None,
        split: Sequence[float] = (0.7, 0.15, 0.15),
        split_seed: int = 0,
        scale: float | Literal["each", "auto"] | None = None,
        polarity: Polarity | Literal["each", "auto"] | None = None,
        seed: int = 0,
        batch_size: int = 1,
        num_workers: int = 0,
        frame: int | Literal["mean"] | None = None,
        max_gib: float = MAX_GIB,
        keep_node_unknown_labels: bool | None = None,
        keep_edge_unknown_labels: bool | None = None,
        num_classes: int | None = None,
        num_hops: Hops = "whole",
        connection: Connection = "spiderweb",
        cache_gib: float = 4.0,
        simulation: Callable[[], None] | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise InputError(f"data.batch_size: {batch_size}, expected 1 image or more")
        if num_classes is not None and not 2 <= num_classes <= MOST_TYPES:
            raise InputError(f"data.num_classes: {num_classes}, expected 2 to {MOST_TYPES} types, or null")
        if num_hops != "whole" and num_hops < 1:
            raise InputError(f"data.num_hops: {num_hops}, expected 1 or more, or 'whole'")
        if isinstance(scale, int | float) and not 0 < scale < inf:
            raise InputError(f"data.scale: {scale}, expected more than 0 pixels")
        self.sigma, self.features_scale, self.augment, self.views = sigma, features_scale, augment, views
        self.scale, self.polarity = scale, polarity
        self.folders = {
            "train": (train_image_dir, train_grace_dir),
            "valid": (valid_image_dir, valid_grace_dir),
            "infer": (infer_image_dir, infer_grace_dir),
        }
        self.image_dir, self.grace_dir = image_dir, grace_dir
        self.split, self.split_seed, self.seed, self.dealt = list(split), split_seed, seed, dealt
        self.batch_size, self.num_workers = batch_size, num_workers
        self.read_files = partial(
            read_sample,
            frame=frame,
            max_gib=max_gib,
            keep_node_unknown_labels=keep_node_unknown_labels,
            keep_edge_unknown_labels=keep_edge_unknown_labels,
        )
        self.num_classes = num_classes
        self.hops: dict[str, Any] = {"num_hops": num_hops, "connection": connection}
        self.simulation = simulation
        self.memory = Memory(cache_gib)
        self.sources: dict[str, list[Source]] = {}
        self.cut: set[Source] = set()
        """Images of which a part is for training, a part for validation, see :func:`.cut_in_two`."""
        self.dealt_names: dict[str, list[str]] | None = None
        self.digests: dict[Source, str] = {}
        """Hashes of the samples that were read: of pixels, points, edges, labels and annotation, not of files."""

    def prepare_data(self) -> None:
        if self.simulation is not None:
            self.simulation()

    def setup(self, stage: str | None = None) -> None:
        """Find the files: of all sets for ``fit``, of the inference images for ``predict``."""
        if self.sources:
            return
        self._find_sources(stage)
        if "auto" in (self.scale, self.polarity):
            self._estimate()

    def _find_sources(self, stage: str | None) -> None:
        given = [f"data.{name}_image_dir" for name, (folder, _) in self.folders.items() if folder is not None]
        if self.image_dir is not None:
            if given:
                raise InputError(f"data.image_dir and {given[0]} are both set; give one folder to split, or one each")
            found = {source.name: source for source in _find(self.image_dir, self.grace_dir)}
            self.dealt_names = deal(
                list(found),
                self.image_dir,
                split=self.split,
                split_seed=self.split_seed,
                dealt=self.dealt,
                training=stage == "fit",
            )
            parts = self.dealt_names.items()
            self.sources = {part: [found[name] for name in sorted(names) if name in found] for part, names in parts}
            self.cut = {*self.sources["train"]}.intersection(self.sources["valid"])
            return
        self.sources = {
            name: _find(folder, grace, f"{name}_") if folder is not None else []
            for name, (folder, grace) in self.folders.items()
            if stage == "fit" or name == "infer"
        }
        if stage == "fit" and self.folders["valid"][0] is None and len(self.sources["train"]) == 1:
            self.sources["valid"] = self.sources["train"]
            self.cut = {*self.sources["train"]}
        for name in ("train", "valid") if stage == "fit" else ("infer",):
            if not self.sources[name]:
                raise InputError(f"data.{name}_image_dir is not set; give the folder of the {name} images")

    def _estimate(self) -> None:
        """Set the width and the polarity that are ``auto`` by some of the training images."""
        sources = self.sources["train"]
        some = sources[:: -(-len(sources) // MOST_IMAGES)]
        scale = self.scale if isinstance(self.scale, int | float) else None
        given = self.polarity in POLARITIES.values()
        polarity = cast(Polarity, self.polarity) if given else _polarity(map(self.read_files, some))
        if scale is None or polarity is None:
            images, annotations = tee(map(self.read_files, some))
            found = estimate((x.image for x in images), scale, polarity, (x.annotation for x in annotations))
            if found.doubtful:
                looks = "little in the training images looks like filaments: their width is a guess"
                warnings.warn(f"data.scale=auto: {looks}; give data.scale", InputWarning, stacklevel=2)
            scale, polarity = found.scale, found.polarity
        self.scale = scale if self.scale == "auto" else self.scale
        self.polarity = polarity if self.polarity == "auto" else self.polarity

    def described(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of the images, in plain containers.

        ``split``, the names by set if one folder was split, also of those that are gone, and ``pixel_size``, Angstrom,
        the median of those training images that say it.
        """
        sizes = [size for source in self.sources["train"] if (size := pixel_size(source.image)) is not None]
        return {"split": self.dealt_names, "pixel_size": median(sizes) if sizes else None}

    def dataset(self, name: str, *, augmented: bool = False) -> GraceDataset:
        """Return the images of ``train``, ``valid`` or ``infer``."""
        augment = self.augment if augmented else None
        read = partial(self._read, name)
        views: dict[str, Any] = {"views": self.views, "memory": self.memory, "seed": self.seed}
        return GraceDataset(self.sources[name], read, augment, **views, **self.hops)

    def _read(self, name: str, source: Source) -> Sample:
        """Return a sample of a set as the network sees it, and keep it as long as there is room."""

        def parts(sample: Sample) -> tuple[Any, ...]:
            return sample.image, sample.annotation, *vars(sample.graph).values()

        return self.memory.get(self._key(name, source), partial(self._seen, name, source), parts)

    def _key(self, name: str, source: Source) -> tuple[Source, str]:
        return source, name if source in self.cut else ""

    def _seen(self, name: str, source: Source) -> Sample:
        sample = self.read_files(source)
        if source not in self.digests:
            self.digests[source] = _digest(sample)
        highest = int(sample.graph.node_type.max()) if len(sample.graph.node_type) else 0
        if self.num_classes and highest > self.num_classes:
            raise InputError(f"{source.grace}: a filament of type {highest}, but data.num_classes={self.num_classes}")
        annotation = sample.annotation
        if annotation is not None:  # in two bytes, if the numbers and those of as many pasted copies fit
            annotation = annotation.to(torch.int16 if annotation.max() < 2**14 else torch.int32)
        scale, polarity = self._of_filaments(source, sample)
        factor = (self.features_scale or scale) / scale if scale else 1.0
        sample = as_seen(sample.replace(annotation=annotation), self.sigma, factor, polarity)
        if source in self.cut:
            sample = cut_in_two(sample)[name]
        return sample

    def read_again(self, name: str) -> int:
        """Return how many images of a set, all of which were read, did not fit into ``cache_gib``."""
        return sum(self._key(name, source) not in self.memory.kept for source in self.sources[name])

    def _of_filaments(self, source: Source, sample: Sample) -> tuple[float | None, Polarity | None]:
        """Return how wide filaments are in an image, pixels, and what they are."""
        given: dict[str, Any] = {"scale": self.scale, "polarity": self.polarity}
        for key, kind in (("scale", float), ("polarity", Polarity)):
            if given[key] == "each":
                given[key] = sample.metadata.get(key)
                where = f"{source.grace}/{METADATA}: {key}, as data.{key}=each asks for"
                check_value(given[key], kind, where)
                if key == "scale" and not 0 < given[key] < inf:
                    raise InputError(f"{where}: {given[key]}, expected more than 0 pixels")
        return given["scale"], given["polarity"]

    def _loader(self, name: str, *, training: bool = False) -> DataLoader:
        """Return batches of this process' share of a set."""
        dataset = self.dataset(name, augmented=training)
        processes, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=EpochSampler(dataset, self.seed, self._epoch, training, processes, rank),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            generator=torch.Generator(),  # its own: what a loader draws is not to shift what dropout draws
        )

    def _epoch(self) -> int:
        # Whole epochs, also in a resumed run, of which ``current_epoch`` is known only once it has begun. Lightning
        # declares the count as its base class, which has no ``processed``.
        return int(self.trainer.fit_loop.epoch_progress.current.processed) if self.trainer else 0  # type: ignore[attr-defined]

    def train_dataloader(self) -> DataLoader:
        return self._loader("train", training=True)

    def val_dataloader(self) -> DataLoader:
        return self._loader("valid")


def _digest(sample: Sample) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, value in {"image": sample.image, "annotation": sample.annotation, **vars(sample.graph)}.items():
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
            digest.update(value.contiguous().numpy().data)
    return digest.hexdigest()


def _find(folder: str, grace: str | None, prefix: str = "") -> list[Source]:
    """Find the annotated images of a folder; a missing folder is named with its key."""
    for kind, path in (("image", folder), ("grace", grace)):
        if path is not None:
            expect_folder(path, f"data.{prefix}{kind}_dir")
    return find_sources(folder, grace)
