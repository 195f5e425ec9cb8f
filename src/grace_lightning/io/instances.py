"""``X.instances.json``: which nodes belong to which traced filament."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from grace_lightning.errors import InputError
from grace_lightning.io._reading import reading

_EXPECTED = 'the nodes of each filament, {"1": [node, ...], ...}'


def find_instances(name: str, *folders: str | Path) -> Path | None:
    """``<name>.instances.json`` of the first of ``folders`` that has it; None where none does."""
    places = (Path(folder) / f"{name}.instances.json" for folder in folders)
    return next((place for place in places if place.is_file()), None)


def read_instances(path: str | Path, num_nodes: int) -> dict[str, NDArray[np.int64]]:
    """Nodes of each traced filament, by its name in the file; a node at a crossing is in several.

    Parameters
    ----------
    path : ``X.instances.json``
    num_nodes : of the graph in ``X.grace``

    Returns
    -------
    (any,) int64 node numbers, ascending, of each filament

    Raises
    ------
    InputError
        Not a JSON file of this form, or a number that is not a node's.
    """
    path = Path(path)
    with reading(path, _EXPECTED):
        content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise InputError(f"{path}: a JSON {type(content).__name__}, expected {_EXPECTED}")
    for name, nodes in content.items():
        if not isinstance(nodes, list) or not all(type(node) is int for node in nodes):
            raise InputError(f"{path}: filament {name} is not a list of whole numbers, expected {_EXPECTED}")
        wrong = next((node for node in nodes if not 0 <= node < num_nodes), None)
        if wrong is not None:
            raise InputError(
                f"{path}: filament {name} has node {wrong}, expected numbers from 0 to {num_nodes - 1}; "
                "does it belong to this .grace folder?"
            )
    return {name: np.unique(np.array(nodes, dtype=np.int64)) for name, nodes in content.items()}
