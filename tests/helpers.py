"""Small graphs for the tests, drawn at random or by hand."""

import torch
from torch_geometric.data import Batch

from grace_lightning.data import graph_data
from grace_lightning.graph import Graph, Sample, delaunay
from grace_lightning.truth import with_truth


def random_sample(name="a", nodes=40, seed=0, size=(96, 128)):
    """Return a sample with truth: a node is positive near the diagonal, an edge if both its ends are."""
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    pos = torch.rand(nodes, 2, generator=generator) * torch.tensor([width - 1.0, height - 1.0])
    edges = delaunay(pos)
    image = torch.randn(1, height, width, generator=generator)
    near = (pos[:, 0] / width - pos[:, 1] / height).abs() < 0.2
    rows, columns = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    band = (rows - columns).abs() < 0.2
    graph = Graph(pos, edges).with_labels(node=near.long(), edge=near[edges].all(dim=0).long())
    return with_truth(Sample(name, image - 2 * band, graph, band.long()))


def batched(*samples, seeds=(0, 0)):
    """Return samples as a network takes them, augmented by the given seeds."""
    return Batch.from_data_list([graph_data(sample, seed=seed) for sample, seed in zip(samples, seeds, strict=False)])
