"""Chains: edges that go on in one another become paths, stretches that go on in one another longer ones."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components, depth_first_order

from grace_lightning.link.filaments import Ints


def chains(count: int, joints: Ints) -> list[tuple[Ints, bool]]:
    """Pieces put together end to end.

    Parameters
    ----------
    count : number of pieces; the ends of piece k are numbered k and ``count + k``
    joints : (2, any) int64, ends that are joined, each at most once

    Returns
    -------
    per chain its ends in order, two for each piece, and whether it is a ring
    """
    own = np.stack([np.arange(count), count + np.arange(count)])
    num_chains, chain = connected_components(_links(np.concatenate([own, joints], axis=1), 2 * count), directed=False)
    joined = np.zeros(2 * count, dtype=bool)
    joined[joints] = True
    ring = np.ones(num_chains, dtype=bool)
    ring[chain[~joined]] = False

    start = np.lexsort((joined, chain))  # of each chain a free end if there is one
    start = start[np.unique(chain[start], return_index=True)[1]]
    opened = joints[:, ~np.isin(joints, start[ring]).any(axis=0)]
    order = first_visits(_links(np.concatenate([own, opened], axis=1), 2 * count), start)
    return [(ends, bool(ring[chain[ends[0]]])) for ends in split_where_new(order, chain)]


def trace(edges: Ints, pair_node: Ints, pair_edges: Ints) -> list[tuple[Ints, bool]]:
    """The paths that edges form where each goes on with at most one other at each end.

    Parameters
    ----------
    edges : (2, E) int64
    pair_node : (P,) int64, where two edges go on
    pair_edges : (2, P) int64, which

    Returns
    -------
    per path its nodes in order, and whether it is closed
    """
    count, node = edges.shape[1], edges.reshape(-1)
    joints = pair_edges + count * (edges[:, pair_edges] == pair_node).argmax(axis=0)
    return [
        (node[ends[::2]] if ring else np.append(node[ends[::2]], node[ends[-1]]), ring)
        for ends, ring in chains(count, joints)
    ]


def first_visits(graph: sp.csr_array, starts: Ints) -> Ints:
    """Nodes in the order in which a walk into the depth meets them, from each of ``starts`` in turn.

    ``graph`` is square and sparse; its edges go both ways.
    """
    size, ends = graph.shape[0], graph.tocoo()
    root = np.stack([np.full(len(starts), size), starts])
    links = _links(np.concatenate([np.stack([ends.row, ends.col]), root], axis=1), size + 1)
    return depth_first_order(links, size, directed=False, return_predecessors=False)[1:].astype(np.int64)


def split_where_new(order: Ints, part: NDArray[np.integer]) -> list[Ints]:
    """``order`` (any,) in pieces, each of nodes of one ``part`` (N,)."""
    return np.split(order, np.flatnonzero(np.diff(part[order])) + 1) if len(order) else []


def _links(links: Ints, size: int) -> sp.csr_array:
    return sp.csr_array((np.ones(links.shape[1], dtype=np.int8), (links[0], links[1])), shape=(size, size))
