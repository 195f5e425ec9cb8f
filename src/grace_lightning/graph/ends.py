"""Where filaments end."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components, dijkstra, minimum_spanning_tree
from scipy.spatial import KDTree
from scipy.spatial.distance import pdist, squareform
from torch import Tensor

from grace_lightning.graph.sample import Label

NEAR_END = 1.5
"""Nodes this near to the end of their filament, in its usual distances between nodes, lie at its end."""

NEIGHBOURS = 8
"""Nodes of a filament that each of its nodes may be joined to,"""

FEW = 200
"""where the filament has more nodes than this; else every other one."""

NO_EDGE = 1e-6
"""Pixels between nodes of one place, as a distance of 0 would be no edge."""


def end_labels(pos: Tensor, node_label: Tensor, filaments: Sequence[NDArray[np.int64]]) -> Tensor:
    """Which nodes lie at an end of a filament.

    A filament's ends are the two nodes that are furthest apart along the minimum spanning tree of its nodes.

    Parameters
    ----------
    pos : (N, 2) float32, pixels
    node_label : (N,) int64, see :class:`Label`
    filaments : nodes of each; fewer than two say nothing

    Returns
    -------
    (N,) int64: TRUE_POSITIVE at an end, TRUE_NEGATIVE at other nodes of filaments, UNKNOWN where there is no filament
    """
    label = torch.full((len(pos),), Label.UNKNOWN.value)
    points = pos.numpy().astype(np.float64)
    ends = []
    for nodes in filaments:
        if len(nodes) > 1:
            label[torch.from_numpy(nodes)] = Label.TRUE_NEGATIVE.value
            ends.append(nodes[_near_ends(points[nodes])])
    for nodes in ends:  # after all others: a node that ends one filament may lie on another
        label[torch.from_numpy(nodes)] = Label.TRUE_POSITIVE.value
    return torch.where(node_label == Label.TRUE_POSITIVE, label, Label.UNKNOWN.value)


def _near_ends(points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which of the points (P, 2) of one filament lie near the two that are furthest apart along it."""
    tree = spanning_tree(points)
    away = _distances(tree, 0)
    away = _distances(tree, int(away.argmax()))
    back = _distances(tree, int(away.argmax()))
    near: NDArray[np.bool_] = np.minimum(away, back) <= NEAR_END * np.median(tree.data)
    return near


def _distances(tree: sp.csr_array, node: int) -> NDArray[np.float64]:
    return np.asarray(dijkstra(tree, directed=False, indices=[node])[0], dtype=np.float64)


def spanning_tree(points: NDArray[np.float64]) -> sp.csr_array:
    """The minimum spanning tree of points (P, 2), (P, P), its lengths at one of the two places of each edge.

    Of many points it is that of near neighbours; where these do not join all of them, that of all pairs.
    """
    count = len(points)
    if count <= FEW:
        return sp.csr_array(minimum_spanning_tree(squareform(np.maximum(pdist(points), NO_EDGE))))
    for neighbours in (NEIGHBOURS, count - 1):
        away, other = KDTree(points).query(points, k=neighbours + 1)
        first = np.repeat(np.arange(count), neighbours + 1)
        distance = np.maximum(np.ravel(away), NO_EDGE)
        graph = sp.coo_array((distance, (first, np.ravel(other))), shape=(count, count)).tocsr()
        graph.setdiag(0)
        graph.eliminate_zeros()
        if connected_components(graph, directed=False)[0] == 1:
            break
    return sp.csr_array(minimum_spanning_tree(graph))
