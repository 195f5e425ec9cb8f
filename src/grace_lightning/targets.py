"""What an annotation tells beyond the labels of nodes and edges: where filaments end, and which edges stay on one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from grace_lightning.graph import Graph, Label, Sample, end_labels, label_by_mask
from grace_lightning.metrics import true_filaments

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

FURTHER = np.linspace(0.25, 2, 15)
"""Places beyond an edge's end, in lengths of the edge, where the object that it comes from may come up again."""


def with_targets(sample: Sample, instances: Mapping[str, Ints] | None = None, added: Tensor | None = None) -> Sample:
    """The sample with what its annotation says where it tells filaments apart.

    That is ``end_label``, ``link_label`` and, where instances are given, ``passes`` and ``members``.

    An edge within the annotation links its ends if both belong to one filament. Where only the numbers of the
    annotation tell (a pixel has but one), an edge from one object to another links them as well if beyond either end
    the first comes up again: there it passes under the other.

    Parameters
    ----------
    sample : with its annotation
    instances : nodes of each filament, see :func:`grace_lightning.io.read_instances`, or None
    added : (E,) bool, edges that no file has labelled: they lie on a filament where all their pixels are annotated
    """
    graph, annotation = sample.graph, sample.annotation
    truth = true_filaments(graph, annotation, instances)
    if truth.source == "connected positive edges":
        return sample
    apart = ~_share(truth.nodes, graph)
    if instances is None and annotation is not None:
        apart &= ~_passes_under(graph, annotation.numpy())
    edge_label = graph.edge_label
    if added is not None and annotation is not None:
        edge_label = torch.where(added, label_by_mask(graph, annotation).edge_label, edge_label)
    negative = torch.from_numpy(apart) & (edge_label == Label.TRUE_POSITIVE)
    link_label = torch.where(negative, Label.TRUE_NEGATIVE.value, edge_label)
    end_label = end_labels(graph.pos, graph.node_label, truth.nodes)
    targets = {"end_label": end_label, "link_label": link_label}
    if instances is not None:
        node, filament = _members(truth.nodes)
        targets["members"] = torch.from_numpy(np.stack([node, filament]))
        passes = torch.from_numpy(np.bincount(node, minlength=graph.num_nodes))
        targets["passes"] = torch.where(graph.node_label == Label.TRUE_POSITIVE, passes, -1)
    return sample.replace(graph=replace(graph, **targets))


def _members(filaments: list[Ints]) -> tuple[Ints, Ints]:
    """Nodes (M,) of filaments, and which filament each is of."""
    none = np.zeros(0, dtype=np.int64)
    return np.concatenate([none, *filaments]), np.repeat(np.arange(len(filaments)), [len(n) for n in filaments])


def _share(filaments: list[Ints], graph: Graph) -> Bools:
    """Which edges (E,) have both ends on one filament."""
    row, column = _members(filaments)
    belongs = sp.csr_array((np.ones(len(row)), (row, column)), shape=(graph.num_nodes, max(len(filaments), 1)))
    first, second = graph.edges.numpy()
    shared: Bools = np.asarray((belongs[first] * belongs[second]).sum(axis=1)).reshape(-1) > 0
    return shared


def _passes_under(graph: Graph, annotation: NDArray[np.integer]) -> Bools:
    """Which edges (E,) go from one object to another beyond which the first comes up again."""
    last = np.array(annotation.shape[::-1]) - 1

    def number(points: NDArray[np.floating]) -> NDArray[np.integer]:
        column, row = np.moveaxis(np.clip(np.floor(points + 0.5).astype(np.int64), 0, last), -1, 0)
        at: NDArray[np.integer] = annotation[row, column]
        return at

    start, end = graph.pos.numpy().astype(np.float64)[graph.edges.numpy()]
    beyond = FURTHER[:, None, None] * (end - start)
    again: Bools = (number(end + beyond) == number(start)).any(axis=0) | (number(start - beyond) == number(end)).any(
        axis=0
    )
    return again & (number(start) > 0) & (number(end) > 0)
