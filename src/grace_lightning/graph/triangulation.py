"""Which detections are joined."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import Delaunay, QhullError
from torch import Tensor

from grace_lightning.errors import InputError, InputWarning
from grace_lightning.graph.sample import Graph

COLLINEAR_PX = 1e-3
"""Points that all lie this close to one line are a chain: float32 pixels of a 4096 px image are no finer."""


def merge_duplicates(pos: Tensor) -> Tensor:
    """Rows of ``pos`` ((N, 2) pixels) that stay when detections at one place are merged; (M,) int64, ascending.

    The first of each group stays; an :class:`InputWarning` says how many went.
    """
    _, first = np.unique(pos.numpy(), axis=0, return_index=True)
    if len(first) < len(pos):
        warnings.warn(
            f"{len(pos) - len(first)} of {len(pos)} detections lie exactly on another one and were merged with it",
            InputWarning,
            stacklevel=2,
        )
    return torch.from_numpy(np.sort(first))


def delaunay(pos: Tensor) -> Tensor:
    """Edges of the Delaunay triangulation, whatever the number and the order of the points.

    Points on one line are joined to a chain, two points by an edge, one point by nothing. Where a triangulation
    is not unique (points on one circle), the choice depends on the positions alone.

    Parameters
    ----------
    pos : (N, 2) float32, pixels, no two alike (see :func:`merge_duplicates`)

    Returns
    -------
    (2, E) int64, first < second, sorted
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
            raise InputError(
                f"no triangulation of the {len(points)} detections: {str(error).splitlines()[0]}"
            ) from error
        corners = triangulation.simplices[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
        # Points that qhull left out as too close to another: join each to the nearest corner.
        pairs = np.concatenate([corners, triangulation.coplanar[:, [0, 2]]])
    edges = np.unique(np.sort(order[pairs], axis=1), axis=0)
    return torch.from_numpy(np.ascontiguousarray(edges.T.astype(np.int64)))


def _chain(points: NDArray[np.float64]) -> NDArray[np.int64] | None:
    """Consecutive pairs along the line that all points lie on, or None where they do not."""
    centred = points - points.mean(axis=0)
    along, across = np.linalg.svd(centred, full_matrices=False)[2]
    if np.abs(centred @ across).max() > COLLINEAR_PX:
        return None
    rank = np.argsort(centred @ along, kind="stable")
    return np.stack([rank[:-1], rank[1:]], axis=1)


def from_detections(pos: Tensor, confidence: Tensor | None = None) -> tuple[Graph, Tensor]:
    """Unlabelled Delaunay graph over detections.

    Parameters
    ----------
    pos : (N, 2) float32, pixels; detections at one place are merged with a warning
    confidence : (N,) float32 or None

    Returns
    -------
    the graph, and (M,) int64: the row of ``pos`` that each of its nodes is
    """
    rows = merge_duplicates(pos)
    pos = pos[rows]
    kept = torch.ones(len(rows)) if confidence is None else confidence[rows]
    return Graph(pos, delaunay(pos), confidence=kept), rows
