"""The integer programmes: of the edges of one connected component, and of the pieces of paths."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from scipy.optimize import Bounds, LinearConstraint, linprog, milp

from grace_lightning.link.filaments import Bools, Floats, Ints

INSIDE = 3.0
"""The most that the end of a filament costs where another one, that it runs in, goes on; log-odds."""

ROUNDING = 1e-5
"""Amounts, and sums of gains in log-odds, that differ by less are the same."""

OUT_OF_TIME = 1
"""The status of a solution that SciPy gave up for want of time."""

SLACK = 1.0
"""By how much the best whole amounts are first supposed to gain less than the best fractions; log-odds."""


@dataclass(frozen=True)
class Pairs:
    """Pairs of edges that meet at a node.

    Parameters
    ----------
    node : (P,) int64, ascending
    edges : (2, P) int64
    cost : (P,) float64, of the bend
    """

    node: Ints
    edges: Ints
    cost: Floats

    def where(self, keep: Bools) -> Pairs:
        """Some of them."""
        return Pairs(self.node[keep], self.edges[:, keep], self.cost[keep])


def tan_half_squared(a: Floats, b: Floats) -> Floats:
    """The square of the tangent of half the angle between vectors (..., 2); infinite where they are opposite."""
    product = np.sqrt((a**2).sum(axis=-1) * (b**2).sum(axis=-1))
    with np.errstate(divide="ignore", invalid="ignore"):
        value: Floats = 2 * product / (product + (a * b).sum(axis=-1)) - 1
    return np.maximum(np.nan_to_num(value, nan=np.inf, posinf=np.inf), 0)


def meeting_pairs(pos: Floats, edges: Ints, *, bend_cost: float, jitter: float) -> Pairs:
    """All pairs of edges that meet at a node; a hairpin costs infinitely much.

    Parameters
    ----------
    pos : (N, 2) pixels
    edges : (2, E)
    bend_cost : of a right angle between long edges, above 0
    jitter : pixels; between two edges of this length a bend costs half as much as between long ones
    """
    count, num_nodes = edges.shape[1], len(pos)
    order = np.argsort(edges.reshape(-1), kind="stable")
    node, edge = edges.reshape(-1)[order], order % max(count, 1)
    degree = np.bincount(node, minlength=num_nodes)
    place = np.arange(2 * count) - (np.cumsum(degree) - degree)[node]  # of an edge among those at its node
    later = np.repeat(np.arange(2 * count), place)  # each with all that come before it at its node
    earlier = later - 1 - (np.arange(len(later)) - np.repeat(np.cumsum(place) - place, place))
    at, both = node[later], np.stack([edge[earlier], edge[later]])
    away = pos[edges[:, both].sum(axis=0) - at] - pos[at]  # (2, P, 2), to the two other ends
    square = np.maximum((away**2).sum(axis=-1), 1e-18)  # two detections at one place
    return Pairs(
        at, both, bend_cost * tan_half_squared(away[0], -away[1]) / (1 + jitter**2 * (1 / square).mean(axis=0))
    )


def best_paths(
    edges: Ints,
    pairs: Pairs,
    edge_gain: Floats,
    node_gain: Floats,
    *,
    end_cost: Floats,
    crossing_cost: float,
    seconds: float,
) -> tuple[Bools, Bools, bool]:
    """Which edges (E,) and which pairs (P,) are taken, and whether it is sure that nothing is better.

    The formula stands at :class:`grace_lightning.link.Programme`; ``end_cost`` is (N,). An edge ends at a node where it
    goes on in no other, so there are sum 2 x - sum 2 y ends; the passes z + c of a node are sum x - sum y over what
    meets there.
    """
    (num_edges, num_pairs), num_nodes = (edges.shape[1], len(pairs.node)), len(node_gain)
    again = -np.maximum(crossing_cost, -node_gain)  # an improbable node is no cheaper the second time
    gain = np.concatenate(
        [edge_gain - end_cost[edges].sum(axis=0), 2 * end_cost[pairs.node] - pairs.cost, node_gain, again]
    )
    x, y = np.arange(num_edges), num_edges + np.arange(num_pairs)
    z = num_edges + num_pairs + np.arange(num_nodes)
    c = z + num_nodes

    end = pairs.edges + num_edges * (edges[:, pairs.edges] == pairs.node).argmax(axis=0)
    goes_on = [(end[0], y, 1), (end[1], y, 1), (x, x, -1), (num_edges + x, x, -1)]  # with one other at most
    passes = [(edges[0], x, 1), (edges[1], x, 1), (pairs.node, y, -1), (z - z[0], z, -1), (z - z[0], c, -1)]
    taken, optimal = best(
        gain,
        _matrix(goes_on, (2 * num_edges, len(gain))),
        _matrix(passes, (num_nodes, len(gain))),
        seconds,
        whole=np.arange(len(gain)) < num_edges + num_pairs,
    )
    return taken[:num_edges] > 0, taken[num_edges : num_edges + num_pairs] > 0, optimal


def most_probable_passes(
    joints: Ints, joint_cost: Floats, end_cost: Floats, share_cost: Floats, seconds: float
) -> tuple[Ints, Ints, bool]:
    """How many filaments pass each piece of a path and take each joint, and whether that is sure to be best.

    A piece that x filaments pass, of which y go on at an end, has x - y ends there. Up to y of these are inside of
    filaments that go on, where nothing is seen of an end, so that they cost ``INSIDE`` at most.

    Parameters
    ----------
    joints : (2, J) int64, ends of pieces that may be joined; piece k of P has the ends k and P + k
    joint_cost : (J,) log-odds, of each filament that takes a joint
    end_cost : (2 P,) log-odds
    share_cost : (P, K) log-odds, of a second, a third, ... filament through a piece; none is taken to cost less than
        the one before it

    Returns
    -------
    (P,) int64 from 1 to K + 1, (J,) int64, and whether it is sure
    """
    (count, more), num_joints = share_cost.shape, len(joint_cost)
    end, piece = np.arange(2 * count), np.tile(np.arange(count), more + 1)
    through = np.arange(len(piece))
    joint = len(piece) + np.arange(num_joints)
    inside = len(piece) + num_joints + end
    width = len(piece) + num_joints + 2 * count

    cost = np.concatenate([np.zeros(count), np.maximum.accumulate(share_cost, axis=1).T.reshape(-1)])
    gain = np.concatenate(
        [
            -cost - (end_cost[:count] + end_cost[count:])[piece],
            end_cost[joints].sum(axis=0) - joint_cost,
            np.maximum(end_cost - INSIDE, 0),
        ]
    )
    # at every end, no more go on or end inside than pass the piece, and no more end inside than go on
    at_most_all = [(piece, through, -1), (count + piece, through, -1)]
    at_most_all += [(joints[0], joint, 1), (joints[1], joint, 1), (end, inside, 1)]
    inside_row = 2 * count
    at_most_others = [(inside_row + joints[0], joint, -1), (inside_row + joints[1], joint, -1)]
    at_most_others += [(inside_row + end, inside, 1)]
    amounts, optimal = best(
        gain,
        _matrix(at_most_all + at_most_others, (4 * count, width)),
        None,
        seconds,
        whole=np.ones(width, dtype=bool),
        least=(np.arange(width) < count).astype(np.int64),  # which is what is taken where there was no time
        most=np.where(np.arange(width) < len(piece), 1, more + 1),
    )
    return amounts[through].reshape(more + 1, count).sum(axis=0), amounts[joint], optimal


def best(
    gain: Floats,
    at_most_zero: sp.csc_array,
    zero: sp.csc_array | None,
    seconds: float,
    *,
    whole: Bools,
    least: Ints | int = 0,
    most: Ints | int = 1,
) -> tuple[Ints, bool]:
    """Amounts with the greatest gain found in ``seconds``, and whether it is sure to be the greatest.

    With fractions allowed, the best amounts are found in a fraction of the time, and mostly are whole. Where they are
    not, what they gain is a bound, and their reduced costs tell of most amounts that another value would fall short of
    the bound by more than ``SLACK``: those are kept. A solution of the rest that falls short by less is the best; one
    that does not tells how much has to be left open instead.

    Parameters
    ----------
    gain : (M,) log-odds, of one of each
    at_most_zero, zero : (any, M); what these rows times the amounts have to be
    whole : (M,) amounts that have to be whole; the others are whole where these are
    least, most : (M,) or for all; ``least`` is what is given where nothing was found in time
    """
    deadline = time.monotonic() + seconds
    low, high = (np.broadcast_to(np.asarray(bound, dtype=np.float64), gain.shape) for bound in (least, most))
    problem: dict[str, Any] = {  # the types of which lack sparse arrays
        "A_ub": at_most_zero,
        "b_ub": np.zeros(at_most_zero.shape[0]),
        "A_eq": zero,
        "b_eq": None if zero is None else np.zeros(zero.shape[0]),
        "bounds": np.stack([low, high], axis=1),
        "options": {"time_limit": max(seconds, 0.0)},
    }
    relaxed = linprog(-gain, **problem)
    if relaxed.status == 0 and (np.abs(relaxed.x - np.rint(relaxed.x)) < ROUNDING)[whole].all():
        return np.rint(relaxed.x).astype(np.int64), True

    constraints = [LinearConstraint(at_most_zero, -np.inf, 0)] + (
        [] if zero is None else [LinearConstraint(zero, 0, 0)]
    )
    found, slack = low, SLACK if relaxed.status == 0 else np.inf
    while True:
        bounds = low, high
        if slack < np.inf:
            bounds = (
                np.where(relaxed.upper.marginals < -slack, high, low),
                np.where(relaxed.lower.marginals > slack, low, high),
            )
        result = milp(
            -gain,
            integrality=whole.astype(np.int64),
            bounds=Bounds(*bounds),
            constraints=constraints,
            options={"mip_rel_gap": 0, "time_limit": max(deadline - time.monotonic(), 0.0)},
        )
        found = found if result.x is None else np.rint(result.x)
        short = np.inf if result.x is None or slack == np.inf else float(result.fun - relaxed.fun)
        if result.status == OUT_OF_TIME or slack == np.inf or short <= slack:
            return found.astype(np.int64), bool(result.status == 0)
        slack = short + ROUNDING


def _matrix(entries: list[tuple[Ints, Ints, int]], shape: tuple[int, int]) -> sp.csc_array:
    row, column = (np.concatenate([entry[k] for entry in entries]) for k in (0, 1))
    value = np.repeat([float(entry[2]) for entry in entries], [len(entry[0]) for entry in entries])
    return sp.csc_array((value, (row, column)), shape=shape)
