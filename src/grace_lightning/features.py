"""What the network is told about each node and each edge.

A feature kind is a module with three duties: ``preprocess`` an image once, ``extract`` raw tensors from a sample on
the CPU, and, as the first layer of the network, turn them into standardised node and edge features (``forward``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import scipy.sparse as sp
import torch
from scipy.sparse.csgraph import laplacian as csgraph_laplacian
from torch import Tensor, nn
from torch.nn import functional

from grace_lightning.errors import InputError
from grace_lightning.graph import EDGE_PROPERTIES, Sample, adjacency, edge_geometry

PatchAugmentation = Callable[[Tensor], Tensor]

CHUNK_BYTES = 2**26
"""Patches are cut in chunks of about this size, so that memory does not grow with the number of detections."""


def crop_patches(image: Tensor, pos: Tensor, size: int) -> Tensor:
    """Square patches of whole pixels around positions, in one gather.

    Parameters
    ----------
    image : (C, H, W)
    pos : (N, 2), pixels, columns x and y
    size : side of a patch in pixels; of all such squares of whole pixels, the one with its centre nearest is taken

    Returns
    -------
    (N, C, size, size); beyond the border the image is reflected, the border pixel not repeated
    """
    height, width = image.shape[1:]
    offset = torch.arange(size, device=image.device)
    corner = torch.floor(pos.double() - size / 2 + 1).long()
    columns = _reflect(corner[:, 0, None] + offset, width)
    rows = _reflect(corner[:, 1, None] + offset, height)
    return image[:, rows[:, :, None], columns[:, None, :]].transpose(0, 1)


def _reflect(index: Tensor, length: int) -> Tensor:
    period = max(2 * (length - 1), 1)
    index = index.remainder(period)
    return torch.minimum(index, period - index) if length > 1 else torch.zeros_like(index)


def patch_statistics(patches: Tensor) -> Tensor:
    """Mean, standard deviation, minimum and maximum of each channel of each patch: (N, C, p, p) to (N, 4 C)."""
    pixels = patches.flatten(2)
    deviation, mean = torch.std_mean(pixels, dim=2, correction=0)
    low, high = torch.aminmax(pixels, dim=2)
    return torch.cat([mean, deviation, low, high], dim=1)


def laplacian(edges: Tensor, num_nodes: int) -> sp.csr_array:
    """Graph Laplacian, degrees minus adjacency: (N, N) sparse float32, memory linear in nodes and edges."""
    joined = adjacency(edges.numpy(), num_nodes).astype(np.float32)
    matrix: Any = csgraph_laplacian(joined)
    return sp.csr_array(matrix)


def standardise_image(image: Tensor) -> Tensor:
    """Image of zero mean and unit standard deviation per channel; a blank one stays zero. (C, H, W)."""
    deviation, mean = torch.std_mean(image, dim=(1, 2), keepdim=True, correction=0)
    return (image - mean) / deviation.clamp(min=1e-12)


def flatten_image(image: Tensor, sigma: float) -> Tensor:
    """Image with its local mean and local standard deviation removed.

    Both are Gaussian averages, computed on the image reduced so that sigma is about 8 of its pixels.

    Parameters
    ----------
    image : (C, H, W) float32
    sigma : pixels, standard deviation of the Gaussian

    Returns
    -------
    (C, H, W) float32, about zero mean and unit deviation everywhere
    """
    image = standardise_image(image)  # keeps the squares below well conditioned
    step = max(1, int(sigma / 8))
    local_mean = _smooth(image, sigma, step)
    local_square = _smooth(image.square(), sigma, step)
    deviation = (local_square - local_mean.square()).clamp(min=0).sqrt()
    floor = 0.1 * deviation.mean().clamp(min=1e-6)  # a blank region is not blown up
    return (image - local_mean) / torch.maximum(deviation, floor)


def _smooth(image: Tensor, sigma: float, step: int) -> Tensor:
    height, width = image.shape[1:]
    reduced = functional.avg_pool2d(image, step, ceil_mode=True, count_include_pad=False)
    radius = int(4 * sigma / step)
    ramp = torch.arange(-radius, radius + 1, device=image.device)
    kernel = torch.exp(-0.5 * (ramp * step / sigma) ** 2)
    kernel = kernel / kernel.sum()
    for axis in (1, 2):
        index = torch.arange(-radius, reduced.shape[axis] + radius, device=image.device)
        padded = reduced.index_select(axis, _reflect(index, reduced.shape[axis]))
        shape = (1, 1, -1, 1) if axis == 1 else (1, 1, 1, -1)
        reduced = functional.conv2d(padded[:, None], kernel.view(shape))[:, 0]
    grown = functional.interpolate(
        reduced[:, None], scale_factor=step, mode="bilinear", align_corners=False, recompute_scale_factor=False
    )
    return grown[:, 0, :height, :width]


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

    def preprocess(self, image: Tensor) -> Tensor:
        """The image that patches are cut from, (C, H, W) float32 to the same."""

    def extract(self, sample: Sample, augment: PatchAugmentation | None = None) -> dict[str, Tensor]:
        """Raw features of a sample."""


class Statistics(nn.Module):
    """Mean, deviation, minimum and maximum of the patch around each node; geometry of each edge.

    Parameters
    ----------
    patch_size : pixels, side of the patch around a node
    flatten_sigma : pixels; local mean and deviation of this Gaussian are removed from the image first.
        None: mean and deviation of the whole image
    laplacian : append the graph Laplacian times the node features
    """

    def __init__(self, patch_size: int = 32, flatten_sigma: float | None = None, laplacian: bool = False) -> None:
        super().__init__()
        if patch_size < 1:
            raise InputError(f"features.patch_size: {patch_size}, expected 1 pixel or more")
        if flatten_sigma is not None and flatten_sigma < 1:
            raise InputError(f"features.flatten_sigma: {flatten_sigma}, expected 1 pixel or more, or null")
        self.patch_size = patch_size
        self.flatten_sigma = flatten_sigma
        self.laplacian = laplacian
        self.node_width = 4 * (2 if laplacian else 1)
        self.edge_width = EDGE_WIDTH
        self.node_scale = Standardise(self.node_width)
        self.edge_scale = Standardise(self.edge_width)

    def preprocess(self, image: Tensor) -> Tensor:
        """The image that patches are cut from, (C, H, W) float32 to the same."""
        if self.flatten_sigma is None:
            return standardise_image(image)
        return flatten_image(image, self.flatten_sigma)

    def extract(self, sample: Sample, augment: PatchAugmentation | None = None) -> dict[str, Tensor]:
        """Raw features of a sample: ``x`` (N, 4 or 8) and ``edge_attr`` (E, 15), float32.

        Parameters
        ----------
        sample : its image as :meth:`preprocess` returns it
        augment : applied to the patches, (n, C, size, size) to the same
        """
        graph = sample.graph
        parts = [
            patch_statistics(augment(patches) if augment else patches)
            for patches in self._patches(sample.image, graph.pos)
        ]
        x = torch.cat(parts) if parts else torch.zeros(0, 4)
        if self.laplacian:
            x = torch.cat([x, torch.from_numpy(laplacian(graph.edges, graph.num_nodes) @ x.numpy())], dim=1)
        return {"x": x, "edge_attr": encode_geometry(edge_geometry(graph.pos, graph.edges))}

    def _patches(self, image: Tensor, pos: Tensor) -> Iterator[Tensor]:
        rows = max(1, CHUNK_BYTES // (4 * len(image) * self.patch_size**2))
        return (crop_patches(image, part, self.patch_size) for part in torch.split(pos, rows) if len(part))

    def update_scale(self, prepared: Extracted) -> None:
        """Take an image of the training set, not augmented, into the scale of the features."""
        self.node_scale.update(prepared.x)
        self.edge_scale.update(prepared.edge_attr)

    def forward(self, data: Extracted) -> tuple[Tensor, Tensor]:
        """Standardised node features (N, F) and edge features (E, G)."""
        return self.node_scale(data.x), self.edge_scale(data.edge_attr)
