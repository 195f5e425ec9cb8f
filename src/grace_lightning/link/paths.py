"""Paths: how they are put together, their lengths, and the nodes beside them."""

import numpy as np
import scipy.sparse as sp
from scipy.sparse.csgraph import connected_components, depth_first_order
from scipy.spatial import KDTree

from grace_lightning.graph import Floats, Ints, adjacency
from grace_lightning.link.detections import Path
from grace_lightning.truth import grouped


def chains(count: int, joints: Ints) -> list[tuple[Ints, bool]]:
    """Put ``count`` pieces together whose ends ``joints`` (2, any) are joined, each at most once.

    Returns for each chain its ends in order, two for each piece (k and ``count + k``), and whether it is a ring.
    """
    own = np.stack([np.arange(count), count + np.arange(count)])
    graph = adjacency(np.concatenate([own, joints], axis=1), 2 * count)
    _, chain = connected_components(graph, directed=False)
    joined = np.zeros(2 * count, dtype=bool)
    joined[joints] = True
    ring = np.bincount(chain, ~joined) == 0
    start = np.lexsort((joined, chain))  # a free end of each chain if there is one
    start = start[np.unique(chain[start], return_index=True)[1]]
    # A ring is opened at its start: the walk then goes through the piece first, not across the joint.
    opened = joints[:, ~np.isin(joints, start[ring]).any(axis=0)]
    order = first_visits(np.concatenate([own, opened], axis=1), 2 * count, start)
    return [(ends, bool(ring[chain[ends[0]]])) for ends in grouped(order, chain[order])]


def trace(edges: Ints, pair_node: Ints, pair_edges: Ints) -> list[Path]:
    """Return the paths that edges (2, E) form if ``pair_edges`` (2, any) go on in one another at ``pair_node`` (any,).

    An edge goes on in at most one other at each of its ends.
    """
    count, node = edges.shape[1], edges.reshape(-1)
    joints = pair_edges + count * (edges[:, pair_edges] == pair_node).argmax(axis=0)
    return [
        Path(node[ends[::2]] if ring else np.append(node[ends[::2]], node[ends[-1]]), ring)
        for ends, ring in chains(count, joints)
    ]


def first_visits(links: Ints, size: int, starts: Ints) -> Ints:
    """Return the nodes of a graph with ``links`` (2, any) in the order of walks in depth from ``starts`` (any,)."""
    root = np.stack([np.full(len(starts), size), starts])  # a further node, so that one walk takes all the starts
    row, column = np.concatenate([links, root], axis=1)
    rooted = sp.csr_array((np.ones(len(row), dtype=np.int8), (row, column)), shape=(size + 1, size + 1))
    return depth_first_order(rooted, size, directed=False, return_predecessors=False)[1:].astype(np.int64)


def arc_lengths(points: Floats) -> Floats:
    """Return the pixels from the beginning of a polyline (any, 2) to each of its points."""
    return np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])


def path_length(pos: Floats, path: Path) -> float:
    """Return the pixels along a path, once around if it is closed."""
    return float(arc_lengths(pos[path.vertices])[-1])


def beside(pos: Floats, paths: list[Path], distance: float) -> list[tuple[Ints, Floats]]:
    """Return for each path the nodes within ``distance`` (pixels) of it, ascending, and how far along it they are.

    That is in pixels to the foot of the perpendicular, at the nearest place; the first and the last segment of an open
    path are prolonged, so it is negative before the beginning.
    """
    if not paths:
        return []
    vertices = [path.vertices for path in paths]
    start, end = np.concatenate([v[:-1] for v in vertices]), np.concatenate([v[1:] for v in vertices])
    before = np.concatenate([arc_lengths(pos[v])[:-1] for v in vertices])
    sizes = np.array([len(v) - 1 for v in vertices])
    owner, last = np.repeat(np.arange(len(paths)), sizes), np.cumsum(sizes) - 1
    step = pos[end] - pos[start]
    length = np.maximum(np.hypot(*step.T), 1e-9)

    # All that is near a segment lies in the circle around its middle.
    hits = KDTree(pos).query_ball_point((pos[start] + pos[end]) / 2, length / 2 + distance, return_sorted=True)
    segment = np.repeat(np.arange(len(owner)), [len(h) for h in hits])
    node = np.concatenate(hits).astype(np.int64)
    to_node = pos[node] - pos[start[segment]]
    share = (to_node * step[segment]).sum(axis=1) / length[segment] ** 2
    away = np.hypot(*(to_node - np.clip(share, 0, 1)[:, None] * step[segment]).T)
    low, high = np.zeros(len(owner)), np.ones(len(owner))
    is_open = np.array([not path.closed for path in paths])
    low[(last - sizes + 1)[is_open]], high[last[is_open]] = -np.inf, np.inf
    along = before[segment] + np.clip(share, low[segment], high[segment]) * length[segment]

    order = np.lexsort((along, away))
    order = order[away[order] <= distance]
    nearest = order[np.unique((owner[segment] * len(pos) + node)[order], return_index=True)[1]]
    bounds = np.searchsorted(owner[segment[nearest]], np.arange(1, len(paths)))
    return list(zip(np.split(node[nearest], bounds), np.split(along[nearest], bounds), strict=True))


def with_nodes_beside(pos: Floats, path: Path, node: Ints, along: Floats) -> Ints:
    """Return the nodes of a path and further ones (any,), which are ``along`` (any,) pixels along it, in order."""
    new = ~np.isin(node, path.nodes)
    nodes = np.concatenate([path.nodes, node[new]])
    is_new = np.arange(len(nodes)) >= len(path.nodes)
    # At one place, the path's own nodes come first, in their order, then the new ones by number.
    place = np.concatenate([arc_lengths(pos[path.nodes]), along[new]])
    ordered: Ints = nodes[np.lexsort((nodes * is_new, is_new, place))]
    return ordered


def without_overlaps(pos: Floats, paths: list[Path], distance: float) -> list[Path]:
    """Cut off the ends of open paths that lie within ``distance`` (pixels) of longer paths."""
    around, covered = beside(pos, paths, distance), np.zeros(len(pos), dtype=bool)
    rest = []
    for k in _longest_first(pos, paths):
        nodes, closed = paths[k]
        own = np.flatnonzero(~covered[nodes])
        if closed:
            rest.append(paths[k])
        elif len(own) > 1:
            rest.append(Path(nodes[max(0, own[0] - 1) : own[-1] + 2], False))  # a branch keeps the node it begins at
        covered[around[k][0]] = True
    return rest


def without_doubles(pos: Floats, paths: list[Path], distance: float, share: float) -> list[Path]:
    """Leave out paths of which ``share`` of the nodes or more lie within ``distance`` (pixels) of longer ones."""
    around, covered = beside(pos, paths, distance), np.zeros(len(pos), dtype=bool)
    stay = []
    for k in _longest_first(pos, paths):
        if covered[paths[k].nodes].mean() < share:
            stay.append(k)
            covered[around[k][0]] = True
    return [paths[k] for k in sorted(stay)]


def _longest_first(pos: Floats, paths: list[Path]) -> list[int]:
    length = [path_length(pos, path) for path in paths]
    return sorted(range(len(paths)), key=lambda k: (-length[k], paths[k].nodes.tolist()))
