"""Paths cut where their course turns sharply, and put together where it goes on straight.

The programme sees bends between neighbouring edges, so that two filaments that cross may be taken for two that touch
and part again, each turning over a few detections; and where a crossing leaves one of the two no edge, that one is in
two pieces. The course of a path over several widths tells.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import scipy.sparse as sp
from scipy.optimize import LinearConstraint
from scipy.spatial import KDTree

from grace_lightning.link.beside import Path, arc_lengths
from grace_lightning.link.filaments import Bools, Floats, Ints
from grace_lightning.link.solve import best, tan_half_squared
from grace_lightning.link.trace import chains

# Filament widths: over which a course is measured, and how much of an end, where a crossing leads astray, is left out.
LEVER, ASTRAY = 2.0, 1.0
TURN = 0.04  # tan^2 of half a turn of 23 degrees: sharper ones are cut, to be undone if nothing straighter is there
SHARP = 0.5  # the same of 70 degrees: sharper ones stay cut
RING = 8.0  # filament widths of a path at least, whose ends may be joined
UNCUT = 1e-3  # log-odds, gained where a cut is undone


def reconnect(
    pos: Floats,
    paths: list[Path],
    *,
    scale: float,
    end_cost: float,
    turn_cost: float,
    gap_cost: float,
    max_gap: float,
    seconds: float,
) -> tuple[list[Path], bool]:
    """Open paths cut at their turns, and all ends joined as it costs least; closed paths stay.

    Of all ways to join each end to one other at most, the one that gains most: two ends saved, less ``turn_cost``
    times the sum of tan^2(turn / 2) from the one's course to the line across the gap and from there to the other's,
    less ``gap_cost`` times the square of the gap. A cut is undone where neither end is joined to another, unless the
    turn is sharp. Where two pieces are joined, nodes near the ends and more than half a width off the line go.

    Parameters
    ----------
    pos : (N, 2) float64, pixels
    scale : width of a filament, pixels
    end_cost, turn_cost, gap_cost : log-odds
    max_gap : filament widths, between ends that may be joined
    seconds : to find the best way

    Returns
    -------
    the paths, and whether it is sure that there is no better way
    """
    pieces: list[Ints] = []
    before: list[tuple[int, int]] = []  # ends that were one place before the cut
    for nodes, closed in paths:
        if closed:
            continue
        at, bend = _turns(pos[nodes], scale)
        before += [(len(pieces) + k, len(pieces) + k + 1) for k in np.flatnonzero(bend <= SHARP).tolist()]
        bounds = [0, *at.tolist(), len(nodes) - 1]
        pieces += [nodes[a : b + 1] for a, b in pairwise(bounds)]
    rings = [path for path in paths if path[1]]
    if not pieces:
        return rings, True

    count = len(pieces)
    ends = _ends(pos, pieces, scale)
    pairs, cost = _joints(ends, scale, turn_cost, gap_cost, max_gap)
    uncut = np.array(before, dtype=np.int64).reshape(-1, 2).T + np.array([[count], [0]])
    pairs = np.concatenate([uncut, pairs], axis=1)
    gain = np.concatenate([np.full(uncut.shape[1], UNCUT), 2 * end_cost - cost])
    pairs, gain = pairs[:, gain > 0], gain[gain > 0]
    taken, optimal = _matching(pairs, gain, 2 * count, seconds)
    if not optimal and not taken.any():
        return paths, False
    pairs = pairs[:, taken]
    pieces = _trimmed(pos, pieces, pairs, ends, scale)
    return rings + [(_put_together(pieces, order, ring), ring) for order, ring in chains(count, pairs)], optimal


def _turns(points: Floats, scale: float) -> tuple[Ints, Floats]:
    """Where the course of an open path turns most, and tan^2(turn / 2) of each turn."""
    arc = arc_lengths(points)
    behind, ahead = (_along(points, arc, arc + way * LEVER * scale) for way in (-1, 1))
    bend = tan_half_squared(points - behind, ahead - points)
    bend[(arc < scale) | (arc[-1] - arc < scale)] = 0
    found: list[int] = []
    for k in np.argsort(-bend, kind="stable")[: np.count_nonzero(bend > TURN)]:
        if (np.abs(arc[found] - arc[k]) > LEVER * scale).all():
            found.append(int(k))
    at = np.sort(np.array(found, dtype=np.int64))
    return at, bend[at]


@dataclass(frozen=True)
class _Ends:
    """Ends of pieces: end k of piece k, and ``count + k``.

    Parameters
    ----------
    tip, middle, course : (any, 2) pixels; where an end is, its course outwards, and the middle of that
    length : (any,) pixels, of its piece
    """

    tip: Floats
    middle: Floats
    course: Floats
    length: Floats


def _ends(pos: Floats, pieces: list[Ints], scale: float) -> _Ends:
    points = [pos[piece] for piece in pieces] + [pos[piece[::-1]] for piece in pieces]
    arcs = [arc_lengths(p) for p in points]
    skips = [min(ASTRAY * scale, arc[-1] / 4) for arc in arcs]
    inner, further = (
        np.stack([_along(p, arc, np.array(skip + lever)) for p, arc, skip in zip(points, arcs, skips, strict=True)])
        for lever in (0.0, LEVER * scale)
    )
    return _Ends(
        np.stack([p[0] for p in points]), (inner + further) / 2, inner - further, np.array([arc[-1] for arc in arcs])
    )


def _joints(ends: _Ends, scale: float, turn_cost: float, gap_cost: float, max_gap: float) -> tuple[Ints, Floats]:
    """Pairs of ends near each other (2, any), and what it costs to join them."""
    count = len(ends.tip) // 2
    pairs = KDTree(ends.tip).query_pairs(max_gap * scale, output_type="ndarray").astype(np.int64).reshape(-1, 2).T
    pairs = np.sort(pairs, axis=0)
    pairs = pairs[:, np.lexsort(pairs[::-1])]
    one, other = pairs[:, (pairs[1] - pairs[0] != count) | (ends.length[pairs[0] % count] >= RING * scale)]
    across = ends.middle[other] - ends.middle[one]
    turn = tan_half_squared(ends.course[one], across) + tan_half_squared(across, -ends.course[other])
    gap = np.hypot(*(ends.tip[other] - ends.tip[one]).T) / scale
    return np.stack([one, other]), turn_cost * turn + gap_cost * gap**2


def _matching(pairs: Ints, gain: Floats, num_ends: int, seconds: float) -> tuple[Bools, bool]:
    if not len(gain):
        return np.zeros(0, dtype=bool), True
    column = np.tile(np.arange(len(gain)), 2)
    ends = sp.csc_array((np.ones(len(column)), (pairs.reshape(-1), column)), shape=(num_ends, len(gain)))
    return best(gain, np.ones(len(gain), dtype=np.int64), [LinearConstraint(ends, -np.inf, 1)], seconds)


def _trimmed(pos: Floats, pieces: list[Ints], pairs: Ints, ends: _Ends, scale: float) -> list[Ints]:
    """The pieces without the nodes that a crossing led astray."""
    count = len(pieces)
    across = ends.middle[pairs[1]] - ends.middle[pairs[0]]
    across /= np.maximum(np.hypot(*across.T), 1e-9)[:, None]
    trimmed = list(pieces)
    apart = (ends.tip[pairs[0]] != ends.tip[pairs[1]]).any(axis=1)
    for pair, (x, y) in zip(pairs.T[apart].tolist(), across[apart], strict=True):
        for end in pair:
            piece = pieces[end % count][:: 1 if end < count else -1]
            away = pos[piece] - ends.middle[end]
            astray = arc_lengths(pos[piece]) < min(ASTRAY * scale, arc_lengths(pos[piece])[-1] / 4)
            off = np.flatnonzero(astray & (np.abs(away[:, 0] * y - away[:, 1] * x) > scale / 2))
            if len(off):
                gone = piece[: off[-1] + 1]
                own = trimmed[end % count]
                trimmed[end % count] = own[len(gone) :] if end < count else own[: -len(gone)]
    return trimmed


def _put_together(pieces: list[Ints], ends: Ints, ring: bool) -> Ints:
    count = len(pieces)
    nodes: Ints = np.concatenate([pieces[e % count][:: 1 if e < count else -1] for e in ends[::2]])
    new = np.append(not ring or nodes[0] != nodes[-1], nodes[1:] != nodes[:-1])
    whole: Ints = nodes[new]
    return whole


def _along(points: Floats, arc: Floats, where: Floats) -> Floats:
    return np.stack([np.interp(where, arc, points[:, axis]) for axis in (0, 1)], axis=-1)
