"""Changes of the graph alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from grace_lightning.augment.common import SampleAugmentation, changed, fraction, not_negative
from grace_lightning.graph import Graph, Label, Sample


class RandomXYTranslation(SampleAugmentation):
    """Moves every detection by up to ``max_shift`` pixels along x and along y, each on its own; none leaves the image.

    Parameters
    ----------
    max_shift : pixels
    """

    def __init__(self, max_shift: float = 2.0) -> None:
        self.max_shift = not_negative("max_shift", max_shift)

    def __call__(self, sample: Sample) -> Sample:
        """Return a changed copy of ``sample``."""
        if self.max_shift == 0:
            return sample
        shift = (2 * torch.rand_like(sample.graph.pos) - 1) * self.max_shift
        return sample.replace(graph=translate(sample.graph, shift, sample.image.shape[1:]))


def translate(graph: Graph, shift: Tensor, shape: Sequence[int]) -> Graph:
    """Graph with its nodes moved by ``shift`` ((N, 2) pixels), held inside an image of ``shape`` (H, W)."""
    height, width = shape
    last = graph.pos.new_tensor([width - 1, height - 1])
    pos = torch.minimum((graph.pos + shift).clamp(min=0), last)
    return changed(graph, pos=pos)


class RandomEdgeAdditionAndRemoval(SampleAugmentation):
    """Takes some edges away and adds others between nodes that had none; the added ones are labelled UNKNOWN.

    Parameters
    ----------
    p_add : number of added edges, as a fraction of the graph's edges
    p_remove : fraction of the edges that go
    """

    def __init__(self, p_add: float = 0.02, p_remove: float = 0.02) -> None:
        self.p_add = fraction("p_add", p_add)
        self.p_remove = fraction("p_remove", p_remove)

    def __call__(self, sample: Sample) -> Sample:
        """Return a changed copy of ``sample``."""
        graph = sample.graph
        keep = torch.randperm(graph.num_edges)[round(self.p_remove * graph.num_edges) :].sort().values
        added = absent_pairs(graph.edges, graph.num_nodes, round(self.p_add * graph.num_edges))
        unknown = torch.full((added.shape[1],), Label.UNKNOWN.value)
        altered = changed(
            graph,
            edges=torch.cat([graph.edges[:, keep], added], dim=1),
            edge_label=torch.cat([graph.edge_label[keep], unknown]),
            link_label=torch.cat([graph.link_label[keep], unknown]),
        )
        return sample.replace(graph=altered)


def absent_pairs(edges: Tensor, num_nodes: int, count: int) -> Tensor:
    """Random pairs of nodes that no edge joins.

    Parameters
    ----------
    edges : (2, E) int64, first < second
    num_nodes : N
    count : how many; fewer come back where the graph has fewer such pairs

    Returns
    -------
    (2, count) int64, first < second, no pair twice
    """
    count = min(count, num_nodes * (num_nodes - 1) // 2 - edges.shape[1])
    taken = edges[0] * num_nodes + edges[1]
    code = taken.new_zeros(0)
    while len(code) < count:
        draw = torch.randint(num_nodes, (2, 2 * count))
        low, high = draw.amin(dim=0), draw.amax(dim=0)
        new = (low * num_nodes + high)[low < high]
        code = torch.unique(torch.cat([code, new[~torch.isin(new, taken)]]))
    code = code[torch.randperm(len(code))[:count]]
    return torch.stack([code // max(num_nodes, 1), code % max(num_nodes, 1)])
