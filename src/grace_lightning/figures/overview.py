"""All of a micrograph's filaments at a glance, drawn fast and without knowing the truth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from grace_lightning.figures.micrographs import MAX_PIXELS, contrast

COLOURS = (
    *("#ff5050", "#ffd92f", "#4dd964", "#40c4ff", "#ff9f1c", "#ee82ff"),
    *("#00e5c3", "#c6ff3c", "#ff8fc0", "#9aa8ff", "#ffc999", "#ffffff"),
)
"""Of filaments: told from each other, and bright enough for a grey micrograph."""

BACKGROUND = 16
"""Means along the longer side that make up what is taken for background where filaments are drawn."""

BLUR = 1.2
"""Pixels of the picture, deviation of the Gaussian that takes noise away there."""

FAR_APART = 2000
"""Points, at most, of all filaments together, by which it is found which ones come near each other."""


def thumbnail(image: Tensor) -> Tensor:
    """The image with its longer side reduced to :data:`MAX_PIXELS` by averaging, which shows what noise would hide.

    Parameters
    ----------
    image : (1, H, W) float32

    Returns
    -------
    (1, h, w) float32; a small image stays as it is
    """
    return _averaged(image, min(1.0, MAX_PIXELS / max(image.shape)))


def overview(image: Tensor, size: Sequence[int], paths: Sequence[NDArray[Any]], closed: Sequence[bool]) -> Figure:
    """The micrograph, its contrast stretched, under what was found; filaments near each other differ in colour.

    Parameters
    ----------
    image : (1, h, w) float32, of any resolution, see :func:`thumbnail`
    size : rows and columns of the micrograph, pixels
    paths : per filament (P, 2) pixels of the micrograph
    closed : per filament, whether its last point is joined to its first
    """
    height, width = size
    scale = MAX_PIXELS / max(size) / 100
    figure = Figure(figsize=(max(width * scale, 0.01), max(height * scale, 0.01)), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    image = _without_background(image)
    low, high = contrast(image)
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    high = max(high, low + 1e-6)
    axes.imshow(image[0].numpy(), cmap="gray", vmin=low, vmax=high, extent=extent, interpolation="nearest")
    lines = [np.concatenate([p, p[:1]]) if ring else p for p, ring in zip(paths, closed, strict=True)]
    axes.add_collection(LineCollection(lines, colors="black", linewidths=3.2, alpha=0.5, capstyle="round"))
    axes.add_collection(LineCollection(lines, colors=_distinct(paths), linewidths=1.6, capstyle="round"))
    axes.set(xlim=extent[:2], ylim=extent[2:])
    return figure


def _averaged(image: Tensor, factor: float) -> Tensor:
    """The image reduced by ``factor``, to a pixel at least."""
    height, width = (max(1, round(side * factor)) for side in image.shape[1:])
    return adaptive_avg_pool2d(image, (height, width))


def _without_background(image: Tensor) -> Tensor:
    """Less uneven illumination and noise, which have more contrast than filaments and would leave these no greys."""
    means = _averaged(image, BACKGROUND / max(image.shape))
    background = interpolate(means[None], size=image.shape[1:], mode="bicubic", align_corners=False)[0]
    return torch.from_numpy(gaussian_filter((image - background).numpy(), (0, BLUR, BLUR), truncate=3))


def _distinct(paths: Sequence[NDArray[Any]]) -> list[str]:
    """A colour per path: one that none has yet or, once there is none, the one whose bearers are farthest away."""
    if not paths:
        return []
    every = max(1, sum(map(len, paths)) // FAR_APART)
    parts = [np.asarray(path, dtype=np.float32)[::every] for path in paths]
    points, start = np.concatenate(parts), np.cumsum([0, *map(len, parts)])
    chosen: list[int] = []
    for part in parts:
        gap = np.full(len(COLOURS), np.inf)
        if chosen:
            before = points[: start[len(chosen)]]
            apart = np.sqrt(((part[:, None] - before) ** 2).sum(-1)).min(0)
            np.minimum.at(gap, chosen, np.minimum.reduceat(apart, start[: len(chosen)]))
        chosen.append(int(gap.argmax()))
    return [COLOURS[k] for k in chosen]
