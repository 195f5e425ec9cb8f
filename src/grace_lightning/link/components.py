"""Filaments by a threshold."""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components, dijkstra, minimum_spanning_tree

from grace_lightning.graph import Ints
from grace_lightning.link.detections import Detections, Linker, Path, expect
from grace_lightning.link.paths import first_visits
from grace_lightning.truth import grouped


@dataclass(frozen=True)
class Components(Linker):
    """Connected components of the edges above a threshold, for networks that branch.

    A component's nodes are ordered by a walk along its minimum spanning tree, which begins at one of the two ends that
    are furthest apart and takes branch after branch. It goes along a chain and around a ring. Only a plain ring, in
    which every node has two edges, is closed. Probabilities of ends and further filaments are not used.

    Parameters
    ----------
    threshold : least probability of nodes and edges; raises InputError if it is not from 0 to 1
    min_nodes : smaller components are left out; raises InputError if it is less than 1
    """

    threshold: float = 0.5
    min_nodes: int = 2

    def __post_init__(self) -> None:
        expect("threshold", self.threshold, "a probability from 0 to 1", 0 <= self.threshold <= 1)
        expect("min_nodes", self.min_nodes, "1 or more", self.min_nodes >= 1)

    def link(self, given: Detections) -> list[tuple[Path, Ints]]:
        positive = given.node_probability >= self.threshold
        keep = (given.edge_probability >= self.threshold) & positive[given.edges].all(axis=0)
        ends, size = given.edges[:, keep], len(given.pos)
        # SciPy takes a length of 0, between two detections at one place, for no edge.
        length = np.maximum(np.hypot(*(given.pos[ends[1]] - given.pos[ends[0]]).T), 1e-9)
        graph = sp.csr_array((length, (ends[0], ends[1])), shape=(size, size))
        tree = minimum_spanning_tree(graph)
        count, part = connected_components(graph, directed=False)
        left_out = (np.bincount(part, minlength=count)[part] < self.min_nodes) | ~positive

        # In a tree, the node furthest from any node is one end of the longest way; the furthest from that is the other.
        one = _furthest(tree, part, np.unique(part, return_index=True)[1])
        first = np.minimum(one, _furthest(tree, part, one))
        order = first_visits(np.stack(tree.nonzero()), size, first[~left_out[first]])

        two_edges = np.bincount(ends.reshape(-1), minlength=size) == 2
        paths = [Path(nodes, len(nodes) > 2 and bool(two_edges[nodes].all())) for nodes in grouped(order, part[order])]
        paths = [path.directed() if path.closed else path for path in paths]
        return [(path, path.nodes) for path in paths]


def _furthest(tree: sp.csr_array, part: NDArray[np.integer], starts: Ints) -> Ints:
    """Return of each component the node furthest from its one of ``starts``, the first of equals."""
    away = dijkstra(tree, directed=False, indices=starts, min_only=True)
    rank = np.lexsort((np.arange(len(part)), -away, part))
    furthest: Ints = rank[np.unique(part[rank], return_index=True)[1]]
    return furthest
