"""Training, validation and inference images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import pytorch_lightning as pl
import torch
from torch_geometric.loader import DataLoader

from grace_lightning.augment import Augmentation
from grace_lightning.data.dataset import GraceDataset
from grace_lightning.data.memory import Digests, MemoryCache
from grace_lightning.errors import InputError
from grace_lightning.features import FeatureKind
from grace_lightning.graph import Connection, Sample
from grace_lightning.io import Source, expect_folder, find_sources, read_sample
from grace_lightning.sampling import EpochSampler


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
            self.sources = split_sources(_find(self.image_dir, self.grace_dir), self.split, self.seed)
            return
        needed = ("train", "valid") if stage == "fit" else ("infer",)
        for name in needed:
            if self.folders[name][0] is None:
                raise InputError(f"data.{name}_image_dir is not set; give the folder of the {name} images")
        wanted = ("train", "valid", "infer") if stage == "fit" else ("infer",)
        self.sources = {
            name: _find(folder, grace, f"{name}_") if folder is not None else []
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
        # Whole epochs, also in a resumed run, of which ``current_epoch`` is known only once it has begun. Lightning
        # declares the count as its base class, which has no ``processed``.
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


def _find(folder: str, grace: str | None, prefix: str = "") -> list[Source]:
    """The annotated images of a folder; one that is missing is named with its key."""
    for kind, path in (("image", folder), ("grace", grace)):
        if path is not None:
            expect_folder(path, f"data.{prefix}{kind}_dir")
    return find_sources(folder, grace)


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
