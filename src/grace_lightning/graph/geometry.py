"""What the positions alone tell about an edge."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from grace_lightning.graph.neighbours import adjacency

_SIDES = ("east", "west")
EDGE_PROPERTIES: tuple[str, ...] = (
    "edge_length_nrm",
    "edge_orient_rad",
    *(
        f"{side}_neigh_{name}"
        for side in _SIDES
        for name in ("length_nrm", "orient_rad", "south_length_nrm", "north_length_nrm")
    ),
)
"""Names of the columns of :func:`edge_geometry`."""


def edge_geometry(pos: Tensor, edges: Tensor) -> Tensor:
    """Ten geometric properties of every edge, named in :data:`EDGE_PROPERTIES`.

    Each edge is looked at from its south end (larger y) to its north end (smaller y); a horizontal edge from west
    to east. East is the side to the right of that direction. ``*_nrm`` are lengths over the graph's mean edge length.
    On each side stands the *neighbour*: the third corner of the triangle on that side. Zeros where there is none.

    ==========================  ==================================================================
    edge_length_nrm             length of the edge
    edge_orient_rad             its angle to the x axis, counter-clockwise on the screen, in [0, pi)
    SIDE_neigh_length_nrm       from the edge's midpoint to the neighbour
    SIDE_neigh_orient_rad       angle between that direction and the edge's, in (0, pi)
    SIDE_neigh_south_length_nrm from the south end to the neighbour
    SIDE_neigh_north_length_nrm from the north end to the neighbour
    ==========================  ==================================================================

    Triangles are read off the edges, not off a new triangulation: of the nodes joined to both ends, the one that sees
    the edge under the widest angle. In a Delaunay graph that is the Delaunay triangle, whose circumcircle is empty.

    Parameters
    ----------
    pos : (N, 2) float32, pixels
    edges : (2, E) int64

    Returns
    -------
    (E, 10) float32
    """
    xy, ends = pos.numpy().astype(np.float64), edges.numpy()
    count = ends.shape[1]
    out = np.zeros((count, len(EDGE_PROPERTIES)))
    if count == 0:
        return torch.from_numpy(out.astype(np.float32))

    first, second = xy[ends[0]], xy[ends[1]]
    # North is the end with the smaller y; of two at one height, the eastern one.
    swap = (first[:, 1] < second[:, 1]) | ((first[:, 1] == second[:, 1]) & (first[:, 0] > second[:, 0]))
    north = np.where(swap[:, None], first, second)
    south = np.where(swap[:, None], second, first)
    along = north - south
    length = np.hypot(*along.T)
    mean_length = length.mean() or 1.0
    out[:, 0] = length / mean_length
    out[:, 1] = np.arctan2(-along[:, 1], along[:, 0])

    edge, third = _common_neighbours(ends, len(xy))
    to_south, to_north = south[edge] - xy[third], north[edge] - xy[third]
    width = np.arctan2(np.abs(_cross(to_south, to_north)), (to_south * to_north).sum(axis=1))
    turn = _cross(along[edge], -to_south)  # image coordinates: positive lies to the right, which is east
    for side, on_side in enumerate((turn > 0, turn < 0)):
        rows = np.flatnonzero(on_side)
        rows = rows[np.lexsort((third[rows], -width[rows], edge[rows]))]
        rows = rows[np.unique(edge[rows], return_index=True)[1]]
        e = edge[rows]
        outwards = xy[third[rows]] - (south[e] + north[e]) / 2
        angle = np.arctan2(np.abs(_cross(along[e], outwards)), (along[e] * outwards).sum(axis=1))
        lengths = [np.hypot(*v.T) / mean_length for v in (outwards, to_south[rows], to_north[rows])]
        out[e, 2 + 4 * side : 6 + 4 * side] = np.stack([lengths[0], angle, lengths[1], lengths[2]], axis=1)
    return torch.from_numpy(out.astype(np.float32))


def _cross(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    return a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]


def _common_neighbours(ends: NDArray[np.int64], num_nodes: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All pairs (edge, node) in which the node is joined to both ends of the edge."""
    joined = adjacency(ends, num_nodes)
    both = joined[ends[0]].multiply(joined[ends[1]]).tocoo()
    return both.row.astype(np.int64), both.col.astype(np.int64)
