"""Where filaments run, how wide they are, and which nodes lie on them."""

from collections.abc import Iterator, Sequence
from math import pi
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from scipy import ndimage
from scipy.spatial import KDTree

from grace_lightning.graph import Floats
from grace_lightning.raster import Bools, Ints
from grace_lightning.scenes.kinds import Kind, Range, log_uniform
from grace_lightning.simulate import STEP, in_image, normals, polar, resampled

SHORTEST, SHARPEST = 6.0, 2.5
"""Least length of a filament in the image, and least radius of its bends."""


class Body(NamedTuple):
    """A filament as it lies in the image."""

    line: Floats  # (P, 2) pixels, its centre line, points STEP apart
    width: Floats  # (P,) pixels
    strength: Floats  # (P,) contrast, about 1


def lay_bodies(size: tuple[int, int], scale: float, kind: Kind, rng: Generator) -> Iterator[Body]:
    """Draw where filaments run, single, in bundles and fanning out, until they cover as much as they are to."""
    covered, wanted = 0.0, log_uniform(kind.density, rng) * size[0] * size[1]
    radius, fading = log_uniform(kind.radius, rng), rng.uniform(0, 0.35)
    hub, fan = anywhere(size, rng), rng.integers(3, 12) if rng.random() < kind.p_hub else 0
    common = rng.uniform(0, 2 * pi) if not fan and rng.random() < kind.p_aligned else None
    tapers = rng.random() < kind.taper
    taper = rng.uniform(0.2, 0.7) if tapers else 0.0
    for k in range(200):
        lines = [wandering(size, scale, kind.length, radius, common, hub if k < fan else None, rng)]
        if rng.random() < kind.p_bundle:
            side = rng.choice([-1, 1])
            for n in range(1, 1 + rng.integers(1, 4)):
                lines.append(_alongside(lines[0], side * n * scale * rng.uniform(1.0, 1.5), rng))
        for line in lines:
            line = _stretch(line, size)
            if len(line) * STEP < SHORTEST * scale:
                continue
            along = np.linspace(-1, 1, len(line)) * rng.choice([-1, 1])
            width = scale * np.exp(kind.spread * _bounded(rng)) * (1 - taper * (along + 1) / 2)
            width = np.maximum(width * (1 + 0.06 * slow(len(line), 10 * scale, rng)), 2.0)
            strength = np.exp(fading * rng.normal()) * np.clip(1 + fading * slow(len(line), 15 * scale, rng), 0.3, 2)
            covered += float(width.sum()) * STEP
            yield Body(line, width, strength)
        if covered >= wanted:
            return


def _bounded(rng: Generator) -> float:
    """Draw a number of about mean 0 and standard deviation 1, but at most 2 from 0."""
    return float(np.clip(rng.normal(), -2, 2))


def slow(count: int, wave: float, rng: Generator) -> Floats:
    """Draw a curve of ``count`` points that changes over ``wave`` pixels, of standard deviation 1 or less."""
    knots = rng.normal(size=max(4, int(count * STEP / wave) + 4))
    return np.asarray(ndimage.map_coordinates(knots, [np.linspace(1, len(knots) - 2, count)], order=3))


def wandering(
    size: tuple[int, int],
    scale: float,
    lengths: Range,
    radius: float,
    common: float | None,
    hub: Floats | None,
    rng: Generator,
) -> Floats:
    """Draw a line of random length whose curvature changes slowly: (P, 2) pixels, from ``hub`` if there is one."""
    length = min(scale * log_uniform(lengths, rng), 2.0 * max(size))
    count = max(8, int(length / STEP))
    own = max(SHARPEST, radius * np.exp(rng.normal(0, 0.5)))
    wave = min(rng.uniform(4, 25), 2.5 * own)  # bends back before it is a ring
    curvature = np.clip(slow(count, scale * wave, rng) / own, -1 / SHARPEST, 1 / SHARPEST) / scale
    heading = rng.uniform(0, 2 * pi) if common is None else common + rng.normal(0, 0.25)
    line = np.cumsum(STEP * polar(1.0, heading + np.cumsum(STEP * curvature)), axis=0)
    if hub is not None:
        return np.asarray(line + hub + rng.normal(0, scale, 2))
    return np.asarray(line - line[rng.integers(count)] + anywhere(size, rng))


def _alongside(line: Floats, offset: float, rng: Generator) -> Floats:
    """Draw a line beside a stretch of another, which leaves it at one or both ends."""
    first, last = rng.uniform(0, 0.4), rng.uniform(0.6, 1)
    part = line[int(first * len(line)) : max(int(last * len(line)), int(first * len(line)) + 8)]
    along = np.linspace(-1, 1, len(part))
    opening = rng.uniform(0, 0.3, 2) * (rng.random(2) < 0.6)
    away = opening[0] * np.clip(along - 0.3, 0, None) ** 2 + opening[1] * np.clip(-along - 0.3, 0, None) ** 2
    away *= STEP * len(part) / 2
    return resampled(part + (offset + np.sign(offset) * away)[:, None] * normals(part))


def _stretch(line: Floats, size: tuple[int, int]) -> Floats:
    """Return the longest stretch of a line inside the image, and a little beyond."""
    inside = np.concatenate([[False], in_image(line, size), [False]])
    borders = np.flatnonzero(np.diff(inside)).reshape(-1, 2)
    if not len(borders):
        return line[:0]
    start, end = borders[np.diff(borders)[:, 0].argmax()]
    return line[max(0, start - 20) : end + 20]


def half_width(width: Floats) -> Floats:
    """Return how far from its centre line a filament's annotation reaches, at least two pixels.

    That is a little beyond its rim: the ridges of a hollow filament are its walls.
    """
    return np.asarray(np.maximum(0.6 * width, 2.0))


def distance(bodies: Sequence[Body], points: Floats) -> Floats:
    """Return the distance of points (N, 2) from the nearest centre line, pixels."""
    lines = np.concatenate([np.full((1, 2), 1e9), *(body.line for body in bodies)])
    return np.asarray(KDTree(lines).query(points)[0])


def members(bodies: Sequence[Body], pos: Floats, positive: Bools) -> dict[str, Ints]:
    """Return the nodes of each filament by its number: positive ones inside of it."""
    members = {}
    for number, body in enumerate(bodies, start=1):
        away, point = KDTree(body.line).query(pos)
        members[str(number)] = np.flatnonzero(positive & (away <= half_width(body.width[point])))
    return members


def anywhere(size: tuple[int, int], rng: Generator) -> Floats:
    """Draw a place in the image of ``size`` (H, W), not at its very border: (2,) pixels, x and y."""
    return np.asarray((0.05 + 0.9 * rng.random(2)) * size[::-1])
