"""From positions to pixels: which pixel a point lies on, and which pixels a line covers."""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
T = TypeVar("T", bound=np.generic)


def values_at(image: NDArray[T], points: Floats) -> NDArray[T]:
    """Return the value of an image (H, W) under each point (..., 2), x and y; the nearest pixel beyond the border."""
    last = np.array(image.shape[::-1]) - 1
    column, row = np.moveaxis(np.clip(np.floor(points + 0.5).astype(np.int64), 0, last), -1, 0)
    values: NDArray[T] = image[row, column]
    return values


def covered_lines(inside: Bools, start: Floats, end: Floats) -> Bools:
    """Return which of the lines from ``start`` to ``end`` (K, 2) lie on pixels that are inside (H, W) only: (K,).

    Lines are sampled every half pixel.
    """
    samples = np.ceil(2 * np.hypot(*(end - start).T)).astype(np.int64) + 1
    line = np.repeat(np.arange(len(samples)), samples)
    along = np.arange(len(line)) - (np.cumsum(samples) - samples)[line]
    fraction = along / np.maximum(samples - 1, 1)[line]
    between = values_at(inside, start[line] + fraction[:, None] * (end - start)[line])
    covered = np.ones(len(samples), dtype=bool)
    covered[line[~between]] = False
    return covered


def dense(line: Floats, step: float = 1.0) -> Floats:
    """Return points at most ``step`` apart, equally far from each other, along a line (P, 2): (any, 2) float64."""
    points = np.asarray(line, dtype=np.float64)
    arc = np.append(0.0, np.cumsum(np.hypot(*np.diff(points, axis=0).T)))
    at = np.linspace(0, arc[-1], int(np.ceil(arc[-1] / step)) + 1)
    return np.column_stack([np.interp(at, arc, points[:, k]) for k in (0, 1)])


def draw_path(path: Floats, brush: float, shape: tuple[int, int], *, closed: bool = False) -> Ints:
    """Return the pixels whose centres lie within half the brush of a path: a line with round ends and bends.

    The path is cut into pieces of about the brush's width, and distances are taken in a window around each, so that
    time and memory grow with the area that is drawn, not with the image or with the path's bounding box.

    The path is (P, 2) pixels, P 1 or more; if it is ``closed``, the last point is joined to the first. Returned are
    flat numbers, (any,) int64, ascending, of pixels of an image of ``shape`` (H, W).
    """
    points = np.asarray(path, dtype=np.float64)
    starts, ends = (points, np.roll(points, -1, axis=0)) if closed else (points[:-1], points[1:])
    if len(points) == 1:
        starts = ends = points
    piece, radius = max(brush, 8.0), brush / 2
    count = np.maximum(np.ceil(np.hypot(*(ends - starts).T) / piece), 1).astype(np.int64)
    segment = np.repeat(np.arange(len(count)), count)
    at = (np.arange(len(segment)) - (np.cumsum(count) - count)[segment])[:, None]
    step = ((ends - starts) / count[:, None])[segment]
    start = starts[segment] + at * step

    # A window holds one piece, whichever way it points, and the brush around it.
    side = int(np.ceil(piece + brush)) + 1
    corner = np.ceil(np.minimum(start, start + step) - radius).astype(np.int64)
    x, y = (corner[:, k, None] + np.arange(side) for k in (0, 1))  # (S, side) columns and rows
    away_x, away_y = x[:, None, :] - start[:, 0, None, None], y[:, :, None] - start[:, 1, None, None]
    step_x, step_y = step[:, 0, None, None], step[:, 1, None, None]
    squared = np.maximum((step**2).sum(axis=1), 1e-12)[:, None, None]
    along = np.clip((away_x * step_x + away_y * step_y) / squared, 0, 1)
    near = (away_x - along * step_x) ** 2 + (away_y - along * step_y) ** 2 <= radius**2
    near &= ((y >= 0) & (y < shape[0]))[:, :, None] & ((x >= 0) & (x < shape[1]))[:, None, :]
    flat: Ints = np.sort((y[:, :, None] * shape[1] + x[:, None, :])[near])
    return flat[np.diff(flat, prepend=-1) > 0]  # np.unique takes five times as long
