"""What a linker is given and what it gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from grace_lightning.errors import InputError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Array = NDArray[np.generic] | Tensor


@dataclass(frozen=True)
class Filaments:
    """Filaments as ordered lists of nodes, one row per node of a filament: the rows of ``filaments.parquet``.

    An open filament begins at the end with the smaller x, a closed one at its node with the smallest x; filaments are
    sorted by their first nodes' positions. Equal detections give equal answers, however they are numbered.

    Parameters
    ----------
    filament : (M,) int64, from 0, ascending
    node : (M,) int64, in order along the filament; where a filament crosses itself, a node can be in it twice
    beside : (M,) bool, the node is not on the path but within half a filament's width of it
    closed : (K,) bool, the last node is joined to the first, which is not repeated
    """

    filament: Ints
    node: Ints
    beside: Bools
    closed: Bools

    def __len__(self) -> int:
        return len(self.closed)

    @property
    def order(self) -> Ints:
        """(M,) int64, from 0 along each filament."""
        return np.arange(len(self.filament)) - np.searchsorted(self.filament, self.filament)

    @property
    def nodes(self) -> list[Ints]:
        """The nodes of each filament."""
        return np.split(self.node, np.flatnonzero(np.diff(self.filament)) + 1) if len(self) else []

    @property
    def paths(self) -> list[Ints]:
        """The nodes of each filament without those beside its path."""
        path = ~self.beside
        return np.split(self.node[path], np.flatnonzero(np.diff(self.filament[path])) + 1) if len(self) else []


class Linker(Protocol):
    """Links the detections of one image; see :class:`grace_lightning.link.Programme`."""

    def __call__(
        self,
        pos: Array,
        edges: Array,
        node_probability: Array,
        edge_probability: Array,
        end_probability: Array | None = None,
        further_probability: Array | None = None,
    ) -> Filaments:
        """Filaments of (N, 2) positions in pixels, (2, E) edges, and (N,), (E,), (N,), (N, K) probabilities."""


@dataclass(frozen=True)
class Scored:
    """Detections sorted by their positions, edges sorted by their ends, so that nothing depends on the numbering.

    Parameters
    ----------
    pos : (N, 2) float64, pixels
    edges : (2, E) int64, first < second
    node_probability, edge_probability : (N,) and (E,) float64
    end_probability : (N,) float64 or None
    further_probability : (N, K) float64 or None
    number : (N,) int64, what each node is called outside
    """

    pos: Floats
    edges: Ints
    node_probability: Floats
    edge_probability: Floats
    end_probability: Floats | None
    further_probability: Floats | None
    number: Ints

    def outside(self, nodes: Sequence[Ints], beside: Sequence[Bools], closed: Sequence[bool]) -> Filaments:
        """The filaments with these nodes, by the names that they have outside."""
        first = [int(n[0]) for n in nodes]  # nodes are numbered by position
        rank = sorted(range(len(nodes)), key=lambda k: (first[k], len(nodes[k]), nodes[k].tolist()))
        none: list[Ints] = [np.zeros(0, dtype=np.int64)]
        return Filaments(
            filament=np.repeat(np.arange(len(rank)), [len(nodes[k]) for k in rank]),
            node=self.number[np.concatenate([nodes[k] for k in rank] or none)],
            beside=np.concatenate([beside[k] for k in rank] or none).astype(bool),
            closed=np.array([closed[k] for k in rank], dtype=bool),
        )


def scored(
    pos: Array,
    edges: Array,
    node_probability: Array,
    edge_probability: Array,
    end_probability: Array | None = None,
    further_probability: Array | None = None,
) -> Scored:
    """Check what a linker is given, and sort it.

    Raises
    ------
    InputError
        Shapes that do not belong together, an edge that names no node, or probabilities outside 0 to 1.
    """
    xy, node, edge = (_array(a).astype(np.float64) for a in (pos, node_probability, edge_probability))
    end = np.full(len(xy), 0.5) if end_probability is None else _array(end_probability).astype(np.float64)
    more = np.zeros((len(xy), 0)) if further_probability is None else _array(further_probability).astype(np.float64)
    ends = _array(edges).astype(np.int64)
    shapes = (
        ("pos", xy, (len(xy), 2)),
        ("edges", ends, (2, ends.shape[-1])),
        ("node_probability", node, (len(xy),)),
        ("edge_probability", edge, (ends.shape[-1],)),
        ("end_probability", end, (len(xy),)),
        ("further_probability", more, (len(xy), more.shape[-1] if more.ndim > 1 else 1)),
    )
    for name, value, expected in shapes:
        if value.shape != expected:
            raise InputError(f"{name}: shape {value.shape}, expected {expected}")
    if not np.isfinite(xy).all():
        raise InputError(f"pos: node {np.flatnonzero(~np.isfinite(xy).all(axis=1))[0]} is not at finite pixels")
    for name, value, _ in shapes[2:]:
        outside = np.argwhere(~((value >= 0) & (value <= 1)))
        if len(outside):
            raise InputError(f"{name} {outside[0, 0]}: {value[*outside[0]]}, expected a probability from 0 to 1")
    wrong = np.flatnonzero((ends < 0).any(axis=0) | (ends >= len(xy)).any(axis=0) | (ends[0] == ends[1]))
    if len(wrong):
        found = ends[:, wrong[0]].tolist()
        raise InputError(f"edge {wrong[0]}: joins {found}, expected two nodes from 0 to {len(xy) - 1}")

    number = np.lexsort((*more.T, end, node, xy[:, 1], xy[:, 0]))
    rank = np.empty_like(number)
    rank[number] = np.arange(len(number))
    ends = np.sort(rank[ends], axis=0)
    order = np.lexsort((edge, ends[1], ends[0]))
    ending = None if end_probability is None else end[number]
    further = None if further_probability is None else more[number]
    return Scored(xy[number], ends[:, order], node[number], edge[order], ending, further, number)


def _array(value: Array) -> NDArray[np.generic]:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else value


def from_the_first(nodes: Ints, closed: bool) -> Ints:
    """The same path from its lesser end, or, where it is closed, from its least node towards the lesser next one."""
    if closed:
        nodes = np.roll(nodes, -int(nodes.argmin()))
        return np.append(nodes[0], nodes[:0:-1]) if nodes[-1] < nodes[1] else nodes
    return nodes[::-1] if nodes[-1] < nodes[0] else nodes


def expect(name: str, value: float, expected: str, fits: bool) -> None:
    """Refuse a linker's parameter that does not fit."""
    if not fits:
        raise InputError(f"{name}: {value}, expected {expected}")
