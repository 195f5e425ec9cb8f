"""What feature kinds share: their interface, the geometry of edges, standardisation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from grace_lightning.errors import InputError
from grace_lightning.graph import EDGE_PROPERTIES, Sample

PatchAugmentation = Callable[[Tensor], Tensor]


def encode_geometry(geometry: Tensor) -> Tensor:
    """The ten edge properties in a form that a network can use.

    Lengths become logarithms, orientation the cosine and sine of twice its angle (an edge has no front), the
    neighbours' angles their cosine and sine; a missing neighbour is zero throughout and has a flag of its own.

    Parameters
    ----------
    geometry : (E, 10) float32, see :func:`grace_lightning.graph.edge_geometry`

    Returns
    -------
    (E, 15) float32
    """
    length, orient = geometry[:, 0], geometry[:, 1]
    columns = [torch.log(length.clamp(min=1e-6)), torch.cos(2 * orient), torch.sin(2 * orient)]
    for neighbour in (geometry[:, 2:6], geometry[:, 6:10]):
        there = neighbour[:, 0] > 0
        lengths = torch.log(neighbour[:, [0, 2, 3]].clamp(min=1e-6)).T
        angle = neighbour[:, 1]
        values = torch.stack([*lengths, torch.cos(angle), torch.sin(angle)])
        columns += [*torch.where(there, values, 0.0), there.to(geometry.dtype)]
    return torch.stack(columns, dim=1)


EDGE_WIDTH = encode_geometry(torch.zeros(0, len(EDGE_PROPERTIES))).shape[1]


def check_lengths(**lengths: float | None) -> None:
    """Refuse lengths of a feature kind that are not above zero, by their keys; None is none at all."""
    for name, value in lengths.items():
        if value is not None and value <= 0:
            raise InputError(f"features.{name}: {value}, expected a length above 0")


class Standardise(nn.Module):
    """Removes the training set's mean and divides by its deviation; both are part of the checkpoint.

    Parameters
    ----------
    width : number of features F
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))
        # in double precision, so that many images add up
        self._count = 0
        self._mean, self._square = torch.zeros(2, width, dtype=torch.float64)

    def update(self, values: Tensor) -> None:
        """Take further values (M, F) into mean and deviation; a feature that never changes keeps deviation 1."""
        if not len(values):
            return
        square, mean = torch.var_mean(values.double(), dim=0, correction=0)
        share = len(values) / (self._count + len(values))
        self._square += share * (square - self._square + (1 - share) * (mean - self._mean) ** 2)
        self._mean += share * (mean - self._mean)
        self._count += len(values)
        deviation = self._square.sqrt()
        self.mean.copy_(self._mean)
        self.deviation.copy_(torch.where(deviation > 1e-6 * (1 + self._mean.abs()), deviation, 1.0))

    def forward(self, values: Tensor) -> Tensor:
        """(M, F) to (M, F)."""
        return (values - self.mean) / self.deviation


class Extracted(Protocol):
    """What a prepared graph offers: raw node features ``x`` (N, F) and edge features ``edge_attr`` (E, G)."""

    x: Tensor
    edge_attr: Tensor


class FeatureKind(Protocol):
    """What the data side asks of a feature kind; see :class:`Statistics`."""

    frozen: bool
    """Whether ``extract`` takes so long that it pays to keep what it gives."""

    def preprocess(self, image: Tensor) -> Tensor:
        """The image that patches are cut from, (C, H, W) float32 to the same."""

    def extract(self, sample: Sample, augment: PatchAugmentation | None = None) -> dict[str, Any]:
        """What of a sample goes into the batch."""
