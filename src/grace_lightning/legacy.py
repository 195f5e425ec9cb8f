"""A configuration file of GRACE, read into overrides of this package's configuration.

:data:`KEYS` says of every key how its value is read and what it sets here, or why it sets nothing.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import yaml
from omegaconf import OmegaConf

from grace_lightning.config import config_dir
from grace_lightning.errors import InputError

Chosen = Mapping[str, Collection[str]]
"""By config group the options that the run, or a run of the sweep, has."""

Reader = Callable[[Any], Any]
"""Makes a value of what a file says; a ValueError tells what was expected."""


class NoEffect(str):
    """Why a key of the file sets nothing."""


Effect = Callable[[Any, Chosen], dict[str, Any] | NoEffect]
"""What a value sets: by key of the configuration; a group's key takes an option."""


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
        values = _joined(values)
    except ValueError as error:
        raise InputError(f"{name}: {error}") from error

    taken = {_key_of(override) for override in given}
    if "data.image_dir" in taken:  # one folder to split takes the place of all others
        taken |= {f"data.{key}" for key in KEYS if key.endswith(("_image_dir", "_grace_dir"))}
    choices = _choices(values)
    defaults = _default_choices()
    typed = {key: _options(override) for override in given if (key := _key_of(override)) in defaults}
    chosen: Chosen = {group: [option] for group, option in (defaults | choices).items()} | typed

    settings: dict[str, Any] = {group: option for group, option in choices.items() if group not in typed}
    # Before a sweep Hydra tries its keys with the option that is not swept over, which may lack them.
    settings |= {group: _Option(options[0]) for group, options in typed.items() if len(options) > 1}
    lines = [f"{name}: {key} has no effect: it is null" for key in unset]
    for key, value in values.items():
        effect = KEYS[key][1](value, chosen)
        if isinstance(effect, NoEffect):
            lines.append(f"{name}: {key} has no effect: {effect}")
        else:
            settings |= {path: v for path, v in effect.items() if not _is_taken(path, taken - typed.keys())}
    return Translation([f"{path}={render(value)}" for path, value in settings.items()], lines)


def render(value: Any) -> str:
    """A value as an override of Hydra takes it; text is quoted, and nothing in it refers to another key."""
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, _Reference | _Option):
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


def _key_of(override: str) -> str:
    return override.partition("=")[0].lstrip("+~").partition("@")[0]


def _options(override: str) -> list[str]:
    """The options of a group that an override names, several for a sweep; a list of options is one."""
    value = override.partition("=")[2]
    return [value] if value.startswith("[") else re.findall(r"[^,\s()]+", value.removeprefix("choice"))


def _is_taken(path: str, taken: Collection[str]) -> bool:
    """Whether the command line sets the same, a part of it, or what it is a part of."""
    return any(f"{path}.".startswith(f"{key}.") or key.startswith(f"{path}.") for key in taken)


def _default_choices() -> dict[str, str]:
    defaults = _load("train.yaml")["defaults"]
    return {group: option for node in defaults if isinstance(node, dict) for group, option in node.items()}


def _load(file: str) -> dict[str, Any]:
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(config_dir() / file)))


# Values


class _Reference(str):
    """What Hydra takes as it is."""


class _Option(str):
    """The option of a config group."""


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


def _read(key: str, value: Any, name: str) -> Any:
    try:
        return KEYS[key][0](value)
    except ValueError as error:
        raise InputError(f"{name}: {key}: {value!r}, expected {error}") from None


def _text(value: Any) -> str | None:
    if value is None or (isinstance(value, str) and plain(value) is None):
        return None
    if not isinstance(value, str):
        raise ValueError("text")
    return value


def _flag(value: Any) -> bool:
    value = plain(value)
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def _whole(least: int) -> Reader:
    def read(value: Any) -> int:
        value = plain(value)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"a whole number of {least} or more")
        return value

    return read


def _number(least: float = 0.0, most: float = float("inf")) -> Reader:
    def read(value: Any) -> float:
        value = plain(value)
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise ValueError(f"a number of {least:g} or more" if most == float("inf") else f"{least:g} to {most:g}")
        return float(value)

    return read


def _items(read: Reader, what: str) -> Reader:
    def read_all(value: Any) -> list[Any]:
        value = plain(value)
        try:
            return [read(v) for v in ([] if value is None else value if isinstance(value, list) else [value])]
        except ValueError:
            raise ValueError(what) from None

    return read_all


def _one_of(**options: str) -> Reader:
    """The option that a name, in whatever case, stands for here."""

    def read(value: Any) -> str:
        found = options.get(str(plain(value)).lower())
        if found is None:
            raise ValueError(f"one of {', '.join(options)}")
        return found

    return read


def _hops(value: Any) -> int | str:
    value = plain(value)
    if value != "whole" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError("whole, or a number of 1 or more")
    return value  # type: ignore[no-any-return]


def _side(value: Any) -> int:
    sides = plain(value) if isinstance(plain(value), list) else [plain(value)]
    if len(set(sides)) != 1 or isinstance(sides[0], bool) or not isinstance(sides[0], int) or sides[0] < 1:
        raise ValueError("the side of a square in pixels, such as 64 or [64, 64]")
    return sides[0]


def _two(value: Any) -> int:
    if plain(value) != 2 or isinstance(plain(value), bool):
        raise ValueError(
            "2: negative and positive; what is labelled UNKNOWN is left out of loss and metrics, or negative"
        )
    return 2


def _normalised(value: Any) -> Any:
    value = plain(value)
    if not isinstance((value or [None])[0] if isinstance(value, list) else value, bool | None):
        raise ValueError("true or false")
    return value


FILE_TYPES = ("mrc", "mrc.gz", "mrc.bz2", "tif", "tiff", "png")


def _file_type(value: Any) -> str:
    found = str(plain(value)).lower().lstrip(".")
    if found not in FILE_TYPES:
        raise ValueError(f"one of {', '.join(FILE_TYPES)}")
    return found


class Extractor(NamedTuple):
    """A feature network: the option of ``features`` and the file of its weights."""

    option: str
    weights: str | None


NETWORKS = ("resnet152", "resnet18", "resnet50", "efficientnet_lite0")


def _extractor(value: Any) -> Extractor:
    text = _text(value)
    if text is None:
        return Extractor("statistics", None)
    if text in NETWORKS:
        return Extractor(text, None)
    option = next((network for network in NETWORKS if network in Path(text).name.lower()), None)
    if option is None:
        raise ValueError(
            f"null, one of {', '.join(NETWORKS)}, or a file of a state dict with one of these in its name. A pickled "
            "network is not loaded, since it could run any code: where it was made, "
            "torch.save(model.state_dict(), FILE)"
        )
    return Extractor(option, text)


METRICS = {
    "classifier": ("accuracy", "precision", "recall", "f1", "auroc", "average_precision", "confusion_matrix"),
    "objects": ("exact", "approx"),
}


def _metrics(which: str) -> Effect:
    known = METRICS[which]

    def effect(names: list[str], chosen: Chosen) -> NoEffect:
        others = [name for name in names if re.sub(r"_(scores?|metrics?)$", "", name.lower()) not in known]
        told = f"; {', '.join(others)} is not among them" if others else ""
        return NoEffect(f"all are always computed: {', '.join(known)}{told}")

    return effect


# Augmentations: GRACE has a list of names and a list of parameters in the same order.

ON_PATCHES = ("random_edge_crop",)


def _augmentations() -> dict[str, list[str]]:
    """The augmentations of ``augment=default``, and what each takes."""
    group = _load("augment/default.yaml")
    return {name: [key for key in step if key != "_target_"] for name, step in group.items() if isinstance(step, dict)}


def _name(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    return value


def _parameters(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict | None):
        raise ValueError
    return value or {}


def _joined(values: dict[str, Any]) -> dict[str, Any]:
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


def _augments(steps: dict[str, dict[str, Any] | None], chosen: Chosen) -> dict[str, Any] | NoEffect:
    if set(chosen["augment"]) != {"default"}:
        return NoEffect(f"augment={','.join(sorted(chosen['augment']))} is on the command line")
    return {
        path: value
        for name, given in steps.items()
        for path, value in (
            [(f"augment.{name}", None)] if given is None else [(f"augment.{name}.{key}", v) for key, v in given.items()]
        )
    }


def _with_names(value: Any, chosen: Chosen) -> dict[str, Any]:
    """Parameters have their effect through the names."""
    return {}


# Effects


def _choices(values: Mapping[str, Any]) -> dict[str, _Option]:
    """Options of config groups that the file asks for."""

    def found() -> Iterator[tuple[str, str]]:
        if any(values.get(f"{part}_image_dir") is not None for part in ("train", "valid", "infer")):
            yield "data", "folders"
        if "extractor_fn" in values:
            yield "features", values["extractor_fn"].option
        if values.keys() & {"img_graph_augs", "patch_augs"}:
            yield "augment", "default"
        if "classifier_type" in values:
            yield "model", values["classifier_type"]
        if "scheduler_type" in values:
            yield "scheduler", values["scheduler_type"]

    return {group: _Option(option) for group, option in found()}


def _chooses(value: Any, chosen: Chosen) -> dict[str, Any]:
    """See :func:`_choices`."""
    return {}


def _sets(path: str, *options: str) -> Effect:
    """Sets a key that the named options of its group have; all have it where none is named."""
    group = path.partition(".")[0]

    def effect(value: Any, chosen: Chosen) -> dict[str, Any] | NoEffect:
        others = sorted(set(chosen[group]) - set(options)) if options else []
        if others:
            return NoEffect(f"it is for {group}={' and '.join(options)}, not {group}={','.join(others)}")
        return {path: value}

    return effect


def _nothing(reason: str) -> Effect:
    return lambda value, chosen: NoEffect(reason)


def _weights(value: Extractor, chosen: Chosen) -> dict[str, Any] | NoEffect:
    if set(chosen["features"]) != {value.option}:
        return NoEffect(f"features={','.join(sorted(chosen['features']))} is on the command line")
    return {} if value.weights is None else {"features.weights": value.weights}


def _patch(value: int, chosen: Chosen) -> dict[str, Any]:
    return {"features.patch": _Reference(f"'${{widths:{value},${{features.scale}}}}'")}


def _switch(path: str, on: Any) -> Effect:
    """Sets ``on`` for true, null for false."""
    effect = _sets(path, "default")
    return lambda value, chosen: effect(on if value else None, chosen)


FOLDER = "folders"
CONVOLUTIONS = ("gcn", "gat")
STANDARDISED = "images are always standardised (features.flatten says how)"
WITH_LAPLACIAN = ("statistics", *NETWORKS)

KEYS: dict[str, tuple[Reader, Effect]] = {
    **{
        f"{part}_{what}_dir": (_text, _sets(f"data.{part}_{what}_dir", FOLDER))
        for part in ("train", "valid", "infer")
        for what in ("image", "grace")
    },
    "log_dir": (_text, _sets("log_dir")),
    "filetype": (_file_type, _nothing("every type of image that can be read is found by itself")),
    "keep_node_unknown_labels": (_flag, _sets("data.keep_node_unknown_labels")),
    "keep_edge_unknown_labels": (_flag, _sets("data.keep_edge_unknown_labels")),
    "extractor_fn": (_extractor, _weights),
    "patch_size": (_side, _patch),
    "feature_dim": (_whole(1), _nothing("the number of features follows from features=")),
    "normalise": (_normalised, _nothing(STANDARDISED)),
    "normalize": (_normalised, _nothing(STANDARDISED)),
    "laplacian": (_flag, _sets("features.laplacian", *WITH_LAPLACIAN)),
    "img_graph_augs": (_items(_name, "a list of names"), _augments),
    "img_graph_aug_params": (_items(_parameters, "a list with the parameters of each augmentation"), _with_names),
    "patch_augs": (_items(_name, "a list of names"), _augments),
    "patch_aug_params": (_items(_parameters, "a list with the parameters of each augmentation"), _with_names),
    "keep_patch_fraction": (
        _number(0, 1),
        _nothing("every node of an image is trained on, in one graph; to train on less, leave images out"),
    ),
    "batch_size": (_whole(1), _sets("data.batch_size")),
    "num_hops": (_hops, _sets("data.num_hops")),
    "connection": (_one_of(spiderweb="spiderweb", fireworks="fireworks"), _sets("data.connection")),
    "classifier_type": (_one_of(gcn="gcn", gat="gat"), _chooses),
    "num_attention_heads": (_whole(1), _sets("model.heads", "gat")),
    "num_node_classes": (_two, _nothing("a node is negative or positive, always")),
    "num_edge_classes": (_two, _nothing("an edge is negative or positive, always")),
    "hidden_graph_channels": (_items(_whole(1), "a list of widths"), _sets("model.hidden", *CONVOLUTIONS)),
    "hidden_dense_channels": (_items(_whole(1), "a list of widths"), _sets("model.dense")),
    "epochs": (_whole(1), _sets("trainer.max_epochs")),
    "dropout": (_number(0, 1), _sets("model.dropout")),
    "learning_rate": (_number(), _sets("optimizer.lr")),
    "weight_decay": (_number(), _sets("optimizer.weight_decay")),
    "scheduler_type": (_one_of(none="none", step="step", expo="exponential"), _chooses),
    "scheduler_step": (_whole(1), _sets("scheduler.step_size", "step")),
    "scheduler_gamma": (_number(), _sets("scheduler.gamma", "step", "exponential")),
    "tensorboard_update_frequency": (_whole(1), _nothing("metrics are logged in every epoch")),
    "valid_graph_ploter_frequency": (_whole(1), _sets("callbacks.figures.every_n_epochs", "default")),
    "animate_valid_progress": (_flag, _switch("callbacks.animation.every_n_epochs", 1)),
    "visualise_tsne_manifold": (_flag, _switch("callbacks.manifold.method", "tsne")),
    "metrics_classifier": (_items(str, "a list of names"), _metrics("classifier")),
    "metrics_objects": (_items(str, "a list of names"), _metrics("objects")),
}
"""How the value of each key is read, and what it sets or why it sets nothing."""

NULL_SAYS_SOMETHING = {
    *(key for key, (read, _) in KEYS.items() if read is _text),
    *("extractor_fn", "scheduler_type", "normalise", "normalize"),
    *("img_graph_augs", "img_graph_aug_params", "patch_augs", "patch_aug_params"),
}
"""Keys of which null is a value; of the others it leaves what is set here."""
