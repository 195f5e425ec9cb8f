"""A configuration file of GRACE, read into overrides of this package's configuration.

:data:`KEYS` says of every key of GRACE what values it takes and what they set here, or why they set nothing.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import yaml
from omegaconf import OmegaConf

from grace_lightning.config import config_dir, literal
from grace_lightning.errors import InputError
from grace_lightning.files import reading

PARTS = ("train", "valid", "infer")
FILE_TYPES = ("mrc", "mrc.gz", "mrc.bz2", "tif", "tiff", "png")

MAX_CHARACTERS, MAX_VALUES, MAX_DEPTH = 100_000, 10_000, 10
"""Of a file, and how deep its lists may be nested. Aliases of YAML count as often as they stand for something."""

NETWORKS = ("resnet152", "resnet18", "resnet50", "efficientnet_lite0")
"""Feature networks that GRACE and this package have."""


class Verbatim(str):
    """A value that Hydra takes without quotes: an option of a group, or an interpolation."""


class Kind(NamedTuple):
    """Values that a key of GRACE takes: ``expected`` in words, and whether a value ``fits``."""

    expected: str
    fits: Callable[[Any], bool]


class Key(NamedTuple):
    """What becomes of a key of GRACE."""

    kind: Kind  # null that is not of this kind leaves what is set here
    sets: str | Callable[[Any], dict[str, Any]] = ""  # a key here, or a function that returns values by key
    of: tuple[str, ...] = ()  # options of the group that have the key; empty if all have it
    reason: str = ""  # why the key sets nothing


def plain(value: Any) -> Any:
    """Return what a string of a JSON file stands for: a number, a list, true, None; or else the string."""
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, Mapping):
        return {str(key): plain(v) for key, v in value.items()}
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text.lower() in ("", "none", "null", "~"):
        return None
    if re.fullmatch(r"[-+]?(\d+(\.\d*)?|\.\d+)e[-+]?\d+", text, re.I):  # for YAML 1.1 a text
        return float(text)
    try:
        loaded = yaml.safe_load(re.sub(r"^\((.*)\)$", r"[\1]", text, flags=re.S))  # a tuple of Python
        _expect_small(loaded)
    except (yaml.YAMLError, ValueError, RecursionError):
        return value
    if isinstance(loaded, list | dict):
        return plain(loaded)  # for strings in the list
    return loaded if isinstance(loaded, bool | int | float) else text


def _listed(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _one_of(*options: str) -> Kind:
    return Kind(f"one of {', '.join(options)}", lambda value: _option(value) in options)


def _option(value: Any) -> str:
    """Return a name in small letters, without a dot before it."""
    return str(value).lower().lstrip(".")


def _are_parameters(value: Any) -> bool:
    """Return whether ``value`` has names, which Hydra's parser takes without quotes, of what has no names itself."""
    return isinstance(value, dict) and all(
        str(name).isidentifier() and (isinstance(v, bool | str) or (isinstance(v, int | float) and abs(v) < 1e38))
        for name, given in value.items()
        for v in _listed(given)
    )


def _network(value: Any) -> str | None:
    """Return the feature network that a value names, or a file with the name in its own."""
    return next((network for network in NETWORKS if network in Path(value).name.lower()), None)


TEXT = Kind("text", lambda value: isinstance(value, str | None))
RUNS = Kind(
    "text without ${, which Hydra would take for a reference", lambda value: TEXT.fits(value) and "${" not in str(value)
)
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
COUNT = Kind("a whole number of 1 or more", lambda value: type(value) is int and value >= 1)
NUMBER = Kind("a number of 0 or more", lambda value: type(value) in (int, float) and 0 <= value < 1e38)
FRACTION = Kind("0 to 1", lambda value: NUMBER.fits(value) and value <= 1)
WIDTHS = Kind("a list of widths", lambda value: value is not None and all(map(COUNT.fits, _listed(value))))
NAMES = Kind("a list of names", lambda value: all(isinstance(v, str) for v in _listed(value)))
PARAMETERS = Kind(
    "a list with the parameters of each augmentation by name: numbers, text, true, false, or lists of these",
    lambda value: all(v is None or _are_parameters(v) for v in _listed(value)),
)
SQUARE = Kind(
    "the side of a square in pixels, such as 64 or [64, 64]",
    lambda value: WIDTHS.fits(value) and len(_listed(value)) <= 2 and len(set(_listed(value))) == 1,
)
NORMALISED = Kind("true or false", lambda value: isinstance(next(iter(_listed(value)), None), bool | None))
TWO = Kind(
    "2: negative and positive; UNKNOWN is left out of loss and metrics, or is negative", lambda value: value == 2
)
HOPS = Kind("whole, or a number of 1 or more", lambda value: value == "whole" or COUNT.fits(value))
EXTRACTOR = Kind(
    f"null, one of {', '.join(NETWORKS)}, or a file of a state dict with one of these in its name. A pickled network "
    "is not loaded, since it could run any code: where it was made, torch.save(model.state_dict(), FILE)",
    lambda value: value is None or (isinstance(value, str) and _network(value) is not None),
)


def _image_dir(key: str, value: str | None) -> dict[str, Any]:
    return {key: value} | ({} if value is None else {"data": "folders"})


def _extractor(value: str | None) -> dict[str, Any]:
    if value is None:
        return {"features": "statistics"}
    return {"features": _network(value)} | ({} if value in NETWORKS else {"features.weights": value})


def _patch(value: Any) -> dict[str, Any]:
    # In widths of a filament. The configuration divides, since a sweep may go over features.scale.
    return {"features.patch": Verbatim(f"'${{widths:{_listed(value)[0]},${{features.scale}}}}'")}


STANDARDISED = "images are always standardised (features.flatten says how)"
ALL_METRICS = (
    "all are always computed: accuracy, precision, recall, f1, auroc, average_precision, confusion_matrix of nodes and "
    "edges; filaments as sets of nodes (exact) and as masks (approx)"
)

KEYS: dict[str, Key] = {
    **{f"{p}_image_dir": Key(TEXT, partial(_image_dir, f"data.{p}_image_dir"), ("folders",)) for p in PARTS},
    **{f"{p}_grace_dir": Key(TEXT, f"data.{p}_grace_dir", ("folders",)) for p in PARTS},
    "log_dir": Key(RUNS, "log_dir"),
    "filetype": Key(_one_of(*FILE_TYPES), reason="every type that can be read is found"),
    "keep_node_unknown_labels": Key(FLAG, "data.keep_node_unknown_labels"),
    "keep_edge_unknown_labels": Key(FLAG, "data.keep_edge_unknown_labels"),
    "extractor_fn": Key(EXTRACTOR, _extractor),
    "patch_size": Key(SQUARE, _patch),
    "feature_dim": Key(COUNT, reason="the number of features follows from features="),
    "normalise": Key(NORMALISED, reason=STANDARDISED),
    "normalize": Key(NORMALISED, reason=STANDARDISED),
    "laplacian": Key(FLAG, "features.laplacian", ("statistics", *NETWORKS)),
    "img_graph_augs": Key(NAMES),  # these four: _augmentations
    "img_graph_aug_params": Key(PARAMETERS),
    "patch_augs": Key(NAMES),
    "patch_aug_params": Key(PARAMETERS),
    "keep_patch_fraction": Key(FRACTION, reason="every node is trained on; to train on less, leave images out"),
    "batch_size": Key(COUNT, "data.batch_size"),
    "num_hops": Key(HOPS, "data.num_hops"),
    "connection": Key(_one_of("spiderweb", "fireworks"), lambda value: {"data.connection": _option(value)}),
    "classifier_type": Key(_one_of("gcn", "gat"), lambda value: {"model": _option(value)}),
    "num_attention_heads": Key(COUNT, "model.heads", ("gat",)),
    "num_node_classes": Key(TWO, reason="a node is negative or positive, always"),
    "num_edge_classes": Key(TWO, reason="an edge is negative or positive, always"),
    "hidden_graph_channels": Key(WIDTHS, lambda value: {"model.hidden": _listed(value)}, ("gcn", "gat")),
    "hidden_dense_channels": Key(WIDTHS, lambda value: {"model.dense": _listed(value)}),
    "epochs": Key(COUNT, "trainer.max_epochs"),
    "dropout": Key(FRACTION, "model.dropout"),
    "learning_rate": Key(NUMBER, "optimizer.lr"),
    "weight_decay": Key(NUMBER, "optimizer.weight_decay"),
    "scheduler_type": Key(
        _one_of("none", "step", "expo"), lambda value: {"scheduler": _option(value).replace("expo", "exponential")}
    ),
    "scheduler_step": Key(COUNT, "scheduler.step_size", ("step",)),
    "scheduler_gamma": Key(NUMBER, "scheduler.gamma", ("step", "exponential")),
    "tensorboard_update_frequency": Key(COUNT, reason="metrics are logged in every epoch"),
    "valid_graph_ploter_frequency": Key(COUNT, "callbacks.figures.every_n_epochs"),
    "animate_valid_progress": Key(FLAG, lambda value: {"callbacks.animation.every_n_epochs": 1 if value else None}),
    "visualise_tsne_manifold": Key(
        FLAG, reason="TensorBoard's Projector tab computes t-SNE, UMAP and PCA of the node states"
    ),
    "metrics_classifier": Key(NAMES, reason=ALL_METRICS),
    "metrics_objects": Key(NAMES, reason=ALL_METRICS),
}


def read_config_file(path: str | Path) -> dict[str, Any]:
    """Read a ``config.json`` or ``config.yaml``; an :class:`InputError` tells if it is none."""
    path = Path(path).expanduser()
    with reading(path, "a configuration of GRACE"):
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(MAX_CHARACTERS + 1)
        if len(text) > MAX_CHARACTERS:
            raise ValueError(f"it has more than {MAX_CHARACTERS:,} characters")
        is_json = path.suffix.lower() == ".json"
        content = json.loads(text, object_pairs_hook=_once) if is_json else yaml.load(text, _Loader)
        _expect_small(content)
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, expected keys and values")
    return {str(key): value for key, value in content.items()}


def _once(pairs: Sequence[tuple[Any, Any]]) -> dict[Any, Any]:
    """Return the dictionary of keys and values; a key that comes twice is an error."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)} is there twice")
    return found


class _Loader(yaml.SafeLoader):
    """Refuses keys that come twice, and leaves dates the text that they are: folders have such names."""

    yaml_implicit_resolvers: ClassVar[Any] = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        if isinstance(node, yaml.MappingNode):
            _once([(key.value, None) for key, _ in node.value if isinstance(key, yaml.ScalarNode)])
        return super().construct_mapping(node, deep)


def _expect_small(content: Any) -> None:
    """Raise a ValueError for content that no configuration has, and that could take all memory to work with."""
    for count, value in enumerate(_values(content)):
        if count > MAX_VALUES:
            raise ValueError(f"it has more than {MAX_VALUES:,} values, those of aliases included")
        if isinstance(value, str) and (found := re.search(r"[\0-\x1f\x7f\ud800-\udfff]", value)):
            raise ValueError(f"it has the character {found[0]!r} in a name or value")


def _values(content: Any, depth: int = 0) -> Iterator[Any]:
    """Yield content and everything in it, as often as it comes."""
    if depth > MAX_DEPTH:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
    yield content
    parts = [*content.keys(), *content.values()] if isinstance(content, dict) else content
    for part in parts if isinstance(parts, list | tuple | set) else ():
        yield from _values(part, depth + 1)


def translate(
    content: Mapping[str, Any], given: Sequence[str] = (), name: str = "config_file"
) -> tuple[list[str], list[str]]:
    """Return the overrides that a configuration of GRACE comes to, and a line for every key that has no effect.

    ``content`` is by GRACE's keys; values may be strings. The overrides ``given`` on the command line win. An unknown
    key, or a value of another kind than its key takes, is an :class:`InputError` with the file's ``name``.
    """
    effects, reasons = _effects(content, name)
    defaults = {group: o for node in _load("train.yaml")["defaults"] if node != "_self_" for group, o in node.items()}
    typed = {key: _options(override) for override in given if (key := key_of(override)) in defaults}
    choices = {path: value for effect in effects.values() for path, value in effect.items() if path in defaults}
    chosen = {group: [option] for group, option in (defaults | choices).items()} | typed
    taken = {key_of(override) for override in given} - typed.keys()
    if "data.image_dir" in taken:  # one folder to split takes the place of all others
        taken |= {f"data.{key}" for key in KEYS if key.endswith(("_image_dir", "_grace_dir"))}

    def is_taken(path: str) -> bool:  # also by a part of it, or what it is a part of
        return any(f"{path}.".startswith(f"{key}.") or key.startswith(f"{path}.") for key in taken)

    settings = {group: Verbatim(option) for group, option in choices.items() if group not in typed}
    # Before a sweep Hydra tries its keys with the option that is not swept over, which may lack them.
    settings |= {group: Verbatim(options[0]) for group, options in typed.items() if len(options) > 1}
    for key, effect in effects.items():
        parts = {path: value for path, value in effect.items() if path not in defaults}
        group = next(iter(effect)).partition(".")[0]
        fitting = KEYS[key].of or tuple(option for path, option in effect.items() if path in defaults)
        unfit = sorted(set(chosen[group]) - set(fitting)) if fitting else []
        if unfit and parts:  # an option alone is just overruled by the command line
            reasons[key] = f"it is for {group}={' and '.join(fitting)}, not {group}={','.join(unfit)}"
        else:
            settings |= {path: value for path, value in parts.items() if not is_taken(path)}
    overrides = [f"{path}={render(value)}" for path, value in settings.items()]
    return overrides, [f"{name}: {key} has no effect: {reason}" for key, reason in reasons.items()]


def _effects(content: Mapping[str, Any], name: str) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Return by key of GRACE what it sets, by key of the configuration; and why other keys set nothing."""
    effects, reasons, values = {}, {}, {}
    for key, found in content.items():
        if key not in KEYS:
            raise InputError(f"{name}: {_shown(key)}: no such key in GRACE; its keys are {', '.join(KEYS)}")
        kind, sets, _, reason = KEYS[key]
        value = plain(found)
        if value is not None and kind in (TEXT, RUNS, EXTRACTOR):
            value = found  # the folder "2024" is no number
        if not kind.fits(value):
            if value is not None:
                raise InputError(f"{name}: {key}: {_shown(repr(found))}, expected {kind.expected}")
            reasons[key] = "it is null"
        elif reason:
            reasons[key] = reason
        elif sets:
            effects[key] = {sets: value} if isinstance(sets, str) else sets(value)
        else:
            values[key] = _listed(value)
    for which in ("img_graph", "patch"):
        names, parameters = values.get(f"{which}_augs"), values.get(f"{which}_aug_params", [])
        if parameters and len(parameters) != len(names or []):
            found, expected = len(parameters), len(names or [])
            raise InputError(f"{name}: {which}_aug_params: {found} entries, expected {expected} as in {which}_augs")
        if names is not None:
            effects[f"{which}_augs"] = _augmentations(which, names, parameters or [None] * len(names), name)
    return effects, reasons


def _shown(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:100]}..."


def _augmentations(which: str, names: Sequence[str], parameters: Sequence[Any], file: str) -> dict[str, Any]:
    """Return the parameters of the augmentations that are listed, and null for those that are not."""
    steps = [key for key, step in _load("augment/default.yaml").items() if isinstance(step, dict)]
    own = [step for step in steps if (step == "random_edge_crop") == (which == "patch")]  # the one for patches
    settings: dict[str, Any] = {f"augment.{step}": None for step in own}
    for name, given in zip(names, parameters, strict=True):
        # random_edge_crop and RandomEdgeCrop are the same
        step = next((step for step in own if step.replace("_", "") == name.replace("_", "").lower()), None)
        if step is None:
            raise InputError(f"{file}: {which}_augs: {_shown(repr(name))}, expected {' or '.join(own)}")
        settings.pop(f"augment.{step}", None)
        settings |= {f"augment.{step}.{key}": value for key, value in (given or {}).items()}
    return {"augment": "default", **settings}


def render(value: Any) -> str:
    """Write a value as an override of Hydra takes it; text is quoted, and nothing in it refers to another key."""
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, Verbatim):
        return value
    if isinstance(value, list):
        return "[" + ", ".join(map(render, value)) + "]"
    # Hydra takes backslashes for an escape only before a quote and at the end: there each is doubled
    return "'" + re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + ("\\'" if m[2] else ""), literal(str(value))) + "'"


# On import, so that the processes of a sweep know it, too.
OmegaConf.register_new_resolver("widths", lambda pixels, scale: pixels / scale, replace=True)


def key_of(override: str) -> str:
    """Return the key, or the group, that an override sets."""
    return override.partition("=")[0].lstrip("+~").partition("@")[0]


def _options(override: str) -> list[str]:
    """Return the options of a group that an override names, several for a sweep; a list of options is one."""
    value = override.partition("=")[2]
    return [value] if value.startswith("[") else re.findall(r"[^,\s()]+", value.removeprefix("choice"))


def _load(file: str) -> Any:
    return OmegaConf.to_container(OmegaConf.load(config_dir() / file))
