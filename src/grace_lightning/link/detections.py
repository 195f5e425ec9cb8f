"""What a linker is given and returns."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from grace_lightning.errors import InputError
from grace_lightning.graph import Filament, Floats, Ints

Array = NDArray[np.generic] | Tensor


class Path(NamedTuple):
    """Nodes in order; the last one of a closed path is joined to the first, which is not repeated."""

    nodes: Ints
    closed: bool

    @property
    def vertices(self) -> Ints:
        """The nodes, and once more the first if the path is closed."""
        return np.append(self.nodes, self.nodes[0]) if self.closed else self.nodes

    def directed(self) -> "Path":
        """Begin at the lesser end; if the path is closed, begin at its least node towards the lesser neighbour."""
        nodes = self.nodes
        if self.closed:
            nodes = np.roll(nodes, -int(nodes.argmin()))
            return Path(np.append(nodes[0], nodes[:0:-1]) if nodes[-1] < nodes[1] else nodes, True)
        return Path(nodes[::-1] if nodes[-1] < nodes[0] else nodes, False)


class Detections(NamedTuple):
    """Nodes sorted by position and edges sorted by their ends, so that nothing depends on the caller's numbering."""

    pos: Floats  # (N, 2) pixels
    edges: Ints  # (2, E), first < second
    node_probability: Floats  # (N,)
    edge_probability: Floats  # (E,)
    end_probability: Floats | None  # (N,)
    further_probability: Floats | None  # (N, K)


class Linker(ABC):
    """Links the detections of one image."""

    @abstractmethod
    def link(self, given: Detections) -> list[tuple[Path, Ints]]:
        """Return the path and the members of each filament, in any order."""

    def __call__(
        self,
        pos: Array,
        edges: Array,
        node_probability: Array,
        edge_probability: Array,
        end_probability: Array | None = None,
        further_probability: Array | None = None,
    ) -> list[Filament]:
        """Link one image.

        Parameters
        ----------
        pos : (N, 2) float32, finite, pixels
        edges : (2, E) int64, candidates, each once
        node_probability, edge_probability : (N,) and (E,), to lie on a filament
        end_probability : (N,), that a filament that comes to the node ends there; None if that is not known
        further_probability : (N, K), that a second, a third, ... filament passes the node; None if that is not known

        The filaments are sorted by their first nodes' positions. An open one begins at the end with the smaller x, a
        closed one at its node with the smallest x. Equal detections give equal filaments, however they are numbered.
        """
        xy, p_node, p_edge = (_floats(a) for a in (pos, node_probability, edge_probability))
        p_end, p_further = (None if a is None else _floats(a) for a in (end_probability, further_probability))
        # Nodes at one place are told apart by their probabilities; nodes that are equal in all need no order.
        keys = ([] if p_further is None else [*p_further.T]) + ([] if p_end is None else [p_end])
        number = np.lexsort((*keys, p_node, xy[:, 1], xy[:, 0]))  # the caller's
        xy, p_node = xy[number], p_node[number]
        p_end, p_further = (None if p is None else p[number] for p in (p_end, p_further))
        ends = np.sort(np.argsort(number)[_floats(edges).astype(np.int64)], axis=0)
        order = np.lexsort((p_edge, ends[1], ends[0]))

        found = self.link(Detections(xy, ends[:, order], p_node, p_edge[order], p_end, p_further))
        return [
            Filament(
                path=xy[path.nodes].astype(np.float32),
                score=p_node[path.nodes].astype(np.float32),
                node=number[path.nodes],
                members=number[members],
                closed=path.closed,
            )
            for path, members in sorted(found, key=lambda one: (one[1][0], len(one[1]), one[1].tolist()))
        ]


def _floats(value: Array) -> Floats:
    return (value.detach().cpu().numpy() if isinstance(value, Tensor) else value).astype(np.float64)


def expect(name: str, value: float, expected: str, fits: bool) -> None:
    """Raise an :class:`InputError` unless a linker's parameter fits."""
    if not fits:
        raise InputError(f"link.{name}: {value}, expected {expected}")
