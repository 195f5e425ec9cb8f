"""Paths are cut where they turn and where others end beside them, and the pieces are put together anew."""

from itertools import pairwise

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial import KDTree

from grace_lightning.graph import Floats, Ints
from grace_lightning.link.detections import Path
from grace_lightning.link.paths import arc_lengths, chains
from grace_lightning.link.solve import most_probable_passes, tan_half_squared

# Lengths are filament widths, costs log-odds, turns tan^2(turn / 2). Figures are F1 on the scenes of benchmarks/link.py
# (now .82). Where there are none, the choice counts only if ends or bundles are learned; it was made on roots.

LEVER = 2.0  # length over which a course is measured; .85 at 1, .83 at 1.5, .80 at 3
ASTRAY = 1.0  # length at an end that its course leaves out, since crossings lead paths astray; .83 at 0, .81 at 2
TOUCH = 1.0  # distance of the end of another path within which a path is cut; .83 at .5, .82 at 2
TURN = 0.04  # 23 degrees: sharper turns are cut, to be undone if nothing straighter is there; .82 at .02, .84 at .08
SHARP = 1.0  # a right angle: cuts at sharper turns are not undone; .82 at .5 and without
LIKELY = 2.0  # cuts are not undone at an end that costs less, so that it is probable
UNCUT = 1e-3  # gained if a cut is undone: anything above 0, so that it is better than to leave it
GAP_COST = 0.25  # of a gap of one width, growing with its square; .81 at .1 and at .5
RING = 8.0  # least length of a piece whose ends may be joined: shorter rings are clumps of detections; .82 at 4 and 16
SMOOTH = 1.0  # length to either side over which it is judged whether a further filament is probable; nodes are noisy
ONE_ENDS = 0.1  # as bad as such a turn: of two filaments through a piece, one ends where the other goes on


def reconnect(
    pos: Floats,
    paths: list[Path],
    end_cost: Floats,
    share_cost: Floats,
    deadline: float,
    *,
    scale: float,
    turn_cost: float,
    max_gap: float,
) -> tuple[list[Path], bool]:
    """Cut paths, and let filaments pass all pieces as it costs least.

    The first programme sees bends between neighbouring edges only, so it may take two filaments that cross for two that
    touch and part again, leave one of them in two pieces, and put one path where several share their detections. Here
    the course over several widths counts. One filament or several pass each piece; each goes on in one other piece at
    each end, as straight as it can, or ends there. The costs are

    ============  ==================================================================================================
    end           ``end_cost`` (N,) of its node, less inside another filament (see :func:`most_probable_passes`)
    joint         ``turn_cost`` times the sum of tan^2(turn / 2) from the course of the one piece to the line across
                  the gap, and from there to the course of the other, plus ``GAP_COST`` times the square of the gap
    further       the mean ``share_cost`` (N, K) of the nodes times the length of the piece, for a second, a third,
                  ... filament through it; negative if it is probable
    ============  ==================================================================================================

    Paths are cut where their course turns, where other paths end beside them, and where a further filament begins to
    cost or to gain. A cut costs nothing to undo, unless it is at a sharp turn or at a probable end.

    ``scale``, the width of a filament, is in pixels, ``max_gap`` between ends that may be joined in widths, costs are
    log-odds. Returns the paths, and whether it is sure that there is no cheaper way.
    """
    if all(path.closed for path in paths):  # nothing ends beside them
        return paths, True
    pieces, rings, cuts = _cut(pos, paths, share_cost, scale)
    ends = Ends(pos, pieces, scale)
    cost_of_end = end_cost[np.array([p[0] for p in pieces] + [p[-1] for p in pieces])]
    joints, joint_cost = _joints(ends, cost_of_end, cuts, scale, turn_cost, max_gap)
    further = np.stack([share_cost[piece].mean(axis=0) for piece in pieces]) * (ends.length / scale)[:, None]
    passes, taken, optimal = most_probable_passes(joints, joint_cost, cost_of_end, further, deadline)
    strands, joined = _strands(ends, passes, np.repeat(joints, taken, axis=1))
    nodes = _trimmed(pos, [pieces[k] for k in strands], strands, joined, ends, scale)
    return rings + [_in_a_row(nodes, order, ring) for order, ring in chains(len(strands), joined)], optimal


def _cut(pos: Floats, paths: list[Path], share_cost: Floats, scale: float) -> tuple[list[Ints], list[Path], Ints]:
    """Return pieces of paths, rings that are not cut, and the pairs of ends (2, any) that were one place before."""
    pieces: list[Ints] = []
    rings: list[Path] = []
    cuts: list[tuple[int, int]] = []
    for path, touches in zip(paths, _touches(pos, paths, scale), strict=True):
        nodes, closed = path
        arc = arc_lengths(pos[nodes])
        if not closed:
            at = np.concatenate([touches, _changes(share_cost[nodes], arc, scale)])
            at = at[(arc[at] > scale) & (arc[-1] - arc[at] > scale)]
            # Turns first: if a path is cut a few nodes beside its turn, the turn stays within a piece.
            at = _apart(np.concatenate([_turns(pos[nodes], scale), at]), arc, scale)
            bounds = [0, *at.tolist(), len(nodes) - 1]
        elif len(touches):  # opened at its first cut, which is then the first and the last node
            at = _apart(touches, arc, scale)
            nodes, bounds = np.append(np.roll(nodes, -at[0]), nodes[at[0]]), [*(at - at[0]).tolist(), len(nodes)]
        else:
            rings.append(path)
            continue
        new = range(len(pieces), len(pieces) + len(bounds) - 1)
        cuts += list(pairwise(new)) + ([(new[-1], new[0])] if closed else [])
        pieces += [nodes[a : b + 1] for a, b in pairwise(bounds)]
    # The end of one piece, the beginning of the next.
    ends = np.array(cuts, dtype=np.int64).reshape(-1, 2).T + np.array([[len(pieces)], [0]])
    return pieces, rings, np.sort(ends, axis=0)


def _turns(points: Floats, scale: float) -> Ints:
    """Return where the course of an open path turns most."""
    arc = arc_lengths(points)
    behind, ahead = (_along(points, arc, arc + way * LEVER * scale) for way in (-1, 1))
    bend = tan_half_squared(points - behind, ahead - points)
    bend[(arc < scale) | (arc[-1] - arc < scale)] = 0
    sharpest_first = np.argsort(-bend, kind="stable")[: np.count_nonzero(bend > TURN)]
    return _apart(sharpest_first, arc, LEVER * scale)  # nearer ones see the same turn


def _changes(share_cost: Floats, arc: Floats, scale: float) -> Ints:
    """Return where along an open path a further filament begins to cost or to gain."""
    total = np.concatenate([np.zeros((1, share_cost.shape[1])), np.cumsum(share_cost, axis=0)])
    low = np.searchsorted(arc, arc - SMOOTH * scale)
    high = np.searchsorted(arc, arc + SMOOTH * scale, side="right")
    gains = total[high] < total[low]
    return np.flatnonzero((gains[1:] != gains[:-1]).any(axis=1))


def _touches(pos: Floats, paths: list[Path], scale: float) -> list[Ints]:
    """Return for each path the places in it beside which another path ends, ascending."""
    sizes = np.array([len(path.nodes) for path in paths])
    owner, first = np.repeat(np.arange(len(paths)), sizes), np.cumsum(sizes) - sizes
    is_open = np.array([not path.closed for path in paths])
    points = pos[np.concatenate([path.nodes for path in paths])]
    tip = np.concatenate([first[is_open], (first + sizes - 1)[is_open]])
    near = KDTree(points[tip]).sparse_distance_matrix(KDTree(points), TOUCH * scale, output_type="ndarray")
    tip, hit = tip[near["i"]], near["j"]
    tip, hit = (k[owner[hit] != owner[tip]] for k in (tip, hit))
    order = np.lexsort((hit, np.hypot(*(points[hit] - points[tip]).T)))
    # Of all places in one path near one tip, the nearest.
    nearest = order[np.unique((tip * len(paths) + owner[hit])[order], return_index=True)[1]]
    found = np.unique(hit[nearest])
    return np.split(found - first[owner[found]], np.searchsorted(owner[found], np.arange(1, len(paths))))


def _apart(at: Ints, arc: Floats, distance: float) -> Ints:
    """Return the places in a path that are more than ``distance`` from all that come before them, ascending."""
    kept = at[:0]
    for k in at:
        if (np.abs(arc[kept] - arc[k]) > distance).all():
            kept = np.append(kept, k)
    return np.sort(kept)


class Ends:
    """Ends of pieces: ``tip``, ``middle`` of the course, ``course`` outwards, (2 P, 2); ``length`` (P,); pixels."""

    def __init__(self, pos: Floats, pieces: list[Ints], scale: float) -> None:
        points = [pos[piece] for piece in pieces] + [pos[piece[::-1]] for piece in pieces]
        arcs = [arc_lengths(p) for p in points]
        skips = [min(ASTRAY * scale, arc[-1] / 4) for arc in arcs]
        inner, further = (
            np.stack([_along(p, arc, np.array(skip + lever)) for p, arc, skip in zip(points, arcs, skips, strict=True)])
            for lever in (0.0, LEVER * scale)
        )
        self.tip, self.middle, self.course = np.stack([p[0] for p in points]), (inner + further) / 2, inner - further
        self.length = np.array([arc[-1] for arc in arcs[: len(pieces)]])

    def turn(self, one: Ints, other: Ints) -> Floats:
        """Return the sum of tan^2(turn / 2) on the ways from some ends to others.

        The line across is drawn between the middles of the courses, so that a step aside counts as two turns.
        """
        across = self.middle[other] - self.middle[one]
        return tan_half_squared(self.course[one], across) + tan_half_squared(across, -self.course[other])


def _joints(
    ends: Ends, end_cost: Floats, cuts: Ints, scale: float, turn_cost: float, max_gap: float
) -> tuple[Ints, Floats]:
    """Return the pairs of ends (2, J) that cost less if they are joined, and what that costs (J,)."""
    count = len(ends.length)
    near = KDTree(ends.tip).query_pairs(max_gap * scale, output_type="ndarray").astype(np.int64).reshape(-1, 2).T
    pairs = np.unique(np.concatenate([np.sort(near, axis=0), cuts], axis=1), axis=1)
    own = pairs[1] - pairs[0] == count
    one, other = pairs = pairs[:, ~own | (ends.length[pairs[0] % count] >= RING * scale)]
    turn = ends.turn(one, other)
    gap = np.hypot(*(ends.tip[other] - ends.tip[one]).T) / scale
    cost, both = turn_cost * turn + GAP_COST * gap**2, end_cost[one] + end_cost[other]
    undone = np.isin(one * 2 * count + other, cuts[0] * 2 * count + cuts[1]) & (turn <= SHARP)
    undone &= (end_cost[pairs] > LIKELY).all(axis=0)
    cost = np.where(undone, np.minimum(cost, both - UNCUT), cost)
    return pairs[:, cost < both], cost[cost < both]


def _strands(ends: Ends, passes: Ints, joined: Ints) -> tuple[Ints, Ints]:
    """Take each piece as often as filaments pass it: return the pieces (S,) of these strands, and their joined ends.

    ``joined`` (2, any) are ends of pieces, one column for each filament; returned are ends of strands, k and S + k.
    """
    count, total = len(passes), int(passes.sum())
    first = np.cumsum(passes) - passes
    end, far = joined.reshape(-1), joined[::-1].reshape(-1)
    order = np.argsort(end, kind="stable")
    start = np.searchsorted(end[order], np.arange(2 * count + 1))
    slot = np.empty_like(end)  # of each joined end, which of the strands of its piece it belongs to
    slot[order] = np.arange(len(end)) - start[end[order]]
    # If several filaments pass a piece, those that come from before it are matched with those that go on after it.
    for k in np.flatnonzero(passes > 1):
        before, after = (order[start[e] : start[e + 1]] for e in (k, count + k))
        turn = np.full((passes[k], passes[k]), ONE_ENDS)
        through = np.ix_(np.arange(len(before)), np.arange(len(after)))
        one, other = np.meshgrid(far[before], far[after], indexing="ij")
        turn[through] = np.minimum(ends.turn(one, other), 1 / UNCUT)  # the assignment takes no infinite costs
        mine, theirs = linear_sum_assignment(turn)
        slot[after] = mine[np.argsort(theirs)][: len(after)]
    strand = first[end % count] + slot
    return np.repeat(np.arange(count), passes), (strand + total * (end >= count)).reshape(2, -1)


def _trimmed(pos: Floats, nodes: list[Ints], strands: Ints, joined: Ints, ends: Ends, scale: float) -> list[Ints]:
    """Cut off the nodes of strands at joints that a crossing led astray: half a width off the line across."""
    count, total = len(ends.length), len(strands)
    of_piece = strands[joined % total] + count * (joined >= total)
    across = ends.middle[of_piece[1]] - ends.middle[of_piece[0]]
    across /= np.maximum(np.hypot(*across.T), 1e-9)[:, None]
    trimmed = list(nodes)
    apart = (ends.tip[of_piece[0]] != ends.tip[of_piece[1]]).any(axis=1)  # an undone cut has nothing to trim
    cut = joined[:, apart].ravel(), of_piece[:, apart].ravel(), np.tile(across[apart], (2, 1))
    for strand_end, end, (x, y) in zip(*cut, strict=True):
        strand, way = strand_end % total, 1 if strand_end < total else -1
        inwards = nodes[strand][::way]
        arc = arc_lengths(pos[inwards])
        away = pos[inwards] - ends.middle[end]
        off = (arc < min(ASTRAY * scale, arc[-1] / 4)) & (np.abs(away[:, 0] * y - away[:, 1] * x) > scale / 2)
        gone = np.flatnonzero(off).max(initial=-1) + 1
        trimmed[strand] = trimmed[strand][::way][gone:][::way]
    return trimmed


def _in_a_row(strands: list[Ints], ends: Ints, ring: bool) -> Path:
    """Return the path along a chain of strands' ends; a node that ends one and begins the next comes once."""
    count = len(strands)
    nodes = np.concatenate([strands[e % count][:: 1 if e < count else -1] for e in ends[::2]])
    return Path(nodes[np.append(not ring or nodes[0] != nodes[-1], nodes[1:] != nodes[:-1])], ring)


def _along(points: Floats, arc: Floats, where: Floats) -> Floats:
    return np.stack([np.interp(where, arc, points[:, axis]) for axis in (0, 1)], axis=-1)
