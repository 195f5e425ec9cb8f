"""What a detector finds on a micrograph, and what the truth says about it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import KDTree
from torch import Generator, Tensor

from grace_lightning.graph import Graph, Label, inside_image
from grace_lightning.simulate.draws import Floats, between, normal, uniform
from grace_lightning.simulate.shapes import STEP

RIM_FRACTION = 0.4  # of the false detections: these lie on the rims of contamination and carbon, if there are any


def detect(
    lines: list[Floats],
    rims: Floats,
    size: tuple[int, int],
    *,
    spacing: float,
    jitter: float,
    p_missing: float,
    num_false: int,
    generator: Generator,
) -> Tensor:
    """True and false detections inside the image, in random order.

    Parameters
    ----------
    lines : per filament (P, 2)
    rims : (any, 2), where a detector may take something else for a filament
    size : (H, W)
    spacing, jitter, p_missing, num_false : see :class:`~grace_lightning.simulate.Simulator`

    Returns
    -------
    (N, 2) float32, pixels
    """
    true = np.zeros((0, 2))
    for line in lines:
        away = np.arange(between(0, spacing, generator), len(line) * STEP, spacing)
        true = np.concatenate([true, line[(away / STEP).astype(np.int64)]])
    true = true[uniform(len(true), generator=generator) >= p_missing]

    rims = rims[inside_image(torch.from_numpy(rims), size).numpy()]
    rims = rims[torch.randperm(len(rims), generator=generator).numpy()[: round(RIM_FRACTION * num_false)]]
    found = np.concatenate([true, rims])
    found += jitter * normal(*found.shape, generator=generator)
    anywhere = uniform(num_false - len(rims), 2, generator=generator) * (np.array(size[::-1]) - 1)
    pos = torch.from_numpy(np.concatenate([found, anywhere]).astype(np.float32))
    pos = pos[inside_image(pos, size)]
    return pos[torch.randperm(len(pos), generator=generator)]


def members(line: Floats, width: float, graph: Graph) -> list[int]:
    """Positive nodes within half a filament's width of its centre line ((P, 2))."""
    away, _ = KDTree(line).query(graph.pos.numpy())
    positive = (graph.node_label == Label.TRUE_POSITIVE).numpy()
    nodes: list[int] = np.flatnonzero(positive & (away <= width / 2)).tolist()
    return nodes


def label_by_mask(graph: Graph, annotation: Tensor) -> Graph:
    """The graph with the labels that an annotation gives it.

    A node is positive where its pixel is annotated; an edge, where both its ends and every pixel between are.

    Parameters
    ----------
    graph : nodes inside the image
    annotation : (H, W) integers, 0 background
    """
    numbers, pos, edges = annotation.numpy(), graph.pos.numpy().astype(np.float64), graph.edges.numpy()

    def annotated(points: Floats) -> NDArray[np.bool_]:
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
