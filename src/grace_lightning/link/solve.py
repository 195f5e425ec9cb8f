"""The two integer programmes, each one call of SciPy's milp (HiGHS): of a graph's edges, and of pieces of paths."""

import time
from typing import Any

import numpy as np
import scipy.sparse as sp
from scipy.optimize import Bounds, LinearConstraint, milp

from grace_lightning.graph import Floats, Ints
from grace_lightning.link.detections import Path
from grace_lightning.link.paths import trace

# Log-odds, the most that the end of a filament costs inside another one, where it is hardly seen; chosen on roots.
INSIDE = 3.0
MEETING = 64  # edges at one node that may go on in one another; 30 is the most in all detections that were looked at
Entries = list[tuple[Ints, Ints, int]]  # rows and columns of a matrix, and the value there


def best_paths(
    pos: Floats,
    edges: Ints,
    edge_gain: Floats,
    node_gain: Floats,
    end_cost: Floats,
    deadline: float,
    *,
    bend_cost: float,
    crossing_cost: float,
    jitter: float,
) -> tuple[list[Path], bool]:
    """Return the best paths found before ``deadline`` (of time.monotonic), and whether it is sure that none are better.

    The formula stands at :class:`grace_lightning.link.Programme`. An edge ends at a node where it goes on in no other,
    so there are sum 2 x - sum 2 y ends; a node is passed z + c = sum x - sum y times, over the edges and pairs there.
    Costs and gains are log-odds. Between two edges of the length ``jitter`` (pixels), a bend costs half as much.
    """
    again = np.maximum(crossing_cost, -node_gain)  # an improbable node is no cheaper the second time
    node, pair, bend = _meeting_pairs(pos, edges, edge_gain, bend_cost, jitter)
    # A bend that costs more is never taken: it is cheaper to end and to begin anew, which passes the node twice.
    worth = bend <= 2 * end_cost[node] + again[node]
    node, pair, bend = node[worth], pair[:, worth], bend[worth]

    num_edges, num_nodes = edges.shape[1], len(pos)
    gain = np.concatenate([edge_gain - end_cost[edges].sum(axis=0), 2 * end_cost[node] - bend, node_gain, -again])
    x, y, z, c = np.split(np.arange(len(gain)), np.cumsum([num_edges, len(node), num_nodes]))
    # One row for each end of an edge: of the pairs there, one at most, and none unless the edge is taken.
    end = pair + num_edges * (edges[:, pair] == node).argmax(axis=0)
    goes_on: Entries = [(end[0], y, 1), (end[1], y, 1), (x, x, -1), (num_edges + x, x, -1)]
    # One row for each node: the edges there, less the pairs, are the passes.
    row = 2 * num_edges + np.arange(num_nodes)
    passes: Entries = [(row[edges[0]], x, 1), (row[edges[1]], x, 1), (row[node], y, -1), (row, z, -1), (row, c, -1)]
    lower = np.repeat([-np.inf, 0], [2 * num_edges, num_nodes])
    amounts, optimal = _most_gain(gain, goes_on + passes, lower, least=np.zeros_like(gain), most=1, deadline=deadline)

    taken, goes_on_in = amounts[x] > 0, amounts[y] > 0
    new_number = np.cumsum(taken) - 1
    return trace(edges[:, taken], node[goes_on_in], new_number[pair[:, goes_on_in]]), optimal


def _meeting_pairs(
    pos: Floats, edges: Ints, edge_gain: Floats, bend_cost: float, jitter: float
) -> tuple[Ints, Ints, Floats]:
    """Return the pairs of edges that meet: their node (any,), the two edges (2, any), the bend's cost (any,).

    These are all pairs of up to ``MEETING`` edges at a node, of more of those that gain most, of equals the shortest:
    the pairs grow with the square of the edges, and of them all a node is passed twice at most.
    """
    ends, count = edges.reshape(-1), edges.shape[1]
    length = np.hypot(*(pos[edges[1]] - pos[edges[0]]).T)
    best = np.lexsort((np.tile(length, 2), -np.tile(edge_gain, 2), ends))
    meets = np.zeros(2 * count, dtype=bool)
    meets[best[_places(ends[best], len(pos)) < MEETING]] = True
    order = np.argsort(ends, kind="stable")
    order = order[meets[order]]
    node, edge = ends[order], order % max(count, 1)
    place = _places(node, len(pos))
    # Each edge makes a pair with all edges before it in the list of those at its node.
    later = np.repeat(np.arange(len(order)), place)
    earlier = later - 1 - (np.arange(len(later)) - np.repeat(np.cumsum(place) - place, place))
    at, both = node[later], np.stack([edge[earlier], edge[later]])
    away = pos[edges[:, both].sum(axis=0) - at] - pos[at]  # (2, any, 2), to the far ends
    square = np.maximum((away**2).sum(axis=-1), 1e-18)  # not 0 where two detections lie at one place
    blur = jitter**2 * (1 / square).mean(axis=0)
    return at, both, bend_cost * tan_half_squared(away[0], -away[1]) / (1 + blur)


def _places(node: Ints, count: int) -> Ints:
    """Return the place of each item in the list of those at its node, of ascending nodes (any,) below ``count``."""
    degree = np.bincount(node, minlength=count)
    places: Ints = np.arange(len(node)) - (np.cumsum(degree) - degree)[node]
    return places


def tan_half_squared(a: Floats, b: Floats) -> Floats:
    """Return tan^2 of half the angle between vectors (..., 2): 1 at a right angle, infinite if they are opposite."""
    product = np.sqrt((a**2).sum(axis=-1) * (b**2).sum(axis=-1))
    with np.errstate(divide="ignore", invalid="ignore"):  # (1 - cos) / (1 + cos), which is 2 / (1 + cos) - 1
        value: Floats = 2 * product / (product + (a * b).sum(axis=-1)) - 1
    return np.maximum(np.nan_to_num(value, nan=np.inf, posinf=np.inf), 0)


def most_probable_passes(
    joints: Ints, joint_cost: Floats, end_cost: Floats, share_cost: Floats, deadline: float
) -> tuple[Ints, Ints, bool]:
    """Return how many filaments pass each piece of a path (P,) and take each joint (J,), and whether that is sure.

    A piece that x filaments pass, of which y go on at an end, has x - y ends there. Up to y of these lie inside
    filaments that go on, and cost ``INSIDE`` at most. Costs are log-odds: ``joint_cost`` (J,) of each filament that
    takes a joint (2, J), ``end_cost`` (2 P,), and ``share_cost`` (P, K) of a second, a third, ... filament through a
    piece; none is taken to cost less than the one before it.
    """
    count, more = share_cost.shape
    end, piece = np.arange(2 * count), np.tile(np.arange(count), more + 1)
    cost = np.concatenate([np.zeros(count), np.maximum.accumulate(share_cost, axis=1).T.reshape(-1)])
    of_piece = -cost - (end_cost[:count] + end_cost[count:])[piece]
    of_joint = end_cost[joints].sum(axis=0) - joint_cost
    gain = np.concatenate([of_piece, of_joint, np.maximum(end_cost - INSIDE, 0)])
    # Whether a first, a second, ... filament passes each piece; how many take each joint; of the ends at each end of a
    # piece, how many cost INSIDE at most.
    through, joint, inside = np.split(np.arange(len(gain)), np.cumsum([len(piece), len(joint_cost)]))
    # At each end, no more go on or end inside than pass the piece, and no more end inside than go on.
    rows: Entries = [(piece, through, -1), (count + piece, through, -1)]
    rows += [(joints[0], joint, 1), (joints[1], joint, 1), (end, inside, 1)]
    rows += [(2 * count + joints[0], joint, -1), (2 * count + joints[1], joint, -1), (2 * count + end, inside, 1)]
    least = np.repeat([1.0, 0.0], [count, len(gain) - count])  # one filament passes each piece
    most = np.repeat([1, more + 1], [len(piece), len(gain) - len(piece)])
    lower = np.full(4 * count, -np.inf)
    amounts, optimal = _most_gain(gain, rows, lower, least=least, most=most, deadline=deadline)
    return amounts[through].reshape(more + 1, count).sum(axis=0), amounts[joint], optimal


def _most_gain(
    gain: Floats, entries: Entries, lower: Floats, *, least: Floats, most: Any, deadline: float
) -> tuple[Ints, bool]:
    """Return the whole amounts (M,) with the greatest gain found in time, and whether it is sure to be the greatest.

    The matrix (R, M) of ``entries`` times the amounts has to be from ``lower`` (R,) to 0. If nothing is found in time,
    ``least`` (M,) is returned.
    """
    row, column = (np.concatenate([entry[k] for entry in entries]) for k in (0, 1))
    value = np.repeat([float(v) for *_, v in entries], [len(r) for r, *_ in entries])
    matrix = sp.csc_array((value, (row, column)), shape=(len(lower), len(gain)))
    result = milp(
        -gain,
        integrality=np.ones(len(gain), dtype=np.int64),
        bounds=Bounds(least, most),
        constraints=LinearConstraint(matrix, lower, 0),
        options={"mip_rel_gap": 0, "time_limit": max(deadline - time.monotonic(), 0.0)},
    )
    amounts = least if result.x is None else np.rint(result.x)
    return amounts.astype(np.int64), bool(result.status == 0)
