"""Graphs as the network takes them."""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from torch import Tensor
from torch_geometric.data import Data

from grace_lightning.features import FeatureKind, PatchAugmentation
from grace_lightning.graph import Connection, Label, Sample, subgraphs

LABELS = ("node_label", "edge_label", "end_label", "link_label", "second_label", "third_label")


class GraphData(Data):
    """A prepared graph, or a batch of them.

    Holds what the feature kind extracts (such as ``x`` (N, F) and ``edge_attr`` (E, G), raw), ``edge_index`` (2, E)
    with each undirected edge once, ``node_label`` (N,), ``edge_label`` (E,), ``end_label`` (N,),
    ``link_label`` (E,), ``second_label`` and ``third_label`` (N,), ``pos`` (N, 2) and ``name``.
    With neighbourhoods also the ``member_*`` of :class:`grace_lightning.graph.Subgraphs`.
    """

    def __inc__(self, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        """What to add to numbers in ``key`` when another graph comes before this one in a batch."""
        if key in ("member_node", "member_centre"):
            return self.num_nodes
        if key == "member_edges":
            return len(self.member_node)
        if key == "member_edge":
            return self.edge_index.shape[1]
        return super().__inc__(key, value, *args, **kwargs)

    def __cat_dim__(self, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        """Along which dimension ``key`` is joined in a batch."""
        return 1 if key == "member_edges" else super().__cat_dim__(key, value, *args, **kwargs)

    @property
    def has_subgraphs(self) -> bool:
        """Whether the network sees the neighbourhood of each node instead of the whole graph."""
        return "member_node" in self

    # Plain numbers, not tensors: asking a GPU for them would make it wait.

    @property
    def nodes_per_image(self) -> list[int]:
        """Number of nodes of each image of a batch."""
        return [nodes for nodes, _ in self._by_image("graph_size")]

    @property
    def edges_per_image(self) -> list[int]:
        """Number of edges of each image of a batch."""
        return [edges for _, edges in self._by_image("graph_size")]

    @property
    def image_shapes(self) -> list[tuple[int, int]]:
        """Rows and columns of each image of a batch, where the features took the image along."""
        return self._by_image("image_shape")

    @property
    def num_counted(self) -> int:
        """Number of images of a batch that count, see :class:`grace_lightning.sampling.Pick`."""
        return sum(counted for (counted,) in self._by_image("counted"))

    def without_labels(self) -> GraphData:
        """The same graph, everything in it UNKNOWN and itself not counted."""
        data = copy.copy(self)
        for key in LABELS:
            data[key] = torch.full_like(data[key], Label.UNKNOWN)
        data.counted = (0,)
        return data

    def _by_image(self, key: str) -> list[Any]:
        value = self[key]  # a batch has a list of what a single graph has
        return value if isinstance(value, list) else [value]


def prepare(
    sample: Sample,
    features: FeatureKind,
    augment: PatchAugmentation | None = None,
    num_hops: int | Literal["whole"] = "whole",
    connection: Connection = "spiderweb",
) -> GraphData:
    """The graph of a sample as the network takes it.

    Parameters
    ----------
    sample : its image already went through ``features.preprocess``
    features : what to extract
    augment : applied to the patches
    num_hops : size of the neighbourhood that the network sees around each node, or ``whole``
    connection : see :func:`grace_lightning.graph.subgraphs`
    """
    graph = sample.graph
    data = GraphData(
        edge_index=graph.edges,
        node_label=graph.node_label,
        edge_label=graph.edge_label,
        end_label=graph.end_label,
        link_label=graph.link_label,
        second_label=_at_least(2, graph.passes),
        third_label=_at_least(3, graph.passes),
        pos=graph.pos,
        num_nodes=graph.num_nodes,
        name=sample.name,
        graph_size=(graph.num_nodes, graph.num_edges),
        counted=(1,),
        **features.extract(sample, augment),
    )
    if num_hops != "whole":
        parts = subgraphs(graph.edges, graph.num_nodes, num_hops=num_hops, connection=connection)
        data.member_centre, data.member_node = parts.centre, parts.node
        data.member_edges, data.member_edge = parts.edges, parts.edge
    return data


def _at_least(number: int, passes: Tensor) -> Tensor:
    """Whether so many filaments pass a node, (N,) see :class:`Label`; UNKNOWN where none does."""
    return torch.where(passes > 0, (passes >= number).long(), Label.UNKNOWN.value)
