"""From a configuration file of GRACE to overrides of this package's configuration."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from grace_lightning.errors import InputError
from grace_lightning.legacy.augmentations import joined
from grace_lightning.legacy.effects import Chosen, NoEffect
from grace_lightning.legacy.keys import KEYS, NULL_SAYS_SOMETHING
from grace_lightning.legacy.overrides import Option, default_choices, is_taken, key_of, options, render
from grace_lightning.legacy.values import plain


class Translation(NamedTuple):
    """What a file comes to.

    Attributes
    ----------
    overrides : of Hydra, to stand before those of the command line
    lines : one for every key that has no effect, with the reason
    """

    overrides: list[str]
    lines: list[str]


def read_config_file(path: str | Path) -> dict[str, Any]:
    """The content of a ``config.json`` or ``config.yaml``.

    Raises
    ------
    InputError
        The file is missing, damaged, or holds something else than keys and values.
    """
    path = Path(path).expanduser()
    readers: dict[str, Callable[[str], Any]] = {".json": json.loads, ".yaml": yaml.safe_load, ".yml": yaml.safe_load}
    if path.suffix.lower() not in readers:
        raise InputError(f"config_file: {path}, expected a file that ends in {', '.join(readers)}")
    try:
        content = readers[path.suffix.lower()](path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise InputError(f"config_file: {path}, no such file") from error
    except OSError as error:
        raise InputError(f"config_file: {path} cannot be read ({error.strerror})") from error
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(f"config_file: {path} cannot be read ({error}); is the file complete?") from error
    if not isinstance(content, dict):
        raise InputError(f"config_file: {path} holds a {type(content).__name__}, expected keys and values")
    return {str(key): value for key, value in content.items()}


def translate(content: Mapping[str, Any], given: Sequence[str] = (), name: str = "config_file") -> Translation:
    """The overrides that a configuration of GRACE comes to.

    Parameters
    ----------
    content : by GRACE's keys; values may be strings
    given : the overrides of the command line, which win
    name : of the file, for messages

    Raises
    ------
    InputError
        An unknown key, or a value of another kind than its key takes.
    """
    for key in content:
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, n=1, cutoff=0.0)
            raise InputError(f"{name}: {key}: no such key in GRACE; did you mean {near[0]}?")
    unset = [key for key, value in content.items() if plain(value) is None and key not in NULL_SAYS_SOMETHING]
    values = {key: _read(key, value, name) for key, value in content.items() if key not in unset}
    try:
        values = joined(values)
    except ValueError as error:
        raise InputError(f"{name}: {error}") from error

    taken = {key_of(override) for override in given}
    if "data.image_dir" in taken:  # one folder to split takes the place of all others
        taken |= {f"data.{key}" for key in KEYS if key.endswith(("_image_dir", "_grace_dir"))}
    choices = {g: Option(o) for key, value in values.items() for g, o in KEYS[key].chooses(value).items()}
    defaults = default_choices()
    typed = {key: options(override) for override in given if (key := key_of(override)) in defaults}
    chosen: Chosen = {group: [option] for group, option in (defaults | choices).items()} | typed

    settings: dict[str, Any] = {group: option for group, option in choices.items() if group not in typed}
    # Before a sweep Hydra tries its keys with the option that is not swept over, which may lack them.
    settings |= {group: Option(options[0]) for group, options in typed.items() if len(options) > 1}
    lines = [f"{name}: {key} has no effect: it is null" for key in unset]
    for key, value in values.items():
        effect = KEYS[key].effect(value, chosen)
        if isinstance(effect, NoEffect):
            lines.append(f"{name}: {key} has no effect: {effect}")
        else:
            settings |= {path: v for path, v in effect.items() if not is_taken(path, taken - typed.keys())}
    return Translation([f"{path}={render(value)}" for path, value in settings.items()], lines)


def _read(key: str, value: Any, name: str) -> Any:
    try:
        return KEYS[key].read(value)
    except ValueError as error:
        raise InputError(f"{name}: {key}: {value!r}, expected {error}") from None
