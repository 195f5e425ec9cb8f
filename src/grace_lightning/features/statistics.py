"""Four numbers per patch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from scipy.sparse.csgraph import laplacian as csgraph_laplacian
from torch import Tensor, nn

from grace_lightning.features.common import (
    EDGE_WIDTH,
    Extracted,
    PatchAugmentation,
    Standardise,
    check_lengths,
    encode_geometry,
)
from grace_lightning.features.crops import crop_patches
from grace_lightning.features.image import flatten_image, standardise_image
from grace_lightning.graph import Sample, adjacency, edge_geometry

CHUNK_BYTES = 2**26
"""Patches are cut in chunks of about this size, so that memory does not grow with the number of detections."""


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


def with_laplacian(x: Tensor, edges: Tensor) -> Tensor:
    """Features (N, F) and the graph Laplacian times these, (N, 2 F)."""
    return torch.cat([x, torch.from_numpy(laplacian(edges, len(x)) @ x.numpy())], dim=1)


class Statistics(nn.Module):
    """Mean, deviation, minimum and maximum of the patch around each node; geometry of each edge.

    Parameters
    ----------
    scale : pixels, width of a filament
    patch : filament widths, side of the patch around a node
    flatten : filament widths; local mean and deviation of this Gaussian are removed from the image first.
        None: mean and deviation of the whole image
    laplacian : append the graph Laplacian times the node features
    """

    frozen = False

    def __init__(
        self, scale: float = 20.0, patch: float = 0.8, flatten: float | None = 2.0, laplacian: bool = False
    ) -> None:
        super().__init__()
        check_lengths(scale=scale, patch=patch, flatten=flatten)
        self.patch_size = max(1, round(patch * scale))
        self.flatten_sigma = None if flatten is None else flatten * scale
        self.laplacian = laplacian
        self.node_width = 4 * (2 if laplacian else 1)
        self.edge_width = EDGE_WIDTH
        self.node_scale = Standardise(self.node_width)
        self.edge_scale = Standardise(self.edge_width)

    def preprocess(self, image: Tensor) -> Tensor:
        """The image that patches are cut from, (C, H, W) float32 to the same."""
        return standardise_image(image) if self.flatten_sigma is None else flatten_image(image, self.flatten_sigma)

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
            x = with_laplacian(x, graph.edges)
        return {"x": x, "edge_attr": encode_geometry(edge_geometry(graph.pos, graph.edges))}

    def _patches(self, image: Tensor, pos: Tensor) -> Iterator[Tensor]:
        rows = max(1, CHUNK_BYTES // (4 * len(image) * self.patch_size**2))
        return (crop_patches(image, part, self.patch_size) for part in torch.split(pos, rows) if len(part))

    def update_scale(self, prepared: Extracted) -> None:
        """Take an image of the training set, not augmented, into the scale of the features."""
        self.node_scale.update(prepared.x)
        self.edge_scale.update(prepared.edge_attr)

    def forward(self, data: Extracted, augment: PatchAugmentation | None = None) -> tuple[Tensor, Tensor]:
        """Standardised node features (N, F) and edge features (E, G); patches were augmented in :meth:`extract`."""
        return self.node_scale(data.x), self.edge_scale(data.edge_attr)
