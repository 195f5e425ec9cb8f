"""Who is joined to whom: adjacency and neighbourhoods."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from grace_lightning.errors import InputError

Connection = Literal["spiderweb", "fireworks"]


def adjacency(edges: NDArray[np.int64], num_nodes: int) -> sp.csr_array:
    """(N, N) symmetric matrix of ones where ``edges`` ((2, E) int64) join two nodes."""
    row, col = np.concatenate([edges, edges[::-1]], axis=1)
    return sp.csr_array((np.ones(len(row), dtype=np.int8), (row, col)), shape=(num_nodes, num_nodes))


class Subgraphs(NamedTuple):
    """The k-hop neighbourhoods of all N nodes, as one graph of N parts.

    Attributes
    ----------
    centre : (M,) int64, the node whose neighbourhood a member belongs to, ascending
    node : (M,) int64, the node a member is
    edges : (2, K) int64, between members
    edge : (K,) int64, the edge of the whole graph that each of them is
    """

    centre: Tensor
    node: Tensor
    edges: Tensor
    edge: Tensor


def subgraphs(edges: Tensor, num_nodes: int, *, num_hops: int, connection: Connection = "spiderweb") -> Subgraphs:
    """Neighbourhood of every node up to ``num_hops`` edges away.

    Parameters
    ----------
    edges : (2, E) int64
    num_nodes : N
    num_hops : at least 1
    connection : ``spiderweb`` keeps every edge between members, ``fireworks`` those that touch the centre
    """
    if num_hops < 1:
        raise InputError(f"num_hops: {num_hops}, expected 1 or more, or 'whole'")
    ends = edges.numpy()
    step = (adjacency(ends, num_nodes) + sp.eye_array(num_nodes, dtype=np.int8, format="csr")).astype(bool)
    reach = step
    for _ in range(num_hops - 1):
        reach = (reach @ step).astype(bool)
    reach = sp.csr_array(reach)
    reach.sort_indices()
    members = reach.tocoo()
    centre, node = members.row.astype(np.int64), members.col.astype(np.int64)

    both = reach[ends[0]].multiply(reach[ends[1]]).tocoo()  # neighbourhoods are symmetric: row = edge, column = centre
    edge, of = both.row.astype(np.int64), both.col.astype(np.int64)
    if connection == "fireworks":
        touches = (ends[:, edge] == of).any(axis=0)
        edge, of = edge[touches], of[touches]
    order = np.lexsort((edge, of))
    edge, of = edge[order], of[order]
    place = np.searchsorted(centre * num_nodes + node, of * num_nodes + ends[:, edge])
    return Subgraphs(*(torch.from_numpy(np.ascontiguousarray(a)) for a in (centre, node, place, edge)))
