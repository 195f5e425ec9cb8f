"""Which image comes when, and what its augmentation draws: by seed and epoch alone.

Neither the number of processes that prepare samples, nor that of processes that train, nor a stop in between makes a
difference.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch.utils.data import Dataset, DistributedSampler


class Pick(NamedTuple):
    """One access to an image.

    Attributes
    ----------
    image : index of the image in its set
    seed : of what is drawn for it
    counts : False for an image that is there a second time, so that all processes take as many steps
    """

    image: int
    seed: int
    counts: bool = True


def seed_of(*parts: object) -> int:
    """A seed that depends on all ``parts``, 56 bits."""
    return int.from_bytes(hashlib.blake2b(" ".join(map(str, parts)).encode(), digest_size=7).digest(), "big")


@contextmanager
def drawing_by(seed: int) -> Iterator[None]:
    """What is drawn from torch's CPU generator meanwhile depends on ``seed``; afterwards it is as it was before."""
    generator = torch.default_generator
    state = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(state)


class EpochSampler(DistributedSampler[Any]):
    """The images of an epoch for one process of several.

    Together, a step of R processes with B images each takes the images that a step of one process with R * B takes.

    Parameters
    ----------
    dataset : has a length
    seed : of the order and of what is drawn for each image
    epoch : asked at the beginning of each epoch which one it is
    shuffle : another order in every epoch; else the dataset's
    processes, rank : how many processes share the images, and which one this is
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
        # Lightning leaves loaders alone that have a DistributedSampler
        super().__init__(dataset, processes, rank, shuffle=shuffle, seed=seed)
        self.images = len(dataset)  # type: ignore[arg-type]
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
