"""Small convolutional encoders, trained end to end with the graph layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from grace_lightning.errors import InputError
from grace_lightning.features.common import (
    EDGE_WIDTH,
    Extracted,
    PatchAugmentation,
    Standardise,
    check_lengths,
    encode_geometry,
)
from grace_lightning.features.crops import edge_strips, node_patches
from grace_lightning.features.image import flatten_image, standardise_image
from grace_lightning.graph import Sample, edge_geometry

CHUNK = 4096
"""Crops that are encoded at once; with more of them, training recomputes a chunk instead of keeping its activations."""


class WithImages(Extracted, Protocol):
    """A batch of graphs with their images: ``pixels`` all in one row, the rest by image."""

    pixels: Tensor
    pos: Tensor
    edge_index: Tensor
    image_shapes: list[tuple[int, int]]
    nodes_per_image: list[int]
    edges_per_image: list[int]


class _Pool(nn.Module):
    def forward(self, maps: Tensor) -> Tensor:
        return torch.cat([maps.mean(dim=(2, 3)), maps.amax(dim=(2, 3))], dim=1)


def crop_encoder(channels: Sequence[int], width: int) -> nn.Sequential:
    """Convolutions over crops, (M, 1, h, w) to (M, width).

    One convolution per entry of ``channels``, the first 5 x 5, the others 3 x 3, all with stride 2, batch normalisation
    and ReLU; then the mean and the maximum of each map, and a linear layer.
    """
    layers: list[nn.Module] = []
    before = 1
    for k, after in enumerate(channels):
        size = 5 if k == 0 else 3
        convolution = nn.Conv2d(before, after, size, stride=2, padding=size // 2, bias=False)
        layers += [convolution, nn.BatchNorm2d(after), nn.ReLU()]
        before = after
    encoder = nn.Sequential(*layers, _Pool(), nn.Linear(2 * before, width))
    return encoder.to(memory_format=torch.channels_last)  # a third less time on a CPU


class Learned(nn.Module):
    """What convolutional encoders see in the patch around each node and in the straightened strip along each edge.

    All lengths are in widths of a filament, so that images of another magnification need another ``scale`` only.

    Parameters
    ----------
    scale : pixels, width of a filament
    patch : filament widths, side of the patch around a node
    patch_samples : to a side of the patch
    strip : filament widths, from an edge to either side of its strip
    strip_samples : along and across a strip
    flatten : filament widths; local mean and deviation of this Gaussian are removed from the image first.
        None: mean and deviation of the whole image
    channels : of the convolutions, in both encoders
    width : features per node; per edge as many, and its geometry
    """

    frozen = False

    def __init__(
        self,
        scale: float = 20.0,
        patch: float = 2.4,
        patch_samples: int = 25,
        strip: float = 1.0,
        strip_samples: Sequence[int] = (24, 17),
        flatten: float | None = 2.0,
        channels: Sequence[int] = (16, 32, 64),
        width: int = 64,
    ) -> None:
        super().__init__()
        check_lengths(scale=scale, patch=patch, strip=strip, flatten=flatten)
        if patch_samples < 2 or len(strip_samples) != 2 or min(strip_samples) < 2:
            found = f"features.patch_samples: {patch_samples}, features.strip_samples: {list(strip_samples)}"
            raise InputError(f"{found}, expected 2 samples or more, and [along, across]")
        if not channels or min([*channels, width]) < 1:
            raise InputError(f"features.channels: {list(channels)}, features.width: {width}, expected 1 or more")
        self.flatten_sigma = None if flatten is None else flatten * scale
        self.patch_size, self.patch_samples = patch * scale, patch_samples
        self.strip_half_width, self.strip_samples = strip * scale, (strip_samples[0], strip_samples[1])
        self.node_width = width
        self.edge_width = width + EDGE_WIDTH
        self.node_encoder = crop_encoder(channels, width)
        self.edge_encoder = crop_encoder(channels, width)
        self.edge_scale = Standardise(EDGE_WIDTH)

    def preprocess(self, image: Tensor) -> Tensor:
        """The image that crops are cut from, (1, H, W) float32 to the same."""
        return standardise_image(image) if self.flatten_sigma is None else flatten_image(image, self.flatten_sigma)

    def extract(self, sample: Sample, augment: PatchAugmentation | None = None) -> dict[str, Any]:
        """The image itself, and the geometry of the edges; patches are cut, and augmented, in :meth:`forward`.

        Parameters
        ----------
        sample : its image as :meth:`preprocess` returns it
        augment : not used here
        """
        return {
            "pixels": sample.image.flatten(),
            "image_shape": tuple(sample.image.shape[1:]),
            "edge_attr": encode_geometry(edge_geometry(sample.graph.pos, sample.graph.edges)),
        }

    def update_scale(self, prepared: Extracted) -> None:
        """Take an image of the training set, not augmented, into the scale of the edges' geometry."""
        self.edge_scale.update(prepared.edge_attr)

    def forward(self, data: WithImages, augment: PatchAugmentation | None = None) -> tuple[Tensor, Tensor]:
        """Node features (N, width) and edge features (E, width + 15).

        Parameters
        ----------
        data : a batch of graphs
        augment : applied to the patches of the nodes
        """
        images = torch.split(data.pixels, [height * width for height, width in data.image_shapes])
        pos = torch.split(data.pos, data.nodes_per_image)
        edges = torch.split(data.edge_index, data.edges_per_image, dim=1)
        nodes, strips, first = [], [], 0
        for pixels, shape, points, ends in zip(images, data.image_shapes, pos, edges, strict=True):
            image = pixels.view(1, *shape)
            nodes.append(self._nodes(image, points, augment))
            strips.append(self._edges(image, points, ends - first))
            first += len(points)
        return torch.cat(nodes), torch.cat([torch.cat(strips), self.edge_scale(data.edge_attr)], dim=1)

    def _nodes(self, image: Tensor, pos: Tensor, augment: PatchAugmentation | None) -> Tensor:
        def cut(rows: slice) -> Tensor:
            patches = node_patches(image, pos[rows], size=self.patch_size, samples=self.patch_samples)
            return augment(patches) if augment else patches

        return self._encode(self.node_encoder, cut, len(pos))

    def _edges(self, image: Tensor, pos: Tensor, edges: Tensor) -> Tensor:
        def cut(rows: slice) -> Tensor:
            return edge_strips(image, pos, edges[:, rows], half_width=self.strip_half_width, samples=self.strip_samples)

        return self._encode(self.edge_encoder, cut, edges.shape[1])

    def _encode(self, encoder: nn.Module, cut: Callable[[slice], Tensor], count: int) -> Tensor:
        chunks = [slice(k, min(k + CHUNK, count)) for k in range(0, count, CHUNK)]

        def encode(rows: slice) -> Tensor:
            encoded: Tensor = encoder(cut(rows))
            return encoded

        if len(chunks) > 1 and torch.is_grad_enabled():
            return torch.cat([checkpoint(encode, rows, use_reentrant=False) for rows in chunks])
        encoded = [encode(rows) for rows in chunks]
        return torch.cat(encoded) if encoded else next(encoder.parameters()).new_zeros(0, self.node_width)
