"""Paths cut at their turns and where others meet them, and the pieces put together as it costs least.

The programme sees bends between neighbouring edges, so that two filaments that cross may be taken for two that touch
and part again, each turning over a few detections; where a crossing leaves one of the two no edge, that one is in two
pieces; and where filaments come so close that they share their detections, one path is found for both. The course of a
path over several widths tells.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial import KDTree

from grace_lightning.link.beside import Path, arc_lengths
from grace_lightning.link.filaments import Floats, Ints
from grace_lightning.link.solve import most_probable_passes, tan_half_squared
from grace_lightning.link.trace import chains

# Filament widths: over which a course is measured, and how much of an end, where a crossing leads astray, is left out.
LEVER, ASTRAY = 2.0, 1.0
TOUCH = 1.0  # filament widths: where another path ends as near to a path, that one is cut
TURN = 0.04  # tan^2 of half a turn of 23 degrees: sharper ones are cut, to be undone if nothing straighter is there
SHARP = 1.0  # the same of a right angle: sharper ones stay cut
RING = 8.0  # filament widths of a piece at least, whose ends may be joined
UNCUT = 1e-3  # log-odds, gained where a cut is undone
LIKELY = 2.0  # log-odds: where an end costs less, a cut is not undone at a turn
SMOOTH = 1.0  # filament widths to either side, over which it is judged whether a further filament is probable
ONE_ENDS = 0.1  # as if it were tan^2(turn / 2), where of two filaments through a piece one ends at it


def reconnect(
    pos: Floats,
    paths: list[Path],
    *,
    scale: float,
    end_cost: Floats,
    turn_cost: float,
    gap_cost: float,
    share_cost: Floats,
    max_gap: float,
    seconds: float,
) -> tuple[list[Path], bool]:
    """Paths cut, and all pieces passed by filaments as it costs least.

    Every piece is passed by one filament or by several; each goes on in one other piece at each end, or ends there. Of
    all ways, the one that costs least: of every end its cost, of every joint ``turn_cost`` times the sum of
    tan^2(turn / 2) from the one's course to the line across the gap and from there to the other's, and ``gap_cost``
    times the square of the gap, of every filament but the first through a piece the mean of its nodes' ``share_cost``
    times its length. Paths are also cut where a further filament begins to cost or to gain. A cut at a turn is undone
    where neither end is joined to another, unless the turn is sharp. Of filaments that share a piece, those before it
    go on in those after it as straight as they can. Where two pieces are joined, nodes near the ends and more than half
    a width off the line go.

    Parameters
    ----------
    pos : (N, 2) float64, pixels
    scale : width of a filament, pixels
    end_cost : (N,) float64, log-odds, of an end at a node
    turn_cost, gap_cost : log-odds; the second for one filament width
    share_cost : (N, K) float64, log-odds, of a second, a third, ... filament along one filament width of a path;
        negative where it is probable
    max_gap : filament widths, between ends that may be joined
    seconds : to find the best way

    Returns
    -------
    the paths, and whether it is sure that there is no better way
    """
    pieces, rings, cuts = _cut(pos, paths, share_cost, scale)
    if not pieces:
        return rings, True
    ends = _ends(pos, pieces, scale)
    of_end = end_cost[np.array([p[0] for p in pieces] + [p[-1] for p in pieces])]
    joints = _joints(ends, of_end, cuts, scale, turn_cost=turn_cost, gap_cost=gap_cost, max_gap=max_gap)
    sharing = np.stack([share_cost[piece].mean(axis=0) for piece in pieces]) * (ends.length / scale)[:, None]
    passes, taken, optimal = most_probable_passes(joints.pairs, joints.cost, of_end, sharing, seconds)
    strands, joined = _strands(ends, passes, joints.pairs[:, np.repeat(np.arange(len(taken)), taken)])
    several = _trimmed(pos, [pieces[k] for k in strands], strands, joined, ends, scale)
    return rings + [
        (_put_together(several, order, ring), ring) for order, ring in chains(len(strands), joined)
    ], optimal


# ---- cutting --------------------------------------------------------------------------------------------------------


def _cut(pos: Floats, paths: list[Path], share_cost: Floats, scale: float) -> tuple[list[Ints], list[Path], Ints]:
    """Pieces of paths, rings that are not cut, and the pairs of ends (2, any) that were one place before."""
    pieces: list[Ints] = []
    rings: list[Path] = []
    cuts: list[tuple[int, int]] = []
    touched = _touches(pos, paths, scale)
    for (nodes, closed), touches in zip(paths, touched, strict=True):
        points = pos[nodes]
        arc = arc_lengths(points)
        none = touches[:0]
        turns, changes = (none, none) if closed else (_turns(points, scale), _changes(share_cost[nodes], arc, scale))
        at = _apart(np.concatenate([turns, touches, changes]), arc, scale)
        if closed and not len(at):
            rings.append((nodes, True))
            continue
        whole = np.append(np.roll(nodes, -at[0]), nodes[at[0]]) if closed else nodes
        bounds = [*(at - at[0]).tolist(), len(nodes)] if closed else [0, *at.tolist(), len(nodes) - 1]
        new = range(len(pieces), len(pieces) + len(bounds) - 1)
        cuts += list(pairwise(new)) + ([(new[-1], new[0])] if closed else [])
        pieces += [whole[a : b + 1] for a, b in pairwise(bounds)]
    ends = np.array(cuts, dtype=np.int64).reshape(-1, 2).T + np.array([[len(pieces)], [0]])
    return pieces, rings, np.sort(ends, axis=0)


def _turns(points: Floats, scale: float) -> Ints:
    """Where the course of an open path turns most."""
    arc = arc_lengths(points)
    behind, ahead = (_along(points, arc, arc + way * LEVER * scale) for way in (-1, 1))
    bend = tan_half_squared(points - behind, ahead - points)
    bend[(arc < scale) | (arc[-1] - arc < scale)] = 0
    found: list[int] = []
    for k in np.argsort(-bend, kind="stable")[: np.count_nonzero(bend > TURN)]:
        if (np.abs(arc[found] - arc[k]) > LEVER * scale).all():
            found.append(int(k))
    return np.sort(np.array(found, dtype=np.int64))


def _changes(share_cost: Floats, arc: Floats, scale: float) -> Ints:
    """Where along an open path a further filament begins to cost or to gain."""
    total = np.concatenate([np.zeros((1, share_cost.shape[1])), np.cumsum(share_cost, axis=0)])
    low = np.searchsorted(arc, arc - SMOOTH * scale)
    high = np.searchsorted(arc, arc + SMOOTH * scale, side="right")
    gains = total[high] < total[low]
    return _inside(np.flatnonzero((gains[1:] != gains[:-1]).any(axis=1)), arc, scale)


def _touches(pos: Floats, paths: list[Path], scale: float) -> list[Ints]:
    """Of each path the vertices next to which another one ends, ascending."""
    sizes = np.array([len(nodes) for nodes, _ in paths], dtype=np.int64)
    owner, first = np.repeat(np.arange(len(paths)), sizes), np.cumsum(sizes) - sizes
    is_open = np.array([not closed for _, closed in paths], dtype=bool)
    if not is_open.any():
        return [np.zeros(0, dtype=np.int64) for _ in paths]
    vertices = pos[np.concatenate([nodes for nodes, _ in paths])]
    tip = np.concatenate([first[is_open], (first + sizes - 1)[is_open]])
    hits = KDTree(vertices).query_ball_point(vertices[tip], TOUCH * scale, return_sorted=True)
    tip = np.repeat(tip, [len(h) for h in hits])
    hit = np.concatenate([np.asarray(h, dtype=np.int64) for h in hits])
    away = np.hypot(*(vertices[hit] - vertices[tip]).T)
    rank = np.lexsort((hit, away, owner[hit], tip))
    rank = rank[owner[hit[rank]] != owner[tip[rank]]]
    nearest = np.ones(len(rank), dtype=bool)  # of the vertices of one path near one tip
    nearest[1:] = (tip[rank][1:] != tip[rank][:-1]) | (owner[hit[rank]][1:] != owner[hit[rank]][:-1])
    found = np.unique(hit[rank][nearest])
    parts = np.split(found - first[owner[found]], np.searchsorted(owner[found], np.arange(1, len(paths))))
    return [
        part if closed else _inside(part, arc_lengths(pos[nodes]), scale)
        for part, (nodes, closed) in zip(parts, paths, strict=True)
    ]


def _inside(at: Ints, arc: Floats, scale: float) -> Ints:
    inside: Ints = at[(arc[at] > scale) & (arc[-1] - arc[at] > scale)]
    return inside


def _apart(at: Ints, arc: Floats, scale: float) -> Ints:
    """Of vertices, the most important first, those more than a filament's width from all before; ascending."""
    kept: list[int] = []
    for k in at.tolist():
        if (np.abs(arc[kept] - arc[k]) > scale).all():
            kept.append(k)
    return np.sort(np.array(kept, dtype=np.int64))


# ---- joining --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Ends:
    """Ends of pieces: end k of piece k, and ``count + k``.

    Parameters
    ----------
    tip, middle, course : (2 count, 2) pixels; where an end is, its course outwards, and the middle of that
    length : (count,) pixels, of the pieces
    """

    tip: Floats
    middle: Floats
    course: Floats
    length: Floats

    def turn(self, one: Ints, other: Ints) -> Floats:
        """The sum of tan^2(turn / 2) on the way from each of some ends to another."""
        across = self.middle[other] - self.middle[one]
        return tan_half_squared(self.course[one], across) + tan_half_squared(across, -self.course[other])


@dataclass(frozen=True)
class _Joints:
    """Pairs of ends (2, J) that may be joined, and what that costs (J,)."""

    pairs: Ints
    cost: Floats


def _ends(pos: Floats, pieces: list[Ints], scale: float) -> _Ends:
    points = [pos[piece] for piece in pieces] + [pos[piece[::-1]] for piece in pieces]
    arcs = [arc_lengths(p) for p in points]
    skips = [min(ASTRAY * scale, arc[-1] / 4) for arc in arcs]
    inner, further = (
        np.stack([_along(p, arc, np.array(skip + lever)) for p, arc, skip in zip(points, arcs, skips, strict=True)])
        for lever in (0.0, LEVER * scale)
    )
    length = np.array([arc[-1] for arc in arcs[: len(pieces)]])
    return _Ends(np.stack([p[0] for p in points]), (inner + further) / 2, inner - further, length)


def _joints(
    ends: _Ends, end_cost: Floats, cuts: Ints, scale: float, *, turn_cost: float, gap_cost: float, max_gap: float
) -> _Joints:
    """Pairs of ends near each other that cost less when they are joined."""
    count = len(ends.length)
    near = KDTree(ends.tip).query_pairs(max_gap * scale, output_type="ndarray").astype(np.int64).reshape(-1, 2).T
    pairs = np.unique(np.concatenate([np.sort(near, axis=0), cuts], axis=1), axis=1)
    own = pairs[1] - pairs[0] == count
    one, other = pairs = pairs[:, ~own | (ends.length[pairs[0] % count] >= RING * scale)]
    turn = ends.turn(one, other)
    gap = np.hypot(*(ends.tip[other] - ends.tip[one]).T) / scale
    both = end_cost[one] + end_cost[other]
    cost = turn_cost * turn + gap_cost * gap**2
    undone = np.isin(one * 2 * count + other, cuts[0] * 2 * count + cuts[1]) & (turn <= SHARP)
    undone &= (end_cost[pairs] > LIKELY).all(axis=0)
    cost = np.where(undone, np.minimum(cost, both - UNCUT), cost)
    return _Joints(pairs[:, cost < both], cost[cost < both])


def _strands(ends: _Ends, passes: Ints, joined: Ints) -> tuple[Ints, Ints]:
    """Pieces, each as often as filaments pass it, and the pairs of their ends (2, any) that are joined.

    Parameters
    ----------
    passes : (count,), of each piece
    joined : (2, any) ends of pieces that are joined, one column for each filament
    """
    count, total = len(passes), int(passes.sum())
    first = np.cumsum(passes) - passes
    end, far = joined.reshape(-1), joined[::-1].reshape(-1)
    order = np.argsort(end, kind="stable")
    start = np.searchsorted(end[order], np.arange(2 * count + 1))
    slot = np.empty_like(end)  # which of the filaments through its piece each joined end belongs to
    slot[order] = np.arange(len(end)) - start[end[order]]
    for k in np.flatnonzero(passes > 1):
        before, after = (order[start[e] : start[e + 1]] for e in (k, count + k))
        turn = np.full((passes[k], passes[k]), ONE_ENDS)
        through = np.ix_(np.arange(len(before)), np.arange(len(after)))
        one, other = np.meshgrid(far[before], far[after], indexing="ij")
        turn[through] = np.minimum(ends.turn(one, other), 1 / UNCUT)
        mine, theirs = linear_sum_assignment(turn)
        slot[after] = mine[np.argsort(theirs)][: len(after)]
    strand = first[end % count] + slot
    return np.repeat(np.arange(count), passes), (strand + total * (end >= count)).reshape(2, -1)


def _trimmed(pos: Floats, several: list[Ints], strands: Ints, joined: Ints, ends: _Ends, scale: float) -> list[Ints]:
    """The strands (each of its piece) without the nodes that a crossing led astray."""
    count, total = len(ends.length), len(strands)
    of_piece = strands[joined % total] + count * (joined >= total)
    across = ends.middle[of_piece[1]] - ends.middle[of_piece[0]]
    across /= np.maximum(np.hypot(*across.T), 1e-9)[:, None]
    trimmed = list(several)
    apart = (ends.tip[of_piece[0]] != ends.tip[of_piece[1]]).any(axis=1)
    for pair, at, (x, y) in zip(joined.T[apart].tolist(), of_piece.T[apart].tolist(), across[apart], strict=True):
        for strand_end, end in zip(pair, at, strict=True):
            strand, first = strand_end % total, strand_end < total
            nodes = several[strand] if first else several[strand][::-1]
            arc = arc_lengths(pos[nodes])
            away = pos[nodes] - ends.middle[end]
            astray = arc < min(ASTRAY * scale, arc[-1] / 4)
            off = np.flatnonzero(astray & (np.abs(away[:, 0] * y - away[:, 1] * x) > scale / 2))
            gone = int(off[-1]) + 1 if len(off) else 0
            trimmed[strand] = trimmed[strand][gone:] if first else trimmed[strand][: len(trimmed[strand]) - gone]
    return trimmed


def _put_together(pieces: list[Ints], ends: Ints, ring: bool) -> Ints:
    count = len(pieces)
    nodes: Ints = np.concatenate([pieces[e % count][:: 1 if e < count else -1] for e in ends[::2]])
    new = np.append(not ring or nodes[0] != nodes[-1], nodes[1:] != nodes[:-1])
    whole: Ints = nodes[new]
    return whole


def _along(points: Floats, arc: Floats, where: Floats) -> Floats:
    return np.stack([np.interp(where, arc, points[:, axis]) for axis in (0, 1)], axis=-1)
