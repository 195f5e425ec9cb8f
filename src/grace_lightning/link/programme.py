"""Filaments by an integer programme."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Iterator
from itertools import pairwise
from math import inf

import numpy as np
import scipy.sparse as sp
from scipy.sparse.csgraph import connected_components
from scipy.special import logit

from grace_lightning.errors import InputWarning
from grace_lightning.link.beside import Path, join, near, not_swallowed, path_length, without_overlaps
from grace_lightning.link.filaments import Array, Bools, Filaments, Floats, Ints, Scored, expect, from_the_first, scored
from grace_lightning.link.reconnect import reconnect
from grace_lightning.link.solve import best_paths, meeting_pairs
from grace_lightning.link.trace import trace

POSITIVE = 0.5  # a node of a higher probability can join a path that it lies beside
JITTER = 0.5  # filament widths; between edges of this length a bend costs half as much, it may be the detector's
GAP_COST = 0.25  # of a gap of one filament width, growing with its square, log-odds
OVERLAP = 0.35  # filament widths; the ends of a path that run as near along a longer one go
SWALLOWED = 0.85  # share of a path's nodes near longer paths, from which on it is none of its own
END_PRIOR = 1.0  # added to the log-odds against an end where its probability is known
END_COSTS = (1.0, 6.0)  # the least and the most that an end costs then
SHARE_PRIOR = -0.4  # the same against a further filament, which makes F1 larger if it is right four times of ten
MOST = 3  # filaments through one node
LARGE = 2000  # nodes of a connected part, from which on only edges of twice the least probability enter it,
PROBABLE = 0.2  # as long as the least is below this
SMALL = 300  # nodes; connected parts are solved together until they have as many, since every solution has its costs
SURE = 1e-6  # probabilities further out are taken for this or one minus this

_Joined = tuple[Ints, Bools, bool]  # the nodes of a filament, which of them lie beside its path, whether it is closed


class Programme:
    r"""Filaments that explain the probabilities best, by integer programming.

    Of all sets of paths through the graph, the one that maximises

    .. math::

        \sum_e g_e x_e + \sum_v g_v z_v - \sum_{v, \{e, f\}} b_{ef} y_{ef} - t \, \#\text{ends} - \sum_v k_v c_v

    where x = 1 for an edge that is taken, y = 1 for two edges of which one goes on in the other at a node, z = 1 for a
    node that is passed and c = 1 for one that a second filament passes too. An edge goes on in at most one other at
    each of its ends, or ends there; a path without ends is closed.

    ===========  ==================================================================================================
    g_e, g_v     log-odds of the edge's and the node's probability, at most ``max_edge_gain`` and ``max_node_gain``
    b_ef         ``bend_cost`` tan^2(bend / 2) / (1 + blur), the bend in [0, 180) degrees; blur is the mean of
                 (half a filament's width / length)^2 of the two edges, as jitter turns short edges most
    t            ``end_cost``, or what the probability of an end says
    k_v          ``crossing_cost``, or -g_v where that is more: an improbable node is no cheaper the second time
    ===========  ==================================================================================================

    Gains have an upper bound because positive probabilities do not all belong to paths: between filaments that touch,
    every edge looks positive. It is solved exactly, by :func:`scipy.optimize.milp`, per connected component of the
    edges above ``min_probability``.

    Then ends of paths that run along longer ones go (a thick filament carries two rows of points), paths are cut where
    their course, over two widths to either side, turns, and ends up to ``max_gap`` apart are joined as it costs least,
    so that filaments go straight on through crossings and across gaps: see ``link/reconnect.py``. Short paths go, and
    those that mostly lie within half a filament's width of longer ones; nodes of a probability above one half that lie
    as near to a path join it. Last, filaments go whose nodes are less probable on the whole than those of
    others: a network that takes the edge of a support film for a filament is in doubt all along it.

    Parameters
    ----------
    scale : width of a filament, pixels
    end_cost : log-odds, of each of a filament's two ends; where the probability p of an end is known, its log-odds
        against, ``END_PRIOR`` - logit p times ``end_weight``, within ``END_COSTS``
    end_weight : see ``end_cost``
    bend_cost : log-odds, of a right angle between two edges that are long against the jitter of the detections
    turn_cost : log-odds, of a right angle in the course of a path
    crossing_cost : log-odds, of a second filament through a node
    share_cost : log-odds, of every further filament along one filament width of a path; where the probability p of
        one is known, ``SHARE_PRIOR`` - logit p times ``share_weight``
    share_weight : see ``share_cost``
    max_edge_gain, max_node_gain : log-odds, the most that one edge or node speaks for a path
    min_probability : edges below it are left out; nodes below it count as if they had it. Where more than ``LARGE``
        nodes hang together, it is doubled among them, once or twice, so that the time grows with the number of nodes
    max_gap : filament widths between ends that may be joined; 0 for ends at one node only
    min_length : filament widths; shorter paths go
    min_relative_probability : the mean of a filament's nodes, as a part of the mean that positive nodes are expected to
        have, which is sum p^2 / sum p over the image; less probable filaments go
    time_limit : seconds for the whole graph; where they pass, a warning says so and the best found by then is given

    Raises
    ------
    InputError
        A value out of its range.
    """

    def __init__(
        self,
        scale: float = 20.0,
        end_cost: float = 4.0,
        end_weight: float = 2.0,
        bend_cost: float = 30.0,
        turn_cost: float = 40.0,
        crossing_cost: float = 0.3,
        share_cost: float = 0.05,
        share_weight: float = 0.4,
        max_edge_gain: float = 1.5,
        max_node_gain: float = 2.0,
        min_probability: float = 0.05,
        max_gap: float = 4.0,
        min_length: float = 3.0,
        min_relative_probability: float = 0.9,
        time_limit: float = 60.0,
    ) -> None:
        for name, value in {"bend_cost": bend_cost, "turn_cost": turn_cost}.items():
            expect(name, value, "more than 0", 0 < value < inf)
        costs = {"end_cost": end_cost, "end_weight": end_weight, "crossing_cost": crossing_cost}
        costs |= {"share_cost": share_cost, "share_weight": share_weight}
        gains = {"max_edge_gain": max_edge_gain, "max_node_gain": max_node_gain}
        for name, value in (costs | gains | {"max_gap": max_gap, "min_length": min_length}).items():
            expect(name, value, "0 or more", 0 <= value < inf)
        expect("scale", scale, "pixels above 0", 0 < scale < inf)
        expect("min_probability", min_probability, "a probability above 0 and below 1", 0 < min_probability < 1)
        expect("min_relative_probability", min_relative_probability, "0 to 1", 0 <= min_relative_probability <= 1)
        expect("time_limit", time_limit, "seconds above 0", time_limit > 0)
        self.scale = scale
        self.end_cost = end_cost
        self.end_weight = end_weight
        self.bend_cost = bend_cost
        self.turn_cost = turn_cost
        self.crossing_cost = crossing_cost
        self.share_cost = share_cost
        self.share_weight = share_weight
        self.max_edge_gain = max_edge_gain
        self.max_node_gain = max_node_gain
        self.min_probability = min_probability
        self.max_gap = max_gap
        self.min_length = min_length
        self.min_relative_probability = min_relative_probability
        self.time_limit = time_limit

    def __call__(
        self,
        pos: Array,
        edges: Array,
        node_probability: Array,
        edge_probability: Array,
        end_probability: Array | None = None,
        further_probability: Array | None = None,
    ) -> Filaments:
        """Link one image.

        Parameters
        ----------
        pos : (N, 2) float32, pixels
        edges : (2, E) int64, any candidates, each once
        node_probability, edge_probability : (N,) and (E,), of the positive class
        end_probability : (N,), that a filament that comes to a node ends there; None: every end costs ``end_cost``
        further_probability : (N, K), that a second, a third, ... filament passes a node; None: it costs ``share_cost``

        Raises
        ------
        InputError
            Arrays that do not belong together, or probabilities outside 0 to 1.
        """
        given = scored(pos, edges, node_probability, edge_probability, end_probability, further_probability)
        deadline = time.monotonic() + self.time_limit
        end_cost = np.full(len(given.pos), self.end_cost)
        if given.end_probability is not None:
            end_cost = np.clip(END_PRIOR - self.end_weight * _log_odds(given.end_probability), *END_COSTS)
        share_cost = np.full((len(given.pos), MOST - 1), self.share_cost)
        if given.further_probability is not None:
            share_cost = self.share_weight * (SHARE_PRIOR - _log_odds(given.further_probability))
        paths = without_overlaps(given.pos, self._paths(given, end_cost, deadline), OVERLAP * self.scale)
        paths = self._not_swallowed(given, paths)
        paths, optimal = reconnect(
            given.pos,
            paths,
            scale=self.scale,
            end_cost=end_cost,
            turn_cost=self.turn_cost,
            gap_cost=GAP_COST,
            share_cost=share_cost,
            max_gap=self.max_gap,
            seconds=deadline - time.monotonic(),
        )
        if not optimal:
            self._warn(f"before the best way to join {len(paths)} paths was found")
        paths = [path for path in paths if path_length(given.pos, path) >= self.min_length * self.scale]
        filaments = self._not_doubtful(given, self._with_neighbours(given, paths))
        return given.outside([n for n, _, _ in filaments], [b for _, b, _ in filaments], [c for _, _, c in filaments])

    def _paths(self, given: Scored, end_cost: Floats, deadline: float) -> list[Path]:
        """The programme's paths."""
        plausible = given.edge_probability >= self.min_probability
        edges, probability = given.edges[:, plausible], given.edge_probability[plausible]
        edge_gain = np.minimum(self._gain(probability), self.max_edge_gain)
        node_gain = np.minimum(self._gain(given.node_probability), self.max_node_gain)
        place = np.zeros(len(given.pos), dtype=np.int64)
        paths: list[Path] = []
        late = []
        worth = (
            (nodes, own)
            for nodes, own in _parts(edges, probability, len(given.pos), self.min_probability)
            if self._can_gain(len(own) < len(nodes), edge_gain[own], node_gain[nodes], end_cost[nodes])
        )
        for nodes, own in _together(worth, SMALL):
            place[nodes] = np.arange(len(nodes))
            ends = place[edges[:, own]]
            pairs = meeting_pairs(given.pos[nodes], ends, bend_cost=self.bend_cost, jitter=JITTER * self.scale)
            again = np.maximum(self.crossing_cost, -node_gain[nodes])[pairs.node]
            # or it would end and begin anew
            pairs = pairs.where(pairs.cost <= 2 * end_cost[nodes[pairs.node]] + again)
            edge, pair, optimal = best_paths(
                ends,
                pairs,
                edge_gain[own],
                node_gain[nodes],
                end_cost=end_cost[nodes],
                crossing_cost=self.crossing_cost,
                seconds=deadline - time.monotonic(),
            )
            late += [] if optimal else [len(nodes)]
            number, pairs = np.cumsum(edge) - 1, pairs.where(pair)
            paths += [(nodes[path], ring) for path, ring in trace(ends[:, edge], pairs.node, number[pairs.edges])]
        if late:
            self._warn(f"before {len(late)} parts of the graph, of up to {max(late)} nodes, were solved")
        return paths

    def _can_gain(self, no_ring: bool, edge_gain: Floats, node_gain: Floats, end_cost: Floats) -> bool:
        """Whether all that speaks for a connected part outweighs two ends, which any path in it has that is no ring."""
        hope = np.maximum(edge_gain, 0).sum() + np.maximum(node_gain, 0).sum()
        return bool(hope > (2 * end_cost.min() if no_ring else 0))

    def _gain(self, probability: Floats) -> Floats:
        return _log_odds(np.maximum(probability, self.min_probability))

    def _not_swallowed(self, given: Scored, paths: list[Path]) -> list[Path]:
        if not paths:
            return paths
        stay = not_swallowed(given.pos, paths, near(given.pos, paths, self.scale / 2), SWALLOWED)
        return [paths[k] for k in stay]

    def _with_neighbours(self, given: Scored, paths: list[Path]) -> list[_Joined]:
        """With the positive nodes beside them."""
        if not paths:
            return []
        paths = [(from_the_first(nodes, closed), closed) for nodes, closed in paths]
        around = near(given.pos, paths, self.scale / 2).where(given.node_probability > POSITIVE)
        bounds = np.searchsorted(around.path, np.arange(len(paths) + 1))
        parts = [slice(a, b) for a, b in pairwise(bounds)]
        return [
            (*join(given.pos, path, around.node[part], around.along[part]), path[1])
            for path, part in zip(paths, parts, strict=True)
        ]

    def _not_doubtful(self, given: Scored, filaments: list[_Joined]) -> list[_Joined]:
        """Those whose nodes are about as probable as positive nodes are on the mean."""
        p = given.node_probability
        least = self.min_relative_probability * (p**2).sum()
        return [one for one in filaments if p[one[0]].mean() * p.sum() >= least]

    def _warn(self, what: str) -> None:
        warnings.warn(
            f"time_limit: {self.time_limit:g} s passed {what}; the filaments are the best found by then. "
            "Raise time_limit, or raise min_probability for fewer candidates",
            InputWarning,
            stacklevel=4,
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in vars(self).items())})"


def _log_odds(probability: Floats) -> Floats:
    odds: Floats = logit(np.clip(probability, SURE, 1 - SURE))
    return odds


def _parts(edges: Ints, probability: Floats, num_nodes: int, least: float) -> Iterator[tuple[Ints, Ints]]:
    """Nodes and edges of every connected component that has an edge, ascending.

    From large ones edges below twice ``least`` go, until they fall apart or what is left is probable.
    """
    todo = [(np.arange(edges.shape[1]), least)]
    while todo:
        some, least = todo.pop()
        ends, ones = edges[:, some], np.ones(len(some), dtype=np.int8)
        joined = sp.csr_array((ones, (ends[0], ends[1])), shape=(num_nodes,) * 2)
        count, part = connected_components(joined, directed=False)
        of_edge = part[ends[0]]
        nodes, own = np.argsort(part, kind="stable"), np.argsort(of_edge, kind="stable")
        node_bounds = np.searchsorted(part[nodes], np.arange(count + 1))
        edge_bounds = np.searchsorted(of_edge[own], np.arange(count + 1))
        for k in np.flatnonzero(np.diff(edge_bounds)):
            inside = some[own[edge_bounds[k] : edge_bounds[k + 1]]]
            if node_bounds[k + 1] - node_bounds[k] > LARGE and least < PROBABLE:
                todo.append((inside[probability[inside] >= 2 * least], 2 * least))
            else:
                yield nodes[node_bounds[k] : node_bounds[k + 1]], inside


def _together(parts: Iterable[tuple[Ints, Ints]], least: int) -> Iterator[tuple[Ints, Ints]]:
    """Parts, the numbers (any,) of their nodes and of their edges, in groups of ``least`` nodes or more."""
    some: list[tuple[Ints, Ints]] = []
    for part in parts:
        some.append(part)
        if sum(len(nodes) for nodes, _ in some) >= least:
            yield np.concatenate([nodes for nodes, _ in some]), np.concatenate([own for _, own in some])
            some = []
    if some:
        yield np.concatenate([nodes for nodes, _ in some]), np.concatenate([own for _, own in some])
