"""Graphs over detections, and the micrographs that they belong to.

In the shapes below, N is the number of nodes (detections), E of undirected edges, H and W of rows and columns of the
image, C of its channels (1 for a micrograph), F the length of a node embedding.

Positions are pixels, x to the right and y down; (0, 0) is the centre of the top left pixel.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import IntEnum, StrEnum
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from scipy.spatial import Delaunay, KDTree, QhullError
from torch import Tensor

from grace_lightning.errors import InputError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

NODE_HEADS = ("node", "end", "two_filaments", "three_filaments")
"""Questions about a node: is it on a filament, does one end here, do two or more pass, do three or more pass?"""

EDGE_HEADS = ("edge", "same_filament")
"""Questions about an edge: is it on a filament, do both of its ends lie on one and the same filament?"""

HEADS = ("node", "edge", "end", "same_filament", "two_filaments", "three_filaments")
"""All questions that a network answers, in the order in which they are shown."""

TYPE = "filament_type"
"""One more question about a node, if the annotation tells types of filaments apart: on which is it?"""


class Label(IntEnum):
    """Answer to a question about a node or an edge."""

    TRUE_NEGATIVE = 0
    TRUE_POSITIVE = 1
    UNKNOWN = 2


class Labelled:
    """What has labels of nodes (N, 4) and of edges (E, 2), int64, one column for each head."""

    node_label: Tensor
    edge_label: Tensor

    def label(self, head: str) -> Tensor:
        """Return a view of the labels of one head, (N,) or (E,) int64."""
        if head in NODE_HEADS:
            return self.node_label[:, NODE_HEADS.index(head)]
        return self.edge_label[:, EDGE_HEADS.index(head)]


_NOT_GIVEN = cast(Tensor, None)  # filled in by ``Graph.__post_init__``: never None afterwards


@dataclass(frozen=True)
class Graph(Labelled):
    """Detections and the undirected edges between them.

    Its values are checked where they enter: when files are read and when a predictor is called.

    Parameters
    ----------
    pos : (N, 2) float32, pixels, columns x and y
    edges : (2, E) int64, node numbers, first < second, no edge twice
    node_label : (N, 4) int64, see :class:`Label`, one column for each of :data:`NODE_HEADS`; UNKNOWN if not given
    edge_label : (E, 2) int64, one column for each of :data:`EDGE_HEADS`; UNKNOWN if not given
    node_type : (N,) int64, the type of the filament that a node lies on, from 1; 0 if it is not known
    confidence : (N,) float32, the detector's score; 1 if not given
    embedding : (N, F) float32 or None, features made elsewhere
    """

    pos: Tensor
    edges: Tensor
    node_label: Tensor = _NOT_GIVEN
    edge_label: Tensor = _NOT_GIVEN
    node_type: Tensor = _NOT_GIVEN
    confidence: Tensor = _NOT_GIVEN
    embedding: Tensor | None = None

    def __post_init__(self) -> None:
        defaults = {
            "node_label": torch.full((self.num_nodes, len(NODE_HEADS)), Label.UNKNOWN.value),
            "edge_label": torch.full((self.num_edges, len(EDGE_HEADS)), Label.UNKNOWN.value),
            "node_type": torch.zeros(self.num_nodes, dtype=torch.int64),
            "confidence": torch.ones(self.num_nodes),
        }
        for name, default in defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)

    @property
    def num_nodes(self) -> int:
        """N."""
        return len(self.pos)

    @property
    def num_edges(self) -> int:
        """E."""
        return self.edges.shape[1]

    def with_labels(self, **labels: Tensor) -> Graph:
        """Return the graph with the labels of some heads, (N,) or (E,) int64, in the place of its own."""
        graph = replace(self, node_label=self.node_label.clone(), edge_label=self.edge_label.clone())
        for head, label in labels.items():
            graph.label(head)[:] = label
        return graph

    def subset(self, keep: Tensor) -> Graph:
        """Return the graph of the nodes with ``keep`` ((N,) bool) and the edges between them, in the same order."""
        number = torch.cumsum(keep, 0) - 1
        inside = keep[self.edges].all(dim=0)
        return Graph(
            pos=self.pos[keep],
            edges=number[self.edges[:, inside]],
            node_label=self.node_label[keep],
            edge_label=self.edge_label[inside],
            node_type=self.node_type[keep],
            confidence=self.confidence[keep],
            embedding=None if self.embedding is None else self.embedding[keep],
        )


class TruthSource(StrEnum):
    """The source that says which filaments are true; the values are shown to users."""

    INSTANCES = "instances.json"
    NUMBERS = "annotation numbers"
    EDGES = "connected positive edges"


class Truth(NamedTuple):
    """The true filaments of an image: the nodes (ascending) of each, and what says so."""

    filaments: list[Ints]
    source: TruthSource


@dataclass(frozen=True)
class Sample:
    """One micrograph with its graph.

    Parameters
    ----------
    name : the stem of its files
    image : (C, H, W) float32
    graph : the detections and their edges
    annotation : (H, W) integers or None; 0 background, else an object (1, or one number per object)
    truth : the true filaments, or None if they are not known
    metadata : further content of the files
    """

    name: str
    image: Tensor
    graph: Graph
    annotation: Tensor | None = None
    truth: Truth | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    def replace(self, **changes: Any) -> Sample:
        """Return a copy with some fields changed."""
        return replace(self, **changes)


@dataclass(frozen=True)
class Filament:
    """One filament that was found.

    Parameters
    ----------
    path : (P, 2) float32, pixels, columns x and y, in order along the filament
    score : (P,) float32, probability of each point of the path to lie on a filament
    node : (P,) int64, the detection that each point of the path is; where a filament crosses itself, one comes twice
    members : (M,) int64, the detections on the path and those beside it, in order along the filament
    closed : whether the last point of the path is joined to the first, which is not repeated
    type, type_share : the type of most points of the path, from 1, 0 if the network knows none, and their share
    """

    path: NDArray[np.float32]
    score: NDArray[np.float32]
    node: Ints
    members: Ints
    closed: bool = False
    type: int = 0
    type_share: float = 0.0


def inside_image(pos: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return whether each of ``pos`` ((N, 2) pixels) lies on a pixel of an image of ``shape`` (H, W): (N,) bool."""
    height, width = shape
    return ((pos >= -0.5) & (pos <= pos.new_tensor([width, height]) - 0.5)).all(dim=1)


def expect_inside(pos: Tensor, shape: tuple[int, int]) -> None:
    """Raise an :class:`InputError` if one of ``pos`` ((N, 2) pixels) lies outside an image of ``shape`` (H, W)."""
    outside = ~inside_image(pos, shape)
    if outside.any():
        node = int(outside.nonzero()[0])
        x, y = pos[node].tolist()
        raise InputError(
            f"detection {node} at x={x:.1f}, y={y:.1f} lies outside the image of {shape[1]} x {shape[0]} pixels "
            f"({int(outside.sum())} of {len(pos)} do); are x and y swapped, or is it another image's file?"
        )


def distinct(pos: Tensor, radius: float = 0.0, confidence: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return which of (N, 2) detections stay, (M,) int64 ascending, and which of these each is one with, (N,) int64.

    Detections that stay are more than ``radius`` pixels apart; every other one is one with the nearest of them. Of
    detections near each other the most confident ((N,) scores) stays, of several at one place with equal scores the
    first. Detections close together along a line are thinned, they do not become one.
    """
    points = pos.numpy().astype(np.float64)
    score = np.zeros(len(points)) if confidence is None else confidence.numpy()
    best = np.argsort(-score, kind="stable")
    places, first, group = np.unique(points[best], axis=0, return_index=True, return_inverse=True)
    row: Ints = best[first]  # of each place
    group = group.reshape(-1)[np.argsort(best)]
    if radius > 0 and len(places) > 1:
        # Equal scores are ranked by a hash of the position: ranked along a line, each would have to wait for the next.
        shuffled = pd.util.hash_array((places + 0.0).astype(np.float32).view(np.uint64)[:, 0])
        rank = np.lexsort((shuffled, -score[row]))
        stay = rank[_apart(places[rank], radius)]
        row, group = row[stay], np.ravel(KDTree(places[stay]).query(places)[1])[group]
    rows, place = np.unique(row[group], return_inverse=True)
    return torch.from_numpy(rows), torch.from_numpy(place)


def _apart(points: Floats, radius: float) -> Ints:
    """Take the points (M, 2) one by one unless one within ``radius`` is taken already; return which are, ascending.

    The first half goes first, so that there are few pairs left where thousands of points crowd at one place.
    """
    if len(points) > 1000:
        half = len(points) // 2
        taken = _apart(points[:half], radius)
        away = KDTree(points[taken]).query(points[half:], distance_upper_bound=np.nextafter(radius, np.inf))[0]
        free = half + np.flatnonzero(np.isinf(away))
        return np.concatenate([taken, free[_apart(points[free], radius)]])
    pairs = KDTree(points).query_pairs(radius, output_type="ndarray")
    gone = np.zeros(len(points), dtype=bool)
    while len(pairs):
        waits = np.zeros(len(points), dtype=bool)
        waits[pairs[:, 1]] = True
        gone[pairs[~waits[pairs[:, 0]], 1]] = True
        pairs = pairs[~gone[pairs].any(axis=1)]
    return np.flatnonzero(~gone)


def from_detections(pos: Tensor, confidence: Tensor | None = None) -> tuple[Graph, Tensor]:
    """Build the unlabelled Delaunay graph over (N, 2) positions and (N,) scores, or None.

    Of several detections at one place the first becomes a node. Also returns the node of each detection, (N,) int64.
    """
    rows, place = distinct(pos)
    kept = _NOT_GIVEN if confidence is None else confidence[rows]
    return Graph(pos[rows], delaunay(pos[rows]), confidence=kept), place


def delaunay(pos: Tensor) -> Tensor:
    """Return the edges (2, E) int64 of the Delaunay triangulation of (N, 2) positions, no two alike; sorted.

    Points on one line are joined to a chain, two points by an edge, one point by nothing. If a triangulation is not
    unique (points on one circle), the choice depends on the positions alone, not on their order.
    """
    points = pos.numpy().astype(np.float64)
    if len(points) < 2:
        return torch.zeros(2, 0, dtype=torch.int64)
    order = np.lexsort(points.T)  # qhull's answer on degenerate input depends on the order of the points
    points = points[order]
    pairs = _chain(points)
    if pairs is None:
        try:
            triangulation = Delaunay(points)
        except QhullError as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"no triangulation of the {len(points)} detections: {reason}") from error
        corners = triangulation.simplices[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
        # Points that qhull left out as too close to another: join each to the nearest corner.
        pairs = np.concatenate([corners, triangulation.coplanar[:, [0, 2]]])
    edges = np.unique(np.sort(order[pairs], axis=1), axis=0)
    return torch.from_numpy(np.ascontiguousarray(edges.T.astype(np.int64)))


def _chain(points: Floats) -> Ints | None:
    """Return consecutive pairs along the line that all points lie on, or None if they do not."""
    centred = points - points.mean(axis=0)
    along, across = np.linalg.svd(centred, full_matrices=False)[2]
    if np.abs(centred @ across).max() > 1e-3:  # pixels: float32 is no finer in an image of 4096 px
        return None
    rank = np.argsort(centred @ along, kind="stable")
    return np.stack([rank[:-1], rank[1:]], axis=1)


_OF_NEIGHBOUR = "length_nrm", "orient_rad", "south_length_nrm", "north_length_nrm"
EDGE_PROPERTIES: tuple[str, ...] = (
    *("edge_length_nrm", "edge_orient_rad"),
    *(f"{side}_neigh_{name}" for side in ("east", "west") for name in _OF_NEIGHBOUR),
)
"""Names of the columns of :func:`edge_geometry`."""


def edge_geometry(pos: Tensor, edges: Tensor) -> Tensor:
    """Return ten properties (E, 10) float32 of edges (2, E) of (N, 2) positions, named in :data:`EDGE_PROPERTIES`.

    Each edge is looked at from its south end (larger y) to its north end (smaller y); a horizontal edge from west
    to east. East is the side to the right of that direction. ``*_nrm`` are lengths over the graph's mean edge length.
    On each side stands the *neighbour*: the third corner of the triangle on that side. Zeros if there is none.

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
    """
    xy, ends = pos.numpy().astype(np.float64), edges.numpy()
    out = np.zeros((ends.shape[1], len(EDGE_PROPERTIES)))
    if len(out) == 0:
        return torch.from_numpy(out.astype(np.float32))

    first, second = xy[ends[0]], xy[ends[1]]
    # North is the end with the smaller y; of two at one height, the eastern one.
    swap = (first[:, 1] < second[:, 1]) | ((first[:, 1] == second[:, 1]) & (first[:, 0] > second[:, 0]))
    north, south = np.where(swap[:, None], (first, second), (second, first))
    along = north - south
    length = np.hypot(*along.T)
    mean_length = length.mean() or 1.0
    out[:, 0] = length / mean_length
    out[:, 1] = np.arctan2(-along[:, 1], along[:, 0])

    joined = adjacency(ends, len(xy))
    common = joined[ends[0]].multiply(joined[ends[1]]).tocoo()  # nodes that are joined to both ends of an edge
    edge, third = common.row.astype(np.int64), common.col.astype(np.int64)
    to_south, to_north = south[edge] - xy[third], north[edge] - xy[third]
    sight = np.arctan2(np.abs(_cross(to_south, to_north)), (to_south * to_north).sum(axis=1))
    turn = _cross(along[edge], -to_south)  # in image coordinates, positive lies to the right, which is east
    for side, on_side in enumerate((turn > 0, turn < 0)):
        rows = np.flatnonzero(on_side)
        rows = rows[np.lexsort((third[rows], -sight[rows], edge[rows]))]
        rows = rows[np.unique(edge[rows], return_index=True)[1]]  # of each edge, the widest angle
        e = edge[rows]
        outwards = xy[third[rows]] - (south[e] + north[e]) / 2
        angle = np.arctan2(np.abs(_cross(along[e], outwards)), (along[e] * outwards).sum(axis=1))
        across, *to_ends = (np.hypot(*v.T) / mean_length for v in (outwards, to_south[rows], to_north[rows]))
        out[e, 2 + 4 * side : 6 + 4 * side] = np.stack([across, angle, *to_ends], axis=1)
    return torch.from_numpy(out.astype(np.float32))


def _cross(a: Floats, b: Floats) -> Floats:
    return a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]


def encode_geometry(geometry: Tensor) -> Tensor:
    """Return the ten edge properties (E, 10) in a form that a network can use, (E, 15).

    Lengths become logarithms, orientation the cosine and sine of twice its angle (an edge has no front), the
    neighbours' angles their cosine and sine; a missing neighbour is zero throughout and has a flag of its own.
    """
    length, orient = geometry[:, 0], geometry[:, 1]
    columns = [torch.log(length.clamp(min=1e-6)), torch.cos(2 * orient), torch.sin(2 * orient)]
    for neighbour in (geometry[:, 2:6], geometry[:, 6:10]):
        there, angle = neighbour[:, 0] > 0, neighbour[:, 1]
        lengths = torch.log(neighbour[:, [0, 2, 3]].clamp(min=1e-6)).T
        values = torch.stack([*lengths, torch.cos(angle), torch.sin(angle)])
        columns += [*torch.where(there, values, 0.0), there.to(geometry.dtype)]
    return torch.stack(columns, dim=1)


GEOMETRY_FEATURES = encode_geometry(torch.zeros(0, len(EDGE_PROPERTIES))).shape[1]
"""Columns of :func:`encode_geometry`."""

Connection = Literal["spiderweb", "fireworks"]


def adjacency(edges: Ints, num_nodes: int) -> sp.csr_array:
    """Return the (N, N) symmetric matrix of ones where ``edges`` (2, E) join two nodes."""
    row, col = np.concatenate([edges, edges[::-1]], axis=1)
    return sp.csr_array((np.ones(len(row), dtype=np.int8), (row, col)), shape=(num_nodes, num_nodes))


MOST_MEMBERS = 10_000_000
"""Neighbourhoods that have more members together take too much memory in a network."""


class Subgraphs(NamedTuple):
    """The k-hop neighbourhoods of all N nodes, as one graph of N parts; int64."""

    centre: Tensor  # (M,) the node whose neighbourhood a member belongs to, ascending
    node: Tensor  # (M,) the node that a member is
    edges: Tensor  # (2, K) between members
    edge: Tensor  # (K,) the edge of the whole graph that each of them is


def subgraphs(edges: Tensor, num_nodes: int, *, num_hops: int, connection: Connection = "spiderweb") -> Subgraphs:
    """Find the neighbourhood of every node, up to ``num_hops`` of the (2, E) edges away.

    ``spiderweb`` keeps every edge between members, ``fireworks`` only the edges that touch the centre.
    """
    ends = edges.numpy()
    step = (adjacency(ends, num_nodes) + sp.eye_array(num_nodes, dtype=np.int8, format="csr")).astype(bool)
    reach = sp.csr_array(step)
    for _ in range(num_hops - 1):
        before, reach = reach.nnz, (reach @ step).astype(bool)
        if reach.nnz > MOST_MEMBERS:
            found = (
                f"data.num_hops: {num_hops}, but {num_nodes:,} neighbourhoods have more than {MOST_MEMBERS:,} members"
            )
            raise InputError(f"{found}; give fewer, or 'whole'")
        if reach.nnz == before:  # each reaches all that it is connected to
            break
    reach.sort_indices()
    members = reach.tocoo()
    centre, node = members.row.astype(np.int64), members.col.astype(np.int64)

    both = reach[ends[0]].multiply(reach[ends[1]]).tocoo()  # neighbourhoods are symmetric: row = edge, column = centre
    edge, of = both.row.astype(np.int64), both.col.astype(np.int64)
    if connection == "fireworks":
        touches = (ends[:, edge] == of).any(axis=0)
        edge, of = edge[touches], of[touches]
    order = np.lexsort((edge, of))
    edge, of = edge[order], of[order]
    place = np.searchsorted(centre * num_nodes + node, of * num_nodes + ends[:, edge])
    return Subgraphs(*(torch.from_numpy(np.ascontiguousarray(a)) for a in (centre, node, place, edge)))
