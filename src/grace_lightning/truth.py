"""What an annotation says about a graph: labels for every head, and the true filaments."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse.csgraph import connected_components, dijkstra, minimum_spanning_tree
from scipy.spatial import KDTree
from scipy.spatial.distance import pdist, squareform
from torch import Tensor

from grace_lightning.graph import Floats, Graph, Ints, Label, Sample, Truth, TruthSource, adjacency
from grace_lightning.raster import Bools, covered_lines, dense, draw_path, values_at

MIN_NODES = 2
"""Smaller sets of nodes, predicted or true, are no filaments and do not count."""

BEYOND = np.linspace(0.25, 2, 15)
"""Places beyond an edge's end, in lengths of the edge, where the object that it comes from may come up again: far
enough to reach over a filament that crosses there, not so far as to reach a neighbour."""

NEAR_END = 1.5
"""A node this near to the end of its filament, in usual distances between nodes, counts as an end: the detector puts
the last point up to one such distance before the end, and jitter adds some."""

NEIGHBOURS, FEW = 8, 200
"""Each node of a filament may be joined to its 8 nearest if there are more than 200, which keeps memory linear; of
fewer nodes all pairs are compared, which is faster."""

NO_EDGE = 1e-6
"""Pixels between nodes at one place: a distance of 0 would be no edge in a sparse matrix."""


def label_by_mask(graph: Graph, annotation: Tensor) -> Graph:
    """Label nodes and edges by an annotation (H, W), 0 background.

    A node is positive if its pixel is annotated; an edge, if both its ends and every pixel between are.
    """
    annotated, pos, edges = annotation.numpy() > 0, graph.pos.numpy().astype(np.float64), graph.edges.numpy()
    node = values_at(annotated, pos)
    edge = node[edges].all(axis=0)
    edge[edge] = covered_lines(annotated, *pos[edges[:, edge]])
    return graph.with_labels(node=torch.from_numpy(node).long(), edge=torch.from_numpy(edge).long())


def draw_lines(lines: Sequence[Floats], scale: float, shape: tuple[int, int]) -> Tensor:
    """Draw lines (P, 2) ``scale`` pixels wide: (H, W) int32, the number of the line from 1, the last one on top."""
    annotation = np.zeros(shape, np.int32)
    for number, line in enumerate(lines, start=1):
        annotation.reshape(-1)[draw_path(line, scale, shape)] = number
    return torch.from_numpy(annotation)


def nodes_of_lines(graph: Graph, lines: Sequence[Floats], scale: float) -> dict[str, Ints]:
    """Return the positive nodes within half a width of each line (P, 2), ascending, by its number from 1.

    A node where lines cross belongs to all of them.
    """
    node = np.flatnonzero(graph.label("node").numpy() == Label.TRUE_POSITIVE)
    pos, reach = graph.pos.numpy().astype(np.float64)[node], scale / 2
    away = [KDTree(dense(line)).query(pos, distance_upper_bound=np.nextafter(reach, np.inf))[0] for line in lines]
    return {str(number): node[np.isfinite(distance)] for number, distance in enumerate(away, start=1)}


def type_of_nodes(num_nodes: int, filaments: Iterable[Ints], types: Sequence[int]) -> Tensor:
    """Return the type of the filament that each node lies on, (N,) int64; 0 without one, or with several of them.

    From the nodes and the type of each filament, 0 if it is not known.
    """
    node_type = torch.zeros(num_nodes, dtype=torch.int64)
    several = torch.zeros(num_nodes, dtype=torch.bool)
    for nodes, number in zip(filaments, types, strict=True):
        several[nodes] |= (node_type[nodes] > 0) & (node_type[nodes] != number)
        node_type[nodes] = number
    return node_type.masked_fill(several, 0)


def with_unknown(graph: Graph, annotation: Tensor, *, reach: float | None, ignored: Tensor | None) -> Graph:
    """Make the labels UNKNOWN where an annotation (H, W) does not say what is there.

    Further than ``reach`` pixels from everything annotated nothing is known of a node, nor of an edge if that is so at
    both its ends; None: an annotation says all. Nothing is known of nodes on pixels that are ``ignored`` ((H, W), not
    0), and of edges that touch such pixels.
    """
    pos, ends = graph.pos.numpy().astype(np.float64), graph.edges.numpy()
    node, edge = np.zeros(graph.num_nodes, np.bool_), np.zeros(graph.num_edges, np.bool_)
    if reach is not None:
        background = annotation.numpy() == 0
        away = ndimage.distance_transform_edt(background) if not background.all() else np.full(background.shape, np.inf)
        node = values_at(away, pos) > reach
        edge = node[ends].all(axis=0)
    if ignored is not None:
        asked = ignored.numpy() == 0
        node |= ~values_at(asked, pos)
        edge |= ~covered_lines(asked, *pos[ends])
    labels = {"node": node, "edge": edge}
    return graph.with_labels(
        **{head: graph.label(head).masked_fill(torch.from_numpy(to), Label.UNKNOWN) for head, to in labels.items()}
    )


def with_truth(sample: Sample, instances: Mapping[str, Ints] | None = None) -> Sample:
    """Add the true filaments, and the labels of all heads that they answer, to a sample with labels of node and edge.

    It is done once, when a sample is read: after it is cropped, the image's border would invent ends. If neither
    instances nor numbers in the annotation tell filaments apart, the filaments are the connected components of the
    positive edges, and only the heads ``node`` and ``edge`` have labels.

    An edge within the annotation is positive for ``same_filament`` if both ends belong to one filament. If only the
    numbers of the annotation tell (a pixel has but one), so is an edge from one object to another beyond which the
    first object comes up again: there it passes under the other. ``instances`` are the nodes of each filament.
    """
    graph, annotation = sample.graph, sample.annotation
    truth = true_filaments(graph, annotation, instances)
    if truth.source is TruthSource.EDGES:
        return sample.replace(truth=_known_parts(truth, graph))
    same = _share_a_filament(truth.filaments, graph)
    if truth.source is TruthSource.NUMBERS and annotation is not None:
        same |= _passes_under(graph, annotation.numpy())
    edge, node = graph.label("edge"), graph.label("node")
    apart = torch.from_numpy(~same) & (edge == Label.TRUE_POSITIVE)
    labels = {
        "same_filament": torch.where(apart, Label.TRUE_NEGATIVE.value, edge),
        "end": end_labels(graph.pos, node, truth.filaments),
    }
    if truth.source is TruthSource.INSTANCES:  # the only one that knows of nodes on several filaments
        passes = np.bincount(np.concatenate([np.zeros(0, np.int64), *truth.filaments]), minlength=graph.num_nodes)
        known = (node == Label.TRUE_POSITIVE) & torch.from_numpy(passes > 0)
        for head, least in (("two_filaments", 2), ("three_filaments", 3)):
            labels[head] = torch.where(known, torch.from_numpy(passes >= least).long(), Label.UNKNOWN.value)
    # Ends were taken of whole filaments: where what is known ends, filaments do not.
    return sample.replace(graph=graph.with_labels(**labels), truth=_known_parts(truth, graph))


def _known_parts(truth: Truth, graph: Graph) -> Truth:
    """Leave out nodes labelled UNKNOWN, and filaments that :func:`mostly_known` does not count."""
    known = (graph.label("node") != Label.UNKNOWN).numpy()
    parts = [nodes[known[nodes]] for nodes in truth.filaments if mostly_known(nodes, graph)]
    return Truth([nodes for nodes in parts if len(nodes) >= MIN_NODES], truth.source)


def mostly_known(nodes: Ints, graph: Graph) -> bool:
    """Return whether at least half of some nodes have another label than UNKNOWN."""
    unknown = graph.label("node")[torch.from_numpy(nodes)] == Label.UNKNOWN
    return 2 * int(unknown.sum()) <= len(unknown)


def true_filaments(graph: Graph, annotation: Tensor | None, instances: Mapping[str, Ints] | None) -> Truth:
    """Return the true filaments of two nodes or more, from the best source there is; see :func:`with_truth`.

    That is ``instances``; else, if the annotation has more than one number, the positive nodes by the number at
    their pixel; else the connected components of the positive edges.
    """
    if instances is not None:
        groups, source = [np.unique(nodes) for nodes in instances.values()], TruthSource.INSTANCES
    elif annotation is not None and _is_numbered(annotation.numpy()):
        positive = np.flatnonzero(graph.label("node").numpy() == Label.TRUE_POSITIVE)
        number = values_at(annotation.numpy(), graph.pos.numpy()[positive].astype(np.float64)).astype(np.int64)
        groups, source = grouped(positive[number != 0], number[number != 0]), TruthSource.NUMBERS
    else:
        ends = graph.edges.numpy()[:, graph.label("edge").numpy() == Label.TRUE_POSITIVE]
        part = connected_components(adjacency(ends, graph.num_nodes), directed=False)[1]
        groups, source = grouped(np.arange(graph.num_nodes), part), TruthSource.EDGES
    return Truth([nodes for nodes in groups if len(nodes) >= MIN_NODES], source)


def annotated_objects(annotation: Tensor) -> list[Ints]:
    """Return the flat pixel numbers (ascending) of each object in an annotation (H, W).

    Objects are told apart by their numbers; if there is but one number, by being connected, corners included.
    """
    number = annotation.numpy()
    if not _is_numbered(number):
        number, _ = ndimage.label(number != 0, structure=np.ones((3, 3)))
    pixels = np.flatnonzero(number)
    return grouped(pixels, number.reshape(-1)[pixels])


def grouped(items: Ints, number: NDArray[np.integer]) -> list[Ints]:
    """Split items (any,) by the number that each has, in the order of the numbers."""
    order = np.argsort(number, kind="stable")
    return np.split(items[order], np.flatnonzero(np.diff(number[order])) + 1) if len(items) else []


def _is_numbered(annotation: NDArray[np.integer]) -> bool:
    numbers = annotation[annotation != 0]
    return len(numbers) > 0 and bool(numbers.min() != numbers.max())


def _share_a_filament(filaments: Sequence[Ints], graph: Graph) -> Bools:
    """Return which edges (E,) have both ends on one filament."""
    node = np.concatenate([np.zeros(0, np.int64), *filaments])
    filament = np.repeat(np.arange(len(filaments)), [len(nodes) for nodes in filaments])
    belongs = sp.csr_array((np.ones(len(node)), (node, filament)), shape=(graph.num_nodes, max(len(filaments), 1)))
    first, second = graph.edges.numpy()
    shared: Bools = np.asarray((belongs[first] * belongs[second]).sum(axis=1)).reshape(-1) > 0
    return shared


def _passes_under(graph: Graph, annotation: NDArray[np.integer]) -> Bools:
    """Return which edges (E,) go from one object to another beyond which the first comes up again."""
    start, end = graph.pos.numpy().astype(np.float64)[graph.edges.numpy()]
    beyond = BEYOND[:, None, None] * (end - start)
    first, second = values_at(annotation, start), values_at(annotation, end)
    again = (values_at(annotation, end + beyond) == first).any(axis=0)
    again |= (values_at(annotation, start - beyond) == second).any(axis=0)
    under: Bools = again & (first != 0) & (second != 0)
    return under


def end_labels(pos: Tensor, node_label: Tensor, filaments: Sequence[Ints]) -> Tensor:
    """Label the nodes at an end of a filament, one of the two furthest apart along the minimum spanning tree.

    From (N, 2) positions, (N,) labels of the head ``node``, and the nodes of each filament. Returned are (N,) int64:
    TRUE_POSITIVE at an end, TRUE_NEGATIVE at other nodes of filaments of two or more, UNKNOWN without a filament.
    """
    label, points = torch.full((len(pos),), Label.UNKNOWN.value), pos.numpy().astype(np.float64)
    filaments = [nodes for nodes in filaments if len(nodes) >= MIN_NODES]
    for nodes in filaments:
        label[torch.from_numpy(nodes)] = Label.TRUE_NEGATIVE.value
    for nodes in filaments:  # after all others: a node that ends one filament may lie on another
        label[torch.from_numpy(nodes[_near_ends(points[nodes])])] = Label.TRUE_POSITIVE.value
    return torch.where(node_label == Label.TRUE_POSITIVE, label, Label.UNKNOWN.value)


def _near_ends(points: Floats) -> Bools:
    """Return which of the points (P, 2) of one filament lie near the two that are furthest apart along it."""
    tree = spanning_tree(points)
    one = dijkstra(tree, directed=False, indices=[0]).argmax()  # of a tree, the point furthest from any is an end
    away = dijkstra(tree, directed=False, indices=[int(one)])
    back = dijkstra(tree, directed=False, indices=[int(away.argmax())])
    near: Bools = np.minimum(away, back)[0] <= NEAR_END * np.median(tree.data)
    return near


def spanning_tree(points: Floats) -> sp.csr_array:
    """Return the minimum spanning tree of points (P, 2), (P, P), its lengths at one of the two places of each edge.

    Of many points, near neighbours may be joined; if these do not join all points, all pairs may.
    """
    count = len(points)
    if count <= FEW:
        return sp.csr_array(minimum_spanning_tree(squareform(np.maximum(pdist(points), NO_EDGE))))
    for neighbours in (NEIGHBOURS, count - 1):
        away, other = KDTree(points).query(points, k=neighbours + 1)
        first = np.repeat(np.arange(count), neighbours + 1)
        distance = np.maximum(np.ravel(away), NO_EDGE)
        graph = sp.coo_array((distance, (first, np.ravel(other))), shape=(count, count)).tocsr()
        graph.setdiag(0)
        graph.eliminate_zeros()
        if connected_components(graph, directed=False)[0] == 1:
            break
    return sp.csr_array(minimum_spanning_tree(graph))
