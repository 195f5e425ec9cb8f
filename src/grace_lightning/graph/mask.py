"""What an annotated image says about the nodes and edges of a graph over it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from grace_lightning.graph.sample import Graph


def label_by_mask(graph: Graph, annotation: Tensor) -> Graph:
    """The graph with the labels that an annotation gives it.

    A node is positive where its pixel is annotated; an edge, where both its ends and every pixel between are.

    Parameters
    ----------
    graph : nodes inside the image
    annotation : (H, W) integers, 0 background
    """
    numbers, pos, edges = annotation.numpy(), graph.pos.numpy().astype(np.float64), graph.edges.numpy()

    def annotated(points: NDArray[np.float64]) -> NDArray[np.bool_]:
        column, row = np.minimum(np.floor(points + 0.5).astype(np.int64), np.array(numbers.shape[::-1]) - 1).T
        inside: NDArray[np.bool_] = numbers[row, column] > 0
        return inside

    node = annotated(pos)
    edge = node[edges].all(axis=0)
    start, end = pos[edges[:, edge]]
    samples = np.ceil(2 * np.hypot(*(end - start).T)).astype(np.int64) + 1  # half a pixel apart
    owner = np.repeat(np.arange(len(samples)), samples)
    fraction = (np.arange(len(owner)) - (np.cumsum(samples) - samples)[owner]) / (samples - 1)[owner]
    between = annotated(start[owner] + fraction[:, None] * (end - start)[owner])
    edge[np.flatnonzero(edge)[owner[~between]]] = False
    return replace(graph, node_label=torch.from_numpy(node).long(), edge_label=torch.from_numpy(edge).long())
