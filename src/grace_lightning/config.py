"""From configuration to objects: a node with ``_target_`` names a class, its keys are the constructor's arguments.

The signatures are the schema: names and types of the configured values are checked against them, nothing is described
a second time.
"""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from hydra.utils import get_object
from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

from grace_lightning.errors import InputError

T = TypeVar("T")

REMOVED: dict[str, str] = {
    **dict.fromkeys(
        ("data.max_candidate", "augment.random_copy_paste.max_candidate"),
        "edges beyond the triangulation did not pay; leave it out",
    ),
    "callbacks.manifold": "TensorBoard's Projector tab computes t-SNE, UMAP and PCA of the node states; leave it out",
    **dict.fromkeys(
        ("callbacks.learning_rate", "callbacks.gradient_norm", "callbacks.speed"), "is always logged now; leave it out"
    ),
    "model.width": "is called model.hidden now",
    "features.width": "is called features.hidden now",
    "simulator.width": "is called simulator.scale now",
    "data.simulation.simulator.width": "is called data.simulation.simulator.scale now",
    "module.link_weight": "is called module.same_filament_weight now",
    "module.second_weight": "is called module.two_filaments_weight now",
    "module.third_weight": "is called module.three_filaments_weight now",
    **dict.fromkeys(
        (f"link.{name}" for name in ("end_weight", "share_cost", "share_weight", "max_edge_gain", "max_node_gain")),
        "is a constant now (grace_lightning/link/programme.py); leave it out",
    ),
}
"""Keys of earlier versions, and what to do instead; the keys below them are meant, too."""


def removed(key: str) -> str | None:
    """Return what :data:`REMOVED` says about a key, None for any other."""
    return next((message for old, message in REMOVED.items() if f"{key}.".startswith(f"{old}.")), None)


def config_dir() -> Path:
    """Return the config tree: inside the installed package, or at the top of the repository."""
    package = Path(__file__).parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parents[1] / "conf"


def differing(one: Any, other: Any, key: str = "") -> Iterator[str]:
    """Yield the keys, below ``key``, at which two configurations both have a value and these are not the same.

    Of nodes of different classes only the class is compared; an empty node differs from another one as a whole.
    """
    if isinstance(one, dict) and isinstance(other, dict) and one and other:
        shared = (
            ["_target_"] if one.get("_target_") != other.get("_target_") else [name for name in one if name in other]
        )
        for name in shared:
            yield from differing(one.get(name), other.get(name), f"{key}.{name}" if key else name)
    elif one != other:
        yield key


def selected(config: Any, key: str) -> Any:
    """Return the value at ``key`` of plain containers, None if there is none."""
    for name in key.split("."):
        config = config.get(name) if isinstance(config, dict) else None
    return config


def check(node: Any, path: str) -> None:
    """Compare every configured class at and below ``node``, plain containers, with its signature.

    An :class:`InputError` says that a constructor takes no such key, or another type, or that a class does not exist.
    It names the key, below ``path``; that is empty at the top.
    """
    if not isinstance(node, Mapping):
        return
    if "_target_" in node:
        try:
            target = get_object(node["_target_"])
        except Exception as error:  # whatever the import of its module raises
            raise InputError(f"{path}._target_: {node['_target_']!r} cannot be imported ({error})") from error
        _check_arguments(target, node, path)
    for key, value in node.items():
        check(value, f"{path}.{key}" if path else key)


def call(function: Callable[..., T], node: Mapping[str, Any], **arguments: Any) -> T:
    """Call ``function`` with the keys of ``node``, checked against its signature, and further arguments."""
    _check_arguments(function, node, "")
    return function(**node, **arguments)


def _check_arguments(target: Any, node: Mapping[str, Any], path: str) -> None:
    parameters = inspect.signature(target).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    try:
        hints = get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except (NameError, TypeError):  # names that a library imports for type checkers only
        hints = {}
    for name, value in node.items():
        if name.startswith("_"):  # _target_ and other keys of Hydra's
            continue
        key = f"{path}.{name}" if path else name
        if name not in parameters and not takes_any:
            raise InputError(f"{key}: {target.__name__} takes no such key; it takes {', '.join(parameters)}")
        becomes_object = isinstance(value, Mapping) and "_target_" in value
        if name in hints and not becomes_object:
            check_value(value, hints[name], key)


def check_value(value: Any, expected: Any, path: str) -> None:
    """Raise an :class:`InputError` that names ``path`` if ``value`` is not of the type ``expected``."""
    for form in [value, tuple(value)] if isinstance(value, list) else [value]:  # YAML has lists, for tuples as well
        try:
            check_type(form, expected, collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
            return
        except TypeCheckError:
            pass
    kind = inspect.formatannotation(expected).replace("collections.abc.", "").replace("NoneType", "null")
    raise InputError(f"{path}: {value!r}, expected {kind.replace('None', 'null')}")


def literal(text: str) -> str:
    """Return what OmegaConf takes for ``text``: ``${`` in it refers to nothing."""
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)  # only there a backslash is an escape


def build(node: Any, path: str, **arguments: Any) -> Any:
    """Return the object that ``node``, plain containers, describes, None for an empty node.

    An :class:`InputError` says what :func:`check` finds or the constructor says, or that a package is not installed.
    ``arguments`` are those that are known at run time only.
    """
    if not node:
        return None
    check(node, path)
    try:
        return _make(node, **arguments)
    except ModuleNotFoundError as error:
        name, reason = str(node["_target_"]).rpartition(".")[2], str(error).replace("HINT: ", "")
        raise InputError(f"{path}: {name} needs a package that is not installed: {reason}") from None


def _make(node: Any, **arguments: Any) -> Any:
    """Return plain containers with an object in the place of every node that names a class.

    Hydra's own function would take text with ``${`` for a reference, and copy the arguments, networks among them.
    """
    if isinstance(node, list):
        return [_make(value) for value in node]
    if not isinstance(node, Mapping):
        return node
    if "_target_" not in node:
        return {key: _make(value) for key, value in node.items()}
    given = {key: _make(value) for key, value in node.items() if not key.startswith("_")} | arguments
    target = get_object(node["_target_"])
    return partial(target, **given) if node.get("_partial_") else target(**given)
