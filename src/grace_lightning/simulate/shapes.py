"""Centre lines: the shapes of filaments, and where in an image they run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, pi

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator

from grace_lightning.graph import inside_image
from grace_lightning.simulate.draws import Floats, between, uniform

STEP = 0.5  # pixels between points of a centre line
SHARPEST_BEND = 4.0  # radius of curvature, filament widths


def polar(radius: Floats | float, angle: Floats) -> Floats:
    """(any, 2) points around the origin."""
    points: Floats = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return points


def _line(side: float, width: float, generator: Generator) -> Floats:
    return np.array([[0, 0], [side * between(0.4, 1.2, generator), 0]])


def _curve(side: float, width: float, generator: Generator) -> Floats:
    """A wandering line: its direction is a sum of slow waves, tempered where it would bend too sharply."""
    length = side * between(0.4, 1.2, generator)
    order = np.arange(1, 6)
    height, phase = (4 * uniform(5, generator=generator) - 2) / order, 2 * pi * uniform(5, generator=generator)
    wave = pi * np.arange(0, length, STEP)[:, None] / length * order + phase
    bend = np.abs(np.sin(wave) @ (height * order)).max() * pi / length
    direction = np.cos(wave) @ height * min(1.0, 1 / (bend * SHARPEST_BEND * width))
    return np.cumsum(STEP * polar(1.0, direction), axis=0)


def _circle(side: float, width: float, generator: Generator) -> Floats:
    radius = max(SHARPEST_BEND * width, side * between(0.05, 0.18, generator))
    return polar(radius, np.linspace(0, 2 * pi, ceil(2 * pi * radius / STEP)))


def _spiral(side: float, width: float, generator: Generator) -> Floats:
    pitch = max(1.5 * width, side * between(0.03, 0.07, generator))
    angle = np.arange(0, 2 * pi * between(1.2, 3, generator), 0.01)
    return polar(SHARPEST_BEND / 2 * width + pitch * angle / (2 * pi), angle)


# Polylines, (any, 2) pixels, for an image's shorter side and a filament's width.
SHAPES: dict[str, Callable[[float, float, Generator], Floats]] = {
    "line": _line,
    "curve": _curve,
    "circle": _circle,
    "spiral": _spiral,
}


def normals(line: Floats) -> Floats:
    """(P, 2) unit vectors across a line."""
    x, y = np.gradient(line, axis=0).T
    across: Floats = np.stack([-y, x], axis=1) / np.hypot(x, y)[:, None]
    return across


def lay_lines(
    size: tuple[int, int],
    width: float,
    *,
    count: int,
    shapes: Sequence[str],
    p_touching: float,
    generator: Generator,
) -> list[Floats]:
    """Where the filaments run: of each shape, the longest stretch in the image and a little beyond.

    Parameters
    ----------
    size : (H, W)
    width : of a filament, pixels
    count : of filaments
    shapes : keys of :data:`SHAPES`, each equally likely
    p_touching : probability that a line runs along the one before it, unless that one does so itself

    Returns
    -------
    per filament (P, 2)
    """
    lines: list[Floats] = []
    beyond = ceil(2 * width / STEP)
    alone = False  # the line before lies beside no other: bundles of more would bend too sharply inside
    for touching in uniform(count, generator=generator) < p_touching:
        line = _alongside(lines[-1], width, generator) if touching and alone else np.zeros((0, 2))
        alone = not _in_image(line, size).any()
        if alone:
            line = _anywhere(size, width, shapes, generator)
        start, end = _longest_run(_in_image(line, size))
        lines.append(line[max(0, start - beyond) : end + beyond])
    return lines


def _anywhere(size: tuple[int, int], width: float, shapes: Sequence[str], generator: Generator) -> Floats:
    """A line of some shape, turned by any angle; at least one of its points lies in the image."""
    shape, turn, point = uniform(3, generator=generator)
    sine, cosine = np.sin(2 * pi * turn), np.cos(2 * pi * turn)
    polyline = SHAPES[shapes[int(shape * len(shapes))]](min(size), width, generator)
    line = _resampled(polyline @ np.array([[cosine, sine], [-sine, cosine]]))
    anchor = (0.1 + 0.8 * uniform(2, generator=generator)) * size[::-1]
    moved: Floats = line - line[int(point * len(line))] + anchor
    return moved


def _alongside(line: Floats, width: float, generator: Generator) -> Floats:
    """A line beside a stretch of another, so close that the two filaments touch."""
    first, last, side, gap = uniform(4, generator=generator)
    stretch = slice(int(0.3 * first * len(line)), ceil((1 - 0.3 * last) * len(line)))
    offset = width * (1 + 0.15 * gap) * (1 if side < 0.5 else -1)
    return _resampled((line + offset * normals(line))[stretch])


def _resampled(polyline: Floats) -> Floats:
    arc = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(polyline, axis=0).T))])
    steps = np.arange(0, arc[-1], STEP)
    return np.stack([np.interp(steps, arc, polyline[:, axis]) for axis in (0, 1)], axis=1)


def _in_image(points: Floats, size: tuple[int, int]) -> NDArray[np.bool_]:
    inside: NDArray[np.bool_] = inside_image(torch.from_numpy(points), size).numpy()
    return inside


def _longest_run(inside: NDArray[np.bool_]) -> tuple[int, int]:
    change = np.flatnonzero(np.diff(inside, prepend=False, append=False))
    starts, ends = change[::2], change[1::2]
    longest = int(np.argmax(ends - starts))
    return int(starts[longest]), int(ends[longest])
