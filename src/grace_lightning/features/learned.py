"""Small convolutional encoders, trained end to end with the graph layers."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from grace_lightning.data import GraphData
from grace_lightning.errors import expect_range, expect_widths
from grace_lightning.features.common import Features, OnPatches
from grace_lightning.features.crops import edge_strips, node_patches
from grace_lightning.graph import GEOMETRY_FEATURES

CHUNK = 4096
"""Crops that are encoded at once; with more of them, training recomputes a chunk instead of keeping its activations."""


class _Pool(nn.Module):
    def forward(self, maps: Tensor) -> Tensor:
        return torch.cat([maps.mean(dim=(2, 3)), maps.amax(dim=(2, 3))], dim=1)


def _crop_encoder(channels: Sequence[int], hidden: int, per_image: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise([1, *channels]):
        size = 3 if layers else 5
        convolution = nn.Conv2d(before, after, size, stride=2, padding=size // 2, bias=False)
        layers += [convolution, nn.BatchNorm2d(after, track_running_stats=not per_image), nn.ReLU()]
    encoder = nn.Sequential(*layers, _Pool(), nn.Linear(2 * channels[-1], hidden))
    return encoder.to(memory_format=torch.channels_last)  # a third less time on a CPU


class Learned(Features):
    """What convolutional encoders see in the patch around each node and in the straightened strip along each edge.

    An encoder has one convolution per entry of ``channels``, the first 5 x 5, the others 3 x 3, with stride 2, batch
    normalisation and ReLU; then the mean and the maximum of each map, and a linear layer. All lengths are in widths of
    a filament, so that images of another magnification need another ``scale`` only.

    Parameters
    ----------
    patch : filament widths, side of the patch around a node
    patch_samples : to a side of the patch
    context : filament widths, side of a second patch around each node, with an encoder of its own; None for none
    strip : filament widths, from an edge to either side of its strip
    strip_samples : along and across a strip
    hidden : features per view of a node; per edge as many, and its geometry
    per_image : normalise by the crops of each image, in prediction as in training, which images of many kinds need;
        else, in prediction, by those of the training set
    """

    def __init__(
        self,
        scale: float = 20.0,
        patch: float = 2.4,
        patch_samples: int = 25,
        context: float | None = None,
        strip: float = 1.0,
        strip_samples: tuple[int, int] = (24, 17),
        flatten: float | None = 2.0,
        channels: Sequence[int] = (16, 32, 64),
        hidden: int = 64,
        per_image: bool = False,
    ) -> None:
        beyond = {} if context is None else {"context": context}
        super().__init__(scale, flatten, hidden * (1 + len(beyond)), False, patch=patch, strip=strip, **beyond)
        for key, counts in {"patch_samples": [patch_samples], "strip_samples": strip_samples}.items():
            for count in counts:
                expect_range(f"features.{key}", count, 2, 1000)
        expect_widths("features.channels", channels)
        expect_widths("features.hidden", [hidden])
        self.patch_size, self.patch_samples = patch * scale, patch_samples
        self.context_size = None if context is None else context * scale
        self.strip_half_width, self.strip_samples = strip * scale, strip_samples
        self.edge_features = hidden + GEOMETRY_FEATURES
        del self.node_scale  # the encoder's last layer learns a scale
        self.per_image = per_image
        self.node_encoder = _crop_encoder(channels, hidden, per_image)
        self.context_encoder = None if context is None else _crop_encoder(channels, hidden, per_image)
        self.edge_encoder = _crop_encoder(channels, hidden, per_image)

    def fit(self, data: GraphData) -> None:
        self.edge_scale.update(data.edge_attr)

    def forward(self, data: GraphData, augment: OnPatches | None = None) -> tuple[Tensor, Tensor]:
        nodes, strips = self.nodes(data, augment), [self._strips(*image) for image in data.images()]
        return nodes, torch.cat([torch.cat(strips), self.edge_scale(data.edge_attr)], dim=1)

    def of_image(self, image: Tensor, pos: Tensor, augment: OnPatches | None, seed: int) -> Tensor:
        views = [(self.node_encoder, image, self.patch_size)]
        if self.context_encoder is not None and self.context_size is not None:
            # means over as many pixels as there are between samples
            window = 2 * round(self.context_size / self.patch_samples / 2) + 1
            smooth = functional.avg_pool2d(image, window, 1, window // 2, count_include_pad=False)
            views.append((self.context_encoder, smooth, self.context_size))

        def encode(part: Tensor) -> Tensor:
            seen = []
            for encoder, pixels, size in views:
                patches = node_patches(pixels, part, size=size, samples=self.patch_samples)
                seen.append(encoder(augment(patches) if augment else patches))
            return torch.cat(seen, dim=1)

        return self._in_chunks(encode, pos, self.node_features)

    def _strips(self, image: Tensor, pos: Tensor, edges: Tensor) -> Tensor:
        def encode(ends: Tensor) -> Tensor:
            strips = edge_strips(image, pos, ends.T, half_width=self.strip_half_width, samples=self.strip_samples)
            return self.edge_encoder(strips)  # type: ignore[no-any-return]

        return self._in_chunks(encode, edges.T, self.edge_features - GEOMETRY_FEATURES)

    def _in_chunks(self, encode: Callable[[Tensor], Tensor], rows: Tensor, features: int) -> Tensor:
        if not len(rows):  # batch normalisation takes no empty batch
            return self.edge_scale.mean.new_zeros(0, features)
        if len(rows) > CHUNK and torch.is_grad_enabled():
            encode = partial(checkpoint, encode, use_reentrant=False)
        elif self.per_image:  # all at once, or their statistics would depend on the order
            return encode(rows)
        return torch.cat([encode(chunk) for chunk in torch.split(rows, CHUNK)])
