"""Overrides as Hydra reads them."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Any, cast

from omegaconf import OmegaConf

from grace_lightning.config import config_dir


class Reference(str):
    """What Hydra takes as it is."""


class Option(str):
    """The option of a config group."""


def render(value: Any) -> str:
    """A value as an override of Hydra takes it; text is quoted, and nothing in it refers to another key."""
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, Reference | Option):
        return str(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {render(v)}" for key, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(render(v) for v in value) + "]"
    text = str(value).replace("${", "\\${")
    return "'" + re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + ("\\'" if m[2] else ""), text) + "'"


def widths(pixels: float, scale: float) -> float:
    """A length in widths of a filament; the configuration calls it, since ``features.scale`` may change in a sweep."""
    return pixels / scale


OmegaConf.register_new_resolver("widths", widths, replace=True)  # here, so that the processes of a sweep know it, too


def key_of(override: str) -> str:
    """The key, or the group, that an override sets."""
    return override.partition("=")[0].lstrip("+~").partition("@")[0]


def options(override: str) -> list[str]:
    """The options of a group that an override names, several for a sweep; a list of options is one."""
    value = override.partition("=")[2]
    return [value] if value.startswith("[") else re.findall(r"[^,\s()]+", value.removeprefix("choice"))


def is_taken(path: str, taken: Collection[str]) -> bool:
    """Whether the command line sets the same, a part of it, or what it is a part of."""
    return any(f"{path}.".startswith(f"{key}.") or key.startswith(f"{path}.") for key in taken)


def default_choices() -> dict[str, str]:
    """By config group the option of ``grace-train`` where none is chosen."""
    defaults = load("train.yaml")["defaults"]
    return {group: option for node in defaults if isinstance(node, dict) for group, option in node.items()}


def load(file: str) -> dict[str, Any]:
    """A file of the config tree as it stands there."""
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(config_dir() / file)))
