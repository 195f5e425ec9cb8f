"""From configuration to objects: a node with ``_target_`` names a class, its keys are the constructor's arguments.

The signatures are the schema: names and types of the configured values are checked against them, nothing is described
a second time.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

from grace_lightning.errors import InputError

T = TypeVar("T")

RESERVED = {"_target_", "_partial_", "_convert_", "_recursive_", "_args_"}


def config_dir() -> Path:
    """The config tree: inside the installed package, or at the top of the repository."""
    package = Path(__file__).parent
    places = [package / "conf", package.parents[1] / "conf"]
    return next((place for place in places if place.is_dir()), places[0])


def check(node: Any, path: str) -> None:
    """Compare every configured class below ``node`` with its signature.

    Parameters
    ----------
    node : plain containers
    path : the key of ``node``, for messages; empty at the top

    Raises
    ------
    InputError
        A key that the constructor does not take, a value of another type, or a class that does not exist.
    """
    if not isinstance(node, Mapping):
        return
    if "_target_" in node:
        _check_arguments(_target(node, path), node, path)
    for key, value in node.items():
        check(value, f"{path}.{key}" if path else key)


def call(function: Callable[..., T], node: Mapping[str, Any], **arguments: Any) -> T:
    """Call ``function`` with the keys of ``node``, checked against its signature, and further arguments."""
    _check_arguments(function, node, "")
    return function(**node, **arguments)


def _target(node: Mapping[str, Any], path: str) -> Any:
    try:
        return get_object(node["_target_"])
    except Exception as error:  # whatever importing that module raises
        raise InputError(f"{path}._target_: {node['_target_']!r} cannot be imported ({error})") from error


def _check_arguments(target: Any, node: Mapping[str, Any], path: str) -> None:
    prefix = f"{path}." if path else ""
    parameters = inspect.signature(target).parameters
    hints = _type_hints(target)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for name, value in node.items():
        if name in RESERVED:
            continue
        if name not in parameters and not open_ended:
            raise InputError(f"{prefix}{name}: {target.__name__} takes no such key; it takes {', '.join(parameters)}")
        if isinstance(value, Mapping) and "_target_" in value:
            continue  # becomes an object of its own, checked on its own
        if name in hints:
            check_value(value, hints[name], f"{prefix}{name}")


def _type_hints(target: Any) -> dict[str, Any]:
    function = target.__init__ if inspect.isclass(target) else target
    try:
        return get_type_hints(function)
    except (NameError, TypeError):  # names that a library imports for type checkers only
        return {}


def check_value(value: Any, expected: Any, path: str) -> None:
    """Raise an :class:`InputError` naming ``path`` where ``value`` is not of the type ``expected``."""
    # YAML knows lists only, where a signature may ask for a tuple
    if not _fits(value, expected) and not (isinstance(value, list) and _fits(tuple(value), expected)):
        kind = inspect.formatannotation(expected).replace("collections.abc.", "").replace("NoneType", "null")
        raise InputError(f"{path}: {value!r}, expected {kind.replace('None', 'null')}")


def _fits(value: Any, expected: Any) -> bool:
    try:
        check_type(value, expected, collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
    except TypeCheckError:
        return False
    return True


def build(node: Any, path: str, **arguments: Any) -> Any:
    """The object that ``node`` describes, None for an empty node.

    Parameters
    ----------
    node : plain containers with ``_target_``
    path : the key of ``node``, for messages
    arguments : those known at run time only
    """
    if not node:
        return None
    check(node, path)
    try:
        if not arguments:
            return instantiate(node, _convert_="all")
        # Hydra would copy arguments into the configuration: call the constructor with them instead.
        return instantiate({**node, "_partial_": True}, _convert_="all")(**arguments)
    except InstantiationException as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from None
        if isinstance(error.__cause__, ModuleNotFoundError):
            name = str(node["_target_"]).rpartition(".")[2]
            message = f"{path}: {name} needs a package that is not installed: {error.__cause__}"
            raise InputError(message.replace("HINT: ", "")) from None
        raise
