"""Filaments, predicted and true, as the sets of nodes or pixels that are compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from grace_lightning.graph import Graph, Label
from grace_lightning.link import Filaments

Ints = NDArray[np.int64]

MIN_NODES = 2
"""Smaller sets of nodes, predicted or true, are no filaments and do not count."""


class Predicted(NamedTuple):
    """One predicted filament: its nodes (ascending), and its path, whose last node is joined to the first if closed."""

    nodes: Ints
    path: Ints
    closed: bool


class Truth(NamedTuple):
    """The true filaments: the nodes (ascending) of each, and what says so."""

    nodes: list[Ints]
    source: str


def counted(filaments: Filaments) -> list[Predicted]:
    """The filaments of two nodes or more."""
    rows = zip(filaments.nodes, filaments.paths, filaments.closed.tolist(), strict=True)
    predicted = [Predicted(np.unique(nodes), path, closed) for nodes, path, closed in rows]
    return [filament for filament in predicted if len(filament.nodes) >= MIN_NODES]


def true_filaments(graph: Graph, annotation: Tensor | None, instances: Mapping[str, Ints] | None) -> Truth:
    """True filaments of two nodes or more, from the best there is.

    That is ``instances``; else, where the annotation has more than one number, the positive nodes by the number at
    their pixel; else the connected components of the positive edges.

    Parameters
    ----------
    graph : with labels, its nodes inside the image
    annotation : (H, W) integers, 0 background, or None
    instances : nodes by filament, see :func:`grace_lightning.io.read_instances`, or None
    """
    if instances is not None:
        groups, source = [np.unique(nodes) for nodes in instances.values()], "instances.json"
    elif annotation is not None and _is_numbered(annotation.numpy()):
        groups, source = _by_number(graph, annotation.numpy()), "annotation numbers"
    else:
        groups, source = _by_edges(graph), "connected positive edges"
    return Truth([nodes for nodes in groups if len(nodes) >= MIN_NODES], source)


def _by_number(graph: Graph, annotation: NDArray[np.integer]) -> list[Ints]:
    positive = np.flatnonzero(graph.node_label.numpy() == Label.TRUE_POSITIVE)
    last = np.array(annotation.shape[::-1]) - 1
    x, y = np.clip(np.floor(graph.pos.numpy()[positive].astype(np.float64) + 0.5).astype(np.int64), 0, last).T
    number = annotation[y, x]
    return grouped(positive[number != 0], number[number != 0])


def _by_edges(graph: Graph) -> list[Ints]:
    ends = graph.edges.numpy()[:, graph.edge_label.numpy() == Label.TRUE_POSITIVE]
    joined = sp.csr_array((np.ones(ends.shape[1]), (ends[0], ends[1])), shape=(graph.num_nodes, graph.num_nodes))
    return grouped(np.arange(graph.num_nodes), connected_components(joined, directed=False)[1])


def annotated_objects(annotation: Tensor) -> list[Ints]:
    """Flat pixel numbers (ascending) of each annotated object.

    Objects are told apart by their numbers; where there is but one number, they are what hangs together, corners
    included.

    Parameters
    ----------
    annotation : (H, W) integers, 0 background
    """
    number = annotation.numpy()
    if not _is_numbered(number):
        number, _ = ndimage.label(number != 0, structure=np.ones((3, 3)))
    pixels = np.flatnonzero(number)
    return grouped(pixels, number.reshape(-1)[pixels])


def _is_numbered(annotation: NDArray[np.integer]) -> bool:
    numbers = annotation[annotation != 0]
    return len(numbers) > 0 and bool(numbers.min() != numbers.max())


def grouped(items: Ints, number: NDArray[np.integer]) -> list[Ints]:
    """The items (any,) of each number, given one for every item, in the order of the numbers."""
    order = np.argsort(number, kind="stable")
    return np.split(items[order], np.flatnonzero(np.diff(number[order])) + 1) if len(items) else []


def draw_path(path: NDArray[np.floating], brush: float, shape: tuple[int, int], *, closed: bool = False) -> Ints:
    """Pixels whose centres lie within half the brush of a path: a line with round ends and bends.

    The path is cut into pieces of about the brush's width, and distances are taken in a window around each, so that
    time and memory grow with the area that is drawn, not with the image or with the path's bounding box.

    Parameters
    ----------
    path : (P, 2) pixels, columns x and y; P is 1 or more
    brush : width of the line, pixels
    shape : (H, W) of the image; what lies outside is left out
    closed : whether the last point is joined to the first

    Returns
    -------
    (any,) int64 flat pixel numbers, ascending
    """
    points = np.asarray(path, dtype=np.float64)
    starts, ends = (points, np.roll(points, -1, axis=0)) if closed else (points[:-1], points[1:])
    if len(points) == 1:
        starts = ends = points
    piece, radius = max(brush, 8.0), brush / 2
    count = np.maximum(np.ceil(np.hypot(*(ends - starts).T) / piece), 1).astype(np.int64)
    segment = np.repeat(np.arange(len(count)), count)
    at = (np.arange(len(segment)) - (np.cumsum(count) - count)[segment])[:, None]
    step = ((ends - starts) / count[:, None])[segment]
    start = starts[segment] + at * step

    # a window holds one piece, whichever way it points, and the brush around it
    side = int(np.ceil(piece + brush)) + 1
    corner = np.ceil(np.minimum(start, start + step) - radius).astype(np.int64)
    x, y = (corner[:, k, None] + np.arange(side) for k in (0, 1))  # (S, side) columns and rows
    away_x, away_y = x[:, None, :] - start[:, 0, None, None], y[:, :, None] - start[:, 1, None, None]
    step_x, step_y = step[:, 0, None, None], step[:, 1, None, None]
    squared = np.maximum((step**2).sum(axis=1), 1e-12)[:, None, None]
    along = np.clip((away_x * step_x + away_y * step_y) / squared, 0, 1)
    near = (away_x - along * step_x) ** 2 + (away_y - along * step_y) ** 2 <= radius**2
    near &= ((y >= 0) & (y < shape[0]))[:, :, None] & ((x >= 0) & (x < shape[1]))[:, None, :]
    flat: Ints = np.sort((y[:, :, None] * shape[1] + x[:, None, :])[near])
    return flat[np.diff(flat, prepend=-1) > 0]  # np.unique takes five times as long
