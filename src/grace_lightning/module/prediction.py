"""What the network says of an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from grace_lightning.graph import Graph
from grace_lightning.link import Filaments, Linker

SURE = 1e-6
"""Probabilities closer to 0 or 1 count as this, so that one network, sure beyond measure, does not outvote others."""


class Prediction(NamedTuple):
    """Probabilities of one image.

    Attributes
    ----------
    name : stem of the image
    node_probability, edge_probability : (N,) and (E,) float32, of the positive class
    end_probability : (N,) float32, that a filament ends at a node of one; None where that was never learned
    link_probability : (E,) float32, that one filament goes from the edge's one end to the other; None likewise
    second_probability, third_probability : (N,) float32, that two filaments or more, or three or more, pass a node of
        one; None likewise
    node_label, edge_label : (N,) and (E,) int64
    """

    name: str
    node_probability: Tensor
    edge_probability: Tensor
    end_probability: Tensor | None
    link_probability: Tensor | None
    second_probability: Tensor | None
    third_probability: Tensor | None
    node_label: Tensor
    edge_label: Tensor

    def filaments(self, linker: Linker, graph: Graph) -> Filaments:
        """What ``linker`` makes of the probabilities; those of links count where they are known, or else of edges."""
        edge = self.edge_probability if self.link_probability is None else self.link_probability
        further = [p for p in (self.second_probability, self.third_probability) if p is not None]
        more = torch.stack(further, dim=1) if further else None
        return linker(graph.pos, graph.edges, self.node_probability, edge, self.end_probability, more)


def mean_prediction(predictions: Sequence[Prediction]) -> Prediction:
    """What several networks say of one image together: the mean of their log-odds, labels those of the first.

    Parameters
    ----------
    predictions : of the same nodes and edges; a head counts where its network learned it
    """
    if len(predictions) == 1:
        return predictions[0]
    first = predictions[0]._asdict()
    for key in (name for name in Prediction._fields if name.endswith("_probability")):
        said = [value for p in predictions if (value := getattr(p, key)) is not None]
        if said:
            first[key] = torch.stack(said).double().logit(eps=SURE).mean(dim=0).sigmoid().float()
    return Prediction(**first)


def gather(predictions: Sequence[Prediction]) -> dict[str, tuple[Tensor, Tensor]]:
    """Probabilities and labels of all ``nodes`` and of all ``edges``."""
    return {
        "nodes": (torch.cat([p.node_probability for p in predictions]), torch.cat([p.node_label for p in predictions])),
        "edges": (torch.cat([p.edge_probability for p in predictions]), torch.cat([p.edge_label for p in predictions])),
    }
