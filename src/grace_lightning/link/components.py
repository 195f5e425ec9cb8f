"""Filaments by a threshold."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components, dijkstra, minimum_spanning_tree

from grace_lightning.link.filaments import Array, Filaments, Ints, expect, from_the_first, scored
from grace_lightning.link.trace import first_visits, split_where_new


class Components:
    """Connected components of the edges above a threshold, for networks that branch.

    A component's nodes are in the order in which a walk along its minimum spanning tree meets them, from one of the two
    ends that are furthest apart, branch by branch: along it where it is a chain, around it where it is a ring. Only a
    plain ring, in which every node has two edges, is closed.

    Parameters
    ----------
    threshold : edges count from this probability on, between nodes that do so too
    min_nodes : smaller components are left out

    Raises
    ------
    InputError
        A value out of its range.
    """

    def __init__(self, threshold: float = 0.5, min_nodes: int = 2) -> None:
        expect("threshold", threshold, "a probability from 0 to 1", 0 <= threshold <= 1)
        expect("min_nodes", min_nodes, "1 or more", min_nodes >= 1)
        self.threshold = threshold
        self.min_nodes = min_nodes

    def __call__(
        self,
        pos: Array,
        edges: Array,
        node_probability: Array,
        edge_probability: Array,
        end_probability: Array | None = None,
        further_probability: Array | None = None,
    ) -> Filaments:
        """Link one image: see :class:`grace_lightning.link.Programme`; the last two arguments do not count."""
        given = scored(pos, edges, node_probability, edge_probability)
        positive = given.node_probability >= self.threshold
        keep = (given.edge_probability >= self.threshold) & positive[given.edges].all(axis=0)
        ends, size = given.edges[:, keep], len(given.pos)
        length = np.maximum(np.hypot(*(given.pos[ends[1]] - given.pos[ends[0]]).T), 1e-9)  # 0 would be no edge
        graph = sp.csr_array((length, (ends[0], ends[1])), shape=(size, size))
        tree = minimum_spanning_tree(graph)
        count, part = connected_components(graph, directed=False)
        sizes = np.bincount(part, minlength=count)
        alone = np.flatnonzero((sizes[part] < self.min_nodes) | ~positive)
        furthest = _furthest(tree, part, np.unique(part, return_index=True)[1].astype(np.int64))
        first = np.minimum(furthest, _furthest(tree, part, furthest))
        first = np.sort(first[~np.isin(first, alone)])
        order = first_visits(tree, first)
        parts = split_where_new(order, part)
        two = np.bincount(ends.reshape(-1), minlength=size) == 2
        closed = [len(nodes) > 2 and bool(two[nodes].all()) for nodes in parts]
        parts = [from_the_first(nodes, True) if ring else nodes for nodes, ring in zip(parts, closed, strict=True)]
        return given.outside(parts, [np.zeros(len(nodes), dtype=bool) for nodes in parts], closed)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(threshold={self.threshold}, min_nodes={self.min_nodes})"


def _furthest(tree: sp.csr_array, part: NDArray[np.integer], starts: Ints) -> Ints:
    """Of each component the node furthest from the one of ``starts`` in it; of equals, the first."""
    if not len(starts):
        return starts
    away = dijkstra(tree, directed=False, indices=starts, min_only=True)
    rank = np.lexsort((np.arange(len(part)), -away, part))
    furthest: Ints = rank[np.unique(part[rank], return_index=True)[1]]
    return furthest
