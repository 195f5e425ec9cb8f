"""Small graphs, images and paths for the tests, drawn at random or by hand."""

import numpy as np
import torch
from torch_geometric.data import Batch

from grace_lightning.data import graph_data
from grace_lightning.graph import Filament, Graph, Sample, delaunay
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


LINES = np.array([[[40, 60], [330, 110]], [[90, 340], [380, 170]], [[430, 30], [465, 295]]], dtype=float)
"""Ends (x, y) of the three filaments of :func:`line_scene`, pixels; at places that no mirroring maps to one another."""


def line_scene(scale=10.0, spacing=20.0, false=25, seed=4):
    """Return a noisy image (384, 512) of three straight dark lines, points (N, 2) along them and false ones, shuffled.

    The lines are ``scale`` pixels wide. Three filaments is the right answer.
    """
    generator = np.random.default_rng(seed)
    rows, columns = np.indices((384, 512))
    image, points = generator.normal(30, 5, (384, 512)), []
    for start, end in LINES:
        length = np.hypot(*(end - start))
        along, normal = (end - start) / length, np.array([start[1] - end[1], end[0] - start[0]]) / length
        x, y = columns - start[0], rows - start[1]
        far = np.abs(x * normal[0] + y * normal[1])
        inside = np.clip(x * along[0] + y * along[1], 0, length) == x * along[0] + y * along[1]
        image -= 12 * inside * np.clip(scale / 2 + 0.5 - far, 0, 1)
        points.append(start + np.arange(0, length, spacing)[:, None] * along)
    points.append(generator.uniform([8, 8], [503, 375], (false, 2)))
    pos = np.concatenate(points) + generator.normal(0, 0.7, (sum(map(len, points)), 2))
    return image.astype(np.float32), generator.permutation(pos).astype(np.float32)


def filament(path, score=0.5, closed=False):
    """Return a filament along a path, whose nodes are numbered along it."""
    path, node = np.asarray(path, dtype=np.float32), np.arange(len(path))
    return Filament(path, np.broadcast_to(np.float32(score), len(path)), node, node, closed)


def line(degrees, length=100.0, start=(200.0, 300.0), nodes=6):
    """Nodes at uneven distances along a straight line; ``degrees`` from the x axis towards y, which points down."""
    at = np.linspace(0, 1, nodes) ** 1.5 * length
    return np.asarray(start) + np.outer(at, [np.cos(np.radians(degrees)), np.sin(np.radians(degrees))])


def ring(radius=100.0, nodes=40):
    """Nodes at even distances around (500, 500)."""
    angles = np.arange(nodes) * 2 * np.pi / nodes
    return 500 + radius * np.column_stack([np.cos(angles), np.sin(angles)])


def worm_like_chain(persistence, length, generator):
    """Points one pixel apart along a chain in a plane, whose direction turns by a variance of 1 / persistence each."""
    angle = generator.uniform(0, 2 * np.pi) + generator.normal(0, persistence**-0.5, int(length)).cumsum()
    return np.column_stack([np.cos(angle), np.sin(angle)]).cumsum(axis=0)
