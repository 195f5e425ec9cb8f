"""Edges beyond the triangulation."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from grace_lightning.graph.neighbours import adjacency
from grace_lightning.graph.sample import Graph, Label, sort_edges

MAX_BEND = 25.0
"""Degrees that two edges may deviate from one line for their far ends to be joined directly."""


def second_neighbours(pos: Tensor, edges: Tensor, max_length: float) -> Tensor:
    """Pairs of nodes with a common neighbour between them, about in line, that no edge joins.

    Where a filament passes through another one's points, the triangulation may leave it no edge of its own; such a
    pair reaches across.

    Parameters
    ----------
    pos : (N, 2) float32, pixels
    edges : (2, E) int64, first < second
    max_length : pixels

    Returns
    -------
    (2, K) int64, first < second, sorted
    """
    joined = adjacency(edges.numpy(), len(pos)).tocsr()
    points = pos.numpy().astype(np.float64)
    neighbours = joined.astype(bool)
    middle, other = np.repeat(np.arange(len(pos)), np.diff(neighbours.indptr)), neighbours.indices
    degree = np.diff(neighbours.indptr)
    times = degree[middle]
    first = np.repeat(other, times)
    start = np.repeat(neighbours.indptr[middle], times)
    nth = np.arange(len(first)) - np.repeat(np.cumsum(times) - times, times)
    centre, second = np.repeat(middle, times), other[start + nth]
    keep = first < second
    first, second, centre = first[keep], second[keep], centre[keep]
    before, after = points[centre] - points[first], points[second] - points[centre]
    cosine = (before * after).sum(axis=1) / np.maximum(np.hypot(*before.T) * np.hypot(*after.T), 1e-12)
    near = np.hypot(*(points[second] - points[first]).T) <= max_length
    keep = near & (cosine >= np.cos(np.radians(MAX_BEND)))
    code = np.unique(first[keep] * len(pos) + second[keep])
    code = code[~np.isin(code, edges[0].numpy() * len(pos) + edges[1].numpy())]
    return torch.from_numpy(np.stack([code // max(len(pos), 1), code % max(len(pos), 1)]).astype(np.int64))


def with_candidates(graph: Graph, max_length: float) -> tuple[Graph, Tensor]:
    """The graph with its :func:`second_neighbours` as edges labelled UNKNOWN, and (E,) bool: which edges these are."""
    added = second_neighbours(graph.pos, graph.edges, max_length)
    edges, rank = sort_edges(torch.cat([graph.edges, added], dim=1), graph.num_nodes)
    unknown = torch.full((added.shape[1],), Label.UNKNOWN.value)
    whole = Graph(
        pos=graph.pos,
        edges=edges,
        node_label=graph.node_label,
        edge_label=torch.cat([graph.edge_label, unknown])[rank],
        confidence=graph.confidence,
        embedding=graph.embedding,
        end_label=graph.end_label,
        link_label=torch.cat([graph.link_label, unknown])[rank],
        passes=graph.passes,
        members=graph.members,
    )
    return whole, rank >= graph.num_edges
