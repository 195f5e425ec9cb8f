"""Augmentations: GRACE has a list of names and a list of parameters in the same order."""

from __future__ import annotations

from typing import Any

from grace_lightning.legacy.effects import Chosen, NoEffect
from grace_lightning.legacy.overrides import load

ON_PATCHES = ("random_edge_crop",)


def _augmentations() -> dict[str, list[str]]:
    """The augmentations of ``augment=default``, and what each takes."""
    group = load("augment/default.yaml")
    return {name: [key for key in step if key != "_target_"] for name, step in group.items() if isinstance(step, dict)}


def name(value: Any) -> str:
    """Reads the name of an augmentation."""
    if not isinstance(value, str):
        raise ValueError
    return value


def parameters(value: Any) -> dict[str, Any]:
    """Reads the parameters of an augmentation; null for none."""
    if not isinstance(value, dict | None):
        raise ValueError
    return value or {}


def joined(values: dict[str, Any]) -> dict[str, Any]:
    """Names of augmentations with their parameters, in the place of the names alone."""
    joined = dict(values)
    for kind in ("img_graph", "patch"):
        names, parameters = values.get(f"{kind}_augs"), values.get(f"{kind}_aug_params")
        if names is None and parameters:
            raise ValueError(f"{kind}_aug_params: {parameters}, expected none without {kind}_augs")
        if names is None:
            continue
        if parameters and len(parameters) != len(names):
            raise ValueError(f"{kind}_aug_params: {len(parameters)} entries, expected {len(names)} as in {kind}_augs")
        own = {name: step for name, step in _augmentations().items() if (name in ON_PATCHES) == (kind == "patch")}
        joined[f"{kind}_augs"] = dict.fromkeys(own)
        by_word = {_word(name): name for name in own}
        for listed, given in zip(names, parameters or [{}] * len(names), strict=True):
            name = by_word.get(_word(listed))
            if name is None:
                raise ValueError(f"{kind}_augs: {listed!r}, expected {' or '.join(own)}")
            unknown = [key for key in given if key not in own[name]]
            if unknown:
                raise ValueError(f"{kind}_aug_params: {name} takes no {unknown[0]!r}, but {', '.join(own[name])}")
            joined[f"{kind}_augs"][name] = given
    return joined


def _word(name: str) -> str:
    """The same of ``random_edge_crop`` and of ``RandomEdgeCrop``."""
    return name.replace("_", "").lower()


def augments(steps: dict[str, dict[str, Any] | None], chosen: Chosen) -> dict[str, Any] | NoEffect:
    """Parameters of the augmentations that are listed; the others are switched off."""
    if set(chosen["augment"]) != {"default"}:
        return NoEffect(f"augment={','.join(sorted(chosen['augment']))} is on the command line")
    return {
        path: value
        for name, given in steps.items()
        for path, value in (
            [(f"augment.{name}", None)] if given is None else [(f"augment.{name}.{key}", v) for key, v in given.items()]
        )
    }
