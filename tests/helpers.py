"""Small graphs for the tests, drawn at random or by hand."""

import torch

from grace_lightning.graph import Graph, Sample, delaunay


def random_sample(name="a", nodes=40, seed=0, size=(96, 128)):
    """Labelled sample: a node is positive near the diagonal, an edge where both its ends are."""
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    pos = torch.rand(nodes, 2, generator=generator) * torch.tensor([width - 1.0, height - 1.0])
    edges = delaunay(pos)
    image = torch.randn(1, height, width, generator=generator)
    near = (pos[:, 0] / width - pos[:, 1] / height).abs() < 0.2
    rows, columns = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    band = (rows - columns).abs() < 0.2
    graph = Graph(pos, edges, near.long(), near[edges].all(dim=0).long())
    return Sample(name, image - 2 * band, graph, band.long())
