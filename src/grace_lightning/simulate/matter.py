"""Density in the beam: filaments, contamination and carbon film, drawn on a canvas."""

from __future__ import annotations

from math import ceil, pi

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree
from torch import Generator

from grace_lightning.simulate.draws import Floats, Image, between, uniform
from grace_lightning.simulate.shapes import STEP, normals, polar

MARGIN = 32  # pixels of canvas beyond each border

STRANDS = 0.22, 0.16  # their distance from the axis and their standard deviation, filament widths
SUBUNITS, SUBUNIT_DEPTH = 4, 0.2  # subunits a texture period, and how far the density rises and falls with them


def filament_density(along: Floats, across: Floats, width: float, period: float) -> Floats:
    """Two strands of subunits, wound around each other, in a round body with a soft rim; all in pixels."""
    phase, distance = pi * along / period, across / width
    away, sigma = STRANDS
    strands = sum(np.exp(-(((distance - s * away * np.cos(phase)) / sigma) ** 2) / 2) for s in (1, -1))
    subunits = 1 + SUBUNIT_DEPTH * np.cos(2 * SUBUNITS * phase)
    body = np.sqrt(np.clip(1 - (2 * distance) ** 2, 0, None))
    density: Floats = (strands * subunits + 0.5 * body) / (1 + np.exp(2 * np.abs(across) - width))
    return density


def draw_filament(
    canvas: Image,
    numbers: NDArray[np.int32],
    line: Floats,
    number: int,
    *,
    width: float,
    period: float,
    strength: float,
    generator: Generator,
) -> None:
    """Add a filament's density to ``canvas``, and write its number into ``numbers``, over those drawn before."""
    pixels, along, across = _near(line, width / 2 + 2, canvas.shape)
    start = between(0, 2 * period, generator)
    canvas[pixels] += strength * filament_density(start + along, across, width, period)
    body = np.abs(across) <= width / 2
    numbers[pixels[0][body], pixels[1][body]] = number


def _near(
    line: Floats, reach: float, shape: tuple[int, ...]
) -> tuple[tuple[NDArray[np.int64], NDArray[np.int64]], Floats, Floats]:
    """Pixels of a canvas to either side of a line: rows and columns, and how far along and (signed) across they lie."""
    normal = normals(line)
    offsets = np.arange(-reach, reach + 0.7, 0.7)  # so close that no pixel is left out
    column, row = np.rint(MARGIN + line + offsets[:, None, None] * normal).astype(np.int64).reshape(-1, 2).T
    inside = (row >= 0) & (row < shape[0]) & (column >= 0) & (column < shape[1])
    row, column = np.divmod(np.unique(row[inside] * shape[1] + column[inside]), shape[1])
    places = np.stack([column, row], axis=1) - MARGIN
    point = KDTree(line).query(places)[1]
    (x, y), (across_x, across_y) = (places - line[point]).T, normal[point].T
    return (row, column), STEP * point + x * across_y - y * across_x, x * across_x + y * across_y


def draw_blob(canvas: Image, centre: Floats, *, width: float, spacing: float, generator: Generator) -> Floats:
    """Add an ice crystal or dirt to ``canvas``; points just inside its rim, (any, 2), ``spacing`` pixels apart."""
    radius = width * np.exp(between(-1, 1.1, generator))
    density = between(2, 7, generator)
    waves = uniform(2, 5, generator=generator)
    (x, y), reach = centre + MARGIN, 2 * radius
    rows, columns = (
        slice(max(0, int(c - reach)), min(ceil(c + reach), s)) for c, s in zip((y, x), canvas.shape, strict=True)
    )
    dy, dx = np.ogrid[rows, columns]
    depth = radius * _outline(np.arctan2(dy - y, dx - x), waves) - np.hypot(dy - y, dx - x)
    canvas[rows, columns] += density * np.clip(depth / 3, 0, 1) * (0.6 + 0.4 * np.clip(depth / radius, 0, 1))
    angle = np.arange(0, 2 * pi, spacing / radius)
    return centre + polar(0.8 * radius * _outline(angle, waves), angle)


def _outline(angle: Floats, waves: Floats) -> Floats:
    """Distance of an irregular blob's rim from its middle, about 1; ``waves`` (2, any) are heights and phases."""
    order = np.arange(2, 2 + waves.shape[1])
    rim: Floats = 1 + (0.4 * waves[0] / order * np.cos(order * angle[..., None] + 2 * pi * waves[1])).sum(axis=-1)
    return rim


def carbon_film(
    size: tuple[int, int], shape: tuple[int, int], *, spacing: float, generator: Generator
) -> tuple[Image, Floats]:
    """The film around the round hole that most of the image lies in.

    Parameters
    ----------
    size : (H, W)
    shape : of the canvas

    Returns
    -------
    how much of each pixel of the canvas is film, and points on its edge, (any, 2), ``spacing`` pixels apart
    """
    turn, flat, cover = uniform(3, generator=generator)
    extent = np.array(size[::-1], dtype=np.float64)
    outwards = polar(1.0, np.array([2 * pi * turn]))[0]
    radius = (0.8 + flat) * extent.max()
    reach = (0.4 + 0.4 * cover) * np.abs(outwards) @ extent / 2  # from the image's middle to the edge
    centre = extent / 2 + (reach - radius) * outwards
    x, y = ((np.arange(s) - c - MARGIN).astype(np.float32) for s, c in zip(shape[::-1], centre, strict=True))
    film: Image = np.clip((np.hypot(y[:, None], x) - np.float32(radius)) / 4, 0, 1)
    return film, centre + polar(radius, np.arange(0, 2 * pi, spacing / radius))
