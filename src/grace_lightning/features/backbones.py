"""Frozen pretrained networks, patch by patch or once over the whole image."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import get_worker_info

from grace_lightning.errors import InputError
from grace_lightning.features.cache import FeatureCache, content_key, default_folder
from grace_lightning.features.common import (
    EDGE_WIDTH,
    Extracted,
    PatchAugmentation,
    Standardise,
    check_lengths,
    encode_geometry,
)
from grace_lightning.features.crops import node_patches, sample_image
from grace_lightning.features.image import flatten_image, standardise_image
from grace_lightning.features.pretrained import (
    ARCHITECTURES,
    STRIDE,
    FrozenNetwork,
    NetworkName,
    load_network,
    weights_digest,
    weights_file,
)
from grace_lightning.features.statistics import with_laplacian
from grace_lightning.graph import Sample, edge_geometry


class Backbone(nn.Module):
    """Means of the last feature maps of a frozen pretrained network around each node; geometry of each edge.

    The network is no part of the module: it is built when it is first needed, in eval mode, on the GPU where there is
    one, and neither trained nor kept in the checkpoint.

    Parameters
    ----------
    name : of the network
    weights : file of its state dict; None takes an installed package's weights, or fetches them from the hub
    mode : ``per_patch`` shows the network every patch on its own. ``dense`` shows it the whole image once, at the same
        magnification, and takes the mean of the maps over each patch: the cost does not grow with the detections, and
        augmentations of patches do nothing
    scale : pixels, width of a filament
    patch : filament widths, side of the patch around a node
    input_size : samples to a side of the patch that the network sees
    flatten : filament widths; local mean and deviation of this Gaussian are removed from the image first.
        None: mean and deviation of the whole image
    laplacian : append the graph Laplacian times the node features
    batch_size : patches that the network sees at once
    tile : samples to a side of what the network sees at once of the whole image
    overlap : samples at each border of a tile that are context only
    cache : keep the features on disk
    cache_dir : folder for them; None for the user's own cache folder
    """

    frozen = True
    weights_seen: Tensor

    def __init__(
        self,
        name: NetworkName,
        weights: str | None = None,
        mode: Literal["per_patch", "dense"] = "per_patch",
        scale: float = 20.0,
        patch: float = 2.4,
        input_size: int = 96,
        flatten: float | None = 2.0,
        laplacian: bool = False,
        batch_size: int = 32,
        tile: int = 2304,
        overlap: int = 64,
        cache: bool = True,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        check_lengths(scale=scale, patch=patch, flatten=flatten)
        if min(input_size, batch_size) < 1:
            raise InputError(
                f"features.input_size: {input_size}, features.batch_size: {batch_size}, expected 1 or more"
            )
        self.margin, self.tile_cells = math.ceil(overlap / STRIDE), tile // STRIDE
        if overlap < 0 or self.tile_cells <= 2 * self.margin:
            least = f"0 or more, and a tile of {STRIDE * (2 * self.margin + 1)} or more"
            raise InputError(f"features.overlap: {overlap}, features.tile: {tile}, expected an overlap of {least}")
        weights_file(name, weights)  # a missing file is reported now
        self.name, self.weights, self.mode = name, weights, mode
        self.architecture = ARCHITECTURES[name]
        self.patch_size, self.input_size = patch * scale, input_size
        self.flatten_sigma = None if flatten is None else flatten * scale
        self.laplacian = laplacian
        self.batch_size = batch_size
        self.store = FeatureCache(Path(cache_dir).expanduser() if cache_dir else default_folder()) if cache else None
        self.node_width = self.architecture.width * (2 if laplacian else 1)
        self.edge_width = EDGE_WIDTH
        self.node_scale = Standardise(self.node_width)
        self.edge_scale = Standardise(self.edge_width)
        self.register_buffer("weights_seen", torch.zeros(16, dtype=torch.uint8))
        self._digest: bytes | None = None
        self._networks: dict[torch.device, FrozenNetwork] = {}  # in a dict, modules are not registered

    def preprocess(self, image: Tensor) -> Tensor:
        """The image that the network sees, (1, H, W) float32 to the same."""
        return standardise_image(image) if self.flatten_sigma is None else flatten_image(image, self.flatten_sigma)

    def extract(self, sample: Sample, augment: PatchAugmentation | None = None) -> dict[str, Tensor]:
        """Raw features of a sample: ``x`` (N, F) and ``edge_attr`` (E, 15), float32.

        Parameters
        ----------
        sample : its image as :meth:`preprocess` returns it
        augment : applied to the patches, (n, 1, size, size) to the same; features on disk are told apart by its
            ``repr`` and by the state of torch's generator

        Raises
        ------
        InputError
            The network cannot be built, or the weights are others than those this module was trained with.
        """
        graph, image = sample.graph, sample.image
        if self.mode == "dense":
            augment = None

        def compute() -> Tensor:
            with torch.no_grad():
                if self.mode == "dense":
                    return self._dense(image, graph.pos)
                return self._per_patch(image, graph.pos, augment)

        if self.store is None:
            self._check_weights()
            x = compute()
        else:
            x = self.store.get(self._key(sample, augment), (graph.num_nodes, self.architecture.width), compute)
        if self.laplacian:
            x = with_laplacian(x, graph.edges)
        return {"x": x, "edge_attr": encode_geometry(edge_geometry(graph.pos, graph.edges))}

    def update_scale(self, prepared: Extracted) -> None:
        """Take an image of the training set, not augmented, into the scale of the features."""
        self.node_scale.update(prepared.x)
        self.edge_scale.update(prepared.edge_attr)
        self.weights_seen.copy_(torch.tensor(list(self._weights_digest())))

    def forward(self, data: Extracted, augment: PatchAugmentation | None = None) -> tuple[Tensor, Tensor]:
        """Standardised node features (N, F) and edge features (E, 15); patches were augmented in :meth:`extract`."""
        return self.node_scale(data.x), self.edge_scale(data.edge_attr)

    def report(self) -> str:
        """How many images' features came from the disk, and what the folder holds, in a line."""
        if self.store is None:
            return "features  not kept on disk (features.cache=false)"
        counts = f"{self.store.loaded} loaded, {self.store.computed} computed"
        return f"features  {counts}; {self.store.size() / 2**20:,.1f} MiB in {self.store.folder}"

    def network(self) -> FrozenNetwork:
        """The frozen network, built when it is first asked for.

        A process that only prepares samples has it on the CPU: a GPU cannot be used in a fork.
        """
        device = torch.device("cuda" if torch.cuda.is_available() and get_worker_info() is None else "cpu")
        if device not in self._networks:
            # Weights are drawn at random before the file's take their place: a run draws the same where it loads all.
            with torch.random.fork_rng(devices=[]):
                self._networks[device] = load_network(self.name, self.weights).to(device)
        return self._networks[device]

    def _weights_digest(self) -> bytes:
        if self._digest is None:
            self._digest = weights_digest(self.name, self.weights)
        return self._digest

    def _check_weights(self) -> None:
        seen = bytes(self.weights_seen.tolist())
        if any(seen) and seen != self._weights_digest():
            raise InputError(
                f"features.weights: {self.weights or f'the installed weights of {self.name}'} are not those that "
                "this checkpoint was trained with; put these back"
            )

    def _key(self, sample: Sample, augment: PatchAugmentation | None) -> str:
        self._check_weights()
        weights = self._weights_digest()
        parts: list[Any] = [sample.image, sample.graph.pos, self.name, weights, self.patch_size, self.input_size]
        if self.mode == "dense":
            parts += [self.mode, self.tile_cells, self.margin]
        if augment:
            parts += [augment, self.batch_size, torch.get_rng_state()]
        return content_key(*parts)

    def _per_patch(self, image: Tensor, pos: Tensor, augment: PatchAugmentation | None) -> Tensor:
        network = self.network()
        # Augmentations draw on the CPU, so that the same seed gives the same patches with a GPU and without.
        image, pos = (t if augment else t.to(network.mean.device) for t in (image, pos))
        image, pos, step = self._reduced(image, pos)
        rows = []
        for part in torch.split(pos, self.batch_size):
            patches = node_patches(image, part, size=(self.input_size - 1) * step, samples=self.input_size)
            patches = augment(patches) if augment else patches
            rows.append(network(patches.to(network.mean.device)).mean(dim=(2, 3)).cpu())
        return torch.cat(rows) if len(pos) else torch.zeros(0, self.architecture.width)

    def _reduced(self, image: Tensor, pos: Tensor) -> tuple[Tensor, Tensor, float]:
        """Image, positions in it, and its pixels from one sample to the next: 1 at most, so that none is skipped."""
        step = self.patch_size / self.input_size
        if step <= 1:
            return image, pos, step
        old = image.shape[1:]
        new = [max(1, round(length / step)) for length in old]
        reduced = functional.interpolate(image[None], size=new, mode="bilinear", antialias=True)[0]
        ratio = pos.new_tensor([new[1] / old[1], new[0] / old[0]])
        return reduced, (pos + 0.5) * ratio - 0.5, 1.0

    def _dense(self, image: Tensor, pos: Tensor) -> Tensor:
        network = self.network()
        image, pos, step = self._reduced(image.to(network.mean.device), pos.to(network.mean.device))
        # In samples from the corner of the first: cell k stands for [first + STRIDE * k, first + STRIDE * (k + 1)]
        middle = (pos + 0.5) / step
        first = self.architecture.centre + 0.5 - STRIDE / 2
        low, high = ((middle + half - first) / STRIDE for half in (-self.input_size / 2, self.input_size / 2))
        pooled = pos.new_zeros(len(pos), self.architecture.width)
        total = pos.new_zeros(len(pos), 1)
        lengths = [length / step for length in image.shape[1:]]
        for rows, columns in _tiles(lengths, first, self.tile_cells - 2 * self.margin):
            weight_y, weight_x = _covered(low[:, 1], high[:, 1], rows), _covered(low[:, 0], high[:, 0], columns)
            seen = ((weight_y.sum(1) > 0) & (weight_x.sum(1) > 0)).nonzero()[:, 0]
            if not len(seen):
                continue
            weight = (weight_y[seen, :, None] * weight_x[seen, None, :]).flatten(1)
            maps = network(self._tile(image, step, rows, columns))[0]
            inner = slice(self.margin, -self.margin or None)
            pooled[seen] += weight @ maps[:, inner, inner].flatten(1).T
            total[seen] += weight.sum(1, keepdim=True)
        return (pooled / total).cpu()

    def _tile(self, image: Tensor, step: float, rows: range, columns: range) -> Tensor:
        """Samples below the cells and the margin around them, (1, 1, h, w); the image is reflected at its border."""
        y, x = (
            torch.arange(STRIDE * (cells.start - self.margin), STRIDE * (cells.stop + self.margin), device=image.device)
            for cells in (rows, columns)
        )
        at = [(samples + 0.5) * step - 0.5 for samples in (x, y)]
        return sample_image(image, torch.stack(torch.meshgrid(*at, indexing="xy"), dim=-1)[None])


def _tiles(lengths: list[float], first: float, most: int) -> Iterator[tuple[range, range]]:
    """Rows and columns of cells of each tile, at most ``most`` of either, that together cover ``lengths`` samples."""
    axes = []
    for length in lengths:
        start, stop = math.floor(-first / STRIDE), math.ceil((length - first) / STRIDE)
        size = math.ceil((stop - start) / math.ceil((stop - start) / most))
        axes.append([range(k, min(k + size, stop)) for k in range(start, stop, size)])
    return ((rows, columns) for rows in axes[0] for columns in axes[1])


def _covered(low: Tensor, high: Tensor, cells: range) -> Tensor:
    """How much of each cell lies between ``low`` and ``high`` ((N,), in cells): (N, len(cells))."""
    start = torch.arange(cells.start, cells.stop, device=low.device)
    return (torch.minimum(high[:, None], start + 1) - torch.maximum(low[:, None], start)).clamp(min=0)
