"""Detections, edges and images as one checked value."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from grace_lightning.errors import InputError


class Label(IntEnum):
    """Ground truth of a node or an edge."""

    TRUE_NEGATIVE = 0
    TRUE_POSITIVE = 1
    UNKNOWN = 2


def _expect(name: str, value: Tensor, shape: tuple[int | None, ...], dtype: torch.dtype) -> None:
    fits = value.ndim == len(shape) and all(s is None or s == v for s, v in zip(shape, value.shape, strict=True))
    if not fits:
        expected = "(" + ", ".join("any" if s is None else str(s) for s in shape) + ")"
        raise InputError(f"{name}: shape {tuple(value.shape)}, expected {expected}")
    if value.dtype != dtype:
        raise InputError(f"{name}: {value.dtype}, expected {dtype}")


_NOT_GIVEN = cast(Tensor, None)  # what ``Graph.__post_init__`` fills in: never None afterwards


@dataclass(frozen=True)
class Graph:
    """Detections and the undirected edges between them; checks itself on construction.

    Parameters
    ----------
    pos : (N, 2) float32, pixels, columns x and y
    edges : (2, E) int64, node numbers, first < second, no edge twice
    node_label : (N,) int64, see :class:`Label`; UNKNOWN where not given
    edge_label : (E,) int64, likewise
    confidence : (N,) float32, the detector's score; 1 where not given
    embedding : (N, F) float32 or None, features made elsewhere
    end_label : (N,) int64, whether a filament ends at a node; UNKNOWN where not given
    link_label : (E,) int64, whether one filament goes from the edge's one end to the other; UNKNOWN where not given
    passes : (N,) int64, number of filaments through a node; -1 where not given
    members : (2, M) int64, a node and the number of a filament that it belongs to, once for each such filament; None
        where filaments that lie on one another are not told apart

    Raises
    ------
    InputError
        Wrong shape or type, coordinates that are not finite, a label outside 0..2, an edge that names no
        node, joins a node to itself, is out of order or there twice.
    """

    pos: Tensor
    edges: Tensor
    node_label: Tensor = _NOT_GIVEN
    edge_label: Tensor = _NOT_GIVEN
    confidence: Tensor = _NOT_GIVEN
    embedding: Tensor | None = None
    end_label: Tensor = _NOT_GIVEN
    link_label: Tensor = _NOT_GIVEN
    passes: Tensor = _NOT_GIVEN
    members: Tensor | None = None

    def __post_init__(self) -> None:
        nodes, edges = len(self.pos), self.edges.shape[-1]
        self._fill("node_label", torch.full((nodes,), Label.UNKNOWN.value))
        self._fill("edge_label", torch.full((edges,), Label.UNKNOWN.value))
        self._fill("confidence", torch.ones(nodes))
        self._fill("end_label", torch.full((nodes,), Label.UNKNOWN.value))
        self._fill("link_label", torch.full((edges,), Label.UNKNOWN.value))
        self._fill("passes", torch.full((nodes,), -1))
        _expect("pos", self.pos, (None, 2), torch.float32)
        _expect("edges", self.edges, (2, None), torch.int64)
        _expect("node_label", self.node_label, (nodes,), torch.int64)
        _expect("edge_label", self.edge_label, (edges,), torch.int64)
        _expect("end_label", self.end_label, (nodes,), torch.int64)
        _expect("link_label", self.link_label, (edges,), torch.int64)
        _expect("passes", self.passes, (nodes,), torch.int64)
        _expect("confidence", self.confidence, (nodes,), torch.float32)
        if self.embedding is not None:
            _expect("embedding", self.embedding, (nodes, None), torch.float32)
        if self.members is not None:
            _expect("members", self.members, (2, None), torch.int64)
        self._check_values()

    def _fill(self, name: str, default: Tensor) -> None:
        if getattr(self, name) is None:
            object.__setattr__(self, name, default)

    def _check_values(self) -> None:
        finite = torch.isfinite(self.pos).all(dim=1)
        if not finite.all():
            node = int((~finite).nonzero()[0])
            raise InputError(f"node {node}: position {self.pos[node].tolist()}, expected finite pixels")
        for name in ("node_label", "edge_label", "end_label", "link_label"):
            label = getattr(self, name)
            wrong = (label < 0) | (label > 2)
            if wrong.any():
                row = int(wrong.nonzero()[0])
                raise InputError(f"{name} {row}: {int(label[row])}, expected 0 (negative), 1 (positive) or 2 (unknown)")
        source, target = self.edges
        wrong = (source < 0) | (target >= self.num_nodes)
        if wrong.any():
            row = int(wrong.nonzero()[0])
            pair = self.edges[:, row].tolist()
            raise InputError(f"edge {row}: joins nodes {pair}, expected numbers from 0 to {self.num_nodes - 1}")
        if (source >= target).any():
            row = int((source >= target).nonzero()[0])
            raise InputError(f"edge {row}: {self.edges[:, row].tolist()}, expected the smaller node first")
        code = source * self.num_nodes + target
        if len(torch.unique(code)) != len(code):
            raise InputError("edges: an edge is there twice, expected each pair of nodes once")

    @property
    def num_nodes(self) -> int:
        """N."""
        return len(self.pos)

    @property
    def num_edges(self) -> int:
        """E."""
        return self.edges.shape[1]

    def subset(self, keep: Tensor) -> Graph:
        """The graph of the nodes with ``keep`` ((N,) bool) and the edges between them, order kept."""
        number = torch.cumsum(keep, 0) - 1
        inside = keep[self.edges].all(dim=0)
        members = self.members
        if members is not None:
            node, filament = members[:, keep[members[0]]]
            members = torch.stack([number[node], filament])
        return Graph(
            pos=self.pos[keep],
            edges=number[self.edges[:, inside]],
            node_label=self.node_label[keep],
            edge_label=self.edge_label[inside],
            confidence=self.confidence[keep],
            embedding=None if self.embedding is None else self.embedding[keep],
            end_label=self.end_label[keep],
            link_label=self.link_label[inside],
            passes=self.passes[keep],
            members=members,
        )

    def renumber(self, order: Tensor) -> Graph:
        """The same graph with node ``order[k]`` ((N,) int64, a permutation) as node ``k``; edges sorted anew."""
        number = torch.empty_like(order)
        number[order] = torch.arange(len(order))
        edges, rank = sort_edges(number[self.edges], self.num_nodes)
        members = self.members
        if members is not None:
            members = torch.stack([number[members[0]], members[1]])
        return Graph(
            pos=self.pos[order],
            edges=edges,
            node_label=self.node_label[order],
            edge_label=self.edge_label[rank],
            confidence=self.confidence[order],
            embedding=None if self.embedding is None else self.embedding[order],
            end_label=self.end_label[order],
            link_label=self.link_label[rank],
            passes=self.passes[order],
            members=members,
        )


@dataclass(frozen=True)
class Sample:
    """One micrograph with its graph.

    Parameters
    ----------
    name : the stem of its files
    image : (C, H, W) float32
    graph : the detections and their edges
    annotation : (H, W) integers or None; 0 background, else an object (1, or one number per object)
    metadata : what else the files say

    Raises
    ------
    InputError
        An image or annotation of the wrong shape, or a detection outside the image.
    """

    name: str
    image: Tensor
    graph: Graph
    annotation: Tensor | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _expect("image", self.image, (None, None, None), torch.float32)
        height, width = self.image.shape[1:]
        if self.annotation is not None and self.annotation.shape != (height, width):
            found = tuple(self.annotation.shape)
            raise InputError(f"annotation: shape {found}, expected the image's {(height, width)}")
        outside = ~inside_image(self.graph.pos, (height, width))
        if outside.any():
            node = int(outside.nonzero()[0])
            x, y = self.graph.pos[node].tolist()
            raise InputError(
                f"detection {node} at x={x:.1f}, y={y:.1f} lies outside the image of {width} x {height} pixels "
                f"({int(outside.sum())} of {self.graph.num_nodes} do); are x and y swapped, "
                "or is it another image's file?"
            )

    def replace(self, **changes: Any) -> Sample:
        """A copy with some fields changed."""
        return replace(self, **changes)


def inside_image(pos: Tensor, shape: tuple[int, int]) -> Tensor:
    """Whether each of ``pos`` ((N, 2) pixels) lies on a pixel of an image of ``shape`` (H, W); (N,) bool."""
    height, width = shape
    return ((pos >= -0.5) & (pos <= pos.new_tensor([width, height]) - 0.5)).all(dim=1)


def sort_edges(edges: Tensor, num_nodes: int) -> tuple[Tensor, Tensor]:
    """Edges with the smaller end first, sorted by both ends.

    Parameters
    ----------
    edges : (2, E) int64, in any order and direction
    num_nodes : N

    Returns
    -------
    (2, E) int64 edges, and (E,) int64: the row in ``edges`` of each
    """
    low, high = edges.amin(dim=0), edges.amax(dim=0)
    rank = torch.argsort(low * num_nodes + high)
    return torch.stack([low, high])[:, rank], rank


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
    """

    path: NDArray[np.float32]
    score: NDArray[np.float32]
    node: NDArray[np.int64]
    members: NDArray[np.int64]
    closed: bool = False
