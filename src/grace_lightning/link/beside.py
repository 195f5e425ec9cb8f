"""What lies beside a path: points that join it, paths that it swallows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import KDTree

from grace_lightning.link.filaments import Bools, Floats, Ints

Path = tuple[Ints, bool]
"""Nodes in order, and whether the path is closed."""


def arc_lengths(points: Floats) -> Floats:
    """(any,) pixels along a polyline (any, 2) from its beginning."""
    return np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])


def path_length(pos: Floats, path: Path) -> float:
    """Pixels along a path, once around for a closed one."""
    return float(arc_lengths(pos[_vertices(path)])[-1])


def _vertices(path: Path) -> Ints:
    nodes, closed = path
    return np.append(nodes, nodes[0]) if closed else nodes


@dataclass(frozen=True)
class Near:
    """Nodes near paths, by path.

    Parameters
    ----------
    path : (any,) int64, ascending
    node : (any,) int64
    along : (any,) float64, pixels from the path's beginning to the foot of the perpendicular, negative before it
    """

    path: Ints
    node: Ints
    along: Floats

    def where(self, node: Bools) -> Near:
        """Those of some nodes ((N,) bool) only."""
        keep = node[self.node]
        return Near(self.path[keep], self.node[keep], self.along[keep])


def near(pos: Floats, paths: list[Path], distance: float) -> Near:
    """Every node within ``distance`` (pixels) of a path, once for each such path."""
    vertices = [_vertices(path) for path in paths]
    start, end = np.concatenate([v[:-1] for v in vertices]), np.concatenate([v[1:] for v in vertices])
    before = np.concatenate([arc_lengths(pos[v])[:-1] for v in vertices])
    sizes = np.array([len(v) - 1 for v in vertices])
    owner, last = np.repeat(np.arange(len(paths)), sizes), np.cumsum(sizes) - 1
    step = pos[end] - pos[start]
    length = np.maximum(np.hypot(*step.T), 1e-9)

    hits = KDTree(pos).query_ball_point((pos[start] + pos[end]) / 2, length / 2 + distance, return_sorted=True)
    segment = np.repeat(np.arange(len(owner)), [len(h) for h in hits])
    node = np.concatenate([np.asarray(h, dtype=np.int64) for h in hits])
    to_node = pos[node] - pos[start[segment]]
    share = (to_node * step[segment]).sum(axis=1) / length[segment] ** 2
    away = np.hypot(*(to_node - np.clip(share, 0, 1)[:, None] * step[segment]).T)
    # Beyond the ends of an open path its first and its last segment go on.
    low, high = np.zeros(len(owner)), np.ones(len(owner))
    is_open = np.array([not closed for _, closed in paths])
    low[(last - sizes + 1)[is_open]], high[last[is_open]] = -np.inf, np.inf
    along = before[segment] + np.clip(share, low[segment], high[segment]) * length[segment]

    rank = np.lexsort((along, away, node, owner[segment]))
    rank = rank[away[rank] <= distance]
    path, node, along = owner[segment][rank], node[rank], along[rank]
    nearest = np.ones(len(rank), dtype=bool)
    nearest[1:] = (path[1:] != path[:-1]) | (node[1:] != node[:-1])
    return Near(path[nearest], node[nearest], along[nearest])


def not_swallowed(pos: Floats, paths: list[Path], around: Near, share: float) -> list[int]:
    """Paths of which less than ``share`` of the nodes are near longer paths that stay."""
    bounds = np.searchsorted(around.path, np.arange(len(paths) + 1))
    covered = np.zeros(len(pos), dtype=bool)
    stay = []
    for k in longest_first(pos, paths):
        if covered[paths[k][0]].mean() < share:
            stay.append(k)
            covered[around.node[bounds[k] : bounds[k + 1]]] = True
    return sorted(stay)


def without_overlaps(pos: Floats, paths: list[Path], distance: float) -> list[Path]:
    """Open paths without the ends that lie within ``distance`` (pixels) of longer paths."""
    if not paths:
        return []
    around = near(pos, paths, distance)
    bounds = np.searchsorted(around.path, np.arange(len(paths) + 1))
    covered = np.zeros(len(pos), dtype=bool)
    rest: list[Path] = []
    for k in longest_first(pos, paths):
        nodes, closed = paths[k]
        own = np.flatnonzero(~covered[nodes])
        if closed:
            rest.append(paths[k])
        elif len(own) > 1:
            rest.append((nodes[max(0, own[0] - 1) : own[-1] + 2], False))  # a branch keeps the node it begins at
        covered[around.node[bounds[k] : bounds[k + 1]]] = True
    return rest


def longest_first(pos: Floats, paths: list[Path]) -> list[int]:
    """Paths by length; of equals, by their nodes."""
    length = [path_length(pos, path) for path in paths]
    return sorted(range(len(paths)), key=lambda k: (-length[k], paths[k][0].tolist()))


def join(pos: Floats, path: Path, node: Ints, along: Floats) -> tuple[Ints, Bools]:
    """A path with the nodes beside it, in order along it, and which of them are not on the path.

    Parameters
    ----------
    node : (any,) int64, nodes near the path; those on it are left out
    along : (any,) float64, see :class:`Near`
    """
    own = arc_lengths(pos[path[0]])
    new = ~np.isin(node, path[0])
    nodes = np.concatenate([path[0], node[new]])
    beside = np.arange(len(nodes)) >= len(own)
    order = np.lexsort((nodes * beside, beside, np.concatenate([own, along[new]])))
    return nodes[order], beside[order]
