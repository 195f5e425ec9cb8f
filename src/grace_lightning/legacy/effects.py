"""What the value of a key sets here, or why it sets nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from grace_lightning.legacy.overrides import Reference
from grace_lightning.legacy.values import Extractor

Chosen = Mapping[str, Collection[str]]
"""By config group the options that the run, or a run of the sweep, has."""


class NoEffect(str):
    """Why a key of the file sets nothing."""


Effect = Callable[[Any, Chosen], dict[str, Any] | NoEffect]
"""What a value sets: by key of the configuration; a group's key takes an option."""


def nothing_more(value: Any, chosen: Chosen) -> dict[str, Any]:
    """The value has its effect by the choice of an option, or together with another key."""
    return {}


def sets(path: str, *options: str) -> Effect:
    """Sets a key that the named options of its group have; all have it where none is named."""
    group = path.partition(".")[0]

    def effect(value: Any, chosen: Chosen) -> dict[str, Any] | NoEffect:
        others = sorted(set(chosen[group]) - set(options)) if options else []
        if others:
            return NoEffect(f"it is for {group}={' and '.join(options)}, not {group}={','.join(others)}")
        return {path: value}

    return effect


def nothing(reason: str) -> Effect:
    """Sets nothing, whatever the value, for this reason."""
    return lambda value, chosen: NoEffect(reason)


def weights(value: Extractor, chosen: Chosen) -> dict[str, Any] | NoEffect:
    """The file of a feature network's weights, where that network is used."""
    if set(chosen["features"]) != {value.option}:
        return NoEffect(f"features={','.join(sorted(chosen['features']))} is on the command line")
    return {} if value.weights is None else {"features.weights": value.weights}


def patch(value: int, chosen: Chosen) -> dict[str, Any]:
    """A side in pixels as one in widths of a filament, also where a sweep goes over ``features.scale``."""
    return {"features.patch": Reference(f"'${{widths:{value},${{features.scale}}}}'")}


def switch(path: str, on: Any) -> Effect:
    """Sets ``on`` for true, null for false."""
    effect = sets(path, "default")
    return lambda value, chosen: effect(on if value else None, chosen)


METRICS = {
    "classifier": ("accuracy", "precision", "recall", "f1", "auroc", "average_precision", "confusion_matrix"),
    "objects": ("exact", "approx"),
}


def metrics(which: str) -> Effect:
    """Nothing, with what is computed anyway, and which of the names is not."""
    known = METRICS[which]

    def effect(names: list[str], chosen: Chosen) -> NoEffect:
        others = [name for name in names if re.sub(r"_(scores?|metrics?)$", "", name.lower()) not in known]
        told = f"; {', '.join(others)} is not among them" if others else ""
        return NoEffect(f"all are always computed: {', '.join(known)}{told}")

    return effect
