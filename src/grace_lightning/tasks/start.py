"""``init``: a training that starts from the weights of another network."""

import warnings
from contextlib import suppress
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf, open_dict

from grace_lightning import io
from grace_lightning.checkpoint import GENERAL, GENERAL_FILE, OWN, checkpoint_paths, expect_trusted, load_module
from grace_lightning.config import config_dir, differing, selected
from grace_lightning.errors import InputError, InputWarning
from grace_lightning.graph import HEADS
from grace_lightning.legacy import key_of
from grace_lightning.module import GraceModule
from grace_lightning.tasks.common import Config, plain
from grace_lightning.tasks.record import typed_overrides

FEW = 2
"""Up to so many training images, to start from the general network is better than from nothing: benchmarks/start.py."""

FREE = ("model.dense", "model.dropout", "model.types", "features.cache_dir")
"""Keys of a network that may be other ones than those it starts from: they change its heads, or no weights."""


def network_to_start_from(cfg: DictConfig) -> tuple[GraceModule | None, str]:
    """Return the network whose weights ``init`` asks for, and what to tell about it; make its configuration ``cfg``'s.

    ``auto`` is the general network for few images of folders, and none if another kind of network was typed.
    """
    config = plain(cfg)
    auto = config["init"] == "auto"
    if auto:
        cfg.init = GENERAL if GENERAL_FILE.is_file() and _are_few(config["data"]) else None
    if cfg.init is None:
        return None, ""
    paths = checkpoint_paths(cfg.init)
    if len(paths) != 1:
        raise InputError(f"init: {cfg.init} has {len(paths)} checkpoints, expected one; name its file")
    start = load_module(paths[0], _packages(config))
    if other := _typed_otherwise(config, start.config):
        found = ", ".join(f"{key}={selected(config, key)}" for key in other)
        has = f"init={cfg.init} has {', '.join(f'{key}={selected(start.config, key)}' for key in other)}"
        if not auto:
            raise InputError(f"{found}, but {has}; leave that, or init, out")
        cfg.init = None
        return None, f"starts from nothing: {found}, and {has}"
    adopt_network(cfg, start.config)
    return start, f"starts from {cfg.init}"


def _are_few(data: Config) -> bool:
    """Return whether few annotated images of folders are trained on; what is wrong with the folders is said later."""
    if data["simulation"]:
        return False
    folder, part = (data["train_image_dir"], 1.0) if data["train_image_dir"] else (data["image_dir"], data["split"][0])
    with suppress(InputError, OSError, TypeError), warnings.catch_warnings(action="ignore", category=InputWarning):
        grace = data["train_grace_dir"] if data["train_image_dir"] else data["grace_dir"]
        return part * len(io.find_sources(folder, grace)) < FEW + 0.5
    return False


def go_on_as(cfg: DictConfig, trained: Config) -> Config:
    """Make the network and the width of filaments of a run that goes on those of ``cfg``; return it.

    ``trained`` is the configuration in its checkpoint.
    """
    of_data = {key: trained["data"].get(key) for key in ("scale", "polarity")}
    before = trained.get("init")
    taken = {"init": before, "data": of_data} | ({key: trained[key] for key in ("features", "model")} if before else {})
    expect_trusted(taken, "ckpt_path: its configuration", (OWN, *_packages(plain(cfg))))
    if cfg.init not in (None, "auto", before):
        raise InputError(f"init: {cfg.init}, but a run that goes on has its own weights; leave that, or ckpt_path, out")
    cfg.init = before
    if before is not None and not _typed_otherwise(plain(cfg), trained):
        adopt_network(cfg, trained)
    for key, value in of_data.items():
        if cfg.data[key] == "auto" or (before and cfg.data[key] is None):
            cfg.data[key] = value
    return plain(cfg)


def _packages(config: Config) -> list[str]:
    """Return the packages of the classes that the user configures."""
    return [str(config[group]["_target_"]).partition(".")[0] for group in ("features", "model")]


def adopt_network(cfg: DictConfig, trained: Config) -> None:
    """Put the features and the model of a checkpoint's configuration into ``cfg``, unless others were typed.

    The typed ``features.scale`` is the width of filaments in the user's images then, ``data.scale``. If nothing was
    typed, images are as those that the network was trained on, and estimated if these were of all kinds. The shift of
    detections, which is in pixels, becomes what suits the network.
    """
    typed, words = _typed(plain(cfg)), {key_of(word) for word in typed_overrides()}
    with open_dict(cfg):
        for group in ("features", "model"):
            free = {key: value for key, value in typed.items() if key in FREE and key.startswith(f"{group}.")}
            cfg[group] = {**trained[group], **{key.split(".")[1]: value for key, value in free.items()}}
        if cfg.data.scale is None and "features.scale" in typed:
            cfg.data.scale = typed["features.scale"]
        for key in ("scale", "polarity"):
            if cfg.data[key] is None:
                before = trained["data"].get(key)
                cfg.data[key] = "auto" if before == "each" else before
        shift = (cfg.augment or {}).get("random_xy_translation")
        if shift and "augment.random_xy_translation.max_shift" not in words:
            shift.max_shift *= trained["features"]["scale"] / _shipped("features/learned")["scale"]


def _typed(config: Config) -> dict[str, Any]:
    """Return the keys of features and model that were typed, or have other values than the defaults."""
    words = {key_of(word) for word in typed_overrides()}
    groups = [choice for choice in _shipped("train")["defaults"] if isinstance(choice, dict)]
    option = {group: name for choice in groups for group, name in choice.items()}
    typed: dict[str, Any] = {}
    for group in ("features", "model"):
        other = {*differing(_shipped(f"{group}/{option[group]}"), config[group], group)}
        keys = {f"{group}.{name}": value for name, value in config[group].items()}
        typed |= {key: value for key, value in keys.items() if key in words | other}
    return typed


def _shipped(name: str) -> Config:
    return cast(Config, OmegaConf.to_container(OmegaConf.load(config_dir() / f"{name}.yaml")))


def _typed_otherwise(config: Config, trained: Config) -> list[str]:
    """Return the keys of features and model that were typed and of which the trained network has other values."""
    of_images = ["features.scale"] if config["data"]["scale"] is None else []
    typed = _typed(config).items()
    return [key for key, value in typed if key not in (*FREE, *of_images) and selected(trained, key) != value]


def take_weights(module: GraceModule, start: GraceModule) -> None:
    """Give a module, fitted to its data, the weights, scales and temperatures of the network that it starts from.

    Heads of other sizes stay as they are. A head that has no labels in these data stays learned.
    """
    own, given = module.state_dict(), start.state_dict()
    by_head = {name: name.split(".")[2] for name in own if name.startswith("network.heads.")}
    anew = {head for name, head in by_head.items() if name not in given or given[name].shape != own[name].shape}
    taken = {name: value for name, value in given.items() if name in own and by_head.get(name) not in anew}
    for name in ("node_class_weight", "edge_class_weight"):
        del taken[name]
    for row, head in enumerate(HEADS):
        if head in anew:
            taken["temperature"][row], taken["learned"][row] = 1.0, False
    taken["learned"] |= own["learned"]
    module.load_state_dict(own | taken)
