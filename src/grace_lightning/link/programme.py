"""Filaments by an integer programme."""

import time
import warnings
from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components
from scipy.special import logit

from grace_lightning.errors import InputWarning
from grace_lightning.graph import Floats, Ints, adjacency
from grace_lightning.link.detections import Detections, Linker, Path, expect
from grace_lightning.link.paths import beside, path_length, with_nodes_beside, without_doubles, without_overlaps
from grace_lightning.link.reconnect import reconnect
from grace_lightning.link.solve import best_paths
from grace_lightning.raster import Bools

# Costs and gains are log-odds, lengths filament widths. What concerns learned ends and counts was chosen on photographs
# of roots, linked by networks that had not seen them; figures are F1 on the scenes of benchmarks/link.py, now .82.

# The most that one edge or node speaks for a path: between filaments that touch, every edge looks positive.
MAX_EDGE_GAIN = 1.5  # .82 at .5 and at 1, .80 at 2.5, .78 without
MAX_NODE_GAIN = 2.0  # .80 at 1, .81 at 3 and without
JITTER = 0.5  # between edges of this length a bend costs half as much, it may be the detector's; .81 at 1
# If the probability p of an end is known, it costs END_WEIGHT (END_PRIOR - logit p), within END_COSTS.
END_WEIGHT, END_PRIOR, END_COSTS = 2.0, 1.0, (1.0, 6.0)
SHARE_COST = 0.05  # of a further filament along one width: above 0, so that none is invented; .82 from 0 to 1
# If the probability p of a further filament is known, it costs SHARE_WEIGHT (SHARE_PRIOR - logit p) along one width.
# One that is right four times of ten gains F1, so the prior is logit .4. With .2, and ends of up to 7, recall was .1
# below precision.
SHARE_WEIGHT, SHARE_PRIOR = 0.4, -0.4
MOST = 3  # filaments through one node if nothing is known of them, as the heads of a network tell
OVERLAP = 0.35  # ends of a path as near to a longer one go: a thick filament carries two rows of points; .80 at .2
DOUBLE = 0.85  # share of a path's nodes beside longer paths, from which on it is no filament of its own; .82 at 1
POSITIVE = 0.5  # a node of a higher probability joins a path that it lies beside
# Connected parts of more than LARGE nodes lose their edges below twice the least probability, until they fall apart or
# it reaches PROBABLE, so that the time grows with the number of nodes.
LARGE, PROBABLE = 2000, 0.2
FIRST = 0.75  # part of the time for the first programme; without any for the second, filaments stay in pieces
SMALL = 300  # nodes; connected parts are solved together until they have as many, since every call takes its time
MOST_VALUE = 1e6  # of all parameters but ``time_limit``
SURE = 1e-6  # probabilities nearer to 0 or 1 are taken for this, since their log-odds have to be finite


@dataclass(frozen=True)
class Programme(Linker):
    r"""Filaments that explain the probabilities best, by integer programming.

    First, the set of paths through the graph is found that maximises

    .. math::

        \sum_e g_e x_e + \sum_v g_v z_v - \sum_{v, \{e, f\}} b_{ef} y_{ef} - t \, \#\text{ends} - \sum_v k_v c_v

    where x = 1 for an edge that is taken, y = 1 for two edges of which one goes on in the other at a node, z = 1 for a
    node that is passed and c = 1 for one that a second filament passes too. An edge goes on in at most one other at
    each of its ends, or ends there; a path without ends is closed.

    ===========  ==================================================================================================
    g_e, g_v     log-odds of the edge's and the node's probability, at most ``MAX_EDGE_GAIN`` and ``MAX_NODE_GAIN``
    b_ef         ``bend_cost`` tan^2(bend / 2) / (1 + blur), the bend in [0, 180) degrees; blur is the mean of
                 (half a filament's width / length)^2 of the two edges, as jitter turns short edges most
    t            ``end_cost``, or what the probability of an end says
    k_v          ``crossing_cost``, or -g_v if that is more: an improbable node is no cheaper the second time
    ===========  ==================================================================================================

    This is solved exactly for each connected component of the edges above ``min_probability``.

    Second, paths are cut where their course over two widths turns, and the pieces and all ends up to ``max_gap`` apart
    are joined as it costs least, so that filaments go straight on through crossings and across gaps: see
    :func:`grace_lightning.link.reconnect.reconnect`.

    Last, probable nodes within half a width of a path join it. Short filaments go, and those whose nodes are less
    probable than those of others: if a network takes the edge of a support film for a filament, it is in doubt all
    along it. Raises InputError if a parameter is out of its range.

    Parameters
    ----------
    scale : width of a filament, pixels
    end_cost : log-odds, of each of the two ends of a filament; it does not count if probabilities of ends are given,
        see ``END_WEIGHT`` in this module
    bend_cost : log-odds, of a right angle between two edges that are long against the jitter of the detections
    turn_cost : log-odds, of a right angle in the course of a path
    crossing_cost : log-odds, of a second filament through a node
    min_probability : edges below it are left out; nodes below it count as if they had it
    max_gap : filament widths between ends that may be joined; 0 for ends at one node only
    min_length : filament widths; shorter paths go
    min_relative_probability : least mean probability of a filament's nodes, as a part of the mean that positive nodes
        are expected to have, which is sum p^2 / sum p over the image
    min_filament_probability : least mean probability of a filament's nodes, whatever else is in the image
    time_limit : seconds for the whole graph; if they pass, a warning says so and the best found by then is returned
    """

    scale: float = 20.0
    end_cost: float = 4.0
    bend_cost: float = 30.0
    turn_cost: float = 40.0
    crossing_cost: float = 0.3
    min_probability: float = 0.05
    max_gap: float = 4.0
    min_length: float = 3.0
    min_relative_probability: float = 0.9
    min_filament_probability: float = 0.0
    time_limit: float = 60.0

    def __post_init__(self) -> None:
        above_0 = "scale", "bend_cost", "turn_cost", "min_probability", "time_limit"
        for name, value in vars(self).items():
            if name in above_0:
                expect(name, value, "more than 0", value > 0)
            expect(name, value, "0 or more", value >= 0)
            expect(name, value, f"at most {MOST_VALUE:,g}", value <= MOST_VALUE or name == "time_limit")
        expect("min_probability", self.min_probability, "less than 1", self.min_probability < 1)
        for name in ("min_relative_probability", "min_filament_probability"):
            expect(name, getattr(self, name), "0 to 1", getattr(self, name) <= 1)

    def link(self, given: Detections) -> list[tuple[Path, Ints]]:
        xy, p, start = given.pos, given.node_probability, time.monotonic()
        end_cost = np.full(len(xy), self.end_cost)
        if given.end_probability is not None:
            end_cost = np.clip(END_PRIOR - END_WEIGHT * _log_odds(given.end_probability), *END_COSTS)
        share_cost = np.full((len(xy), MOST - 1), SHARE_COST)
        if given.further_probability is not None:
            share_cost = SHARE_WEIGHT * (SHARE_PRIOR - _log_odds(given.further_probability))

        paths = self._paths(given, end_cost, start + FIRST * self.time_limit)
        paths = without_overlaps(xy, paths, OVERLAP * self.scale)
        paths = without_doubles(xy, paths, self.scale / 2, DOUBLE)
        deadline = start + self.time_limit
        paths, optimal = reconnect(
            xy, paths, end_cost, share_cost, deadline, scale=self.scale, turn_cost=self.turn_cost, max_gap=self.max_gap
        )
        if not optimal:
            self._warn(f"before the best way to join {len(paths)} paths was found")

        paths = [path.directed() for path in paths if path_length(xy, path) >= self.min_length * self.scale]
        members = [
            with_nodes_beside(xy, path, node[p[node] > POSITIVE], along[p[node] > POSITIVE])
            for path, (node, along) in zip(paths, beside(xy, paths, self.scale / 2), strict=True)
        ]
        expected = (p**2).sum() / max(p.sum(), SURE)  # of a positive node
        least = max(self.min_relative_probability * expected, self.min_filament_probability)
        return [(path, own) for path, own in zip(paths, members, strict=True) if p[own].mean() >= least]

    def _paths(self, given: Detections, end_cost: Floats, deadline: float) -> list[Path]:
        """Return the paths of the integer programme."""
        plausible, part = _plausible(given, self.min_probability)
        edges, of_edge, count = given.edges[:, plausible], part[given.edges[0, plausible]], part.max(initial=-1) + 1
        edge_gain = np.minimum(_log_odds(given.edge_probability[plausible]), MAX_EDGE_GAIN)
        node_gain = np.minimum(_log_odds(np.maximum(given.node_probability, self.min_probability)), MAX_NODE_GAIN)

        # A part is left out if all that speaks for it does not outweigh the two ends of any path that is no ring.
        for_edges, for_nodes = np.maximum(edge_gain, 0), np.maximum(node_gain, 0)
        hope = np.bincount(of_edge, for_edges, count) + np.bincount(part, for_nodes, count)
        size, num_edges, least_end = np.bincount(part), np.bincount(of_edge, minlength=count), np.full(count, inf)
        np.minimum.at(least_end, part, end_cost)
        hopeful = (num_edges > 0) & (hope > np.where(num_edges < size, 2 * least_end, 0))
        group = np.where(hopeful, (np.cumsum(hopeful * size) - hopeful * size) // SMALL, -1)

        place = np.zeros(len(given.pos), dtype=np.int64)
        paths: dict[int, list[Path]] = {}
        late: list[int] = []
        edge_group = group[of_edge]
        groups, sizes = np.unique(edge_group[edge_group >= 0], return_counts=True)
        for k in groups[np.argsort(sizes, kind="stable")].tolist():  # the largest last, if time runs out
            nodes, own = np.flatnonzero(group[part] == k), edge_group == k
            place[nodes] = np.arange(len(nodes))
            found, optimal = best_paths(
                given.pos[nodes],
                place[edges[:, own]],
                edge_gain[own],
                node_gain[nodes],
                end_cost[nodes],
                deadline,
                bend_cost=self.bend_cost,
                crossing_cost=self.crossing_cost,
                jitter=JITTER * self.scale,
            )
            late += [] if optimal else [len(nodes)]
            paths[k] = [Path(nodes[path.nodes], path.closed) for path in found]
        if late:
            self._warn(f"before {len(late)} parts of the graph, of up to {max(late)} nodes, were solved")
        return [path for k in sorted(paths) for path in paths[k]]

    def _warn(self, what: str) -> None:
        remedy = "Raise time_limit, or raise min_probability for fewer candidates"
        message = f"time_limit: {self.time_limit:g} s passed {what}; the filaments are the best found by then. "
        warnings.warn(message + remedy, InputWarning, stacklevel=4)


def _log_odds(probability: Floats) -> Floats:
    odds: Floats = logit(np.clip(probability, SURE, 1 - SURE))
    return odds


def _plausible(given: Detections, least: float) -> tuple[Bools, NDArray[np.integer]]:
    """Return which edges (E,) may be taken, and the connected part of each node (N,)."""
    plausible = given.edge_probability >= least
    while True:
        _, part = connected_components(adjacency(given.edges[:, plausible], len(given.pos)), directed=False)
        in_large = np.bincount(part)[part[given.edges[0]]] > LARGE
        least *= 2
        if least >= 2 * PROBABLE or not in_large.any():
            return plausible, part
        plausible &= ~in_large | (given.edge_probability >= least)
