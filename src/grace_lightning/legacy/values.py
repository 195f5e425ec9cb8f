"""How values are read: a JSON file of GRACE may have strings for all of them.

A reader makes a value of what a file says; its ValueError tells what was expected.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import yaml

Reader = Callable[[Any], Any]


def plain(value: Any) -> Any:
    """The value that a string of a JSON file stands for: a number, a list, true or None; or else the string."""
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, Mapping):
        return {str(key): plain(v) for key, v in value.items()}
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text.lower() in ("", "none", "null", "~"):
        return None
    if text.startswith("(") and text.endswith(")"):  # a tuple of Python
        text = f"[{text[1:-1]}]"
    try:
        return float(text) if re.fullmatch(r"[-+]?[\d.]+e[-+]?\d+", text, re.I) else _unwrap(yaml.safe_load(text), text)
    except (yaml.YAMLError, ValueError):
        return value


def _unwrap(loaded: Any, text: str) -> Any:
    """Strings within a list are read in their turn."""
    if isinstance(loaded, list | dict):
        return plain(loaded)
    return loaded if isinstance(loaded, bool | int | float) else text


def text(value: Any) -> str | None:
    """Reads text; None for null."""
    if value is None or (isinstance(value, str) and plain(value) is None):
        return None
    if not isinstance(value, str):
        raise ValueError("text")
    return value


def flag(value: Any) -> bool:
    """Reads true or false."""
    value = plain(value)
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def _is_whole(value: Any, least: int = 1) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def whole(least: int) -> Reader:
    """Reads whole numbers of ``least`` or more."""

    def read(value: Any) -> int:
        value = plain(value)
        if not _is_whole(value, least):
            raise ValueError(f"a whole number of {least} or more")
        return value

    return read


def number(least: float = 0.0, most: float = float("inf")) -> Reader:
    """Reads numbers from ``least`` to ``most``."""

    def read(value: Any) -> float:
        value = plain(value)
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise ValueError(f"a number of {least:g} or more" if most == float("inf") else f"{least:g} to {most:g}")
        return float(value)

    return read


def items(read: Reader, what: str) -> Reader:
    """Reads a list, each item by ``read``; one item alone is a list, too. ``what`` was expected."""

    def read_all(value: Any) -> list[Any]:
        value = plain(value)
        try:
            return [read(v) for v in ([] if value is None else value if isinstance(value, list) else [value])]
        except ValueError:
            raise ValueError(what) from None

    return read_all


def one_of(**options: str) -> Reader:
    """The option that a name, in whatever case, stands for here."""

    def read(value: Any) -> str:
        found = options.get(str(plain(value)).lower())
        if found is None:
            raise ValueError(f"one of {', '.join(options)}")
        return found

    return read


def hops(value: Any) -> int | str:
    """Reads ``num_hops``."""
    value = plain(value)
    if value == "whole":
        return "whole"
    if not _is_whole(value):
        raise ValueError("whole, or a number of 1 or more")
    return value


def side(value: Any) -> int:
    """Reads the side of a square, as a number or twice."""
    sides = plain(value) if isinstance(plain(value), list) else [plain(value)]
    if len(sides) not in (1, 2) or not _is_whole(sides[0]) or sides[0] != sides[-1]:
        raise ValueError("the side of a square in pixels, such as 64 or [64, 64]")
    return sides[0]


def two(value: Any) -> int:
    """Reads a number of classes, which is two."""
    if plain(value) != 2:
        raise ValueError(
            "2: negative and positive; what is labelled UNKNOWN is left out of loss and metrics, or negative"
        )
    return 2


def normalised(value: Any) -> Any:
    """Reads ``normalise``: in GRACE true, false, or a list that begins with one of them."""
    value = plain(value)
    first = next(iter(value), None) if isinstance(value, list) else value
    if not isinstance(first, bool | None):
        raise ValueError("true or false")
    return value


FILE_TYPES = ("mrc", "mrc.gz", "mrc.bz2", "tif", "tiff", "png")


def file_type(value: Any) -> str:
    """Reads the ending of image files, with its dot or without."""
    found = str(plain(value)).lower().lstrip(".")
    if found not in FILE_TYPES:
        raise ValueError(f"one of {', '.join(FILE_TYPES)}")
    return found


class Extractor(NamedTuple):
    """A feature network: the option of ``features`` and the file of its weights."""

    option: str
    weights: str | None


NETWORKS = ("resnet152", "resnet18", "resnet50", "efficientnet_lite0")


def extractor(value: Any) -> Extractor:
    """Reads ``extractor_fn``: null, the name of a network, or a file with such a name in its own."""
    name = text(value)
    if name is None:
        return Extractor("statistics", None)
    if name in NETWORKS:
        return Extractor(name, None)
    option = next((network for network in NETWORKS if network in Path(name).name.lower()), None)
    if option is None:
        raise ValueError(
            f"null, one of {', '.join(NETWORKS)}, or a file of a state dict with one of these in its name. A pickled "
            "network is not loaded, since it could run any code: where it was made, "
            "torch.save(model.state_dict(), FILE)"
        )
    return Extractor(option, name)
